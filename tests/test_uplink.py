"""The upload limit on virtual time: exact over a minute, fair, by the clock on the wall."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.uplink import BURST_SECONDS, LEAST_BYTES, SLICE_SECONDS, Span, Timetable, Uplink
from tests.support.clock import VirtualClock

MBIT = 125_000
PIECE = 256 * 1024
BERLIN = ZoneInfo("Europe/Berlin")


class Line:
    """Workers that send as fast as they may; what left, with the time it left at."""

    def __init__(self, clock: VirtualClock, uplink: Uplink, *, workers: int, piece: int) -> None:
        self.left: list[tuple[float, int]] = []
        self.by_worker: Counter[int] = Counter()
        self._clock = clock
        self._uplink = uplink
        self._tasks = [asyncio.create_task(self._send(n, piece)) for n in range(workers)]

    async def _send(self, number: int, piece: int) -> None:
        while True:
            left = piece
            while left:
                taken = await self._uplink.take(left)
                assert 1 <= taken <= left
                self.left.append((self._clock.monotonic(), taken))
                self.by_worker[number] += taken
                left -= taken
            await asyncio.sleep(0)

    def between(self, begin: float, end: float) -> int:
        return sum(size for at, size in self.left if begin <= at < end)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


def limited(clock: VirtualClock, rate: int | None) -> Uplink:
    uplink = Uplink(clock)
    uplink.follow(Timetable(otherwise=rate), UTC)
    return uplink


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("rate", [8_000, 32_000, 10 * MBIT])
async def test_a_minute_is_exact_within_five_percent(workers: int, rate: int) -> None:
    clock = VirtualClock()
    line = Line(clock, limited(clock, rate), workers=workers, piece=PIECE)
    await clock.advance(120)
    await line.stop()
    for begin in range(0, 60, 7):
        assert line.between(begin, begin + 60) == pytest.approx(60 * rate, rel=0.01)


async def test_bytes_leave_evenly_and_workers_get_the_same() -> None:
    """No worker waits so long for a byte that a server would take it for dead."""
    clock = VirtualClock()
    line = Line(clock, limited(clock, 32_000), workers=4, piece=PIECE)
    await clock.advance(60)
    await line.stop()
    times = [at for at, _ in line.left]
    assert max(later - at for at, later in pairwise(times)) <= 0.2
    assert max(line.by_worker.values()) - min(line.by_worker.values()) <= 2 * LEAST_BYTES * 4
    assert max(size for _, size in line.left) <= max(LEAST_BYTES, 32_000 * SLICE_SECONDS)


async def test_a_pause_is_not_made_up_for_later() -> None:
    clock = VirtualClock()
    uplink = limited(clock, 10 * MBIT)
    await uplink.take(PIECE)
    await clock.advance(3600)
    line = Line(clock, uplink, workers=4, piece=PIECE)
    await clock.advance(1)
    await line.stop()
    allowed = 10 * MBIT * (1 + BURST_SECONDS + SLICE_SECONDS)
    assert line.between(3600, 3601) <= allowed


async def test_a_late_timer_is_made_up_for() -> None:
    """The loop is busy for 50 ms every time: the rate holds all the same."""

    class Late(VirtualClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + 0.05)

    clock = Late()
    line = Line(clock, limited(clock, 10 * MBIT), workers=1, piece=PIECE)
    await clock.advance(60)
    await line.stop()
    assert line.between(0, 60) == pytest.approx(600 * MBIT, rel=0.01)


async def test_without_a_limit_nobody_waits() -> None:
    clock = VirtualClock()
    uplink = limited(clock, None)
    assert [await uplink.take(PIECE) for _ in range(1000)] == [PIECE] * 1000
    assert clock.waits == []


async def test_another_limit_holds_at_once_for_those_who_wait() -> None:
    clock = VirtualClock()
    uplink = limited(clock, 8_000)
    line = Line(clock, uplink, workers=4, piece=8 * 1024 * 1024)
    await clock.advance(30)
    uplink.follow(Timetable(otherwise=10 * MBIT), UTC)
    await clock.advance(60)
    uplink.follow(Timetable(otherwise=32_000), UTC)
    await clock.advance(60)
    await line.stop()
    assert line.between(0, 30) == pytest.approx(30 * 8_000, rel=0.05)
    assert line.between(30, 90) == pytest.approx(60 * 10 * MBIT, rel=0.01)
    assert line.between(90, 150) == pytest.approx(60 * 32_000, rel=0.05)


async def test_no_limit_any_more_frees_those_who_wait() -> None:
    clock = VirtualClock()
    uplink = limited(clock, 8_000)
    await uplink.take(PIECE)
    waiting = asyncio.create_task(uplink.take(PIECE))
    await clock.settle()
    uplink.follow(Timetable(), UTC)
    await clock.advance(0.2)
    assert await waiting == PIECE


async def test_a_worker_that_gives_up_takes_nobody_elses_turn() -> None:
    clock = VirtualClock()
    uplink = limited(clock, 8_000)
    await uplink.take(PIECE)
    waiting = [asyncio.create_task(uplink.take(PIECE)) for _ in range(3)]
    await clock.settle()
    waiting[0].cancel()
    waiting[1].cancel()
    await clock.advance(0.2)
    assert await waiting[2] == LEAST_BYTES


async def test_the_time_of_day_changes_the_limit_in_the_middle_of_a_chunk() -> None:
    clock = VirtualClock(datetime(2026, 6, 1, 5, 59, 30, tzinfo=UTC))  # 07:59:30 in Berlin
    uplink = Uplink(clock)
    uplink.follow(Timetable((Span(8 * 60, 23 * 60, 10 * MBIT),), 100 * MBIT), BERLIN)
    line = Line(clock, uplink, workers=4, piece=8 * 1024 * 1024)
    await clock.advance(60)
    await line.stop()
    assert line.between(0, 30) == pytest.approx(30 * 100 * MBIT, rel=0.01)
    assert line.between(30, 60) == pytest.approx(30 * 10 * MBIT, rel=0.02)


async def test_a_step_of_the_wall_clock_costs_nothing() -> None:
    clock = VirtualClock()
    line = Line(clock, limited(clock, 10 * MBIT), workers=2, piece=PIECE)
    for _ in range(6):
        await clock.advance(10)
        clock.jump(timedelta(days=-1 if clock.now().year > 2025 else 3))
    await line.stop()
    assert line.between(0, 60) == pytest.approx(600 * MBIT, rel=0.01)


DAY = Timetable((Span(8 * 60, 23 * 60, 1), Span(23 * 60, 6 * 60, 2)), 3)


@pytest.mark.parametrize(
    ("clock", "rate"),
    [
        ("00:00", 2),
        ("05:59", 2),
        ("06:00", 3),
        ("07:59", 3),
        ("08:00", 1),
        ("22:59", 1),
        ("23:00", 2),
    ],
)
def test_a_day_is_read_by_the_clock_on_the_wall(clock: str, rate: int) -> None:
    assert DAY.rate(datetime.fromisoformat(f"2026-01-01T{clock}:00")) == rate


@pytest.mark.parametrize(
    ("utc", "rate"),
    [
        ("2026-03-29T00:59:59", 3),  # 01:59:59
        ("2026-03-29T01:00:00", 1),  # 03:00, the hour in which the span begins is skipped
        ("2026-03-29T02:00:00", 3),  # 04:00
        ("2026-10-25T00:30:00", 1),  # 02:30, the first time
        ("2026-10-25T01:30:00", 1),  # 02:30, again
        ("2026-10-25T02:00:00", 1),  # 03:00
        ("2026-10-25T03:00:00", 3),  # 04:00
    ],
)
def test_a_clock_change_is_followed(utc: str, rate: int) -> None:
    clock = VirtualClock(datetime.fromisoformat(utc).replace(tzinfo=UTC))
    uplink = Uplink(clock)
    uplink.follow(Timetable((Span(2 * 60, 4 * 60, 1),), 3), BERLIN)
    assert uplink.rate() == rate


@pytest.fixture
def in_tokyo() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_without_a_zone_it_is_the_machines() -> None:
    clock = VirtualClock(datetime(2026, 1, 1, 23, 30, tzinfo=UTC))  # 08:30
    uplink = Uplink(clock)
    uplink.follow(DAY, None)
    assert uplink.rate() == 1


def stretches(begin: int, end: int) -> set[int]:
    """The minutes of the day from begin to end, counted one by one."""
    found, minute = set(), begin % 1440
    while True:
        found.add(minute)
        minute = (minute + 1) % 1440
        if minute == end % 1440:
            return found


minutes = st.integers(0, 1439)


@given(minutes, st.integers(0, 1440), minutes, st.integers(0, 1440))
def test_spans_cover_and_overlap_as_counted_by_hand(a: int, b: int, c: int, d: int) -> None:
    if a == b or c == d:
        return
    one, other = Span(a, b, 1), Span(c, d, 1)
    assert {minute for minute in range(1440) if one.covers(minute)} == stretches(a, b)
    assert one.overlaps(other) == bool(stretches(a, b) & stretches(c, d))
