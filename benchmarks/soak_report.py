"""The soak as tables: the means of its first quarter, its middle half and its last quarter.

A verdict looks at floors (the lowest tenth of a quarter): work comes and goes with the faults, what
leaks never comes down again. The first quarter is left out of verdicts: caches fill, and pools
reach their size.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from benchmarks.measure import MB
from benchmarks.soak_stage import Sample
from benchmarks.tables import table

FLAT_RSS: Final = 0.03
"""Flat: the floor of memory is at most this part higher in the last quarter than in the second."""
FLAT_COUNT: Final = 2.0
"""Flat: so are those of files, threads and tasks, by at most so many."""
LARGEST_LOG: Final = 8 * 1024**2
"""SQLite empties its log after 1000 pages (4 MiB), and while nobody reads in it."""
FEWEST: Final = 8
"""So many samples make a report."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a soak came to its end. `seconds` is from the last fault to the last clip stored."""

    happened: Counter[str]
    clips: int
    seconds: float
    levels: Counter[str]
    names: Counter[str]


Look = Callable[[Sample], float]


def report(samples: Sequence[Sample], ending: Ending) -> str:
    """Everything, as text that is Markdown too."""
    if len(samples) < FEWEST:
        return f"Too short for a report: {len(samples)} samples; {ending.clips} clips stored."
    quarters = [_quarter(samples, number) for number in range(4)]
    rows = [
        _row("RSS, MB", lambda one: one.rss / MB, quarters, within=FLAT_RSS, relative=True),
        _row("open files", lambda one: one.files, quarters, within=FLAT_COUNT),
        _row("threads", lambda one: one.threads, quarters, within=FLAT_COUNT),
        _row("asyncio tasks", lambda one: one.tasks, quarters, within=FLAT_COUNT),
        _log(quarters),
        _cpu(samples, quarters),
    ]
    happened = ending.happened
    log = ", ".join(f"{number} {level}" for level, number in sorted(ending.levels.items()))
    tasks = ", ".join(f"{number} {name}" for name, number in sorted(ending.names.items()))
    head = (
        f"{samples[-1].minute:.0f} minutes; {len(happened)} kinds of faults happened, "
        f"{happened.total()} strikes; {ending.clips} clips in each of two stores, every one "
        f"identical and there once; the last of them {ending.seconds:.0f} s after the last fault."
    )
    lines = [
        head,
        "",
        table(["", "first quarter", "middle", "last quarter", "least", "most", "verdict"], rows),
        "",
        _database(samples),
        "",
        f"Log entries: {log}. Tasks at the end: {tasks}.",
        "",
        *(f"{times:5}  {name}" for name, times in sorted(happened.items())),
    ]
    return "\n".join(lines)


def _quarter(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    step = len(samples) // 4
    return samples[number * step : (number + 1) * step]


def _row(
    name: str,
    look: Look,
    quarters: Sequence[Sequence[Sample]],
    *,
    within: float,
    relative: bool = False,
) -> list[str]:
    second, last = (_floor([look(one) for one in quarters[number]]) for number in (1, 3))
    flat = last - second <= within * (second if relative else 1)
    return [*_means(name, look, quarters), "flat" if flat else "GROWS"]


def _floor(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 10]


def _means(name: str, look: Look, quarters: Sequence[Sequence[Sample]]) -> list[str]:
    parts = [[look(one) for one in quarter] for quarter in quarters]
    means = (statistics.mean(part) for part in (parts[0], parts[1] + parts[2], parts[3]))
    every = [value for part in parts for value in part]
    return [name, *(f"{value:.1f}" for value in (*means, min(every), max(every)))]


def _log(quarters: Sequence[Sequence[Sample]]) -> list[str]:
    row = _means("write-ahead log, MB", lambda one: one.log / MB, quarters)
    return [*row, "flat" if float(row[-1]) <= LARGEST_LOG / MB else "GROWS"]


def _cpu(samples: Sequence[Sample], quarters: Sequence[Sequence[Sample]]) -> list[str]:
    """CPU seconds in a minute."""
    ends = [0, *(sum(len(quarter) for quarter in quarters[:number]) for number in (1, 3, 4))]
    between = [_pace(samples[a], samples[b - 1]) for a, b in pairwise(ends)]
    return ["CPU s a minute", *(f"{value:.2f}" for value in between), "", "", ""]


def _pace(before: Sample, after: Sample) -> float:
    return (after.cpu_seconds - before.cpu_seconds) / max(after.minute - before.minute, 1e-9)


def _database(samples: Sequence[Sample]) -> str:
    """Rows are kept for ever: what must not grow is the room that one copy takes."""
    count = len(samples)
    rows = [
        [
            f"minute {sample.minute:.0f}",
            f"{sample.database / 1024:.0f}",
            f"{sample.stored}",
            f"{sample.others}",
            f"{sample.database / max(1, sample.stored + sample.others):.0f}",
        ]
        for sample in (samples[count // 4], samples[count // 2], samples[-1])
    ]
    return table(["checkpoint", "KiB", "copies stored", "not stored", "bytes a copy"], rows)
