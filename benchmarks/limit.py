"""The upload limit over the real daemon: what passes a counting line, second by second.

`nvr-backup run` carries clips from a simulated NVR into the strict storage double; between it and
the double lies a TCP line of ours that counts what goes up, headers included. Nothing is scaled:
a minute is waited for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.contenders import CONFIG
from benchmarks.measure import ENDING_SECONDS, MB, ROOT, Failed, server
from benchmarks.tables import table

KBIT: Final = 125
MBIT: Final = 1000 * KBIT
CLIP_BYTES: Final = 20 * MB
"""Three chunks each: two of them whole."""

CAMERAS: Final = 4
CLIPS_EACH: Final = 6
WARM_SECONDS: Final = 10.0
"""What the kernels' buffers take at the beginning is not counted."""

STARTING_SECONDS: Final = 120.0
PIECE_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Line:
    """A TCP line from `url` to the server behind it; what went up, with the time."""

    url: str = ""
    passed: list[tuple[float, int]] = field(default_factory=list)

    def between(self, begin: float, end: float) -> int:
        """Bytes that passed in that stretch of monotonic time."""
        return sum(size for at, size in self.passed if begin <= at < end)

    def silence(self, begin: float, end: float) -> float:
        """The longest stretch without a byte in it, in seconds."""
        times = [begin, *(at for at, _ in self.passed if begin <= at < end), end]
        return max(later - at for at, later in pairwise(times))


