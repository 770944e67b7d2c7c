"""Time is passed in: the one place that asks the operating system what time it is.

Everything that waits or dates takes a `Clock`, so that tests advance time instead of sleeping and
a simulation can run a year in a second.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time, elapsed time, and waiting."""

    def now(self) -> datetime:
        """The wall-clock time, aware, UTC. It may jump in both directions."""
        ...

    def monotonic(self) -> float:
        """Seconds that only ever grow; for durations and rates."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a negative duration is 0."""
        ...


class SystemClock:
    """The operating system's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
