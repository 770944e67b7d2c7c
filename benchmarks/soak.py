"""An hour of faults: does anything in the daemon grow? `python -m benchmarks.soak [--minutes 60]`.

The real daemon backs up a simulated NVR, whose four cameras keep finishing clips, into the strict
double of Google Cloud Storage and into a folder, over links that can be broken. Once a minute
something goes wrong (`soak_faults.FAULTS`, in turn). Every ten seconds the kernel is asked for the
daemon's memory, files and threads, the daemon itself for its tasks (`soak_runner`), and the disk
for its checkpoint. In the end everything is mended, and the stores must hold exactly the simulated
NVR's clips, each once.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.measure import ENDING_SECONDS, MB, ROOT, Failed, server
from benchmarks.soak_faults import FAULTS
from benchmarks.tables import table
from tests.support.proxy import Break, TcpProxy

CAMERAS: Final = ("Porch", "Garden", "Garage", "Camera 4")
CLIP_EVERY_SECONDS: Final = 4.0
SIZES: Final = (150_000, 600_000, 1_500_000, 3_000_000)
"""Bytes of the clips, in turn: one request, and sessions of 2 to 6 chunks."""
MENDED_AFTER: Final = 0.4
"""A fault lasts for this part of the time until the next one."""
SAMPLE_SECONDS: Final = 10.0
CALM_LIMIT_SECONDS: Final = 1800.0
"""So long after the last fault everything must be stored; retries wait longer and longer."""
WARM_UP: Final = 0.25
"""This part of the run is left out of slopes: caches fill, pools reach their size."""
FLAT_RSS: Final = 0.03
"""Flat: the slope over the rest of the run makes at most this part of the memory in use."""
FLAT_COUNT: Final = 3.0
"""Flat: files, threads, tasks differ by no more between the second and the last quarter."""
LARGEST_LOG: Final = 8 * 1024**2
"""SQLite empties its log after 1000 pages (4 MiB), and while nobody reads in it."""
SECONDS_TO_START: Final = 60.0
CONTROL_SECONDS: Final = 30.0

CONFIG: Final = """\
state_dir = "{folder}/state"

[schedule]
every = "15s"
settle = "1s"
lookback = "2h"
backfill = "25h"

[transfer]
workers = {workers}
chunk_size = "512KiB"

[sources.nvr]
kind = "scrypted"
url = "{nvr}"
username = "backup"
password = "secret"

[stores.bucket]
kind = "gcs"
bucket = "footage"
endpoint = "{store}"
credentials_file = "{folder}/key.json"

