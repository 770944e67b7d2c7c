"""Times of cycles, on a clock that the tests move: no test here waits for real time.

The oracle for cron times across clock changes is the calendar itself: dates and offsets written
out by hand, and counting local days.
"""

from __future__ import annotations

import asyncio
import calendar
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvr_backup.scheduler import (
    LONGEST_WAIT_SECONDS,
    SHORTEST_WAIT_SECONDS,
    Cron,
    Every,
    Rule,
    Scheduler,
)
from tests.support.clock import VirtualClock

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOURLY = Every(HOUR)
MANY = 1000
REPEATED = datetime(2026, 10, 25, 1, tzinfo=UTC)
"""03:00 in Berlin becomes 02:00 again."""
BERLIN = ZoneInfo("Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(rule: Rule, start: datetime, count: int) -> list[datetime]:
    found = []
    for _ in range(count):
        start = rule.next_after(start)
        found.append(start)
    return found


# --- rules ---------------------------------------------------------------------------------------


def test_every_counts_from_the_moment_given() -> None:
    assert HOURLY.next_after(T0) == T0 + HOUR
    assert HOURLY.next_after(T0).utcoffset() == timedelta(0)
    local = T0.astimezone(BERLIN)
    assert HOURLY.next_after(local) == T0 + HOUR
    assert HOURLY.next_after(local).utcoffset() == timedelta(0)


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-1), timedelta(seconds=0.9)])
def test_an_interval_below_a_second_is_refused(interval: timedelta) -> None:
    with pytest.raises(ValueError, match="at least 1 s"):
        Every(interval)


def test_cron_is_in_utc_unless_told() -> None:
    assert times(Cron("0 2 * * *"), utc("2026-06-01 01:59:59.5"), 2) == [
        utc("2026-06-01 02:00"),
        utc("2026-06-02 02:00"),
    ]
    assert Cron("0 2 * * *", "Europe/Berlin").next_after(utc("2026-06-01 00:00")) == utc(
        "2026-06-02 00:00"
    )


