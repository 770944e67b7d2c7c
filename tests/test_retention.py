"""How long footage lives: the estimate, the order of the backlog, the warning; what it saves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.order import DANGER_FIRST, Place, Scene, compare
from nvr_backup import lives, lookout
from nvr_backup.backlog import FAIR_TURN, LATE_TURN, TURNS
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import Transient, Unfit
from nvr_backup.lookout import LISTINGS, Lookout
from nvr_backup.model import Camera, Clip, StoredObject
from nvr_backup.planner import Addition, Plan
from nvr_backup.report import ask
from nvr_backup.retention import (
    CALM,
    EDGE,
    LEAST,
    MEMORY,
    Life,
    Load,
    first_life,
    first_loss,
    looked_again,
    urgency_ms,
)
from nvr_backup.rows import Tally
from tests.support.fakes import EPOCH, PORCH, FakeSource, clip_at, mp4
from tests.support.wired import Wired

GARDEN = Camera("home", "garden", "Garden")
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
NOW = EPOCH + 100 * HOUR


def watched(hours: int, *, speed: float, every: int = 1, batch: int = 1) -> Life:
    """A camera that is looked at every so many hours while its footage vanishes at that speed."""
    life = first_life(EPOCH, EPOCH)
    for hour in range(every, hours + 1, every):
        gone = speed * (hour // batch * batch) * HOUR
        life = looked_again(life, EPOCH + gone, EPOCH + hour * HOUR)
    return life


# -- the estimate ----------------------------------------------------------------------------------


def test_a_recorder_that_deletes_nothing_leaves_all_the_time_there_is() -> None:
    life = watched(100, speed=0)
    assert life.speed == 0
    assert life.left(EPOCH) is None


@pytest.mark.parametrize("speed", [1.0, 2.5, 6.0])
@pytest.mark.parametrize("hours", [2, 12, 200])
@pytest.mark.parametrize("every", [1, 2])
def test_the_speed_of_deletion_is_that_of_the_oldest_clip(
    speed: float, hours: int, every: int
) -> None:
    life = watched(hours, speed=speed, every=every)
    assert life.speed == pytest.approx(speed, rel=0.01)
    assert life.left(life.oldest + 10 * HOUR) == pytest.approx(10 * HOUR / speed, rel=0.01)


def test_deletion_in_batches_is_averaged() -> None:
    lives = [watched(hours, speed=1, batch=6) for hours in range(48, 60)]
    assert all(1 <= life.speed <= 1.35 for life in lives)


def test_a_disk_that_deletes_slower_than_it_records_is_not_believed_to() -> None:
    """It was empty when we came: what is full keeps its pace, or gets faster."""
    life = looked_again(watched(40, speed=0), EPOCH + MINUTE, EPOCH + 41 * HOUR)
    assert life.speed == 1.0


def test_a_retention_that_begins_to_shrink_is_noticed_within_a_day() -> None:
    life = watched(100, speed=1)
    for hour in range(1, 25):
        life = looked_again(life, life.oldest + 4 * HOUR, EPOCH + (100 + hour) * HOUR)
    assert life.speed > 3.3


def test_little_is_concluded_from_a_single_batch() -> None:
    life = first_life(EPOCH, EPOCH)
    life = looked_again(life, EPOCH + 5 * HOUR, EPOCH + 10 * MINUTE)
    assert life.speed == 1.0


def test_what_comes_back_or_a_clock_that_goes_back_begins_anew() -> None:
    life = watched(24, speed=3)
    earlier = looked_again(life, life.oldest - HOUR, life.looked + HOUR)
    assert earlier == first_life(life.oldest - HOUR, life.looked + HOUR)
    stepped = looked_again(life, life.oldest + HOUR, life.looked - HOUR)
    assert stepped == first_life(life.oldest + HOUR, life.looked - HOUR)
    assert looked_again(life, life.oldest, life.looked) == life


def test_urgency_is_bounded_on_both_sides() -> None:
    ms = timedelta(milliseconds=1)
    assert urgency_ms(0, 0.0, 10**15) == CALM // ms
    assert urgency_ms(0, 1.0, 10**15) == CALM // ms
    assert urgency_ms(0, 1.0, 5) == LEAST // ms
    assert urgency_ms(0, 2.0, 2 * HOUR // ms) == HOUR // ms
    assert MEMORY > HOUR


# -- the forecast ----------------------------------------------------------------------------------


def test_the_first_loss_is_found_in_the_order_of_danger() -> None:
    loads = [Load("hall", 100, 50 * HOUR), Load("door", 10, 5 * HOUR), Load("yard", 1, None)]
    assert first_loss(loads, seconds_each=60) is None
    loss = first_loss(loads, seconds_each=1700)  # 110 copies take 51.9 h
    assert loss is not None
    assert (loss.camera, loss.left) == ("hall", 50 * HOUR)
    assert loss.needed == 111 * timedelta(seconds=1700)
    loss = first_loss(loads, seconds_each=1801)
    assert loss is not None
    assert (loss.camera, loss.left) == ("door", 5 * HOUR)


def test_what_does_not_vanish_or_has_vanished_is_no_reason_to_hurry() -> None:
    assert first_loss([Load("yard", 10**6, None)], seconds_each=None) is None
    assert first_loss([Load("yard", 10**6, -HOUR)], seconds_each=None) is None
    assert first_loss([], seconds_each=None) is None


def test_when_nothing_is_stored_the_first_one_counts() -> None:
    loss = first_loss([Load("door", 1, 3 * HOUR)], seconds_each=None)
    assert loss is not None
    assert (loss.left, loss.needed) == (3 * HOUR, None)


async def test_a_loss_that_is_far_off_is_no_danger_yet(checkpoint: Checkpoint) -> None:
    """Nothing is stored, and the recorder deletes an hour in an hour."""
    await planned(checkpoint, [clip_at(0)])
    later = NOW + HOUR  # by then something should have been stored
    for left, warned in ((25.5, False), (24.5, True), (1.5, True)):  # an hour has passed since
        life = Life(EPOCH - left * HOUR, NOW, NOW - 50 * HOUR, moved=0.5)
        await checkpoint.lives.note(PORCH, life)
        loss = await checkpoint.lives.danger(later)
        assert (loss is not None) == warned
        if loss is not None:
            assert loss.left == (left - 1) * HOUR
            assert (loss.camera, loss.needed, loss.waiting) == ("Porch", None, 1)


# -- the look --------------------------------------------------------------------------------------


@pytest.fixture
async def checkpoint(tmp_path: Path) -> AsyncIterator[Checkpoint]:
    checkpoint = await Checkpoint.open(tmp_path / "state", now=NOW)
    yield checkpoint
    checkpoint.close()


async def planned(checkpoint: Checkpoint, clips: list[Clip]) -> None:
    for camera in {clip.camera for clip in clips}:
        additions = tuple(Addition(c, frozenset({"nas"})) for c in clips if c.camera == camera)
        plan = Plan(additions, (), len(additions), 0, None, None)
        await checkpoint.apply(
            camera, plan, keys=lambda _s, clip: iter([f"{clip.camera.id}/{clip.id}"]), now=NOW
        )


async def recorder(checkpoint: Checkpoint, clips: int) -> FakeSource:
    """A source, and its clips in the backlog; the first look is taken."""
    source = FakeSource()
    for number in range(clips):
        source.add(clip_at(number, seconds=10), b"x")
    await planned(checkpoint, [item.clip for item in source.recordings.values()])
    await Lookout(source, checkpoint).look(PORCH, NOW)
    assert source.windows == []  # it was listed a moment ago
    return source


async def oldest(checkpoint: Checkpoint) -> int:
    life = await checkpoint.lives.of(PORCH)
    assert life is not None
    return (life.oldest - EPOCH) // MINUTE


@pytest.mark.parametrize("gone", [0, 1, 2, 7, 100, 498, 499])
async def test_the_oldest_clip_that_is_still_listed_is_found(
    checkpoint: Checkpoint, gone: int
) -> None:
    source = await recorder(checkpoint, 500)
    for number in range(gone):
        source.remove(f"porch-{number}")
    await Lookout(source, checkpoint).look(PORCH, NOW + HOUR)
    assert await oldest(checkpoint) == gone
    assert len(source.windows) <= (1 if gone == 0 else 22)
    asked = len(source.windows)
    await Lookout(source, checkpoint).look(PORCH, NOW + HOUR + MINUTE)
    assert len(source.windows) == asked, "not so soon again"


async def test_a_long_search_shows_that_it_goes_on_before_each_listing(
    checkpoint: Checkpoint,
) -> None:
    """A recorder that takes minutes for a listing must not look like a cycle that hangs."""
    source = await recorder(checkpoint, 1000)
    for clip in list(source.recordings)[:700]:
        source.remove(clip)
    before = len(source.windows)
    signs: list[int] = []
    watching = Lookout(source, checkpoint, lambda: signs.append(len(source.windows)))
    await watching.look(PORCH, NOW + HOUR)
    assert len(signs) > 8
    assert signs == list(range(before, len(source.windows)))


async def test_nothing_is_believed_when_nothing_is_listed(checkpoint: Checkpoint) -> None:
    source = await recorder(checkpoint, 500)
    held, source.recordings = source.recordings, {}
    await Lookout(source, checkpoint).look(PORCH, NOW + HOUR)
    assert await oldest(checkpoint) == 0
    assert len(source.windows) <= LISTINGS
    source.recordings = held


async def test_an_answer_that_was_empty_by_mistake_moves_nothing(checkpoint: Checkpoint) -> None:
    source = await recorder(checkpoint, 500)
    listing, asked = source.clips, 0

    def clips(camera: Camera, window: object) -> AsyncIterator[Clip]:
        nonlocal asked
        asked += 1
        return listing(camera, window) if asked > 3 else nothing()  # type: ignore[arg-type]

    async def nothing() -> AsyncIterator[Clip]:
        for clip in list[Clip]():
            yield clip

    source.clips = clips  # type: ignore[method-assign]
    await Lookout(source, checkpoint).look(PORCH, NOW + HOUR)
    assert asked > 3
    assert await oldest(checkpoint) == 0


async def test_a_clip_of_the_backlog_that_is_there_after_all_is_believed(
    checkpoint: Checkpoint,
) -> None:
    source = await recorder(checkpoint, 50)
    held = {f"porch-{n}": source.recordings.pop(f"porch-{n}") for n in range(10)}
    await Lookout(source, checkpoint).look(PORCH, NOW + HOUR)
    assert await oldest(checkpoint) == 10
    source.recordings |= held
    await Lookout(source, checkpoint).look(PORCH, NOW + 2 * HOUR)
    assert await oldest(checkpoint) == 0


# -- the order -------------------------------------------------------------------------------------


async def claimed(checkpoint: Checkpoint, **busy: int) -> Clip:
    claim = await checkpoint.claim(
        sources=["home"],
        stores=["nas"],
        cameras=lambda _: True,
        busy={("home", camera): n for camera, n in busy.items()},
        due=NOW,
    )
    assert claim is not None
    return claim.clip


async def turn_to(checkpoint: Checkpoint, turn: int) -> None:
    """Outcomes of a clip of another source until the next choice is of that kind."""
    other = clip_at(0, camera=Camera("other", "x", "X"))
    await planned(checkpoint, [other])
    claim = await checkpoint.claim(
        sources=["other"], stores=["nas"], cameras=lambda _: True, busy={}, due=NOW
    )
    assert claim is not None
    for _ in range(turn):
        await checkpoint.put_off(
            claim.copy, "x", again=1, not_before=NOW, tally=Tally(0, 0.0), now=NOW
        )


async def two_cameras(checkpoint: Checkpoint, *, porch_oldest: int = 600) -> None:
    """The garden's clips are older and live for ever; the porch's vanish, an hour in an hour."""
    porch = [clip_at(minute) for minute in range(600, 1200, 10)]
    garden = [clip_at(minute, camera=GARDEN) for minute in range(0, 1200, 10)]
    await planned(checkpoint, porch + garden)
    oldest = EPOCH + porch_oldest * MINUTE
    life = Life(oldest, NOW, NOW - 50 * HOUR, moved=0.5)
    await checkpoint.lives.note(PORCH, life)


async def test_what_vanishes_first_is_carried_first(checkpoint: Checkpoint) -> None:
    await two_cameras(checkpoint, porch_oldest=500)
    clips = [await claimed(checkpoint) for _ in range(5)]
    assert [clip.camera for clip in clips] == [PORCH] * 5
    assert clips == sorted(clips, key=lambda clip: clip.start)


async def test_without_danger_it_is_the_oldest_of_the_camera_with_the_fewest_claims(
    checkpoint: Checkpoint,
) -> None:
    await planned(checkpoint, [clip_at(5), clip_at(6), clip_at(9, camera=GARDEN)])
    assert await claimed(checkpoint) == clip_at(5)
    assert await claimed(checkpoint, porch=1) == clip_at(9, camera=GARDEN)
    assert await claimed(checkpoint, porch=1, garden=1) == clip_at(6)


async def test_who_has_half_the_time_gets_twice_the_workers(checkpoint: Checkpoint) -> None:
    await two_cameras(checkpoint, porch_oldest=500)
    edge = EDGE // MINUTE
    await checkpoint.lives.note(
        GARDEN, Life(EPOCH - (200 - edge) * MINUTE, NOW, NOW - 50 * HOUR, moved=0.5)
    )
    busy = {"porch": 0, "garden": 0}
    for _ in range(6):  # 90 minutes left at the porch, 190 in the garden
        busy[(await claimed(checkpoint, **busy)).camera.id] += 1
    assert busy == {"porch": 4, "garden": 2}


async def test_a_clip_that_would_vanish_on_its_way_is_not_tried_before_the_others(
    checkpoint: Checkpoint,
) -> None:
    await two_cameras(checkpoint, porch_oldest=700)
    clip = await claimed(checkpoint)
    assert clip == clip_at(710)  # 700 is at the edge, and what is older is most likely gone


async def test_every_camera_has_its_turn_whatever_the_danger(checkpoint: Checkpoint) -> None:
    await two_cameras(checkpoint, porch_oldest=500)
    await turn_to(checkpoint, FAIR_TURN)
    assert (await claimed(checkpoint)).camera == GARDEN


async def test_what_is_most_likely_gone_is_asked_for_now_and_then(checkpoint: Checkpoint) -> None:
    await two_cameras(checkpoint, porch_oldest=700)
    await turn_to(checkpoint, LATE_TURN)
    assert await claimed(checkpoint) == clip_at(600)
    assert {FAIR_TURN, LATE_TURN} < set(range(TURNS))


async def test_what_is_most_likely_gone_is_asked_for_when_there_is_nothing_else(
    checkpoint: Checkpoint,
) -> None:
    await planned(checkpoint, [clip_at(5)])
    await checkpoint.lives.note(PORCH, Life(NOW, NOW, NOW - 50 * HOUR, moved=0.5))
    assert await claimed(checkpoint) == clip_at(5)


def test_danger_first_saves_what_the_other_orders_lose() -> None:
    """The same scene, three orders: the real one on a real database."""
    scene = Scene(
        places=(
            Place("door", 6 * MINUTE, 8 * HOUR, 3 * HOUR),
            Place("hall", 6 * MINUTE, 96 * HOUR, 48 * HOUR),
        ),
        outage=6 * HOUR,
        carrying=2 * MINUTE,
        lasting=14 * HOUR,
        shrunk_by=10 * HOUR,
    )
    found = compare(scene)
    saved = {order: one.safe for order, one in found.items()}
    gone = {order: one.gone for order, one in found.items()}
    assert gone[DANGER_FIRST] * 2 < min(gone["oldest first"], gone["newest first"])
    assert saved[DANGER_FIRST] >= max(saved["oldest first"], saved["newest first"])
    assert found[DANGER_FIRST].lost.keys() <= {"door"}


# -- the warning -----------------------------------------------------------------------------------


async def test_a_warning_states_the_hours_left_once_and_when_it_is_good_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails; the recorder keeps ten hours. Then the store works, and all is well."""
    wired = Wired(tmp_path, monkeypatch)
    monkeypatch.setattr(lookout, "EVERY", timedelta(minutes=5))
    minutes = range(0, 24 * 60, 6)
    for number in minutes:
        wired.source.add(clip_at(number), mp4(500, seed=number))
    failing = True
    putting = wired.store.put

    @asynccontextmanager
    async def put(key: str, **options: object) -> AsyncIterator[object]:
        if failing:
            raise Transient("503")
        async with putting(key, **options) as upload:  # type: ignore[arg-type]
            yield upload

    monkeypatch.setattr(wired.store, "put", put)

    async def half_an_hour() -> None:
        before = len(wired.said("cycle listed"))
        horizon = wired.clock.now() - 20 * HOUR
        for name, item in list(wired.source.recordings.items()):
            if item.clip.start < horizon:
                wired.source.remove(name)
        await wired.clock.advance(1800)
        await wired.until(lambda: len(wired.said("cycle listed")) > before)

    settings = wired.settings(schedule={"every": "30m", "settle": "30s", "backfill": "24h"})
    async with wired.daemon(settings):
        await wired.until(lambda: wired.said("cycle listed"))
        for _ in range(6):
            await half_an_hour()
        (line,) = [line for line in wired.said("footage in danger") if line["level"] == "warning"]
        assert 0 < line["hours_left"] <= 2
        assert line["hours_needed"] is None
        assert line["camera"] == "Porch"
        failing = False
        await wired.until(lambda: wired.said("footage out of danger"), step=60)
        await wired.clock.advance(7200)
    assert len(wired.said("footage out of danger")) == 1