[stores.folder]
kind = "directory"
path = "{folder}/footage"
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one moment; sizes in bytes, `minute` since the start."""

    minute: float
    rss: int
    files: int
    threads: int
    tasks: int
    database: int
    log: int
    stored: int
    waiting: int


@dataclass(slots=True)
class Soak:
    """A soak on its way: the stage of the faults, and what was seen."""

    folder: Path
    nvr_url: str
    store_url: str
    nvr_link: TcpProxy
    store_link: TcpProxy
    samples: list[Sample] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    breaks: list[tuple[str, Break]] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    recorded: int = 0
    pid: int = 0
    started: float = field(default_factory=time.monotonic)

    # -- what faults may do -------------------------------------------------------------------

    async def nvr(self, order: str, **body: Any) -> Any:
        """POST to the simulated NVR's control surface."""
        return await asyncio.to_thread(_call, f"{self.nvr_url}/_simulator/{order}", body)

    async def store(self, order: str, **body: Any) -> Any:
        """POST to the storage double's control surface."""
        return await asyncio.to_thread(_call, f"{self.store_url}/_double/{order}", body)

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        os.kill(self.pid, number)

    def configure(self, *, workers: int = 4, broken: bool = False) -> None:
        """Write the daemon's configuration again."""
        text = CONFIG.format(
            folder=self.folder,
            workers=workers,
            nvr=self.nvr_link.url(),
            store=self.store_link.url(),
        )
        path = self.folder / "config.toml"
        path.touch(mode=0o600)
        path.write_text(text + ("\nnonsense = true\n" if broken else ""), "utf-8")

    def unmount(self) -> None:
        """The folder store's folder is gone."""
        (self.folder / "footage").rename(self.folder / "elsewhere")

    def mount(self) -> None:
        """It is back."""
        (self.folder / "elsewhere").rename(self.folder / "footage")

    # -- what happens meanwhile ---------------------------------------------------------------

    async def record_clips(self) -> None:
        """The cameras, one after the other, finish a clip."""
        while True:
            camera = CAMERAS[self.recorded % len(CAMERAS)]
            turn = self.recorded // len(CAMERAS) + self.recorded
            with suppress(OSError):  # the recorder restarts: nothing is recorded meanwhile
                await self.nvr("clips", camera=camera, size=SIZES[turn % len(SIZES)], seconds=3)
                self.recorded += 1
            await asyncio.sleep(CLIP_EVERY_SECONDS)

    async def go_wrong(self, every_seconds: float) -> None:
        """One fault after the other."""
        number = 0
        while True:
            fault = FAULTS[number % len(FAULTS)]
            number += 1
            began = time.monotonic()
            await self._patiently(fault.begin)
            if fault.certain:
                self.begun.append(fault.name)
            _say(f"{self._minute():6.1f}  {fault.name}")
            try:
                await asyncio.sleep(MENDED_AFTER * every_seconds)
            finally:
                await self._patiently(fault.end)
            await asyncio.sleep(max(0.0, began + every_seconds - time.monotonic()))

    async def _patiently(self, act: Callable[[Soak], Any]) -> None:
        """The simulated NVR may be restarting just now."""
        for _ in range(20):
            try:
                await act(self)
            except OSError:
                await asyncio.sleep(0.5)
            else:
                return
        raise Failed("the simulated NVR or the store did not answer")

    async def watch(self) -> None:
        """A sample every ten seconds."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.samples.append(await asyncio.to_thread(self._sample))

    def _sample(self) -> Sample:
        process = Path("/proc") / str(self.pid)
        status = dict(
            line.split(":", 1) for line in (process / "status").read_text().splitlines() if line
        )
        database = self.folder / "state" / "checkpoint.sqlite3"
        log = database.with_name(f"{database.name}-wal")
        stored, others = _copies(database)
        return Sample(
            minute=self._minute(),
            rss=int(status["VmRSS"].split()[0]) * 1024,
            files=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            tasks=int((self.folder / "tasks").read_text() or 0),
            database=database.stat().st_size,
            log=log.stat().st_size,
            stored=stored,
            waiting=others,
        )

    def _minute(self) -> float:
        return (time.monotonic() - self.started) / 60

    # -- the end ------------------------------------------------------------------------------

    async def mend(self) -> None:
        """Nothing is wrong any more."""
        await self._patiently(lambda soak: soak.nvr("disarm"))
        await self._patiently(lambda soak: soak.nvr("release"))
        await self.store("release")
        self.struck.update(await asyncio.to_thread(self._struck))
        await asyncio.to_thread(_call, f"{self.store_url}/_double/faults", method="DELETE")
        self.configure()
        for _, entry in self.breaks:
            entry.times = entry.taken
        for proxy in (self.nvr_link, self.store_link):
            proxy.release()
            await proxy.accept()

    async def until_stored(self) -> float:
        """Wait until no copy is left; returns how many seconds that took."""
        began = time.monotonic()
        truth = len(await asyncio.to_thread(self._oracle, digests=False))
        database = self.folder / "state" / "checkpoint.sqlite3"
        while time.monotonic() - began < CALM_LIMIT_SECONDS:
            stored, others = await asyncio.to_thread(_copies, database)
            if not others and stored >= 2 * truth:
                return time.monotonic() - began
            await asyncio.sleep(2)
        raise Failed(f"{stored} copies stored and {others} not, of {2 * truth}")

    def _oracle(self, *, digests: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = _call(
            f"{self.nvr_url}/_simulator/oracle{'' if digests else '?digests=0'}"
        )
        return found

    def verify(self) -> int:
        """Every clip is in both stores, once, byte for byte; returns how many there are."""
        truth = Counter(entry["sha256"] for entry in self._oracle(digests=True))
        objects = Counter(entry["sha256"] for entry in _call(f"{self.store_url}/_double/objects"))
        footage = self.folder / "footage"
        files = Counter(
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in footage.rglob("*")
            if path.is_file() and not path.relative_to(footage).parts[0].startswith(".")
        )
        for name, held in (("the bucket", objects), ("the folder", files)):
            if held != truth:
                missing, strange = truth - held, held - truth
                raise Failed(f"{name}: {missing.total()} missing, {strange.total()} too many")
        return truth.total()

    def _struck(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for fault in _call(f"{self.store_url}/_double/faults"):
            found[f"store: {fault['what']} at {fault['where']}"] += fault["happened"]
        return found

    def happened(self) -> Counter[str]:
        """What really went wrong, and how often."""
        found = Counter(self.begun)
        for name, times in _call(f"{self.nvr_url}/_simulator/faults")["happened"].items():
            found[f"nvr: {name}"] += times
        found.update(self.struck)
        for name, entry in self.breaks:
            found[name] += entry.happened
        return +found


def _call(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """GET, or POST with a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=CONTROL_SECONDS) as answer:
        return json.loads(answer.read() or b"null")