@pytest.mark.parametrize(
    ("expression", "starts"),
    [
        # 29 March 2026: 01:00 UTC is the moment when 02:00 becomes 03:00.
        ("0 2 * * *", ["03-28 01:00", "03-29 01:00", "03-30 00:00"]),
        ("30 2 * * *", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("0 3 * * *", ["03-28 02:00", "03-29 01:00", "03-30 01:00"]),
        ("30 1 * * *", ["03-28 00:30", "03-29 00:30", "03-29 23:30"]),
        ("0,30 2 * * 0", ["03-29 01:00", "04-05 00:00", "04-05 00:30"]),
    ],
)
def test_in_march_a_skipped_time_runs_once_right_after_the_gap(
    expression: str, starts: list[str]
) -> None:
    rule = Cron(expression, "Europe/Berlin")
    assert times(rule, utc("2026-03-27 12:00"), 3) == [utc(f"2026-{start}") for start in starts]


@pytest.mark.parametrize(
    ("expression", "starts"),
    [
        # 25 October 2026: 01:00 UTC is the moment when 03:00 becomes 02:00 again.
        ("0 2 * * *", ["10-24 00:00", "10-25 00:00", "10-26 01:00"]),
        ("30 2 * * *", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        ("0 3 * * *", ["10-24 01:00", "10-25 02:00", "10-26 02:00"]),
        ("30 1 * * *", ["10-23 23:30", "10-24 23:30", "10-26 00:30"]),
    ],
)
def test_in_october_a_repeated_time_runs_the_first_time_only(
    expression: str, starts: list[str]
) -> None:
    rule = Cron(expression, "Europe/Berlin")
    assert times(rule, utc("2026-10-23 12:00"), 3) == [utc(f"2026-{start}") for start in starts]


@pytest.mark.parametrize("expression", ["0 2 * * *", "30 2 * * *", "59 1 * * *", "0 3 * * *"])
def test_a_daily_time_runs_once_a_day_for_five_years(expression: str) -> None:
    starts = times(Cron(expression, "Europe/Berlin"), utc("2025-12-31 12:00"), 5 * 365 + 1)
    days = [start.astimezone(BERLIN).date() for start in starts]
    assert days == [date(2026, 1, 1) + timedelta(days=n) for n in range(len(days))]
    assert sum(calendar.isleap(year) for year in range(2026, 2031)) == 1
    assert days[-1] == date(2030, 12, 31)


@given(
    moment=st.datetimes(
        min_value=REPEATED.replace(tzinfo=None) - HOUR,
        max_value=REPEATED.replace(tzinfo=None) + 2 * HOUR,
        timezones=st.just(UTC),
    ),
    expression=st.sampled_from(["30 2 * * *", "*/20 * * * *", "0 * * * *", "7,33 2,3 * * *"]),
)
@example(moment=REPEATED + HOUR / 4, expression="30 2 * * *")
def test_next_after_is_always_later_also_in_the_repeated_hour(
    moment: datetime, expression: str
) -> None:
    due = Cron(expression, "Europe/Berlin").next_after(moment)
    assert moment < due <= moment + timedelta(hours=25, minutes=1)


def test_wildcards_follow_elapsed_time_through_a_clock_change() -> None:
    starts = times(Cron("0 * * * *", "Europe/Berlin"), utc("2026-10-24 22:30"), 5)
    assert [b - a for a, b in itertools.pairwise(starts)] == [HOUR] * 4


@pytest.mark.parametrize(
    ("expression", "zone", "text"),
    [
        ("61 * * * *", "UTC", "no cron expression: Bad minute"),
        ("0 2 * *", "UTC", "five fields"),
        ("0 0 2 * * *", "UTC", "five fields"),
        ("", "UTC", "five fields"),
        ("0 0 30 2 *", "UTC", "no cron expression"),
        ("0 2 * * *", "Europe/Atlantis", "'Europe/Atlantis' is no time zone"),
        ("0 2 * * *", "", "is no time zone"),
        ("0 2 * * *", "../etc/passwd", "is no time zone"),
        ("0 2 * * *", "Europe", "is no time zone"),
    ],
)
def test_what_is_wrong_with_a_cron_rule_is_said_at_once(
    expression: str, zone: str, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Cron(expression, zone)


# --- the loop ------------------------------------------------------------------------------------


class Cycles:
    """A cycle that notes its start and then takes `takes` seconds; stores what it is told."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.starts: list[datetime] = []
        self.recorded: list[datetime] = []
        self.takes = 0.0
        self.took: set[float] = set()
        self.running = 0
        self.failure: Exception | None = None

    async def record(self, start: datetime) -> None:
        assert len(self.recorded) == len(self.starts)  # before the cycle, not after it
        self.recorded.append(start)

    async def __call__(self) -> None:
        assert self.running == 0, "two cycles at once"
        assert len(self.starts) < MANY, "it spins"
        self.running += 1
        self.starts.append(self.clock.now())
        if self.failure is not None:
            self.running -= 1
            raise self.failure
        if self.takes:
            self.took.add(self.takes)
            await self.clock.sleep(self.takes)
        self.running -= 1

    def after(self, start: datetime = T0) -> list[float]:
        """The starts as minutes after `start`."""
        return [(moment - start) / timedelta(minutes=1) for moment in self.starts]


@asynccontextmanager
async def scheduled(
    rule: Rule,
    *,
    last: datetime | None = None,
    start: datetime = T0,
    prepare: Callable[[Scheduler, Cycles], None] = lambda _scheduler, _cycles: None,
) -> AsyncIterator[tuple[VirtualClock, Cycles, Scheduler]]:
    """A scheduler at work, on a clock that stands still until the test moves it."""
    clock = VirtualClock(start)
    cycles = Cycles(clock)
    scheduler = Scheduler(rule, clock, last, cycles.record)
    prepare(scheduler, cycles)
    work = asyncio.create_task(scheduler.run(cycles), name="scheduler")
    await clock.settle()
    try:
        yield clock, cycles, scheduler
        assert not work.done(), "the scheduler ended by itself"
        assert cycles.recorded == cycles.starts
        assert all(
            0 < wait <= LONGEST_WAIT_SECONDS for wait in clock.waits if wait not in cycles.took
        )
    finally:
        work.cancel()
        await asyncio.wait([work])
        assert clock.sleepers == 0, "a sleeper was left behind"


async def test_the_first_start_ever_is_at_once_and_then_every_interval() -> None:
    async with scheduled(HOURLY) as (clock, cycles, scheduler):
        assert cycles.after() == [0]
        assert scheduler.next_due == T0 + HOUR
        assert scheduler.last_started == T0
        await clock.advance(3 * 3600)
        assert cycles.after() == [0, 60, 120, 180]


async def test_a_restart_within_the_interval_waits_for_the_rest() -> None:
    async with scheduled(HOURLY, last=T0 - timedelta(minutes=45)) as (clock, cycles, scheduler):
        assert scheduler.next_due == T0 + timedelta(minutes=15)
        await clock.advance(15 * 60 - 1)
        assert cycles.after() == []
        await clock.advance(1)
        assert cycles.after() == [15]


@pytest.mark.parametrize("rule", [HOURLY, Cron("0 * * * *")], ids=["every", "cron"])
async def test_many_missed_cycles_are_caught_up_by_one(rule: Rule) -> None:
    async with scheduled(rule, last=T0 - timedelta(days=9)) as (clock, cycles, scheduler):
        assert cycles.after() == [0]
        assert scheduler.next_due == T0 + HOUR
        await clock.advance(3600)
        assert cycles.after() == [0, 60]


async def test_cron_without_a_record_waits_for_its_time() -> None:
    async with scheduled(Cron("30 13 * * *")) as (clock, cycles, scheduler):
        assert scheduler.next_due == T0 + timedelta(minutes=90)
        assert scheduler.last_started is None
        await clock.advance(90 * 60 - 1)
        assert cycles.after() == []
        await clock.advance(86400)
        assert cycles.after() == [90]
        await clock.advance(1)
        assert cycles.after() == [90, 90 + 1440]


async def test_a_cycle_longer_than_the_interval_is_followed_by_one_not_by_several() -> None:
    def slow(_: Scheduler, cycles: Cycles) -> None:
        cycles.takes = 150 * 60

    async with scheduled(HOURLY, prepare=slow) as (clock, cycles, _):
        await clock.advance(150 * 60)
        assert cycles.after() == [0, 150]  # 60 and 120 were missed
        cycles.takes = 0.0
        await clock.advance(150 * 60)
        assert cycles.after() == [0, 150, 300]
        await clock.advance(60 * 60)
        assert cycles.after() == [0, 150, 300, 360]


@pytest.mark.parametrize("rule", [HOURLY, Cron("0 * * * *")], ids=["every", "cron"])
async def test_a_suspended_machine_is_noticed_within_a_minute_and_caught_up_once(
    rule: Rule,
) -> None:
    async with scheduled(rule, last=T0) as (clock, cycles, scheduler):
        await clock.advance(600)
        clock.jump(timedelta(hours=7))  # elapsed time stood still
        await clock.advance(LONGEST_WAIT_SECONDS)
        assert len(cycles.starts) == 1
        assert cycles.starts[0] <= T0 + timedelta(hours=7, minutes=11)
        assert scheduler.next_due <= cycles.starts[0] + HOUR
        await clock.advance(49 * 60)
        assert len(cycles.starts) <= 2


@pytest.mark.parametrize("back", [timedelta(minutes=5), timedelta(hours=5), timedelta(days=900)])
async def test_a_clock_set_back_does_not_put_off_the_next_interval(back: timedelta) -> None:
    async with scheduled(HOURLY) as (clock, cycles, scheduler):
        await clock.advance(50 * 60)
        clock.jump(-back)
        await clock.advance(10 * 60 - 1)
        assert cycles.after() == [0]
        await clock.advance(1)
        assert clock.monotonic() == 3600
        assert len(cycles.starts) == 2
        assert scheduler.next_due == clock.now() + HOUR
        await clock.advance(3600)
        assert len(cycles.starts) == 3


async def test_a_clock_set_back_during_a_cycle_is_noticed_too() -> None:
    def slow(_: Scheduler, cycles: Cycles) -> None:
        cycles.takes = 30 * 60

    async with scheduled(HOURLY, prepare=slow) as (clock, cycles, _):
        clock.jump(-timedelta(days=3))
        await clock.advance(3600)
        assert len(cycles.starts) == 2


async def test_forward_and_back_again_costs_one_extra_cycle() -> None:
    async with scheduled(HOURLY) as (clock, cycles, _):
        await clock.advance(60)
        clock.jump(timedelta(days=2))
        await clock.advance(60)
        assert len(cycles.starts) == 2
        clock.jump(-timedelta(days=2))
        await clock.advance(3600)
        assert len(cycles.starts) == 3
        await clock.advance(3600)
        assert len(cycles.starts) == 4


@pytest.mark.parametrize(
    ("rule", "wait"),
    [(HOURLY, HOUR), (Cron("30 * * * *"), timedelta(minutes=30))],
    ids=["every", "cron"],
)
async def test_a_start_recorded_by_a_clock_that_was_ahead_delays_by_one_interval_at_most(
    rule: Rule, wait: timedelta
) -> None:
    async with scheduled(rule, last=T0 + timedelta(days=365)) as (clock, cycles, scheduler):
        assert scheduler.next_due == T0 + wait
        await clock.advance(wait.total_seconds())
        assert len(cycles.starts) == 1


async def test_a_small_step_back_does_not_run_a_daily_cycle_twice() -> None:
    async with scheduled(Cron("0 13 * * *"), last=T0 - timedelta(hours=23)) as (clock, cycles, _):
        await clock.advance(3600)
        assert cycles.after() == [60]
        clock.jump(-timedelta(seconds=90))
        await clock.advance(600)
        assert cycles.after() == [60]
        await clock.advance(86400)
        assert cycles.after() == [60, 60 + 1440]


async def test_a_large_step_back_delays_a_daily_cycle_by_one_day_at_most() -> None:
    async with scheduled(Cron("0 13 * * *")) as (clock, cycles, scheduler):
        await clock.advance(3600)
        clock.jump(-timedelta(days=40))
        await clock.advance(60)
        assert scheduler.next_due == T0 + HOUR - timedelta(days=39)
        await clock.advance(86400)
        assert len(cycles.starts) == 2


async def test_trigger_starts_a_cycle_at_once_and_the_interval_counts_from_it() -> None:
    async with scheduled(HOURLY) as (clock, cycles, scheduler):
        await clock.advance(20 * 60)
        scheduler.trigger()
        scheduler.trigger()
        await clock.settle()
        assert cycles.after() == [0, 20]
        await clock.advance(59 * 60)
        assert cycles.after() == [0, 20]
        await clock.advance(60)
        assert cycles.after() == [0, 20, 80]


async def test_triggers_during_a_cycle_become_one_cycle_after_it() -> None:
    def slow(_: Scheduler, cycles: Cycles) -> None:
        cycles.takes = 600

    async with scheduled(HOURLY, prepare=slow) as (clock, cycles, scheduler):
        for _ in range(3):
            scheduler.trigger()
        await clock.advance(599)
        assert cycles.after() == [0]
        await clock.advance(1)
        assert cycles.after() == [0, 10]
        await clock.advance(3599)
        assert cycles.after() == [0, 10]


async def test_a_trigger_and_a_due_time_at_once_are_one_cycle() -> None:
    async with scheduled(HOURLY, prepare=lambda scheduler, _: scheduler.trigger()) as (
        clock,
        cycles,
        _scheduler,
    ):
        await clock.advance(1800)
        assert cycles.after() == [0]


async def test_trigger_before_run_overrides_a_wait() -> None:
    async with scheduled(HOURLY, last=T0, prepare=lambda scheduler, _: scheduler.trigger()) as (
        _clock,
        cycles,
        _scheduler,
    ):
        assert cycles.after() == [0]


async def test_a_new_rule_takes_effect_while_waiting() -> None:
    async with scheduled(Every(timedelta(days=7))) as (clock, cycles, scheduler):
        await clock.advance(600)
        scheduler.reschedule(HOURLY)
        assert scheduler.next_due == T0 + HOUR
        await clock.advance(50 * 60)
        assert cycles.after() == [0, 60]
        scheduler.reschedule(Cron("30 13 * * *"))
        assert scheduler.next_due == T0 + timedelta(minutes=90)
        scheduler.reschedule(Every(timedelta(minutes=1)))
        await clock.advance(60)
        assert cycles.after() == [0, 60, 61]


async def test_a_shorter_rule_that_is_already_due_starts_at_once() -> None:
    async with scheduled(Every(timedelta(days=7))) as (clock, cycles, scheduler):
        await clock.advance(30 * 60)
        scheduler.reschedule(Every(timedelta(minutes=10)))
        await clock.settle()
        assert cycles.after() == [0, 30]


async def test_reloading_the_same_rule_does_not_lose_an_overdue_first_start() -> None:
    async with scheduled(Cron("0 13 * * *", "UTC")) as (clock, cycles, scheduler):
        await clock.advance(600)
        clock.jump(timedelta(hours=2))  # past the due time, not yet noticed
        scheduler.reschedule(Cron("0 13 * * *"))
        assert scheduler.next_due == T0 + HOUR
        await clock.advance(LONGEST_WAIT_SECONDS)
        assert len(cycles.starts) == 1


async def test_what_a_cycle_raises_reaches_the_caller_who_may_go_on() -> None:
    clock = VirtualClock(T0)
    cycles = Cycles(clock)
    scheduler = Scheduler(HOURLY, clock, None, cycles.record)
    cycles.failure = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        await scheduler.run(cycles)
    assert cycles.recorded == [T0]
    cycles.failure = None
    work = asyncio.create_task(scheduler.run(cycles))
    await clock.advance(3600)
    assert cycles.after() == [0, 60]
    work.cancel()
    await asyncio.wait([work])


async def test_a_start_that_cannot_be_recorded_does_not_run_and_stays_due() -> None:
    clock = VirtualClock(T0)
    cycles = Cycles(clock)

    async def full(_: datetime) -> None:
        raise OSError("disk full")

    scheduler = Scheduler(HOURLY, clock, None, full)
    with pytest.raises(OSError, match="disk full"):
        await scheduler.run(cycles)
    assert cycles.starts == []
    assert scheduler.next_due == T0


async def test_cancelling_ends_a_cycle_and_a_wait() -> None:
    for takes in (0.0, 600.0):
        clock = VirtualClock(T0)
        cycles = Cycles(clock)
        cycles.takes = takes
        work = asyncio.create_task(Scheduler(HOURLY, clock, None, cycles.record).run(cycles))
        await clock.settle()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert clock.sleepers == 0


async def test_a_clock_that_wakes_early_does_not_make_it_spin() -> None:
    class Impatient(VirtualClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds * 0.999)

    clock = Impatient(T0)
    cycles = Cycles(clock)
    work = asyncio.create_task(Scheduler(HOURLY, clock, T0, cycles.record).run(cycles))
    await clock.advance(3601)
    work.cancel()
    await asyncio.wait([work])
    assert len(cycles.starts) == 1
    assert cycles.starts[0] >= T0 + HOUR
    assert len(clock.waits) < 130  # twice the slices of an hour
    assert min(clock.waits) > SHORTEST_WAIT_SECONDS / 2


def test_times_come_out_in_utc_whatever_zone_goes_in() -> None:
    moment = T0.astimezone(timezone(timedelta(hours=-9)))
    for rule in (HOURLY, Cron("0 2 * * *", "Asia/Kathmandu")):
        assert rule.next_after(moment) == rule.next_after(T0)
        assert rule.next_after(moment).tzinfo is UTC
