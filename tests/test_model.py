"""The values and the clock: exact times at the edges, no zone but UTC, windows without gaps."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.clock import SystemClock
from nvr_backup.model import Camera, Clip, Window, from_ms, to_ms
from tests.support.fakes import EPOCH, PORCH

BERLIN = timezone(timedelta(hours=1))
NAIVE = EPOCH.replace(tzinfo=None)
ELSEWHERE = EPOCH.astimezone(BERLIN)
FIRST_MS = -62135596800000  # 0001-01-01, counted by GNU date
LAST_MS = 253402300799999  # 9999-12-31 23:59:59.999, likewise


@pytest.mark.parametrize(
    ("moment", "ms"),
    [
        ("2026-01-01T00:00:00.000000+00:00", 1767225600000),
        ("2026-01-01T00:00:00.000999+00:00", 1767225600000),
        ("2026-01-01T00:00:00.001000+00:00", 1767225600001),
        ("1969-12-31T23:59:59.999500+00:00", -1),
        ("9999-12-31T23:59:59.999999+00:00", LAST_MS),
    ],
)
def test_milliseconds_are_exact_and_never_after_the_moment(moment: str, ms: int) -> None:
    assert to_ms(datetime.fromisoformat(moment)) == ms


@given(st.integers(FIRST_MS, LAST_MS))
def test_every_millisecond_survives_the_edge(ms: int) -> None:
    moment = from_ms(ms)
    assert moment.utcoffset() == timedelta(0)
    assert to_ms(moment) == ms


@pytest.mark.parametrize("ms", [FIRST_MS - 1, LAST_MS + 1, 1 << 70])
def test_a_moment_outside_the_calendar_is_refused(ms: int) -> None:
    with pytest.raises(OverflowError):
        from_ms(ms)


@pytest.mark.parametrize("moment", [NAIVE, ELSEWHERE], ids=["naive", "another zone"])
def test_no_value_holds_a_time_that_is_not_utc(moment: datetime) -> None:
    later = moment + timedelta(hours=1)
    with pytest.raises(ValueError, match=r"Clip\.start must be an aware UTC time"):
        Clip(PORCH, "a", moment, None)
    with pytest.raises(ValueError, match=r"Clip\.end must be an aware UTC time"):
        Clip(PORCH, "a", EPOCH, later)
    with pytest.raises(ValueError, match=r"Window\.start must be an aware UTC time"):
        Window(moment, EPOCH)
    with pytest.raises(ValueError, match=r"Window\.end must be an aware UTC time"):
        Window(EPOCH, later)


def test_no_value_holds_a_text_that_cannot_be_written() -> None:
    """Half of a surrogate pair can come out of JSON, and neither a file nor SQLite takes it."""
    half = "Garden \ud83d"
    with pytest.raises(ValueError, match=r"Camera\.id is no valid text"):
        Camera("home", half, "Garden")
    with pytest.raises(ValueError, match=r"Camera\.name is no valid text"):
        Camera("home", "garden", half)
    with pytest.raises(ValueError, match=r"Clip\.id is no valid text"):
        Clip(PORCH, half, EPOCH)
    with pytest.raises(ValueError, match=r"Clip\.classes is no valid text"):
        Clip(PORCH, "a", EPOCH, None, ("person", half))
    whole = "Garden \U0001f33b"
    assert Clip(Camera("home", whole, whole), whole, EPOCH, None, (whole,)).id == whole


def test_a_clip_may_be_a_moment_long_and_never_ends_before_it_begins() -> None:
    assert Clip(PORCH, "a", EPOCH, EPOCH).end == EPOCH
    with pytest.raises(ValueError, match="before its start"):
        Clip(PORCH, "a", EPOCH, EPOCH - timedelta(milliseconds=1))


@given(st.integers(0, 100_000), st.integers(1, 9_000))
def test_a_split_window_covers_every_moment_once(length_ms: int, longest_ms: int) -> None:
    longest = timedelta(milliseconds=longest_ms) + timedelta(seconds=1)
    whole = Window(EPOCH, EPOCH + timedelta(milliseconds=length_ms))
    parts = list(whole.split(longest))
    if not length_ms:
        assert parts == []
        return
    assert (parts[0].start, parts[-1].end) == (whole.start, whole.end)
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert all(timedelta(0) < part.end - part.start <= longest for part in parts)
    assert len(parts) == -(-length_ms // (longest_ms + 1000))  # no more listings than needed


def test_a_window_that_ends_before_it_begins_asks_for_nothing() -> None:
    assert list(Window(EPOCH, EPOCH - timedelta(hours=1)).split(timedelta(hours=1))) == []


async def test_the_systems_clock_is_utc_steady_and_never_waits_for_less_than_nothing() -> None:
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()
    await clock.sleep(-3600)
    before = time.monotonic()
    await clock.sleep(0.02)
    assert time.monotonic() - before > 0.01  # it does wait; how much longer is nobody's promise
    assert abs(clock.now().timestamp() - time.time()) < 24 * 3600  # a step of NTP is allowed
