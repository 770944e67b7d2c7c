"""How fast bytes may leave for the stores: a timetable of rates, and one bucket for all workers.

`Timetable` is pure. `Uplink.take` is asked before bytes are handed to a connection and answers how
many may go now, so that a chunk leaves evenly, a fraction of a second's worth at a time, and
another rate holds at once, also in the middle of a chunk. It must never let more pass than the
rate of the moment allows, save a burst of BURST_SECONDS, and never serve one worker before others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Final

from nvr_backup.clock import Clock

SLICE_SECONDS: Final = 0.1
"""What may go at once is worth so long: small enough to be even, and to notice another rate."""

BURST_SECONDS: Final = 0.2
"""What was not used for longer than this is lost: a late timer is made up for, a pause is not."""

LEAST_BYTES: Final = 1024
"""So many may always go at once: smaller pieces would be mostly the protocols' own bytes."""

DAY_MINUTES: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of every day, in minutes since midnight by the clock on the wall.

    An `end` that is not later than `begin` lies in the next day. `rate` is bytes per second, None
    for no limit.
    """

    begin: int
    end: int
    rate: int | None

    def stretches(self) -> Iterator[tuple[int, int]]:
        """The span within one day: one half-open stretch, or two across midnight."""
        if self.begin < self.end:
            yield self.begin, self.end
        else:
            yield self.begin, DAY_MINUTES
            if self.end:
                yield 0, self.end

    def covers(self, minute: int) -> bool:
        """Whether that minute of the day lies in it."""
        return any(begin <= minute < end for begin, end in self.stretches())

    def overlaps(self, other: Span) -> bool:
        """Whether some minute lies in both."""
        return any(
            begin < theirs[1] and theirs[0] < end
            for begin, end in self.stretches()
            for theirs in other.stretches()
        )


@dataclass(frozen=True, slots=True)
class Timetable:
    """The rates of a day; `otherwise` holds outside all spans. Bytes per second, None: no limit."""

    spans: tuple[Span, ...] = ()
    otherwise: int | None = None

    def rate(self, local: datetime) -> int | None:
        """The rate at a moment, by what the clock on the wall shows then.

        So an hour that a clock change repeats has the same rate twice, and one that it skips has
        none.
        """
        minute = local.hour * 60 + local.minute
        for span in self.spans:
            if span.covers(minute):
                return span.rate
        return self.otherwise


UNLIMITED: Final = Timetable()


class Uplink:
    """The one allowance that all workers share; those who wait are served in turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timetable = UNLIMITED
        self._zone: tzinfo | None = None
        self._turn = asyncio.Lock()
        self._settled = clock.monotonic()  # what has left is paid for at this time

    def follow(self, timetable: Timetable, zone: tzinfo | None) -> None:
        """Another timetable from now on, read in `zone` (None: this machine's)."""
        self._timetable = timetable
        self._zone = zone

    def rate(self) -> int | None:
        """The rate of this moment in bytes per second; None: no limit."""
        if not self._timetable.spans:
            return self._timetable.otherwise
        return self._timetable.rate(self._clock.now().astimezone(self._zone))

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit at this moment."""
        return self.rate() is None

    async def take(self, wanted: int) -> int:
        """Wait until bytes may leave; returns how many of `wanted` may, at least one."""
        if self.rate() is None:
            return wanted
        async with self._turn:
            while (wait := self._settled - self._clock.monotonic()) > 0:
                await self._clock.sleep(wait)
            rate = self.rate()
            if rate is None:
                return wanted
            taken = min(wanted, max(LEAST_BYTES, int(rate * SLICE_SECONDS)))
            begin = max(self._settled, self._clock.monotonic() - BURST_SECONDS)
            self._settled = begin + taken / rate
            return taken
