"""What plugins list, however oddly, becomes clips: each once, none lost, none made up."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.model import Camera, Clip, Window, from_ms, to_ms
from nvr_backup.sources.scrypted import listing

CAMERA = Camera("home", "c", "C")
T = 1_767_225_600_000
"""2026-01-01, in milliseconds."""

HOUR = 3_600_000


def item(start: Any = T, duration: Any = 10_000, id: Any = "a", **more: Any) -> dict[str, Any]:
    return {"id": id, "startTime": start, "duration": duration, **more}


def only(*items: Any) -> listing.Entry:
    listed = listing.read(items, CAMERA)
    assert len(listed.entries) == 1
    return listed.entries[0]


def window(start: int, end: int) -> Window:
    return Window(from_ms(start), from_ms(end))


def clip(start: int, seconds: float | None = 10, id: str = "a") -> Clip:
    begin = from_ms(start)
    return Clip(CAMERA, id, begin, None if seconds is None else begin + timedelta(seconds=seconds))


# -- fields ------------------------------------------------------------------------------------


def test_a_whole_entry_is_read() -> None:
    entry = only(
        item(
            detectionClasses=["person", "motion"],
            videoId="v",
            resources={"video": {"href": "/endpoint/x"}, "thumbnail": {"href": "/t"}},
        )
    )
    assert entry.clip == Clip(
        CAMERA, "a", from_ms(T), from_ms(T + 10_000), classes=("person", "motion")
    )
    assert (entry.fetch_id, entry.href) == ("v", "/endpoint/x")
    assert "/endpoint/x" not in repr(entry)


@pytest.mark.parametrize(
    "duration",
    [None, 0, -5, float("nan"), float("inf"), -float("inf"), 1e300, 10**30, "10", True, [], {}],
)
def test_a_duration_that_says_nothing_makes_a_clip_without_end(duration: Any) -> None:
    assert only(item(duration=duration)).clip.end is None
    assert only({"id": "a", "startTime": T}).clip.end is None


@pytest.mark.parametrize(
    "start",
    [None, -1, float("nan"), float("inf"), 1e300, 10**30, 1_831_000_000_000_000, "T", True, [], {}],
)
def test_an_entry_without_a_usable_start_is_left_out_and_counted(start: Any) -> None:
    listed = listing.read([item(start=start), item(id="b")], CAMERA)
    assert [e.clip.id for e in listed.entries] == ["b"]
    assert listed.left_out == 1


@pytest.mark.parametrize("id", [None, "", [], {}, True, 1.5, "x" * 5000, 1 << 70])
def test_an_entry_without_a_usable_id_is_left_out_and_counted(id: Any) -> None:
    assert listing.read([item(id=id)], CAMERA) == listing.Listing((), 1)


@pytest.mark.parametrize("thing", [None, "clip", 17, [], True])
def test_what_is_no_entry_at_all_is_left_out_and_counted(thing: Any) -> None:
    assert listing.read([thing], CAMERA) == listing.Listing((), 1)


@pytest.mark.parametrize(
    "id", [json.dumps({"startTime": T, "duration": 1}), "/recordings/a b/ü.mp4", "1-2-1.mp4"]
)
def test_ids_are_opaque(id: str) -> None:
    entry = only(item(id=id))
    assert entry.clip.id == entry.fetch_id == id


def test_a_number_as_id_is_text_for_us_and_a_number_for_the_plugin() -> None:
    entry = only(item(id=17))
    assert (entry.clip.id, entry.fetch_id) == ("17", 17)


def test_the_video_id_is_what_is_fetched() -> None:
    assert only(item(videoId="v")).fetch_id == "v"
    assert only(item(videoId="")).fetch_id == "a"
    assert only(item(videoId=None)).fetch_id == "a"


def test_fractions_of_milliseconds_are_dropped() -> None:
    assert only(item(start=T + 0.9, duration=1000.7)).clip == clip(T, 1)


@pytest.mark.parametrize(
    "resources", [None, "none", [], {}, {"video": None}, {"video": {"href": 5}}, {"video": "x"}]
)
def test_broken_resources_are_no_href(resources: Any) -> None:
    assert only(item(resources=resources)).href is None


@pytest.mark.parametrize(
    "classes, expected",
    [(None, ()), (5, ()), ("motion", ()), (["a", 1, "", None, "b"], ("a", "b"))],
)
def test_classes_that_are_none_are_dropped(classes: Any, expected: tuple[str, ...]) -> None:
    assert only(item(detectionClasses=classes)).clip.classes == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.lists(
        json_values
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("id", "startTime", "duration", "videoId", "detectionClasses"), json_values
            ),
        ),
        max_size=10,
    )
)
def test_no_answer_can_break_the_reader(items: list[Any]) -> None:
    listed = listing.read(items, CAMERA)
    assert len(listed.entries) + listed.left_out <= len(items)
    assert list(listed.entries) == sorted(listed.entries, key=lambda e: e.clip.start)


# -- each once -----------------------------------------------------------------------------------


def test_duplicates_are_one_and_the_longest_of_them() -> None:
    listed = listing.read([item(), item(duration=30_000), item(duration=None)], CAMERA)
    assert [e.clip for e in listed.entries] == [clip(T, 30)]


def test_an_id_used_by_two_merged_sources_is_two_clips() -> None:
    listed = listing.read([item(T + 1, id="1"), item(T, id="1")], CAMERA)
    assert [to_ms(e.clip.start) for e in listed.entries] == [T, T + 1]


def test_two_clips_that_begin_together_are_two_clips() -> None:
    assert len(listing.read([item(id="a"), item(id="b")], CAMERA).entries) == 2


# -- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, seconds, inside",
    [
        (T - 10_000, 10, False),
        (T - 10_000, 10.001, True),
        (T - 10_000, 10_000, True),
        (T, 1, True),
        (T + 999_999, 5000, True),
        (T + 1_000_000, 1, False),
        (T - 1, None, False),
        (T, None, True),
        (T + 999_999, None, True),
    ],
)
def test_touching_a_window(start: int, seconds: float | None, inside: bool) -> None:
    assert listing.touches(clip(start, seconds), window(T, T + 1_000_000)) is inside


@given(st.integers(0, 100 * HOUR))
def test_no_question_is_longer_than_six_hours_and_none_leaves_a_gap(length: int) -> None:
    parts = list(listing.parts(window(T, T + length)))
    asked = [listing.with_margin(part) for part in parts]
    assert all(a.end - a.start <= timedelta(hours=6) for a in asked)
    edges = [T] + [to_ms(part.end) for part in parts]
    assert edges[-1] == T + length
    assert [to_ms(part.start) for part in parts] == edges[:-1]


def test_margins_stay_within_time_itself() -> None:
    asked = listing.with_margin(window(0, listing.LATEST_MS))
    assert to_ms(asked.start) == 0
    assert to_ms(asked.end) <= listing.LATEST_MS


# -- seams ---------------------------------------------------------------------------------------


def seam_result(*answers: list[Any]) -> list[str]:
    """What comes of parts of five hours whose answers are given."""
    seam = listing.Seam()
    found = []
    for index, answer in enumerate(answers):
        part = window(T + index * 5 * HOUR, T + (index + 1) * 5 * HOUR)
        found += [entry.clip.id for entry in seam.take(part, listing.read(answer, CAMERA))]
    return found


def test_a_clip_across_a_seam_comes_once() -> None:
    across = item(T + 5 * HOUR - 5000, id="across")
    after = item(T + 5 * HOUR + 10_000, id="after")
    assert seam_result([across], [across, after]) == ["across", "after"]
    assert seam_result([across, after], [after]) == ["across", "after"]


def test_a_clip_across_two_seams_comes_once() -> None:
    long = item(T + 5 * HOUR - 5000, 11 * HOUR, id="long")
    assert seam_result([long], [long], [long]) == ["long"]


def test_a_clip_that_grows_across_a_seam_comes_once() -> None:
    start = T + 5 * HOUR - 5000
    assert seam_result([item(start, 4000, "old")], [item(start, 20_000, "new")]) == ["old"]


def test_another_clip_of_the_same_start_is_not_lost_at_a_seam() -> None:
    start = T + 5 * HOUR - 5000
    one, other = item(start, 20_000, "one"), item(start, 20_000, "other")
    assert sorted(seam_result([one], [one, other])) == ["one", "other"]


def test_a_clip_that_only_the_later_answer_knows_is_not_lost() -> None:
    assert seam_result([], [item(T + 5 * HOUR - 5000, 20_000, "late")]) == ["late"]


def test_an_answer_that_ignores_the_window_adds_nothing_twice() -> None:
    everything = [item(T + h * HOUR, id=str(h)) for h in range(15)]
    assert seam_result(everything, everything, everything) == [str(h) for h in range(15)]


# -- the same clip again -------------------------------------------------------------------------


def entries(*clips: Clip) -> list[listing.Entry]:
    return [listing.Entry(c, c.id) for c in clips]


def test_a_clip_is_found_by_id_and_start_then_id_then_start() -> None:
    wanted = clip(T, id="a")
    both, id_only, start_only = clip(T, id="a"), clip(T + 5, id="a"), clip(T, id="b")
    found = listing.match(wanted, entries(id_only, start_only, both))
    assert found is not None and found.clip is both
    found = listing.match(wanted, entries(start_only, id_only))
    assert found is not None and found.clip is id_only
    found = listing.match(wanted, entries(clip(T, 5, "x"), clip(T, 99, "c"), clip(T, None, "y")))
    assert found is not None and found.clip.id == "c"
    assert listing.match(wanted, entries(clip(T + 1, id="d"))) is None
