"""The planner: what a listing means. Pure, so most of it is checked by properties."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.model import Clip, Window, to_ms
from nvr_backup.planner import (
    ALL_REACH,
    TAIL,
    UNKNOWN_LENGTH,
    WHOLE_EVERY,
    Findings,
    Hole,
    KnownClip,
    NewId,
    Reach,
    Rules,
    Stretch,
    advance,
    believable,
    first_reach,
    plan,
    stretch_for,
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


@pytest.mark.parametrize(("seconds", "ahead"), [(0, 0), (1, 0), (120, 0), (120.001, 1), (86400, 1)])
def test_a_clock_a_little_ahead_is_no_trouble(seconds: float, ahead: int) -> None:
    begins = NOW + timedelta(seconds=seconds)
    decided = plan(
        [Clip(clip_at(0).camera, "a", begins, None)], [], since=ALL_TIME, rules=RULES, now=NOW
    )
    assert (decided.ahead, decided.open_since) == (ahead, begins)


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


@pytest.mark.parametrize("unit", [1, 1000])
def test_a_longer_version_under_an_id_that_tells_its_start_is_recognised(unit: int) -> None:
    start = to_ms(EPOCH) // unit
    row = known(7, clip_at(0, seconds=10, id=f"{start}-10"))
    grown = clip_at(0, seconds=20, id=f"{start}-20")
    assert additions(grown, rows=(row,)) == [(grown.id, 7)]
    assert additions(clip_at(0, seconds=5, id=f"{start}-5"), rows=(row,)) == [(f"{start}-5", None)]


@pytest.mark.parametrize("seconds", [5, 20, None])
def test_another_id_alone_makes_another_clip_although_the_old_one_is_gone(
    seconds: float | None,
) -> None:
    """The old one may just be missing from this listing: rather twice than not at all."""
    row = known(7, clip_at(0, seconds=10, id="motion"))
    person = clip_at(0, seconds=seconds, id="person")
    assert additions(person, rows=(row,)) == [("person", None)]


def test_growth_is_measured_against_the_longest_known_version() -> None:
    rows = (known(7, clip_at(0, seconds=10, id="a")), known(8, clip_at(0, seconds=30, id="a")))
    assert additions(clip_at(0, seconds=30, id="a"), rows=rows) == []
    assert additions(clip_at(0, seconds=40, id="a"), rows=rows) == [("a", 8)]


def test_two_clips_with_one_start_are_two_clips_while_both_are_listed() -> None:
    motion, person = clip_at(0, seconds=10, id="motion"), clip_at(0, seconds=20, id="person")
    assert additions(motion, person, rows=(known(7, motion),)) == [("person", None)]


def test_two_clips_of_one_stretch_are_two_clips_while_both_are_listed() -> None:
    motion, person = clip_at(0, id="motion"), clip_at(0, id="person")
    assert additions(motion, person, rows=(known(7, motion),)) == [("person", None)]


def test_a_mere_change_of_id_is_noted_and_not_stored_again() -> None:
    row = known(7, clip_at(0, id="old"))
    decided = plan([clip_at(0, id="new")], [row], since=ALL_TIME, rules=RULES, now=NOW)
    assert decided.additions == ()
    assert decided.new_ids == (NewId(7, "new"),)


def test_an_end_that_becomes_known_later_is_growth_only_beyond_what_was_assumed() -> None:
    row = known(7, clip_at(0, seconds=None, id="a"))
    assumed = UNKNOWN_LENGTH.total_seconds()
    assert additions(clip_at(0, seconds=assumed, id="a"), rows=(row,)) == []
    assert additions(clip_at(0, seconds=assumed + 1, id="a"), rows=(row,)) == [("a", 7)]


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


def test_a_store_that_was_added_later_joins_the_clip_as_it_is_known() -> None:
    """Listed shorter now: still the clip that the other store holds."""
    row = known(7, clip_at(0, seconds=60, id="a"), "nas")
    since = {"nas": EPOCH - HOUR, "offsite": EPOCH - HOUR}
    decided = plan([clip_at(0, seconds=50, id="a")], [row], since=since, rules=RULES, now=NOW)
    (addition,) = decided.additions
    assert addition.clip == clip_at(0, seconds=60, id="a")
    assert addition.stores == frozenset({"offsite"})


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


def reach_at(hours: float, **changes: Any) -> Reach:
    """A reach in all respects `hours` before NOW, but for `changes`."""
    moment = NOW - hours * HOUR
    return replace(Reach(EPOCH - 1000 * HOUR, moment, moment, moment, moment), **changes)


def found(latest: datetime | None, **changes: object) -> Findings:
    return replace(Findings(latest, open_since=None, complete=True), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backfill", "back"),
    [
        (24 * HOUR, 24 * HOUR),
        ("none", timedelta(0)),
        ("all", ALL_REACH),
        (9999 * 24 * HOUR, ALL_REACH),
    ],
)
def test_a_first_listing_goes_back_by_the_backfill(backfill: object, back: timedelta) -> None:
    rules = replace(RULES, backfill=backfill)  # type: ignore[arg-type]
    reach = first_reach(rules, NOW)
    stretch = stretch_for(reach, rules=rules, now=NOW)
    begin = NOW - RULES.settle - back
    assert stretch == Stretch(Window(begin, NOW - RULES.settle), whole=True)
    # No lookback ever reaches beyond where the backfill began.
    later = stretch_for(replace(reach, proven=begin + MINUTE), rules=rules, now=NOW + HOUR)
    assert later.window.start == begin


def test_a_later_listing_begins_a_lookback_before_what_is_proven() -> None:
    stretch = stretch_for(reach_at(1), rules=RULES, now=NOW)
    assert stretch == Stretch(Window(NOW - 3 * HOUR, NOW - RULES.settle), whole=True)


def test_a_long_silence_is_listed_whole_from_time_to_time_and_its_tail_always() -> None:
    silent = reach_at(1000, whole=NOW - WHOLE_EVERY + MINUTE)
    assert stretch_for(silent, rules=RULES, now=NOW) == Stretch(
        Window(NOW - RULES.settle - TAIL, NOW - RULES.settle), whole=False
    )
    whole = stretch_for(silent, rules=RULES, now=NOW + MINUTE)
    assert (whole.window.start, whole.whole) == (NOW - 1002 * HOUR, True)
    assert stretch_for(replace(silent, whole=None), rules=RULES, now=NOW).whole
    unproven = replace(silent, seen=silent.proven + MINUTE, listed_until=NOW - TAIL + MINUTE)
    assert stretch_for(unproven, rules=RULES, now=NOW).whole
    assert not stretch_for(replace(unproven, listed_until=NOW - TAIL), rules=RULES, now=NOW).whole


def test_only_what_two_passes_have_shown_is_proven() -> None:
    reach = reach_at(10)
    stretch = stretch_for(reach, rules=RULES, now=NOW)
    once = advance(reach, stretch, found(NOW - 2 * HOUR), now=NOW)
    assert (once.proven, once.seen) == (reach.proven, NOW - 2 * HOUR)
    twice = advance(once, stretch, found(NOW - 3 * HOUR), now=NOW)
    assert (twice.proven, twice.seen) == (NOW - 3 * HOUR, NOW - 2 * HOUR)
    assert once.listed_until == twice.listed_until == NOW - RULES.settle
    assert once.whole == NOW


def test_what_lies_behind_empty_days_is_proven_once_they_stay_empty() -> None:
    """Two passes soon after each other may meet one and the same error that the recorder hides."""
    reach = reach_at(100)
    before, until = NOW - 90 * HOUR, NOW - 24 * HOUR
    stretch = stretch_for(reach, rules=RULES, now=NOW)

    def after(reach: Reach, hours: float, hole: Hole | None) -> Reach:
        return advance(reach, stretch, found(NOW - HOUR, hole=hole), now=NOW + hours * HOUR)

    first = after(reach, 0, Hole(before, until))
    second = after(first, 1, Hole(before, until))
    late = after(second, 5.9, Hole(before, until))
    assert late == replace(first, proven=before, seen=before, whole=NOW)
    # It has stayed empty for six hours: from now on as ever, two passes prove it.
    vouched = after(late, 6, Hole(before, until))
    assert (vouched.proven, vouched.seen) == (before, NOW - HOUR)
    assert after(vouched, 6.1, Hole(before, until)).proven == NOW - HOUR
    # An answer in between that shows those days has gone over them.
    healed = after(second, 2, None)
    assert (healed.proven, healed.seen) == (before, NOW - HOUR)
    assert after(healed, 2.1, Hole(before, until)).proven == NOW - HOUR


def test_days_that_no_pass_has_gone_over_are_new_however_long_the_last_pass_was_ago() -> None:
    hole = Hole(before=None, until=NOW - 24 * HOUR)
    away = reach_at(100, whole=NOW - 100 * HOUR)
    stretch = stretch_for(away, rules=RULES, now=NOW)
    first = advance(away, stretch, found(NOW - HOUR, hole=hole), now=NOW)
    assert (first.proven, first.seen, first.whole) == (away.proven, away.seen, NOW)
    failed = advance(away, stretch, found(NOW - HOUR, hole=hole, complete=False), now=NOW)
    assert failed == away


def test_a_pass_without_a_clip_moves_nothing() -> None:
    reach = reach_at(10, seen=NOW - HOUR)
    stretch = stretch_for(reach, rules=RULES, now=NOW)
    after = advance(reach, stretch, found(None), now=NOW)
    assert after == replace(reach, whole=NOW)
    assert advance(reach, stretch, found(None, complete=False), now=NOW) == reach


def test_a_pass_that_failed_half_way_counts_as_far_as_it_came() -> None:
    reach = reach_at(10, seen=NOW - HOUR)
    stretch = stretch_for(reach, rules=RULES, now=NOW)
    after = advance(reach, stretch, found(NOW - 4 * HOUR, complete=False), now=NOW)
    assert after == replace(reach, proven=NOW - 4 * HOUR)


def test_the_tail_of_a_stretch_proves_nothing_about_the_rest() -> None:
    reach = reach_at(1000, whole=NOW - HOUR)
    stretch = stretch_for(reach, rules=RULES, now=NOW)
    assert advance(reach, stretch, found(NOW - HOUR), now=NOW) == reach
    # Unless all before it has been listed without error, which the watermark may tell.
    listed = replace(reach, listed_until=NOW - HOUR)
    after = advance(listed, stretch, found(NOW - HOUR), now=NOW)
    assert after == replace(listed, listed_until=NOW - RULES.settle)


def test_a_clip_that_is_still_growing_is_not_passed() -> None:
    reach = reach_at(3, seen=NOW - HOUR)
    stretch = stretch_for(reach, rules=RULES, now=NOW)
    growing = NOW - 90 * MINUTE
    after = advance(reach, stretch, found(NOW - HOUR, open_since=growing), now=NOW)
    assert (after.proven, after.listed_until, after.seen) == (growing, growing, NOW - HOUR)
    older = NOW - 5 * HOUR  # began before the reach: nothing goes back
    after = advance(reach, stretch, found(NOW - HOUR, open_since=older), now=NOW)
    assert (after.proven, after.listed_until) == (reach.proven, reach.listed_until)


def test_times_in_the_future_are_replaced_by_the_latest_clip_on_record() -> None:
    future = NOW + 1000 * HOUR
    reach = reach_at(5, proven=future, seen=future, listed_until=future, whole=future)
    on_record = believable(reach, rules=RULES, latest=NOW - 5 * HOUR, now=NOW)
    assert on_record == reach_at(5, whole=None)
    ahead = believable(reach, rules=RULES, latest=NOW + 5 * HOUR, now=NOW)
    assert ahead == reach_at(0, whole=None)
    nothing = believable(reach, rules=RULES, latest=None, now=NOW)
    assert nothing.proven == nothing.seen == nothing.listed_until == reach.begin
    assert believable(reach_at(0), rules=RULES, latest=None, now=NOW) == reach_at(0)
    begun = believable(reach_at(5, begin=future), rules=RULES, latest=None, now=NOW)
    assert begun.begin == first_reach(RULES, NOW).begin
    # A clock that went far back: nobody has listed what is the past now, whatever is on record.
    back = reach_at(-1, begin=NOW + HOUR)
    for latest in (None, NOW + HOUR, NOW - HOUR):
        assert believable(back, rules=RULES, latest=latest, now=NOW) == first_reach(RULES, NOW)


MOMENTS = st.integers(-3000, 3000).map(lambda minute: EPOCH + minute * MINUTE)
REACHES = st.builds(Reach, MOMENTS, MOMENTS, MOMENTS, MOMENTS, st.none() | MOMENTS)


@given(
    REACHES,
    st.none() | MOMENTS,
    MOMENTS,
    st.builds(
        Findings,
        st.none() | MOMENTS,
        st.none() | MOMENTS,
        st.booleans(),
        st.none() | st.builds(Hole, st.none() | MOMENTS, MOMENTS),
    ),
)
def test_windows_and_reaches_hold_whatever_the_clock_does(
    recorded: Reach, latest: datetime | None, now: datetime, seen: Findings
) -> None:
    reach = believable(recorded, rules=RULES, latest=latest, now=now)
    stretch = stretch_for(reach, rules=RULES, now=now)
    assert stretch.window.start <= stretch.window.end <= now
    after = advance(reach, stretch, seen, now=now)
    assert after.begin == reach.begin
    assert after.proven >= reach.proven
    assert after.seen >= reach.seen
    assert after.listed_until >= reach.listed_until
    if seen.open_since is not None:
        assert after.proven <= max(reach.proven, seen.open_since)
        assert after.listed_until <= max(reach.listed_until, seen.open_since)
    if seen.latest is None:
        assert after.proven == reach.proven
    else:
        assert after.proven <= max(reach.proven, seen.latest)