@asynccontextmanager
async def _line(target: str) -> AsyncIterator[Line]:
    there = urlsplit(target)
    line = Line()

    async def carry(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
    ) -> None:
        try:
            while piece := await reader.read(PIECE_BYTES):
                count(len(piece))
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass  # the other end went away: so does this one
        finally:
            writer.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection(there.hostname, there.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(
                carry(reader, out, lambda size: line.passed.append((time.monotonic(), size)))
            )
            group.create_task(carry(back, writer, lambda _size: None))

    listening = await asyncio.start_server(link, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        listening.close()


@dataclass(slots=True)
class Daemon:
    """A running `nvr-backup run` and its configuration."""

    folder: Path
    nvr: str
    store: str
    workers: int
    process: asyncio.subprocess.Process | None = None

    def configure(self, limit: str) -> None:
        """Write the configuration with this `upload_limit` (TOML)."""
        store = f'kind = "gcs"\nbucket = "footage"\nendpoint = "{self.store}"'
        text = CONFIG.format(
            folder=self.folder, workers=self.workers, nvr=self.nvr, store=store, level="debug"
        ).replace("[transfer]\n", f"[transfer]\nupload_limit = {limit}\n")
        path = self.folder / "config.toml"
        path.touch(mode=0o600)
        path.write_text(text, "utf-8")

    async def reload(self, limit: str) -> None:
        """Another limit, as `systemctl reload` brings it."""
        self.configure(limit)
        assert self.process is not None
        before = self.said("reloaded")
        self.process.send_signal(signal.SIGHUP)
        while self.said("reloaded") == before:
            await asyncio.sleep(0.05)

    def said(self, *messages: str) -> int:
        """How many log lines have one of these messages."""
        lines = (self.folder / "log").read_text("utf-8").splitlines()
        told = [json.loads(line)["message"] for line in lines if line.startswith("{")]
        return sum(one in messages for one in told)


@asynccontextmanager
async def _carrying(limit: str, workers: int) -> AsyncIterator[tuple[Daemon, Line]]:
    """The daemon at work under a limit, seen through a line."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        nvr = ["nvr_backup.simulator", "--digests", "none", "--cameras", str(CAMERAS)]
        nvr += ["--style", "href", "--clips", str(CLIPS_EACH), "--clip-size", str(CLIP_BYTES)]
        _, told = stack.enter_context(server(nvr))
        double = ["tests.support.gcs_double", "--bucket", "footage"]
        _, store = stack.enter_context(server(double))
        async with _line(store) as line:
            daemon = Daemon(folder, json.loads(told)["url"], line.url, workers)
            daemon.configure(limit)
            with (folder / "log").open("wb") as log:
                daemon.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "nvr_backup", "run"),
                    *("--config", str(folder / "config.toml")),
                    cwd=ROOT,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                )
            try:
                await _until(lambda: daemon.said("clip started") > 0, "it never began")
                yield daemon, line
            finally:
                if daemon.process.returncode is None:
                    daemon.process.terminate()
                    try:
                        async with asyncio.timeout(ENDING_SECONDS):
                            await daemon.process.wait()
                    except TimeoutError:  # a chunk in flight takes minutes
                        os.kill(daemon.process.pid, signal.SIGKILL)
                        await daemon.process.wait()


async def _until(happened: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + STARTING_SECONDS
    while not happened():
        if time.monotonic() > until:
            raise Failed(what)
        await asyncio.sleep(0.1)


def _row(
    name: str, line: Line, daemon: Daemon, begin: float, seconds: float, rate: int
) -> list[str]:
    passed = line.between(begin, begin + seconds)
    wanted = rate * seconds
    return [
        name,
        f"{rate * 8 / 1e6:g}",
        f"{seconds:.0f}",
        f"{passed / MB:.2f}",
        f"{100 * (passed / wanted - 1):+.2f} %",
        f"{line.silence(begin, begin + seconds):.2f}",
        str(daemon.said("clip failed", "blocked", "clip set aside")),
    ]


async def _steady(limit: str, rate: int, workers: int, seconds: float) -> list[str]:
    async with _carrying(limit, workers) as (daemon, line):
        await asyncio.sleep(WARM_SECONDS)
        begin = time.monotonic()
        await asyncio.sleep(seconds)
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        return _row(name, line, daemon, begin, seconds, rate)


async def _changed(seconds: float) -> AsyncIterator[list[str]]:
    """Another limit by reload, in the middle of chunks; then one by the time of day."""
    async with _carrying('"10Mbit/s"', 4) as (daemon, line):
        await asyncio.sleep(WARM_SECONDS)
        for limit, rate in (("2Mbit/s", 2 * MBIT), ("20Mbit/s", 20 * MBIT)):
            await daemon.reload(f'"{limit}"')
            begin = time.monotonic() + 1
            await asyncio.sleep(seconds / 2 + 1)
            yield _row(f"reload to {limit}, after 1 s", line, daemon, begin, seconds / 2, rate)
        minute = datetime.now().astimezone().replace(second=0, microsecond=0)
        turn = minute + timedelta(minutes=2)
        spans = f'"{_clock(minute)}-{_clock(turn)}" = "2Mbit/s", otherwise = "8Mbit/s"'
        await daemon.reload(f"{{ {spans} }}")
        left = (turn - datetime.now().astimezone()).total_seconds()
        begin = time.monotonic() + 1
        await asyncio.sleep(left + seconds / 2 + 1)
        yield _row("by the clock: before", line, daemon, begin, left - 2, 2 * MBIT)
        begin = begin + left
        yield _row("by the clock: after 1 s", line, daemon, begin, seconds / 2, 8 * MBIT)


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M}"


async def _all(minutes: float) -> str:
    seconds = 60 * minutes
    rows: list[Sequence[str]]
    rows = [await _steady('"10Mbit/s"', 10 * MBIT, workers, seconds) for workers in (4, 1)]
    rows += [row async for row in _changed(seconds)]
    # Longer than a chunk of 8 MiB takes one worker: 4 minutes and 22 seconds.
    rows += [await _steady('"256kbit/s"', 256 * KBIT, n, 6 * seconds) for n in (4, 1)]
    head = ["", "Mbit/s", "s", "MB passed", "off by", "longest silence s", "failures"]
    return table(head, rows)


def measure(minutes: float) -> str:
    """A table: what should have passed and what did."""
    return asyncio.run(_all(minutes))
