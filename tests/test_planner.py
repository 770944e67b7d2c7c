"""The planner: what a listing means. Pure, so most of it is checked by properties."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.model import Clip
from nvr_backup.planner import (
    ALL_REACH,
    QUIET_REACH,
    UNKNOWN_LENGTH,
    KnownClip,
    NewId,
    Rules,
    believable,
    plan,
    reach_after,
    window_for,
)
from tests.support.fakes import EPOCH, clip_at

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
RULES = Rules(settle=timedelta(seconds=30), lookback=2 * HOUR, backfill=24 * HOUR)
NOW = EPOCH + 24 * HOUR
ALL_TIME = {"nas": EPOCH - 1000 * HOUR}


def known(row: int, clip: Clip, *stores: str) -> KnownClip:
    return KnownClip(row, clip.id, clip.start, clip.end, frozenset(stores or ("nas",)))


def additions(*listing: Clip, rows: tuple[KnownClip, ...] = ()) -> list[tuple[str, int | None]]:
    decided = plan(listing, rows, since=ALL_TIME, rules=RULES, now=NOW)
    return [(addition.clip.id, addition.instead_of) for addition in decided.additions]


# -- what is final ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "planned"),
    [(timedelta(seconds=29), False), (timedelta(seconds=30), True), (HOUR, True)],
)
def test_a_clip_is_planned_once_it_has_settled(ago: timedelta, planned: bool) -> None:
    clip = Clip(clip_at(0).camera, "a", NOW - ago - MINUTE, NOW - ago)
    decided = plan([clip], [], since=ALL_TIME, rules=RULES, now=NOW)
    assert bool(decided.additions) is planned
    assert decided.open_since == (None if planned else clip.start)


def test_a_clip_without_end_counts_as_ended_after_a_fixed_time() -> None:
    start = NOW - RULES.settle - UNKNOWN_LENGTH
    old = Clip(clip_at(0).camera, "old", start, None)
    young = Clip(clip_at(0).camera, "young", start + timedelta(seconds=1), None)
    assert additions(old, young) == [("old", None)]


def test_clips_from_the_future_are_counted_and_not_planned() -> None:
    ahead = Clip(clip_at(0).camera, "a", NOW + HOUR, NOW + HOUR + MINUTE)
    decided = plan([ahead], [], since=ALL_TIME, rules=RULES, now=NOW)
    assert (decided.additions, decided.ahead) == ((), 1)


# -- what is the same clip -------------------------------------------------------------------------


def test_a_known_clip_is_not_planned_again() -> None:
    clip = clip_at(0)
    assert additions(clip, rows=(known(1, clip),)) == []


def test_a_known_clip_that_got_shorter_is_the_same_clip() -> None:
    row = known(1, clip_at(0, seconds=60, id="a"))
    assert additions(clip_at(0, seconds=10, id="a"), rows=(row,)) == []


def test_a_longer_version_is_planned_instead_of_the_known_one() -> None:
    row = known(7, clip_at(0, seconds=10, id="a"))
    assert additions(clip_at(0, seconds=20, id="a"), rows=(row,)) == [("a", 7)]


def test_a_longer_version_under_a_new_id_is_recognised() -> None:
    row = known(7, clip_at(0, seconds=10, id="0-10"))
    assert additions(clip_at(0, seconds=20, id="0-20"), rows=(row,)) == [("0-20", 7)]


def test_growth_is_measured_against_the_longest_known_version() -> None:
    rows = (known(7, clip_at(0, seconds=10, id="a")), known(8, clip_at(0, seconds=30, id="a")))
    assert additions(clip_at(0, seconds=30, id="a"), rows=rows) == []
    assert additions(clip_at(0, seconds=40, id="a"), rows=rows) == [("a", 8)]


def test_two_clips_with_one_start_are_two_clips_while_both_are_listed() -> None:
    motion, person = clip_at(0, seconds=10, id="motion"), clip_at(0, seconds=20, id="person")
    assert additions(motion, person, rows=(known(7, motion),)) == [("person", None)]


def test_a_mere_change_of_id_is_noted_and_not_stored_again() -> None:
    row = known(7, clip_at(0, id="old"))
    decided = plan([clip_at(0, id="new")], [row], since=ALL_TIME, rules=RULES, now=NOW)
    assert decided.additions == ()
    assert decided.new_ids == (NewId(7, "new"),)


def test_an_end_that_becomes_known_later_is_no_growth() -> None:
    row = known(7, clip_at(0, seconds=None, id="a"))
    assert additions(clip_at(0, seconds=20, id="a"), rows=(row,)) == []


def test_a_store_that_was_added_later_joins_the_known_clip() -> None:
    clip = clip_at(0)
    decided = plan(
        [clip],
        [known(7, clip, "nas")],
        since={"nas": EPOCH - HOUR, "offsite": EPOCH - HOUR},
        rules=RULES,
        now=NOW,
    )
    (addition,) = decided.additions
    assert (addition.stores, addition.instead_of) == (frozenset({"offsite"}), None)


def test_a_clip_before_a_stores_window_is_not_that_stores() -> None:
    clip = clip_at(0, seconds=60)
    since = {"nas": clip.start + MINUTE, "offsite": clip.start + MINUTE + timedelta(seconds=1)}
    decided = plan([clip], [], since=since, rules=RULES, now=NOW)
    assert [addition.stores for addition in decided.additions] == [frozenset({"nas"})]


CLIPS = st.lists(
    st.tuples(st.integers(0, 1440), st.integers(1, 600) | st.none(), st.sampled_from("abc")),
    max_size=20,
    unique_by=lambda item: (item[0], item[2]),
).map(lambda items: [clip_at(m, seconds=s, id=f"{m}{i}") for m, s, i in items])


@given(CLIPS)
def test_every_settled_clip_is_planned_exactly_once_and_then_known(listing: list[Clip]) -> None:
    decided = plan(listing, [], since=ALL_TIME, rules=RULES, now=NOW)
    settled = [
        clip for clip in listing if (clip.end or clip.start + UNKNOWN_LENGTH) <= NOW - RULES.settle
    ]
    assert [addition.clip for addition in decided.additions] == settled
    rows = [known(row, addition.clip) for row, addition in enumerate(decided.additions)]
    again = plan(listing, rows, since=ALL_TIME, rules=RULES, now=NOW)
    assert again.additions == ()
    assert again.new_ids == ()


@given(CLIPS, st.integers(0, 1500))
def test_the_reach_never_passes_a_clip_that_is_not_planned(
    listing: list[Clip], minute: int
) -> None:
    now = EPOCH + minute * MINUTE
    decided = plan(listing, [], since=ALL_TIME, rules=RULES, now=now)
    window = window_for(None, rules=RULES, now=now)
    proven = window.end if listing else None
    reach = reach_after(None, window=window, proven=proven, open_since=decided.open_since)
    planned = {addition.clip for addition in decided.additions}
    for clip in listing:
        if clip not in planned:
            assert clip.start >= reach or window.start >= reach


@given(CLIPS, st.lists(st.integers(0, 1500), min_size=2, max_size=6))
def test_growing_clips_are_covered_by_their_longest_version(
    listing: list[Clip], minutes: list[int]
) -> None:
    """Whatever is seen at each listing, the longest settled version of each start is planned."""
    rows: list[KnownClip] = []
    last: dict[tuple[datetime, str], Clip] = {}
    for before, after in pairwise(sorted(minutes)):
        now = EPOCH + after * MINUTE
        grown = [
            replace(clip, end=clip.end + (after - before) * MINUTE)
            for clip in listing
            if clip.end is not None and clip.start < now
        ]
        decided = plan(grown, rows, since=ALL_TIME, rules=RULES, now=now)
        rows += [known(len(rows) + i, item.clip) for i, item in enumerate(decided.additions)]
        for clip in grown:
            if clip.end is not None and clip.end <= now - RULES.settle:
                last[clip.start, clip.id] = max(
                    clip, last.get((clip.start, clip.id), clip), key=lambda c: c.end or c.start
                )
    for (start, clip_id), clip in last.items():
        assert any(row.start == start and row.id == clip_id and row.end == clip.end for row in rows)


# -- windows and reach -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backfill", "back"),
    [
        (24 * HOUR, 24 * HOUR),
        ("none", timedelta(0)),
        ("all", ALL_REACH),
        (9999 * 24 * HOUR, ALL_REACH),
    ],
)
def test_a_first_window_goes_back_by_the_backfill(backfill: object, back: timedelta) -> None:
    rules = replace(RULES, backfill=backfill)  # type: ignore[arg-type]
    window = window_for(None, rules=rules, now=NOW)
    assert (window.start, window.end) == (NOW - RULES.settle - back, NOW - RULES.settle)


def test_a_later_window_begins_a_lookback_before_the_reach() -> None:
    window = window_for(NOW - HOUR, rules=RULES, now=NOW)
    assert window.start == NOW - 3 * HOUR
    assert window.end == NOW - RULES.settle


def test_a_reach_in_the_future_is_replaced_by_the_latest_clip_on_record() -> None:
    future = NOW + 1000 * HOUR
    assert believable(future, latest=NOW - 5 * HOUR, now=NOW) == NOW - 5 * HOUR
    assert believable(future, latest=NOW + 5 * HOUR, now=NOW) == NOW
    assert believable(future, latest=None, now=NOW) is None
    assert believable(NOW, latest=None, now=NOW) == NOW
    assert believable(None, latest=NOW, now=NOW) is None


def test_an_empty_listing_moves_nothing_for_thirty_days() -> None:
    window = window_for(NOW - HOUR, rules=RULES, now=NOW)
    assert reach_after(NOW - HOUR, window=window, proven=None, open_since=None) == NOW - HOUR
    late = NOW + QUIET_REACH
    window = window_for(NOW - HOUR, rules=RULES, now=late)
    moved = reach_after(NOW - HOUR, window=window, proven=None, open_since=None)
    assert moved == late - RULES.settle - QUIET_REACH


def test_the_reach_stops_before_a_clip_that_is_still_growing() -> None:
    window = window_for(NOW - HOUR, rules=RULES, now=NOW)
    growing = NOW - 10 * MINUTE
    assert reach_after(NOW - HOUR, window=window, proven=window.end, open_since=growing) == growing
    older = NOW - 5 * HOUR  # began before the reach: the reach stays, and the lookback sees it
    assert reach_after(NOW - HOUR, window=window, proven=window.end, open_since=older) == NOW - HOUR


@given(
    st.integers(-3000, 3000) | st.none(),
    st.integers(-3000, 3000),
    st.integers(-3000, 3000) | st.none(),
)
def test_windows_and_reaches_hold_whatever_the_clock_does(
    reach_minute: int | None, now_minute: int, proven_minute: int | None
) -> None:
    now = EPOCH + now_minute * MINUTE
    recorded = None if reach_minute is None else EPOCH + reach_minute * MINUTE
    reach = believable(recorded, latest=None, now=now)
    window = window_for(reach, rules=RULES, now=now)
    assert window.start <= window.end <= now
    proven = None if proven_minute is None else min(EPOCH + proven_minute * MINUTE, window.end)
    after = reach_after(reach, window=window, proven=proven, open_since=None)
    assert after <= window.end
    if reach is not None:
        assert after >= min(reach, window.end)