async def test_a_clip_that_vanished_is_reported_lost_by_name_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = Wired(tmp_path, monkeypatch)
    wired.source.add(clip_at(1400), mp4(500))
    wired.source.faults.arm("open", Unfit("The clip of 'Porch' is gone at the NVR."))
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip set aside"))
        await wired.clock.advance(12 * 3600)
    (line,) = wired.said("clip set aside")
    assert line["lost"] is True
    assert (line["camera"], line["clip"]) == ("Porch", "porch-1400")


async def test_a_rate_is_that_of_the_time_in_which_there_was_work(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Two workers at once, then an hour without work: 4 copies in 60 s."""
    await planned(checkpoint, [clip_at(minute) for minute in range(8)])

    async def seconds_each(now: datetime) -> float | None:
        return await ask(tmp_path / "state", lambda db: lives.seconds_each(db, now))

    assert await seconds_each(NOW) is None, "just started, nothing seen"
    assert await seconds_each(NOW + HOUR) == float("inf"), "nothing was stored"
    for at, seconds in ((30, 30), (30, 30), (60, 30), (60, 25), (3700, 10)):
        claim = await checkpoint.claim(
            sources=["home"], stores=["nas"], cameras=lambda _: True, busy={}, due=NOW
        )
        assert claim is not None
        await checkpoint.commit_stored(
            claim.copy,
            StoredObject(claim.key, 1, 0),
            verified=True,
            tally=Tally(1, seconds),
            now=NOW + timedelta(seconds=at),
        )
    assert await seconds_each(NOW + 2 * HOUR) == pytest.approx(70 / 5)
    waiting = await ask(tmp_path / "state", lambda db: lives.loads(db, NOW))
    assert sum(load.copies for load in waiting) == 3