def _copies(database: Path) -> tuple[int, int]:
    """Copies that are stored, and all others."""
    sql = "SELECT ifnull(sum(state = 'stored'), 0), ifnull(sum(state != 'stored'), 0) FROM copy"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as db:
        stored, others = db.execute(sql).fetchone()
    return stored, others


def _say(text: str) -> None:
    print(text, flush=True)


async def soak(minutes: float, every_seconds: float) -> str:
    """Run it; the report."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        (folder / "footage").mkdir()
        nvr = ["nvr_backup.simulator", "--cameras", str(len(CAMERAS)), "--clips", "3"]
        nvr += ["--digests", "none", "--clip-size", "1000000"]
        _, told = stack.enter_context(server(nvr))
        nvr_url = json.loads(told)["url"]
        double = ["tests.support.gcs_double", "--auth", "--keep", "digest"]
        _, store_url = stack.enter_context(server(double))
        key = await asyncio.to_thread(_call, f"{store_url}/_double/service-account", {})
        (folder / "key.json").touch(mode=0o600)
        (folder / "key.json").write_text(json.dumps(key))
        running = Soak(
            folder,
            nvr_url,
            store_url,
            nvr_link=await stack.enter_async_context(_link(nvr_url)),
            store_link=await stack.enter_async_context(_link(store_url)),
        )
        running.configure()
        daemon = _start(folder)
        running.pid = daemon.pid
        stack.callback(_end, daemon)
        await _until_started(daemon, folder)
        await _work(running, daemon, minutes=minutes, every_seconds=every_seconds)
        await running.mend()
        seconds = await running.until_stored()
        clips = await asyncio.to_thread(running.verify)
        happened = await asyncio.to_thread(running.happened)
        daemon.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(daemon.wait, 90)
        levels = Counter(
            json.loads(line)["level"]
            for line in (folder / "log").read_text("utf-8").splitlines()
            if line.startswith("{")
        )
    if code:
        raise Failed(f"the daemon ended with {code}")
    return _report(running.samples, happened, clips, seconds, levels)


def _link(url: str) -> TcpProxy:
    return TcpProxy("127.0.0.1", urlsplit(url).port or 0)


async def _work(
    running: Soak, daemon: subprocess.Popen[bytes], *, minutes: float, every_seconds: float
) -> None:
    """Let it go wrong for so long. Failed when the daemon ends."""
    async with asyncio.TaskGroup() as group:
        around = [
            group.create_task(running.record_clips()),
            group.create_task(running.go_wrong(every_seconds)),
            group.create_task(running.watch()),
        ]
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            await asyncio.sleep(1)
            if daemon.poll() is not None:
                raise Failed(f"the daemon ended:\n{_last(running.folder)}")
        for one in around:
            one.cancel()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "benchmarks.soak_runner"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*program, str(folder / "tasks"), "run", "--config", str(folder / "config.toml")],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


async def _until_started(daemon: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while "cycle finished" not in (folder / "log").read_text("utf-8"):
        if daemon.poll() is not None or time.monotonic() > until:
            raise Failed(f"the daemon did not get to work:\n{_last(folder)}")
        await asyncio.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.terminate()
        try:
            daemon.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _last(folder: Path) -> str:
    return (folder / "log").read_text("utf-8")[-2000:]


# -- the report -----------------------------------------------------------------------------------


def _report(
    samples: Sequence[Sample],
    happened: Counter[str],
    clips: int,
    seconds: float,
    levels: Counter[str],
) -> str:
    after = [sample for sample in samples if sample.minute >= WARM_UP * samples[-1].minute]
    quarters = (_quarter(samples, 1), _quarter(samples, 2), _quarter(samples, 3))
    rows = [_memory(samples, after)]
    for name, one in (
        ("open files", lambda sample: sample.files),
        ("threads", lambda sample: sample.threads),
        ("asyncio tasks", lambda sample: sample.tasks),
    ):
        rows.append(_count(name, one, samples, after, quarters))
    rows.append(_log(samples, after))
    lines = [
        f"{len(happened)} kinds of faults happened, {happened.total()} strikes; {clips} clips in "
        f"each of two stores, every one identical and there once; the last of them "
        f"{seconds:.0f} s after the last fault; log lines: "
        + ", ".join(f"{number} {level}" for level, number in sorted(levels.items())),
        "",
        table(["", "start", "middle", "end", "least", "most", "slope an hour", "verdict"], rows),
        "",
        _database(after),
        "",
        *(f"{times:5}  {name}" for name, times in sorted(happened.items())),
    ]
    return "\n".join(lines)


def _quarter(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    step = len(samples) // 4
    return samples[number * step : (number + 1) * step] or samples[-1:]


def _ends(values: Sequence[float]) -> tuple[float, float, float]:
    return values[0], values[len(values) // 2], values[-1]


def _slope(after: Sequence[Sample], values: Sequence[float]) -> float:
    """Change in an hour, by least squares."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression([s.minute / 60 for s in after], values).slope


