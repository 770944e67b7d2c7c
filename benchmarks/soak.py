"""An hour of faults: does anything in the daemon grow, and is every clip safe in the end?

The real daemon backs up a simulated NVR, whose four cameras keep finishing clips, into the strict
double of Google Cloud Storage and into a folder, over links that can be broken. Once a minute
something goes wrong (`soak_faults.FAULTS`, in turn). In the end everything is mended, and the
stores must hold exactly the simulated NVR's clips, each once.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.measure import ENDING_SECONDS, ROOT, Failed, server
from benchmarks.soak_report import Ending, report
from benchmarks.soak_stage import CAMERAS, Soak, call
from tests.support.proxy import TcpProxy

SECONDS_TO_START: Final = 60.0
SECONDS_TO_END: Final = 90.0

PAST_CLIPS: Final = 1000
PAST_BYTES: Final = 4096
"""What each camera has when it begins, small: a recorder with a past. What is listed and recorded
would otherwise grow from nothing to its usual size within the very hour, and memory with it: SQLite
alone keeps up to 2 MB of the file for each of the two connections."""


def measure(minutes: float, every_seconds: float) -> str:
    """Soak for so long, with a fault every so many seconds; the report. Failed if it must be."""
    try:
        return asyncio.run(_soak(minutes, every_seconds))
    except* Failed as errors:
        raise Failed("\n".join(str(err) for err in errors.exceptions)) from errors


async def _soak(minutes: float, every_seconds: float) -> str:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        running = await _surroundings(stack, folder)
        daemon = _start(folder)
        running.pid = daemon.pid
        stack.callback(_end, daemon)
        await _until_started(daemon, folder)
        await running.until_stored()
        await _work(running, daemon, minutes=minutes, every_seconds=every_seconds)
        await running.mend()
        seconds = await running.until_stored()
        clips = await asyncio.to_thread(running.verify)
        happened = await asyncio.to_thread(running.happened)
        names = running.tasks()
        daemon.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(daemon.wait, SECONDS_TO_END)
        if code:
            raise Failed(f"the daemon ended with {code}:\n{_last(folder)}")
        levels = _levels(folder / "log")
    return report(running.samples, Ending(happened, clips, seconds, levels, names))


async def _surroundings(stack: AsyncExitStack, folder: Path) -> Soak:
    """The simulated NVR, the storage double, and the links to both."""
    (folder / "footage").mkdir()
    nvr = ["nvr_backup.simulator", "--cameras", str(len(CAMERAS)), "--clips", str(PAST_CLIPS)]
    nvr += ["--digests", "none", "--clip-size", str(PAST_BYTES)]
    _, told = stack.enter_context(server(nvr))
    nvr_url = json.loads(told)["url"]
    double = ["tests.support.gcs_double", "--auth", "--keep", "digest"]
    _, store_url = stack.enter_context(server(double))
    key = await asyncio.to_thread(call, f"{store_url}/_double/service-account", {})
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
    return running


def _link(url: str) -> TcpProxy:
    return TcpProxy("127.0.0.1", urlsplit(url).port or 0)


async def _work(
    running: Soak, daemon: subprocess.Popen[bytes], *, minutes: float, every_seconds: float
) -> None:
    """Let it go wrong for so long. Failed when the daemon ends."""
    running.started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        around = [
            group.create_task(running.record_clips()),
            group.create_task(running.go_wrong(every_seconds)),
            group.create_task(running.watch()),
        ]
        until = running.started + 60 * minutes
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


def _levels(log: Path) -> Counter[str]:
    lines = (line for line in log.read_text("utf-8").splitlines() if line.startswith("{"))
    return Counter(json.loads(line)["level"] for line in lines)
