"""The daemon with nothing to do: CPU, wake-ups and memory, from its own /proc entries.

`nvr-backup run` is started on a simulated NVR whose clips are all stored after the first cycle;
then it is left alone. An hour is not waited for: it is N minutes of rest, scaled, and one cycle
that finds nothing new, measured by itself (SIGUSR1 asks for it).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.contenders import Work, write_config
from benchmarks.measure import ENDING_SECONDS, MB, ROOT, Failed, Usage, server, usage
from benchmarks.tables import table

CAMERAS: Final = 3
CLIPS_EACH: Final = 50
CLIP_BYTES: Final = 1_000_000
STARTING_SECONDS: Final = 120.0
CALM_SECONDS: Final = 2.0
CYCLES: Final = 5
_FINISHED: Final = '"cycle finished"'


def measure(minutes: float) -> str:
    """A table of what an hour costs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        nvr = ["nvr_backup.simulator", "--digests", "none", "--cameras", str(CAMERAS)]
        nvr += ["--style", "href", "--clips", str(CLIPS_EACH), "--clip-size", str(CLIP_BYTES)]
        _, told = stack.enter_context(server(nvr))
        _, endpoint = stack.enter_context(server(["benchmarks.endpoint"]))
        work = Work(
            nvr=json.loads(told)["url"],
            plain="",
            endpoint=endpoint,
            folder=folder,
            count=CAMERAS * CLIPS_EACH,
            size=CLIP_BYTES,
            chunked=False,
            workers=4,
        )
        daemon = stack.enter_context(_daemon(work))
        _until_cycles(folder, 1)
        time.sleep(CALM_SECONDS)
        calm = usage(daemon)
        time.sleep(60 * minutes)
        rest = _difference(calm, usage(daemon))
        before = usage(daemon)
        for number in range(CYCLES):
            os.kill(daemon, signal.SIGUSR1)
            _until_cycles(folder, number + 2)
            time.sleep(CALM_SECONDS)
        cycles = _difference(before, usage(daemon))
        end = usage(daemon)
    hour = 60 / minutes
    rows = [
        [f"{minutes:g} minutes of rest", f"{rest.cpu_seconds:.3f}", f"{rest.wakeups:,}"],
        ["one cycle without news", f"{cycles.cpu_seconds / CYCLES:.3f}", _each(cycles)],
        [
            "an hour: rest scaled, and one cycle",
            f"{rest.cpu_seconds * hour + cycles.cpu_seconds / CYCLES:.2f}",
            f"{rest.wakeups * hour + cycles.wakeups / CYCLES:,.0f}",
        ],
    ]
    memory = f"RSS {calm.rss / MB:.0f} MB after the first cycle, {end.rss / MB:.0f} MB at the end"
    return f"{table(['', 'CPU s', 'wake-ups'], rows)}\n\n{memory}."


def _each(cycles: Usage) -> str:
    return f"{cycles.wakeups / CYCLES:,.0f}"


@contextmanager
def _daemon(work: Work) -> Iterator[int]:
    """`nvr-backup run`, logging to a file; its pid."""
    with (work.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nvr_backup", "run", "--config", str(write_config(work))],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_cycles(folder: Path, number: int) -> None:
    until = time.monotonic() + STARTING_SECONDS
    while (folder / "log").read_text("utf-8").count(_FINISHED) < number:
        if time.monotonic() > until:
            raise Failed(f"no cycle within {STARTING_SECONDS:g} s:\n{_last(folder)}")
        time.sleep(0.2)


def _last(folder: Path) -> str:
    return (folder / "log").read_text("utf-8")[-1500:]


def _difference(before: Usage, after: Usage) -> Usage:
    return Usage(after.cpu_seconds - before.cpu_seconds, after.wakeups - before.wakeups, after.rss)