def _memory(samples: Sequence[Sample], after: Sequence[Sample]) -> list[str]:
    all_ = [sample.rss / MB for sample in samples]
    values = [sample.rss / MB for sample in after]
    slope = _slope(after, values)
    grown = slope * (after[-1].minute - after[0].minute) / 60
    flat = grown <= FLAT_RSS * statistics.median(values)
    return _row("RSS, MB", all_, slope, flat=flat)


def _count(
    name: str,
    one: Callable[[Sample], int],
    samples: Sequence[Sample],
    after: Sequence[Sample],
    quarters: Sequence[Sequence[Sample]],
) -> list[str]:
    early, late = (statistics.median(map(one, part)) for part in (quarters[0], quarters[-1]))
    all_: list[float] = [one(sample) for sample in samples]
    slope = _slope(after, [one(sample) for sample in after])
    return _row(name, all_, slope, flat=late - early <= FLAT_COUNT)


def _log(samples: Sequence[Sample], after: Sequence[Sample]) -> list[str]:
    all_ = [sample.log / MB for sample in samples]
    slope = _slope(after, [sample.log / MB for sample in after])
    return _row("write-ahead log, MB", all_, slope, flat=max(all_) <= LARGEST_LOG / MB)


def _row(name: str, values: Sequence[float], slope: float, *, flat: bool) -> list[str]:
    shown = [*_ends(values), min(values), max(values)]
    return [
        name,
        *(f"{value:.1f}" for value in shown),
        f"{slope:+.2f}",
        "flat" if flat else "GROWS",
    ]


def _database(after: Sequence[Sample]) -> str:
    """Rows are kept for ever: what must not grow is the room that one copy takes."""
    first, middle, last = after[0], after[len(after) // 2], after[-1]
    rows = [
        [
            f"minute {sample.minute:.0f}",
            f"{sample.database / 1024:.0f}",
            f"{sample.stored}",
            f"{sample.waiting}",
            f"{sample.database / max(1, sample.stored + sample.waiting):.0f}",
        ]
        for sample in (first, middle, last)
    ]
    return table(["checkpoint", "KiB", "copies stored", "not stored", "bytes a copy"], rows)


def main() -> None:
    """Soak for as long as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="default: %(default)s")
    parser.add_argument(
        "--fault-every", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s"
    )
    told = parser.parse_args()
    try:
        print(asyncio.run(soak(told.minutes, told.fault_every)))
    except* Failed as errors:
        sys.exit("\n".join(str(err) for err in errors.exceptions))


if __name__ == "__main__":
    main()
