"""Progress on a terminal: one bar for the cycle, one line for each running transfer.

Drawn on stderr at most REFRESH_HZ times a second, from what the engine already counts; log lines
appear above it. It must never hold up a transfer, and never draw where nobody sits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nvr_backup.cli.words import number, short, size
from nvr_backup.clock import Clock
from nvr_backup.inflight import Running
from nvr_backup.pool import Pool

REFRESH_HZ: Final = 4
RATE_SECONDS: Final = 5.0
"""The rate shown is that of the last few seconds."""
LINES_AT_MOST: Final = 8
"""Transfers that get a line of their own."""


@dataclass(slots=True)
class Rate:
    """How fast a number of bytes has grown lately."""

    clock: Clock
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self, total: int) -> None:
        """Take a sample; call it before each drawing."""
        now = self.clock.monotonic()
        self._samples.append((now, total))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()

    @property
    def per_second(self) -> float:
        """Bytes a second."""
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - begin) if end > begin else 0.0


@dataclass(slots=True)
class Tracker:
    """Counts and rates that the pool does not keep: everything in bytes and monotonic seconds."""

    pool: Pool
    clock: Clock
    total: int = 0
    carried: int = 0
    _last: dict[int, int] = field(default_factory=dict)
    _rate: Rate = field(init=False)

    def __post_init__(self) -> None:
        self._rate = Rate(self.clock)

    def look(self) -> None:
        """Take a sample; call it before each drawing."""
        now_received = {copy: r.activity.received for copy, r in self.pool.running.items()}
        for copy, received in now_received.items():
            self.carried += received - self._last.get(copy, 0)
        self._last = now_received
        self._rate.look(self.carried)

    @property
    def rate(self) -> float:
        """Bytes a second received from sources, lately."""
        return self._rate.per_second

    @property
    def done(self) -> int:
        """Copies that have an outcome in this cycle."""
        outcomes = self.pool.outcomes
        return outcomes.stored + outcomes.failed + outcomes.set_aside

    async def count(self, waiting: Callable[[], Awaitable[int]]) -> None:
        """Count anew how many copies this cycle has; failed ones are still waiting."""
        outcomes = self.pool.outcomes
        finished = outcomes.stored + outcomes.set_aside
        self.total = max(self.total, finished + await waiting())


def drawing(tracker: Tracker, headline: str) -> RenderableType:
    """A cycle at this moment, in at most LINES_AT_MOST + 2 lines."""
    tracker.look()
    return Group(_overall(tracker, headline), *transfers(tracker.pool))


def _overall(tracker: Tracker, headline: str) -> RenderableType:
    done, total = tracker.done, max(tracker.done, tracker.total)
    numbers = f"{done:,} of {number(total, 'clip')}, {size(tracker.pool.outcomes.stored_bytes)}"
    return row(
        Text(headline, style="bold"),
        (done, max(total, 1)),
        f"{numbers}, {tracker.rate / 1e6:.1f} MB/s",
    )


def transfers(pool: Pool) -> list[RenderableType]:
    """A line for each running transfer, the longest running first."""
    running = sorted(pool.running.values(), key=lambda r: (r.began, r.claim.copy))
    lines = [_transfer(one) for one in running[:LINES_AT_MOST]]
    if len(running) > LINES_AT_MOST:
        lines.append(Text(f"  and {len(running) - LINES_AT_MOST} more", style="dim"))
    return lines


def _transfer(running: Running) -> RenderableType:
    claim, activity = running.claim, running.activity
    position = min(activity.received + activity.resumed_at, activity.size or 1 << 62)
    known = f"{size(position)} of {size(activity.size)}" if activity.size else size(position)
    began = claim.clip.start.astimezone().strftime("%H:%M:%S")
    return row(
        Text(f"  {short(claim.clip.camera.name, 14)}"),
        (position, activity.size) if activity.size else (0, 1),
        f"{began} → {short(claim.store, 10)}, {known}",
    )


def row(name: Text, bar: tuple[int, int], text: str) -> RenderableType:
    """All lines alike, so that they make columns; with room for a ^C in 80 columns."""
    line = Table.grid(padding=(0, 1))
    line.add_column(width=16, no_wrap=True)
    line.add_column(width=14)
    line.add_column(width=44, no_wrap=True)
    line.add_row(name, ProgressBar(completed=bar[0], total=bar[1], width=14), Text(text))
    return line


@asynccontextmanager
async def shown(
    out: Console,
    draw: Callable[[], RenderableType],
    *,
    each_second: Callable[[], Awaitable[None]],
    clock: Clock,
) -> AsyncIterator[TextIO]:
    """Show what `draw` returns until the block ends, redrawn in place.

    Yields the stream for whatever else goes to the terminal meanwhile: it appears above.
    """
    live = Live(console=out, auto_refresh=False, transient=True, redirect_stdout=False)

    async def redraw() -> None:
        turn = 0
        while True:
            if turn % REFRESH_HZ == 0:
                await each_second()
            live.update(draw(), refresh=True)
            turn += 1
            await clock.sleep(1 / REFRESH_HZ)

    with live:
        async with asyncio.TaskGroup() as group:
            drawer = group.create_task(redraw(), name="progress")
            try:
                yield cast(TextIO, FileProxy(out, out.file))
            finally:
                drawer.cancel()
