"""A clock that a test moves by hand: nothing here ever waits for real time.

`VirtualClock` keeps wall time and elapsed time apart, as an operating system does: `advance` moves
both, `jump` moves the wall clock alone (a step of NTP, or a suspended machine, during which
CLOCK_MONOTONIC stands still). Sleepers wake in the order of their deadlines, those with the same
deadline in the order in which they fell asleep, each at exactly its own time. It must never call
the operating system's clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count

SETTLE_ROUNDS = 50
"""Turns of the event loop given to woken tasks before time moves on; ample for chains of awaits."""


class VirtualClock:
    """Implements `nvr_backup.clock.Clock`; begins at `start` (aware, UTC) and elapsed time 0.

    `waits` is the list of all durations asked for, in order: the oracle for back-offs.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.utcoffset() != timedelta(0):
            raise ValueError(f"start must be an aware UTC time, not {start!r}")
        self.waits: list[float] = []
        self._wall = start
        self._elapsed = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait until a test has advanced the clock so far; 0 or less only yields once."""
        self.waits.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), woken))
        await woken

    @property
    def sleepers(self) -> int:
        """How many are asleep now (cancelled ones do not count)."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    @property
    def next_wake(self) -> float | None:
        """Seconds until the next sleeper's time, or None when nobody sleeps."""
        self._forget_cancelled()
        return self._sleepers[0][0] - self._elapsed if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, stopping at every sleeper's time and letting what it woke run."""
        if seconds < 0:
            raise ValueError("time only advances; a wall clock goes back with jump()")
        target = self._elapsed + seconds
        await self.settle()
        while (wait := self.next_wake) is not None and self._sleepers[0][0] <= target:
            self._move(wait)
            deadline, _, woken = heapq.heappop(self._sleepers)
            self._elapsed = deadline
            woken.set_result(None)
            await self.settle()
        self._move(target - self._elapsed)
        self._elapsed = target

    def jump(self, delta: timedelta) -> None:
        """Step the wall clock alone, in either direction; nobody wakes by it."""
        self._wall += delta

    async def settle(self, rounds: int = SETTLE_ROUNDS) -> None:
        """Give other tasks `rounds` turns of the event loop, without letting time pass.

        Enough where nothing but the clock is waited for. Where threads or sockets are at work,
        wait for what they do (`asyncio.Event`, `until_asleep`) instead.
        """
        for _ in range(rounds):
            await asyncio.sleep(0)

    async def until_asleep(self, sleepers: int = 1) -> None:
        """Return once that many are asleep: for code that does real I/O before it waits."""
        while self.sleepers < sleepers:
            await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within the block time flies: whenever everything is idle, it moves to the next sleeper.

        Only for code that waits for nothing but this clock; with sockets or threads in play, hours
        may pass while they are busy.
        """
        flight = asyncio.create_task(self._fly(), name="virtual clock")
        try:
            yield
        finally:
            flight.cancel()
            await asyncio.wait([flight])

    async def _fly(self) -> None:
        while True:
            await self.advance(self.next_wake or 0.0)

    def _move(self, seconds: float) -> None:
        self._wall += timedelta(seconds=seconds)
        self._elapsed += seconds

    def _forget_cancelled(self) -> None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
