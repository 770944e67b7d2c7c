"""The judgement of hours, on clocks that jump and with witnesses that disagree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from nvr_backup.coverage import Cell, Gap, Known, Pair, Record, State, hours, judge
from nvr_backup.model import Camera, Clip

BERLIN = ZoneInfo("Europe/Berlin")
PAIR = Pair("home", "31", "Porch", "nas")
CAMERA = Camera("home", "31", "Porch")
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def record(
    *clips: Known, proven: datetime = BEGIN + 6 * HOUR, listed: datetime = BEGIN + 6 * HOUR
) -> Record:
    return Record(PAIR, BEGIN, proven, listed, clips)


def states(
    of: Record, listed: list[Clip] | None, *, settled: datetime = BEGIN + 6 * HOUR
) -> list[State]:
    found = judge(of, listed, begin=BEGIN, end=BEGIN + 6 * HOUR, settled=settled, zone=UTC)
    return [cell.state for cell in found.cells]


def clip(start: float, end: float | None = None) -> Clip:
    """From `start` to `end`, in hours after BEGIN."""
    stop = None if end is None else BEGIN + end * HOUR
    return Clip(CAMERA, f"{start}", BEGIN + start * HOUR, stop)


def known(state: State, start: float, end: float) -> Known:
    return Known(BEGIN + start * HOUR, BEGIN + end * HOUR, state)


@pytest.mark.parametrize(
    ("day", "cells"),
    [
        (datetime(2026, 3, 29, tzinfo=BERLIN), 23),
        (datetime(2026, 10, 25, tzinfo=BERLIN), 25),
        (datetime(2026, 6, 1, tzinfo=BERLIN), 24),
    ],
)
def test_a_day_has_as_many_hours_as_the_clock_strikes(day: datetime, cells: int) -> None:
    begin = day.astimezone(UTC)
    end = (day + timedelta(days=1)).astimezone(UTC)
    found = list(hours(begin, end, BERLIN))
    assert len(found) == cells
    assert [cell.end for cell in found[:-1]] == [cell.start for cell in found[1:]]
    assert (found[0].start, found[-1].end) == (begin, end)


def test_hours_follow_a_zone_of_half_hours_and_begin_late() -> None:
    zone = ZoneInfo("Asia/Kolkata")
    found = list(hours(BEGIN + timedelta(minutes=10), BEGIN + 2 * HOUR, zone))
    minutes = [cell.start.minute for cell in found]
    assert minutes == [10, 30, 30]
    assert found[-1].end == BEGIN + 2 * HOUR


def test_the_worst_clip_decides_and_a_clip_counts_in_every_hour_it_touches() -> None:
    found = record(
        known(State.SAFE, 0.5, 2.5),
        known(State.LOST, 2.2, 2.3),
        known(State.WAITING, 2.1, 2.2),
        known(State.SET_ASIDE, 4.0, 5.0),
    )
    nothing, safe, lost, aside = State.NOTHING, State.SAFE, State.LOST, State.SET_ASIDE
    assert states(found, []) == [safe, safe, lost, nothing, aside, nothing]


def test_a_clip_of_no_length_is_in_its_hour() -> None:
    assert states(record(known(State.SAFE, 1, 1)), [])[:3] == [
        State.NOTHING,
        State.SAFE,
        State.NOTHING,
    ]


def test_what_the_source_has_and_we_do_not() -> None:
    found = record(known(State.SAFE, 0, 0.1), proven=BEGIN + 3 * HOUR)
    listed = [clip(0, 0.1), clip(1.5, 1.6), clip(4.5, 4.6), clip(5.9)]
    assert states(found, listed) == [
        State.SAFE,
        State.UNPLANNED,  # listed for good, and not on record
        State.NOTHING,
        State.NOTHING,
        State.WAITING,  # the next cycle will take it
        State.WAITING,
    ]


def test_a_clip_that_is_not_final_is_no_concern_yet() -> None:
    found = record(proven=BEGIN + 5 * HOUR)
    assert states(found, [clip(5.5, 5.8)], settled=BEGIN + 5.7 * HOUR)[-1] is State.NOTHING


@pytest.mark.parametrize(("listed", "unasked"), [(3.0, 3), (-1.0, 6), (2.5, 4), (6.0, 0)], ids=str)
def test_nobody_calls_an_hour_safe_that_was_not_listed(listed: float, unasked: int) -> None:
    clips = [known(State.SAFE, hour, hour + 0.1) for hour in range(6)]
    found = states(record(*clips, proven=BEGIN, listed=BEGIN + listed * HOUR), None)
    assert found == [State.SAFE] * (6 - unasked) + [State.UNASKED] * unasked


def test_worse_than_unasked_stays() -> None:
    assert states(record(known(State.LOST, 5, 5.5), listed=BEGIN), None)[-1] is State.LOST


def test_totals_count_a_clip_once() -> None:
    clips = [known(State.SAFE, 0.5, 4.5), known(State.LOST, 1, 1.1)]
    clips[0] = Known(clips[0].start, clips[0].end, State.SAFE, 1000)
    found = judge(
        record(*clips),
        [clip(2.5, 2.6)],
        begin=BEGIN,
        end=BEGIN + 6 * HOUR,
        settled=BEGIN + 6 * HOUR,
        zone=UTC,
    )
    assert found.totals == {State.SAFE: 1, State.LOST: 1, State.UNPLANNED: 1}
    assert found.stored_bytes == 1000


def test_gaps_are_runs_the_worst_first_then_the_longest() -> None:
    found = record(
        known(State.SAFE, 0, 0.5),
        known(State.WAITING, 1, 3.5),
        known(State.LOST, 4, 4.5),
        known(State.WAITING, 5, 5.5),
    )
    judged = judge(found, [], begin=BEGIN, end=BEGIN + 6 * HOUR, settled=BEGIN + 6 * HOUR, zone=UTC)
    assert judged.gaps() == [
        Gap(State.LOST, BEGIN + 4 * HOUR, BEGIN + 5 * HOUR),
        Gap(State.WAITING, BEGIN + HOUR, BEGIN + 4 * HOUR),
        Gap(State.WAITING, BEGIN + 5 * HOUR, BEGIN + 6 * HOUR),
    ]


def test_a_lost_hour_is_worse_than_many_that_wait() -> None:
    lost = judge(
        record(known(State.LOST, 0, 0.5)),
        [],
        begin=BEGIN,
        end=BEGIN + 6 * HOUR,
        settled=BEGIN,
        zone=UTC,
    )
    waits = judge(
        record(known(State.WAITING, 0, 6)),
        [],
        begin=BEGIN,
        end=BEGIN + 6 * HOUR,
        settled=BEGIN,
        zone=UTC,
    )
    assert lost.badness > waits.badness
    assert Cell(BEGIN, BEGIN).state is State.NOTHING
