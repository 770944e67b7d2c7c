"""Processes and their cost, from the kernel's own books.

CPU is user plus system time of a process and of all its descendants that were waited for, start-up
included: what `os.wait4` says. Nothing is sampled. The module must stay small in memory: Linux
counts the parent's size as a new process's peak (see `floor`).
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""The checkout: every process starts there, so that its packages are found."""

GIB: Final = 1024**3
MB: Final = 1_000_000

ENDING_SECONDS: Final = 10.0
"""A server that does not end by itself so long after SIGTERM is killed."""


class Failed(Exception):
    """A program did not do its work; its last words."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process tree cost. `peak_rss` (bytes) is that of its largest process."""

    cpu_seconds: float
    wall_seconds: float
    peak_rss: int
    output: str


def floor() -> int:
    """No peak below this many bytes can be seen: our own size counts as a child's."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ordinary() -> dict[str, str]:
    """The environment, but Python keeps what it compiled, as it does for an installed program."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, folder: Path
) -> Cost:
    """Run a program to its end and return its cost; Failed unless it exits with 0.

    Its output goes to files in `folder`: a pipe would have to be read, which costs time.
    """
    words = [str(word) for word in command]
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        began = time.monotonic()
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**_ordinary(), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = err.read_text("utf-8", "replace")[-1500:]
        raise Failed(f"{Path(words[0]).name} ended with {process.returncode}:\n{last}")
    return Cost(
        usage.ru_utime + usage.ru_stime,
        wall,
        usage.ru_maxrss * 1024,
        out.read_text("utf-8", "replace"),
    )


@contextmanager
def server(command: Sequence[str]) -> Iterator[tuple[int, str]]:
    """A program that serves while the block runs: its pid and the first line it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise Failed(f"{command[0]} did not start")
        yield process.pid, line
    finally:
        process.terminate()
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """A running process, as /proc shows it: CPU seconds, wake-ups and resident bytes so far."""

    cpu_seconds: float
    wakeups: int
    rss: int


def usage(pid: int) -> Usage:
    """The process's books now; a wake-up is a voluntary context switch of one of its threads."""
    folder = Path("/proc") / str(pid)
    threads = list((folder / "task").iterdir())
    nanoseconds = sum(int((each / "schedstat").read_text().split()[0]) for each in threads)
    wakeups = sum(_number(each / "status", "voluntary_ctxt_switches") for each in threads)
    return Usage(nanoseconds / 1e9, wakeups, _number(folder / "status", "VmRSS") * 1024)


def _number(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise KeyError(name)


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return statistics.median(values)
