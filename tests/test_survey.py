"""One camera's listing pass on a real checkpoint: what is planned, and how far it then reaches."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import FILE_NAME, CheckpointError
from nvr_backup.errors import Transient
from nvr_backup.healing import list_again
from nvr_backup.keys import candidates
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.planner import TAIL, WHOLE_EVERY, Reach, Rules
from nvr_backup.rows import Claim
from nvr_backup.survey import PASS_LENGTH, Survey
from tests.support.fakes import EPOCH, PORCH, FakeSource, clip_at, mp4

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SETTLE = timedelta(seconds=30)
RULES = Rules(settle=SETTLE, lookback=2 * HOUR, backfill=DAY)
NOW = EPOCH + DAY
END = NOW - SETTLE


@pytest.fixture
async def checkpoint(tmp_path: Path) -> AsyncIterator[Checkpoint]:
    checkpoint = await Checkpoint.open(tmp_path, now=NOW)
    yield checkpoint
    checkpoint.close()


@pytest.fixture
async def survey(checkpoint: Checkpoint) -> Survey:
    def keys(_store: str, clip: Clip) -> Iterator[str]:
        return candidates("{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4", clip)

    return Survey(FakeSource(), ["nas"], checkpoint, RULES, keys)


def source_of(survey: Survey) -> FakeSource:
    assert isinstance(survey.source, FakeSource)
    return survey.source


def past_windows(survey: Survey) -> list[Window]:
    """What was asked for, but for the look into the future."""
    return [window for _, window in source_of(survey).windows if window.start < NOW]


def record(survey: Survey, start: datetime, end: datetime | None, id: str) -> Clip:
    """Let the recorder hold a clip."""
    return source_of(survey).add(Clip(PORCH, id, start, end), mp4(100))


async def backlog(survey: Survey, store: str = "nas") -> list[Claim]:
    """Everything that waits for a store, oldest first; claims it."""
    found: list[Claim] = []
    while True:
        claimed = await survey.checkpoint.claim(
            sources=["home"], stores=[store], cameras=lambda _: True, busy={}, due=None
        )
        if claimed is None:
            return found
        found.append(claimed)


async def planned(survey: Survey, store: str = "nas") -> list[str]:
    return [claimed.clip.id for claimed in await backlog(survey, store)]


async def reach(survey: Survey, store: str = "nas") -> Reach:
    return (await survey.checkpoint.reaches(PORCH))[store]


async def listed_until(survey: Survey, store: str = "nas") -> datetime | None:
    """Up to when the camera counts as listed; None where nothing is recorded."""
    found = (await survey.checkpoint.reaches(PORCH)).get(store)
    return None if found is None else found.listed_until


# -- the reach never passes what is not in the backlog ---------------------------------------------


async def test_a_pass_that_finds_a_clip_reaches_to_the_end_of_its_window(survey: Survey) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    found = await survey.camera(PORCH, now=NOW)
    assert (found.listed, found.planned, found.ahead, found.additions) == (1, 1, 0, [])
    assert await listed_until(survey) == END
    assert await planned(survey) == ["porch-60"]


async def test_a_clip_whose_keys_are_all_taken_is_planned_under_one_of_its_own(
    survey: Survey,
) -> None:
    for minute in (60, 61, 62):
        source_of(survey).add(clip_at(minute), mp4(100))

    def only_one(_store: str, _clip: Clip) -> Iterator[str]:
        yield "always the same"

    await replace(survey, keys=only_one).camera(PORCH, now=NOW)
    waiting = await backlog(survey)
    assert [claimed.clip.id for claimed in waiting] == ["porch-60", "porch-61", "porch-62"]
    assert len({claimed.key for claimed in waiting}) == 3


async def test_what_could_not_be_recorded_is_not_passed(
    survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_of(survey).add(clip_at(60), mp4(100))

    async def full(*_: object, **__: object) -> int:
        raise CheckpointError("The disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(Checkpoint, "apply", full)
        with pytest.raises(CheckpointError):
            await survey.camera(PORCH, now=NOW)
    assert await listed_until(survey) in {None, END - DAY}
    await survey.camera(PORCH, now=NOW)
    assert await planned(survey) == ["porch-60"]


async def test_a_crash_before_anything_is_recorded_leaves_the_reach_where_it_was(
    survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(Exception):
        pass

    async def cut(*_: object, **__: object) -> int:
        raise PowerCut

    source_of(survey).add(clip_at(60), mp4(100))
    await survey.begin([PORCH], now=NOW)
    before = await reach(survey)
    with monkeypatch.context() as broken:
        broken.setattr(Checkpoint, "apply", cut)
        with pytest.raises(PowerCut):
            await survey.camera(PORCH, now=NOW)
    assert await reach(survey) == before


async def test_a_listing_that_fails_keeps_the_days_before_and_no_more(survey: Survey) -> None:
    clips = [clip_at(-day * 1440 + 600, id=f"day{day}") for day in (3, 2, 1, 0)]
    for clip in clips:
        source_of(survey).add(clip, mp4(100))
    long = replace(survey, rules=replace(RULES, backfill=4 * DAY))
    source_of(survey).faults.skip["clips"] = 2
    source_of(survey).faults.arm("clips", Transient("link lost"))
    with pytest.raises(Transient, match="link lost"):
        await long.camera(PORCH, now=NOW)
    begin = END - 4 * DAY
    assert await reach(survey) == Reach(begin, begin, clips[1].start, begin)
    assert await planned(survey) == ["day3", "day2"]
    found = await long.camera(PORCH, now=NOW)
    assert (found.listed, await planned(survey)) == (4, ["day1", "day0"])
    assert await reach(survey) == Reach(begin, clips[1].start, clips[3].start, END, NOW)


async def test_a_failure_without_any_clip_records_nothing_listed(survey: Survey) -> None:
    source_of(survey).faults.arm("clips", Transient("link lost"))
    with pytest.raises(Transient):
        await survey.camera(PORCH, now=NOW)
    begin = END - DAY
    assert await reach(survey) == Reach(begin, begin, begin, begin)


async def test_an_empty_answer_in_the_middle_is_asked_again(survey: Survey) -> None:
    """The recorder swallows an error on one day of three: the next pass goes there again."""
    long = replace(survey, rules=replace(RULES, backfill=3 * DAY))
    for day in (2, 1, 0):
        source_of(survey).add(clip_at(-day * 1440 + 600, id=f"day{day}"), mp4(100))
    hidden = source_of(survey).recordings.pop("day1")
    await long.camera(PORCH, now=NOW)
    source_of(survey).recordings["day1"] = hidden
    await long.camera(PORCH, now=NOW + WHOLE_EVERY)
    assert await planned(survey) == ["day2", "day1", "day0"]


async def test_days_that_stay_empty_for_hours_are_not_given_up(survey: Survey) -> None:
    """The recorder shows today, and for some passes swallows an error about the days before."""
    long = replace(survey, rules=replace(RULES, backfill=4 * DAY))
    for day in (3, 2, 1, 0):
        source_of(survey).add(clip_at(-day * 1440 + 600, id=f"day{day}"), mp4(100))
    hidden = {id: source_of(survey).recordings.pop(id) for id in ("day3", "day1")}
    for minutes in range(0, 5 * 60, 20):
        await long.camera(PORCH, now=NOW + minutes * MINUTE)
    source_of(survey).recordings |= hidden
    await long.camera(PORCH, now=NOW + WHOLE_EVERY)
    assert await planned(survey) == ["day3", "day2", "day1", "day0"]


async def test_days_that_are_empty_are_asked_for_until_that_is_certain(survey: Survey) -> None:
    """A backfill reaches further back than the recorder: that costs four passes, not all."""
    long = replace(survey, rules=replace(RULES, backfill=60 * DAY))
    source_of(survey).add(clip_at(1430), mp4(100))
    for hours in range(24):
        await long.camera(PORCH, now=NOW + hours * HOUR)
    assert (await reach(survey)).proven == clip_at(1430).start
    asked = [window.end - window.start for _, window in source_of(survey).windows]
    assert sum(asked, timedelta(0)) < 4 * 61 * DAY + 24 * (TAIL + 4 * HOUR)


async def test_empty_first_answers_shorten_no_backfill(survey: Survey) -> None:
    """A recorder that is still starting shows nothing, for days."""
    long = replace(survey, rules=replace(RULES, backfill="all"))
    for day in range(5):
        await long.camera(PORCH, now=NOW + day * DAY)
    assert (await reach(survey)).listed_until < NOW - 700 * DAY
    source_of(survey).add(clip_at(-600 * 1440, id="old"), mp4(100))
    await long.camera(PORCH, now=NOW + 5 * DAY)
    assert await planned(survey) == ["old"]


async def test_a_recorder_that_is_down_for_days_shortens_no_backfill(survey: Survey) -> None:
    await survey.checkpoint.note_pairs([("home", "nas")], NOW)
    source_of(survey).add(clip_at(600), mp4(100))
    later = NOW + 5 * DAY
    await survey.begin([PORCH], now=later)
    await survey.camera(PORCH, now=later)
    assert await planned(survey) == ["porch-600"]
    # A camera that is bought a year later begins a backfill before that.
    garden = Camera("home", "garden", "Garden")
    await survey.begin([PORCH, garden], now=NOW + 365 * DAY)
    assert (await survey.checkpoint.reaches(garden))["nas"].begin == END + 364 * DAY
    assert (await reach(survey)).begin == END - DAY


async def test_backfill_none_means_none(survey: Survey) -> None:
    none = replace(survey, rules=replace(RULES, backfill="none"))
    source_of(survey).add(clip_at(1400), mp4(100))
    await none.begin([PORCH], now=NOW)
    for hours in range(3):
        await none.camera(PORCH, now=NOW + hours * HOUR)
    assert await planned(survey) == []


async def test_an_empty_listing_moves_nothing_and_costs_little(survey: Survey) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    await survey.camera(PORCH, now=NOW)
    source_of(survey).recordings.clear()
    for hours in range(24 * 10):
        await survey.camera(PORCH, now=NOW + hours * HOUR)
    assert await listed_until(survey) == END
    asked = [window.end - window.start for _, window in source_of(survey).windows]
    assert sum(asked, timedelta(0)) < 24 * 10 * (TAIL + 4 * HOUR) + 4 * 10 * 11 * DAY
    source_of(survey).add(clip_at(1500), mp4(100))  # nine days ago by now
    await survey.camera(PORCH, now=NOW + 10 * DAY + WHOLE_EVERY)
    assert await planned(survey) == ["porch-60", "porch-1500"]


async def test_a_recording_that_goes_on_for_hours_is_stored_once_it_ended(survey: Survey) -> None:
    """It is listed while it grows; its start lies further back than any lookback when it ends."""
    start = NOW - HOUR
    for hours in range(9):
        now = NOW + hours * HOUR
        record(survey, start, now, "long")
        record(survey, now - 20 * MINUTE, now - 19 * MINUTE, f"short {hours}")
        await survey.camera(PORCH, now=now)
        assert await listed_until(survey) == start
    await survey.camera(PORCH, now=now + HOUR)
    waiting = await backlog(survey)
    assert waiting[0].clip == Clip(PORCH, "long", start, now)
    assert len(waiting) == 10
    assert await listed_until(survey) == now + HOUR - SETTLE


async def test_the_earliest_growing_clip_of_all_days_holds_the_reach(survey: Survey) -> None:
    """One unfinished clip on each side of the seam between two listings, the first one earlier."""
    rules = replace(RULES, backfill=PASS_LENGTH + MINUTE)
    early = record(survey, END - 2 * MINUTE, None, "before the seam")
    record(survey, END - SETTLE, None, "after the seam")
    await replace(survey, rules=rules).camera(PORCH, now=NOW)
    assert len(past_windows(survey)) == 2
    assert await listed_until(survey) == early.start
    assert await planned(survey) == []


# -- windows ---------------------------------------------------------------------------------------


async def test_months_are_listed_a_day_at_a_time_oldest_first(survey: Survey) -> None:
    rules = replace(RULES, backfill=90 * DAY + HOUR)
    await replace(survey, rules=rules).camera(PORCH, now=NOW)
    windows = past_windows(survey)
    assert (windows[0].start, windows[-1].end) == (END - 90 * DAY - HOUR, END)
    assert len(windows) == 91
    assert max(window.end - window.start for window in windows) == DAY


async def test_a_later_pass_looks_back_from_where_the_last_one_ended(survey: Survey) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    await survey.camera(PORCH, now=NOW)
    source_of(survey).windows.clear()
    await survey.camera(PORCH, now=NOW + HOUR)
    windows = past_windows(survey)
    begin = END - DAY  # one pass proves nothing yet
    assert (windows[0].start, windows[-1].end) == (begin, END + HOUR)
    source_of(survey).windows.clear()
    await survey.camera(PORCH, now=NOW + 2 * HOUR)
    assert source_of(survey).windows[0][1].start == begin  # the clip lies within a lookback of it
    source_of(survey).add(clip_at(1430), mp4(100))
    for hours in (3, 4):
        await survey.camera(PORCH, now=NOW + hours * HOUR)
    source_of(survey).windows.clear()
    await survey.camera(PORCH, now=NOW + 5 * HOUR)
    assert source_of(survey).windows[0][1].start == clip_at(1430).start - 2 * HOUR


async def test_a_store_added_later_reaches_back_by_itself(survey: Survey) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    source_of(survey).add(clip_at(1430), mp4(100))
    await survey.camera(PORCH, now=NOW)
    assert len(await planned(survey)) == 2
    for stores in (["nas", "offsite"], ["offsite", "nas"]):
        found = await replace(survey, stores=stores).camera(PORCH, now=NOW)
        assert found.planned == (2 if stores[0] == "nas" else 0)
    assert await planned(survey, "offsite") == ["porch-60", "porch-1430"]
    assert await planned(survey, "nas") == []
    assert await listed_until(survey, "offsite") == END


async def test_what_one_store_makes_us_list_is_planned_for_all(survey: Survey) -> None:
    """One store asks for the latest days alone, another for all: what is seen helps both."""
    long = replace(survey, rules=replace(RULES, backfill=4 * DAY))
    for day in (3, 0):
        source_of(survey).add(clip_at(-day * 1440 + 600, id=f"day{day}"), mp4(100))
    hidden = source_of(survey).recordings.pop("day3")
    for now in (NOW, NOW + HOUR, NOW + 2 * HOUR):
        await long.camera(PORCH, now=now)
    source_of(survey).recordings["day3"] = hidden
    await long.camera(PORCH, now=NOW + 3 * HOUR)
    assert await planned(survey) == ["day0"]
    await replace(long, stores=["nas", "offsite"]).camera(PORCH, now=NOW + 3 * HOUR)
    assert await planned(survey, "offsite") == ["day3", "day0"]
    assert await planned(survey) == ["day3"]


@pytest.mark.parametrize("stores", [["nas", "offsite"], ["offsite", "nas"]])
async def test_a_store_added_much_later_asks_for_its_own_stretch(
    survey: Survey, stores: list[str]
) -> None:
    """The other one is proven up to now, and asks for its lookback alone."""
    for hours in range(30):
        now = NOW + hours * HOUR
        record(survey, now - HOUR, now - HOUR + MINUTE, f"hour {hours}")
        await survey.camera(PORCH, now=now)
    seen = len(source_of(survey).recordings)
    assert (await reach(survey)).proven > now - 4 * HOUR
    await planned(survey)
    await replace(survey, stores=stores).camera(PORCH, now=now)
    assert len(await planned(survey, "offsite")) == 24 < seen
    assert await planned(survey, "nas") == []


async def test_a_stretch_by_hand_counts_for_the_stores_whose_window_it_covers(
    survey: Survey,
) -> None:
    source_of(survey).add(clip_at(1300), mp4(100))
    await survey.camera(PORCH, now=NOW)
    later = NOW + HOUR
    both = replace(survey, stores=["nas", "offsite"])
    await both.camera(PORCH, now=later, since=END - DAY)  # offsite asks from an hour later on
    assert await listed_until(survey, "nas") == END + HOUR
    assert await listed_until(survey, "offsite") == END + HOUR
    third = replace(survey, stores=["nas", "third"], rules=replace(RULES, backfill=2 * DAY))
    await third.camera(PORCH, now=later, since=END - DAY)
    assert await listed_until(survey, "third") is None


@pytest.mark.parametrize(
    ("off", "counts"), [(-MINUTE, True), (timedelta(0), True), (timedelta(milliseconds=1), False)]
)
async def test_a_stretch_by_hand_counts_if_it_begins_no_later_than_usual(
    survey: Survey, off: timedelta, counts: bool
) -> None:
    source_of(survey).add(clip_at(1300), mp4(100))
    await survey.camera(PORCH, now=NOW, since=END - DAY + off)
    assert (await listed_until(survey) == END) is counts
    assert await planned(survey) == ["porch-1300"]


async def test_a_long_stretch_by_hand_finds_what_lies_before_the_usual_window(
    survey: Survey,
) -> None:
    source_of(survey).add(clip_at(-5000), mp4(100))
    await survey.camera(PORCH, now=NOW)
    assert await planned(survey) == []
    await survey.camera(PORCH, now=NOW, since=NOW - 30 * DAY)
    assert await planned(survey) == ["porch--5000"]


async def test_a_clip_over_midnight_is_planned_once(survey: Survey) -> None:
    """The seam between two listings runs through it, so both show it."""
    seam = END - DAY
    record(survey, seam - MINUTE, seam + MINUTE, "over the seam")
    rules = replace(RULES, backfill=2 * DAY)
    found = await replace(survey, rules=rules).camera(PORCH, now=NOW)
    assert found.planned == 1
    assert await planned(survey) == ["over the seam"]


# -- the same clip ---------------------------------------------------------------------------------


async def test_a_second_pass_plans_nothing_again(survey: Survey) -> None:
    for minute in (60, 70, 80):
        source_of(survey).add(clip_at(minute), mp4(100))
    assert (await survey.camera(PORCH, now=NOW)).planned == 3
    found = await survey.camera(PORCH, now=NOW, since=EPOCH)
    assert (found.listed, found.planned) == (3, 0)
    assert len(await planned(survey)) == 3


async def test_a_clip_under_a_new_id_is_fetched_by_that_id(survey: Survey) -> None:
    """The old id is void at the recorder by now; nothing else is new."""
    record(survey, EPOCH + HOUR, EPOCH + HOUR + MINUTE, "old")
    await survey.camera(PORCH, now=NOW)
    source_of(survey).recordings.clear()
    record(survey, EPOCH + HOUR, EPOCH + HOUR + MINUTE, "new")
    await survey.camera(PORCH, now=NOW, since=EPOCH)
    assert await planned(survey) == ["new"]


async def test_a_recorder_that_filters_shows_its_clips_from_the_future_too(survey: Survey) -> None:
    """No stretch up to now ever shows them: they are asked for."""
    assert (await survey.camera(PORCH, now=NOW)).ahead == 0
    for hours in (1, 14):
        record(survey, NOW + hours * HOUR, NOW + hours * HOUR + MINUTE, f"in {hours} hours")
    found = await survey.camera(PORCH, now=NOW)
    assert (found.listed, found.ahead, found.planned) == (0, 2, 0)
    faults = source_of(survey).faults
    faults.skip["clips"] = len(past_windows(survey)) // 2  # those of one pass
    faults.arm("clips", Transient("no such question"))
    assert (await survey.camera(PORCH, now=NOW)).ahead is None
    assert not faults.unused()


async def test_clips_from_the_future_are_counted_and_left_for_later(survey: Survey) -> None:
    ahead = clip_at(24 * 60 + 30)

    class Fast(FakeSource):
        async def clips(self, *_: object) -> AsyncIterator[Clip]:
            yield ahead

    fast = replace(survey, source=Fast())
    found = await fast.camera(PORCH, now=NOW)
    assert (found.listed, found.ahead, found.planned) == (1, 1, 0)
    await fast.camera(PORCH, now=NOW + HOUR)
    assert await planned(survey) == [ahead.id]


# -- only looking ----------------------------------------------------------------------------------


async def test_a_dry_run_says_what_it_would_plan_and_writes_nothing(survey: Survey) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    dry = replace(survey, stores=["nas", "offsite"], dry_run=True)
    for _ in range(2):
        found = await dry.camera(PORCH, now=NOW)
        assert (found.listed, found.planned) == (1, 2)
        assert [clip.id for clip in found.additions] == ["porch-60"]
    assert await listed_until(survey) is None
    assert await planned(survey) == []


async def test_a_dry_run_beside_nothing_leaves_no_file(survey: Survey, tmp_path: Path) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    folder = tmp_path / "elsewhere"
    checkpoint = await Checkpoint.peek(folder)
    try:
        dry = replace(survey, checkpoint=checkpoint, dry_run=True)
        assert (await dry.camera(PORCH, now=NOW)).planned == 1
    finally:
        checkpoint.close()
    assert not folder.exists()


async def test_a_dry_run_beside_an_engine_knows_what_it_knows(
    survey: Survey, tmp_path: Path
) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    await survey.camera(PORCH, now=NOW)
    source_of(survey).add(clip_at(1430), mp4(100))
    before = (tmp_path / FILE_NAME).read_bytes()
    beside = await Checkpoint.peek(tmp_path)
    try:
        dry = replace(survey, checkpoint=beside, dry_run=True)
        found = await dry.camera(PORCH, now=NOW)
        assert [clip.id for clip in found.additions] == ["porch-1430"]
        with pytest.raises(CheckpointError, match="readonly"):
            await beside.record_cycle(NOW)
    finally:
        beside.close()
    assert (tmp_path / FILE_NAME).read_bytes() == before


# -- beside `verify --fix` ------------------------------------------------------------------------


async def test_a_listing_under_way_does_not_undo_that_something_is_to_be_listed_again(
    survey: Survey,
) -> None:
    source_of(survey).add(clip_at(60), mp4(100))
    source_of(survey).add(clip_at(1300), mp4(100))
    for _ in range(3):
        await survey.camera(PORCH, now=NOW)
    missed = EPOCH + HOUR / 2
    assert (await reach(survey)).proven > missed
    under_way = NOW + HOUR
    done = False

    def verify_fixes() -> None:
        nonlocal done
        if not done:
            done = True
            # As another process does: behind the back of the pass that has read the reach already.
            with closing(sqlite3.connect(survey.checkpoint.database.path)) as db, db:
                list_again(db, "home", "porch", "nas", missed)

    await replace(survey, step=verify_fixes).camera(PORCH, now=under_way)
    assert done
    there = await reach(survey)
    assert (there.proven, there.seen, there.listed_until, there.whole) == (*[missed] * 3, None)
    source_of(survey).windows.clear()
    await survey.camera(PORCH, now=under_way + HOUR)
    assert past_windows(survey)[0].start <= missed
    await survey.camera(PORCH, now=under_way + 2 * HOUR)
    assert (await reach(survey)).proven > missed
