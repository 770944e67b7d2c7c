"""The stage of the soak: the daemon's surroundings, what may be done to them, and the look at it.

The cameras record by themselves, faults happen one after the other, and the kernel is asked for the
daemon's memory, files, threads and CPU, the daemon itself for its tasks (`soak_runner`). In the end
the two stores are held against the simulated NVR's own list.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Failed, usage
from benchmarks.soak_faults import FAULTS
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
CONTROL_SECONDS: Final = 30.0

CONFIG: Final = """\
state_dir = "{folder}/state"

[schedule]
every = "15s"
settle = "1s"
lookback = "5m"
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
    others: int
    cpu_seconds: float


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
        return await asyncio.to_thread(call, f"{self.nvr_url}/_simulator/{order}", body)

    async def store(self, order: str, **body: Any) -> Any:
        """POST to the storage double's control surface."""
        return await asyncio.to_thread(call, f"{self.store_url}/_double/{order}", body)

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
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread, or it, just ended
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
            tasks=self.tasks().total(),
            database=database.stat().st_size,
            log=log.stat().st_size,
            stored=stored,
            others=others,
            cpu_seconds=usage(self.pid).cpu_seconds,
        )

    def tasks(self) -> Counter[str]:
        """The daemon's tasks a few seconds ago, by name."""
        return Counter(json.loads((self.folder / "tasks").read_text()))

    def _minute(self) -> float:
        return (time.monotonic() - self.started) / 60

    # -- the end ------------------------------------------------------------------------------

    async def mend(self) -> None:
        """Nothing is wrong any more."""
        await self._patiently(lambda soak: soak.nvr("disarm"))
        await self._patiently(lambda soak: soak.nvr("release"))
        await self.store("release")
        self.struck.update(await asyncio.to_thread(self._struck))
        await asyncio.to_thread(call, f"{self.store_url}/_double/faults", method="DELETE")
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
        found: list[dict[str, Any]] = call(
            f"{self.nvr_url}/_simulator/oracle{'' if digests else '?digests=0'}"
        )
        return found

    def verify(self) -> int:
        """Every clip is in both stores, once, byte for byte; returns how many there are."""
        truth = Counter(entry["sha256"] for entry in self._oracle(digests=True))
        objects = Counter(entry["sha256"] for entry in call(f"{self.store_url}/_double/objects"))
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
        for fault in call(f"{self.store_url}/_double/faults"):
            found[f"store: {fault['what']} at {fault['where']}"] += fault["happened"]
        return found

    def happened(self) -> Counter[str]:
        """What really went wrong, and how often."""
        found = Counter(self.begun)
        for name, times in call(f"{self.nvr_url}/_simulator/faults")["happened"].items():
            found[f"nvr: {name}"] += times
        found.update(self.struck)
        for name, entry in self.breaks:
            found[name] += entry.happened
        return +found


def call(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
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
