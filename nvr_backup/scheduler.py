"""When the next cycle starts: two pure rules, and the loop that waits for them.

`Every` and `Cron` compute times and nothing else. `Scheduler` starts one cycle after the other,
never two at once; what was missed, for whatever reason (the process was down, the machine was
suspended, a cycle took too long, the clock jumped), is caught up by one cycle, never by several. It
must never wait for a negative or unbounded time, trust the wall clock to move steadily, or swallow
what a cycle raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from nvr_backup.clock import Clock
from nvr_backup.pulse import Pulse

LONGEST_WAIT_SECONDS: Final = 60.0
"""The wall clock is looked at this often, so that a suspend or a step of it is noticed."""
SHORTEST_WAIT_SECONDS: Final = 0.01
"""A clock that wakes us a little early must not make us spin."""
STEP_SECONDS: Final = 1.0
"""Wall time that falls behind elapsed time by more than this was set back."""
SILENT_SECONDS: Final = 1800.0
"""A cycle that gives no sign of life (`Scheduler.alive`) for so long is hung: everything that it
waits for is limited in time."""
SHORTEST_INTERVAL: Final = timedelta(seconds=1)

_CRON_FIELDS: Final = 5
_ANY_MOMENT: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Every:
    """A cycle starts `interval` after the start of the one before; ValueError below 1 s."""

    interval: timedelta

    def __post_init__(self) -> None:
        if self.interval < SHORTEST_INTERVAL:
            raise ValueError(f"an interval must be at least 1 s, not {self.interval}")

    def next_after(self, moment: datetime) -> datetime:
        """`moment` (aware) plus the interval, in UTC."""
        return moment.astimezone(UTC) + self.interval

    def first(self, now: datetime) -> datetime:
        """When a first cycle ever is due: at once."""
        return now

    def latest(self, now: datetime) -> datetime:
        """No cycle is ever due later than this, whatever the clock said before."""
        return now + self.interval


@dataclass(frozen=True, slots=True)
class Cron:
    """A cycle starts at the times of a five-field cron expression in a time zone (IANA name).

    Across clock changes it behaves as Debian's cron does (cron(8)): a fixed time that a change
    skips runs right after the gap, one that a change repeats runs the first time only; expressions
    with `*` as minute or hour follow elapsed time. ValueError with the reason if the expression
    never matches or the zone is not known.
    """

    expression: str
    timezone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.expression.split()) != _CRON_FIELDS:
            raise ValueError(
                f"'{self.expression}' is no cron expression of five fields"
                " (minute, hour, day of month, month, day of week)"
            )
        try:
            zone = ZoneInfo(self.timezone)
        except (LookupError, ValueError, OSError) as err:
            raise ValueError(
                f"'{self.timezone}' is no time zone known here; use a name like 'Europe/Berlin'"
                " (the system package tzdata has them)"
            ) from err
        object.__setattr__(self, "_zone", zone)
        try:
            self.next_after(_ANY_MOMENT)
        except CronSimError as err:
            raise ValueError(f"'{self.expression}' is no cron expression: {err}") from err

    def next_after(self, moment: datetime) -> datetime:
        """The first matching time strictly after `moment` (aware), in UTC."""
        times = CronSim(self.expression, moment.astimezone(self._zone))
        for local in times:
            due = local.astimezone(UTC)
            # In the repeated hour of autumn the library counts from the first pass of the clock.
            if due > moment:
                return due
        raise ValueError(f"the cron expression '{self.expression}' never matches")

    def first(self, now: datetime) -> datetime:
        """When a first cycle ever is due: at the next matching time."""
        return self.next_after(now)

    def latest(self, now: datetime) -> datetime:
        """No cycle is ever due later than this, whatever the clock said before.

        The next time but one: after a small step back the next one may just have been served.
        """
        return self.next_after(self.next_after(now))


Rule = Every | Cron
Record = Callable[[datetime], Awaitable[None]]


class Scheduler:
    """Starts cycles by a rule, one at a time.

    `last_started` is the start of the latest cycle that `record` stored (None: there never was
    one). The start is recorded before the cycle runs, so a cycle that was interrupted by a crash is
    not started again at once; a caller that wants that calls `trigger` before `run`. Not to be
    shared between threads; `run` may be called again after it raised.
    """

    def __init__(
        self, rule: Rule, clock: Clock, last_started: datetime | None, record: Record
    ) -> None:
        self._rule = rule
        self._clock = clock
        self._last_started = last_started
        self._record = record
        self.pulse = Pulse("the scheduler", clock)
        self._queued = False
        self._pause: asyncio.Task[None] | None = None
        self._seen = (clock.now(), clock.monotonic())
        self._due = self._plan(self._seen[0])

    @property
    def next_due(self) -> datetime:
        """When the next cycle is to start (UTC); in the past when it is overdue."""
        return self._due

    @property
    def last_started(self) -> datetime | None:
        """When the latest cycle started (UTC), None before the first ever."""
        return self._last_started

    def trigger(self) -> None:
        """Start a cycle now, or one after the cycle that is running; several calls are one."""
        self._queued = True
        self._wake()

    def alive(self) -> None:
        """The cycle that is running makes progress."""
        self.pulse.promise(SILENT_SECONDS)

    def reschedule(self, rule: Rule) -> None:
        """Follow another rule from now on; the next time is counted from the latest start."""
        if rule == self._rule:
            return
        self._rule = rule
        self._due = self._plan(self._look())
        self._wake()

    async def run(self, cycle: Callable[[], Awaitable[None]]) -> NoReturn:
        """Run cycles for ever; ends by cancellation or with what `cycle` or `record` raises."""
        while True:
            started = await self._until_due()
            self.alive()
            await self._record(started)
            self._queued = False  # asked for before this cycle began: this is the one
            self._last_started = started
            self._due = self._rule.next_after(started)
            await cycle()

    async def _until_due(self) -> datetime:
        """Wait for the next start, in slices; returns its time by the wall clock."""
        while True:
            now = self._look()
            if self._queued or now >= self._due:
                return now
            remaining = (self._due - now).total_seconds()
            wait = max(SHORTEST_WAIT_SECONDS, min(LONGEST_WAIT_SECONDS, remaining))
            self.pulse.promise(2 * LONGEST_WAIT_SECONDS)
            try:
                async with asyncio.TaskGroup() as group:
                    self._pause = group.create_task(self._clock.sleep(wait), name="pause")
            finally:
                self._pause = None

    def _wake(self) -> None:
        if self._pause is not None:
            self._pause.cancel()

    def _look(self) -> datetime:
        """The wall clock's time, after the due time was corrected for a clock that was set back."""
        before, elapsed_before = self._seen
        now, elapsed = self._clock.now(), self._clock.monotonic()
        self._seen = (now, elapsed)
        step = (now - before).total_seconds() - (elapsed - elapsed_before)
        if step < -STEP_SECONDS:
            if isinstance(self._rule, Every):  # an interval is elapsed time: move with the clock
                self._due += timedelta(seconds=step)
            self._due = self._not_too_late(self._due, now)
        return now

    def _plan(self, now: datetime) -> datetime:
        if self._last_started is None:
            return self._rule.first(now)
        return self._not_too_late(self._rule.next_after(self._last_started), now)

    def _not_too_late(self, due: datetime, now: datetime) -> datetime:
        """A start recorded by a clock that was ahead must not put off the next one for long."""
        return self._rule.next_after(now) if due > self._rule.latest(now) else due
