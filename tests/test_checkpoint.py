"""The checkpoint on real files: identity, claims, outcomes, locking, schema."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nvr_backup import database
from nvr_backup.checkpoint import BATCH, Checkpoint
from nvr_backup.database import (
    CheckpointError,
    Database,
    EngineRunningError,
    RebuildNeeded,
    transaction,
)
from nvr_backup.errors import ConfigError
from nvr_backup.model import Camera, Clip, StoredObject, UploadState, to_ms
from nvr_backup.planner import Addition, Plan, Reach, Rules, plan
from nvr_backup.rows import ATTEMPTS_KEPT, Claim, Tally
from tests.support.fakes import EPOCH, PORCH, clip_at

NOW = EPOCH + timedelta(hours=24)
RULES = Rules(timedelta(seconds=30), timedelta(hours=2), timedelta(hours=24))
TALLY = Tally(received=10, seconds=0.5)
GARDEN = Camera("home", "garden", "Garden")


def keys(store: str, clip: Clip) -> Iterator[str]:
    yield f"{clip.camera.name}/{to_ms(clip.start)}.mp4"
    yield f"{clip.camera.name}/{to_ms(clip.start)}_{clip.id}.mp4"
    yield f"{clip.camera.name}/{to_ms(clip.start)}_{clip.id}_{clip.end}.mp4"


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Checkpoint]:
    checkpoint = await Checkpoint.open(folder, now=NOW)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


@pytest.fixture
async def checkpoint(tmp_path: Path) -> AsyncIterator[Checkpoint]:
    async with opened(tmp_path / "state") as checkpoint:
        yield checkpoint


async def put_in(checkpoint: Checkpoint, *clips: Clip, stores: tuple[str, ...] = ("nas",)) -> int:
    """List `clips` and plan them, as a survey does."""
    added = 0
    for camera in {clip.camera for clip in clips}:
        listing = [clip for clip in clips if clip.camera == camera]
        starts = [clip.start for clip in listing]
        known = await checkpoint.known(camera, min(starts), max(starts))
        since = dict.fromkeys(stores, EPOCH - timedelta(days=1))
        decided = plan(listing, known, since=since, rules=RULES, now=NOW)
        added += await checkpoint.apply(camera, decided, keys=keys, now=NOW)
    return added


async def claim(
    checkpoint: Checkpoint,
    *,
    busy: dict[tuple[str, str], int] | None = None,
    stores: tuple[str, ...] = ("nas",),
    due: bool = True,
    skip: tuple[int, ...] = (),
    hours: float = 0,
) -> Claim | None:
    return await checkpoint.claim(
        sources=["home"],
        stores=stores,
        cameras=lambda _: True,
        busy=busy or {},
        due=NOW + timedelta(hours=hours) if due else None,
        skip=skip,
    )


async def must_claim(checkpoint: Checkpoint, **options: object) -> Claim:
    claimed = await claim(checkpoint, **options)  # type: ignore[arg-type]
    assert claimed is not None
    return claimed


def stored(claimed: Claim) -> StoredObject:
    return StoredObject(claimed.key, 10, 1, "7")


async def store(checkpoint: Checkpoint, claimed: Claim) -> None:
    await checkpoint.commit_stored(
        claimed.copy, stored(claimed), verified=True, tally=TALLY, now=NOW
    )


def rows(folder: Path, sql: str) -> list[tuple[object, ...]]:
    """What is on the disk, read by another connection."""
    with closing(sqlite3.connect(folder / database.FILE_NAME)) as connection, connection:
        return connection.execute(sql).fetchall()


# -- planning --------------------------------------------------------------------------------------


async def test_a_planned_clip_is_claimed_with_all_that_its_transfer_needs(
    checkpoint: Checkpoint,
) -> None:
    clip = Clip(PORCH, '{"startTime":1}', EPOCH, EPOCH + timedelta(seconds=9), ("person", "ü"))
    assert await put_in(checkpoint, clip, stores=("nas", "offsite")) == 2
    claimed = await must_claim(checkpoint)
    assert (claimed.clip, claimed.store, claimed.upload) == (clip, "nas", None)
    assert claimed.key == f"Porch/{to_ms(EPOCH)}.mp4"
    other = await must_claim(checkpoint, stores=("offsite",))
    assert other.store == "offsite"
    assert await claim(checkpoint, stores=("nas", "offsite")) is None


async def test_listing_twice_plans_once(checkpoint: Checkpoint) -> None:
    clips = [clip_at(0), clip_at(1), clip_at(2, seconds=None)]
    assert await put_in(checkpoint, *clips) == 3
    assert await put_in(checkpoint, *clips) == 0


async def test_a_stored_clip_stays_known_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
        await store(checkpoint, await must_claim(checkpoint))
    async with opened(tmp_path) as checkpoint:
        assert await put_in(checkpoint, clip_at(0)) == 0
        assert await claim(checkpoint) is None


async def test_same_named_cameras_get_keys_of_their_own(checkpoint: Checkpoint) -> None:
    twin = Camera("home", "porch-2", "Porch")
    await put_in(checkpoint, clip_at(0), clip_at(0, camera=twin))
    taken = {(await must_claim(checkpoint)).key for _ in range(2)}
    assert len(taken) == 2


async def test_a_longer_version_of_a_stored_clip_is_stored_too(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id="a"))
    first = await must_claim(checkpoint)
    await store(checkpoint, first)
    assert await put_in(checkpoint, clip_at(0, seconds=25, id="b")) == 1
    second = await must_claim(checkpoint)
    assert second.clip.id == "b"
    assert second.key != first.key
    await store(checkpoint, second)
    assert await put_in(checkpoint, clip_at(0, seconds=25, id="b")) == 0


@pytest.mark.parametrize(
    ("before", "after"), [("a", "a"), (f"{to_ms(EPOCH)}-10", f"{to_ms(EPOCH)}-25")]
)
async def test_a_waiting_clip_that_grew_keeps_its_key_and_is_carried_once(
    checkpoint: Checkpoint, before: str, after: str
) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id=before))
    await put_in(checkpoint, clip_at(0, seconds=25, id=after))
    claimed = await must_claim(checkpoint)
    assert (claimed.clip.id, claimed.key) == (after, f"Porch/{to_ms(EPOCH)}.mp4")
    assert await claim(checkpoint) is None
    (row,) = await checkpoint.known(PORCH, EPOCH, EPOCH)  # nothing is left of the shorter one
    assert (row.id, row.end) == (after, EPOCH + timedelta(seconds=25))


@pytest.mark.parametrize("held", ["claimed", "uploading"])
async def test_a_clip_that_grows_while_it_is_carried_is_carried_again(
    checkpoint: Checkpoint, held: str
) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id="a"))
    first = await must_claim(checkpoint)
    if held == "uploading":
        await checkpoint.save_upload(first.copy, UploadState("s", first.key, "video/mp4", NOW))
        await checkpoint.release(first.copy)
    await put_in(checkpoint, clip_at(0, seconds=25, id="a"))
    waiting = [await claim(checkpoint), await claim(checkpoint)]
    seen = {item.clip.end for item in waiting if item} | {first.clip.end}
    assert seen == {EPOCH + timedelta(seconds=10), EPOCH + timedelta(seconds=25)}


async def test_an_upload_goes_on_with_the_version_it_was_begun_with(
    checkpoint: Checkpoint,
) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id="a"))
    first = await must_claim(checkpoint)
    begun = UploadState("s", first.key, "video/mp4", NOW)
    await checkpoint.save_upload(first.copy, begun)
    await checkpoint.release(first.copy)
    await put_in(checkpoint, clip_at(0, seconds=25, id="a"))
    again, longer = await must_claim(checkpoint), await must_claim(checkpoint)
    assert (again.clip, again.key, again.upload) == (first.clip, first.key, begun)
    assert (longer.clip.end, longer.upload) == (EPOCH + timedelta(seconds=25), None)
    assert longer.key != again.key


async def test_a_failed_clip_that_grew_is_tried_at_once(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id="a"))
    first = await must_claim(checkpoint)
    later = NOW + timedelta(hours=6)
    await checkpoint.put_off(first.copy, "cut off", again=1, not_before=later, tally=TALLY, now=NOW)
    await put_in(checkpoint, clip_at(0, seconds=25, id="a"))
    again = await must_claim(checkpoint)
    assert (again.attempts, again.same_reason, again.reason) == (0, 0, None)


async def test_a_plan_applied_twice_adds_nothing(checkpoint: Checkpoint) -> None:
    """Whatever was planned meanwhile: no clip gets a second copy in one store."""
    short, long = clip_at(0, seconds=10, id="a"), clip_at(0, seconds=25, id="a")
    nas = frozenset({"nas"})
    await put_in(checkpoint, short)
    (row,) = await checkpoint.known(PORCH, EPOCH, EPOCH)
    for instead_of in (None, None, row.row):
        grown = Plan((Addition(long, nas, instead_of),), (), 1, 0, None, None)
        await checkpoint.apply(PORCH, grown, keys=keys, now=NOW)
    ends = [(await must_claim(checkpoint)).clip.end for _ in range(2)]
    assert set(ends) == {short.end, long.end}
    assert await claim(checkpoint) is None


async def test_two_clips_of_one_stretch_are_two_clips(checkpoint: Checkpoint) -> None:
    """A recorder may list the same seconds as motion and as a person, under two ids."""
    await put_in(checkpoint, clip_at(0, id="motion"), clip_at(0, id="person"))
    claims = [await must_claim(checkpoint), await must_claim(checkpoint)]
    assert {item.clip.id for item in claims} == {"motion", "person"}
    assert len({item.key for item in claims}) == 2


async def test_a_set_aside_clip_that_grew_gets_another_chance(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id="a"))
    first = await must_claim(checkpoint)
    await checkpoint.set_aside(first.copy, "cut off", tally=TALLY, now=NOW)
    assert await put_in(checkpoint, clip_at(0, seconds=10, id="a")) == 0
    assert await put_in(checkpoint, clip_at(0, seconds=25, id="a")) == 1
    again = await must_claim(checkpoint)
    assert (again.attempts, again.reason) == (0, None)
    assert await checkpoint.counts() == {"waiting": 1, "set_aside": 0}


async def test_a_new_id_is_taken_over(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0, id="old"))
    assert await put_in(checkpoint, clip_at(0, id="new")) == 0
    assert (await must_claim(checkpoint)).clip.id == "new"


async def test_a_rename_moves_no_key_and_joins_no_cameras(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    await put_in(checkpoint, clip_at(0))
    renamed = Camera("home", "porch", "Front Door")
    clip = clip_at(0, camera=renamed, id="porch-0")
    assert await put_in(checkpoint, clip, clip_at(1, camera=renamed)) == 1
    claims = [await must_claim(checkpoint), await must_claim(checkpoint)]
    assert [item.key.partition("/")[0] for item in claims] == ["Porch", "Front Door"]
    assert rows(tmp_path / "state", "SELECT name FROM camera") == [("Front Door",)]


async def test_a_plan_that_cannot_be_applied_whole_is_not_applied_at_all(
    checkpoint: Checkpoint,
) -> None:
    class Bug(Exception):
        pass

    def broken(store: str, clip: Clip) -> Iterator[str]:
        if clip.id == "porch-1":
            raise Bug
        yield from keys(store, clip)

    decided = plan([clip_at(0), clip_at(1)], [], since={"nas": EPOCH}, rules=RULES, now=NOW)
    with pytest.raises(Bug):
        await checkpoint.apply(PORCH, decided, keys=broken, now=NOW)
    assert await checkpoint.known(PORCH, EPOCH, NOW) == []
    assert await checkpoint.counts() == {"waiting": 0, "set_aside": 0}


async def test_a_long_plan_is_applied_in_parts(checkpoint: Checkpoint) -> None:
    clips = [clip_at(minute / 100) for minute in range(BATCH + 3)]
    assert await put_in(checkpoint, *clips) == BATCH + 3
    assert (await checkpoint.counts())["waiting"] == BATCH + 3


def listed(until: datetime) -> Reach:
    return Reach(EPOCH, EPOCH, EPOCH, until)


async def test_reach_and_watermark(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(5), clip_at(10))
    await checkpoint.advance(PORCH, {"nas": listed(NOW)})
    mark = ("home", "porch", "nas")
    assert (await checkpoint.reaches(PORCH)) == {"nas": listed(NOW)}
    assert (await checkpoint.latest_start(PORCH)) == clip_at(10).start
    assert (await checkpoint.latest_start(GARDEN)) is None
    assert (await checkpoint.watermarks())[mark] == clip_at(5).start
    await store(checkpoint, await must_claim(checkpoint))
    assert (await checkpoint.watermarks())[mark] == clip_at(10).start
    second = await must_claim(checkpoint)
    await checkpoint.put_off(second.copy, "no", again=1, not_before=NOW, tally=TALLY, now=NOW)
    assert (await checkpoint.watermarks())[mark] == clip_at(10).start
    await checkpoint.set_aside(second.copy, "gone", tally=TALLY, now=NOW)
    assert (await checkpoint.watermarks())[mark] == NOW


async def test_a_watermark_is_its_own_cameras_and_stores(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(5), stores=("nas", "offsite"))
    await put_in(checkpoint, clip_at(1, camera=GARDEN), stores=("offsite",))
    for camera in (PORCH, GARDEN):
        await checkpoint.advance(camera, {"nas": listed(NOW), "offsite": listed(NOW)})
    await store(checkpoint, await must_claim(checkpoint, stores=("nas",)))
    assert await checkpoint.watermarks() == {
        ("home", "porch", "nas"): NOW,
        ("home", "porch", "offsite"): clip_at(5).start,
        ("home", "garden", "nas"): NOW,
        ("home", "garden", "offsite"): clip_at(1).start,
    }


async def test_a_watermark_never_passes_the_reach(checkpoint: Checkpoint) -> None:
    """The oldest waiting clip lies ahead of it: what is between was not listed yet."""
    await put_in(checkpoint, clip_at(60))
    await checkpoint.advance(PORCH, {"nas": listed(EPOCH)})
    assert (await checkpoint.watermarks())["home", "porch", "nas"] == EPOCH


# -- claims ----------------------------------------------------------------------------------------


async def test_claims_are_oldest_first_and_fair_across_cameras(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, *(clip_at(minute) for minute in (3, 1, 2)))
    await put_in(checkpoint, *(clip_at(minute, camera=GARDEN) for minute in (8, 9)))
    busy: dict[tuple[str, str], int] = {}
    order = []
    for _ in range(5):
        claimed = await must_claim(checkpoint, busy=busy)
        order.append(claimed.clip.id)
        key = (claimed.clip.camera.source, claimed.clip.camera.id)
        busy[key] = busy.get(key, 0) + 1
    assert order == ["porch-1", "garden-8", "porch-2", "garden-9", "porch-3"]


async def test_the_oldest_clip_of_equally_busy_cameras_comes_first(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(8, camera=GARDEN))  # known longer, but its clip is younger
    await put_in(checkpoint, clip_at(3))
    assert (await must_claim(checkpoint)).clip.camera == PORCH


async def test_a_copy_is_claimed_by_one_worker_only(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, *(clip_at(minute) for minute in range(20)))
    claims = await asyncio.gather(*(claim(checkpoint) for _ in range(25)))
    copies = [item.copy for item in claims if item is not None]
    assert sorted(copies) == sorted(set(copies))
    assert len(copies) == 20


async def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
        first = await must_claim(checkpoint)
        assert await claim(checkpoint) is None
    async with opened(tmp_path) as checkpoint:
        assert (await must_claim(checkpoint)).copy == first.copy


async def test_only_wanted_parts_and_cameras_are_claimed(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0), clip_at(1, camera=GARDEN))
    for sources, stores in (([], ["nas"]), (["home"], []), (["other"], ["nas"])):
        nothing = await checkpoint.claim(
            sources=sources, stores=stores, cameras=lambda _: True, due=NOW, busy={}
        )
        assert nothing is None
    claimed = await checkpoint.claim(
        sources=["home"], stores=["nas"], cameras=lambda c: c.name == "Garden", due=NOW, busy={}
    )
    assert claimed is not None
    assert claimed.clip.camera == GARDEN


async def test_a_failed_copy_waits_until_it_is_due(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0))
    first = await must_claim(checkpoint)
    later = NOW + timedelta(hours=1)
    await checkpoint.put_off(first.copy, "timeout", again=1, not_before=later, tally=TALLY, now=NOW)
    assert await claim(checkpoint) is None
    assert await checkpoint.next_due(["nas"], NOW) == later
    assert await checkpoint.next_due(["x"], NOW) is None
    again = await must_claim(checkpoint, hours=1)
    assert (again.attempts, again.same_reason, again.reason) == (1, 1, "timeout")


async def test_the_next_due_copy_is_the_earliest_that_someone_could_take(
    checkpoint: Checkpoint,
) -> None:
    await put_in(checkpoint, *(clip_at(minute) for minute in range(4)))
    claims = [await must_claim(checkpoint) for _ in range(3)]
    for hours, claimed in zip((3, 1, 2), claims, strict=True):
        later = NOW + timedelta(hours=hours)
        await checkpoint.put_off(
            claimed.copy, "no", again=1, not_before=later, tally=TALLY, now=NOW
        )
    assert (await must_claim(checkpoint)).clip.id == "porch-3"  # due at once, but in good hands
    due = NOW + timedelta(hours=1)
    assert await checkpoint.next_due(["nas"], NOW) == due
    assert await checkpoint.next_due(["offsite"], NOW) is None


async def test_a_released_copy_is_as_it_was(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0))
    first = await must_claim(checkpoint)
    await checkpoint.put_off(first.copy, "timeout", again=1, not_before=NOW, tally=TALLY, now=NOW)
    before = await must_claim(checkpoint)
    await checkpoint.release(before.copy)
    assert await must_claim(checkpoint) == before


async def test_a_cycle_by_hand_takes_what_is_not_due_but_each_only_once(
    checkpoint: Checkpoint,
) -> None:
    await put_in(checkpoint, clip_at(0))
    first = await must_claim(checkpoint)
    later = NOW + timedelta(hours=1)
    await checkpoint.put_off(first.copy, "timeout", again=1, not_before=later, tally=TALLY, now=NOW)
    assert (await must_claim(checkpoint, due=False)).copy == first.copy
    await checkpoint.release(first.copy)
    assert await claim(checkpoint, due=False, skip=(first.copy,)) is None


async def test_failures_of_one_kind_in_a_row_are_remembered(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0))
    counted = []
    for again in (1, 2, 1, 1, 2, 3):
        claimed = await must_claim(checkpoint)
        counted.append((claimed.attempts, claimed.same_reason))
        await checkpoint.put_off(
            claimed.copy, "cut", again=again, not_before=NOW, tally=TALLY, now=NOW
        )
    assert counted == [(0, 0), (1, 1), (2, 2), (3, 1), (4, 1), (5, 2)]


async def test_a_copy_put_off_by_a_clock_that_was_years_ahead_is_due(
    checkpoint: Checkpoint,
) -> None:
    await put_in(checkpoint, clip_at(0))
    first = await must_claim(checkpoint)
    far = NOW + timedelta(days=400)
    await checkpoint.put_off(first.copy, "no", again=1, not_before=far, tally=TALLY, now=far)
    assert (await must_claim(checkpoint)).copy == first.copy


# -- uploads and outcomes --------------------------------------------------------------------------


async def test_an_upload_survives_a_restart_and_ends_with_its_outcome(tmp_path: Path) -> None:
    state = UploadState(
        "https://session", "k.mp4", "video/mp4", NOW, 512, 0xFFFFFFFF, '{"a":1}', 900, 3
    )
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0), clip_at(1))
        first = await must_claim(checkpoint)
        await checkpoint.save_upload(first.copy, state)
    async with opened(tmp_path) as checkpoint:
        again = await must_claim(checkpoint)
        assert again.upload == state
        await store(checkpoint, again)
        second = await must_claim(checkpoint)
        await checkpoint.save_upload(second.copy, state)
        await checkpoint.forget_upload(second.copy)
        await checkpoint.release(second.copy)
        assert (await must_claim(checkpoint)).upload is None
    assert rows(tmp_path, "SELECT count(*) FROM upload") == [(0,)]
    assert rows(tmp_path, "SELECT state, size, crc32c, generation, verified FROM copy") == [
        ("stored", 10, 1, "7", 1),
        ("waiting", None, None, None, None),
    ]


async def test_an_upload_belongs_to_its_own_copy(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0), stores=("nas", "offsite"))
    nas = await must_claim(checkpoint, stores=("nas",))
    await checkpoint.save_upload(nas.copy, UploadState("s", nas.key, "video/mp4", NOW))
    assert (await must_claim(checkpoint, stores=("offsite",))).upload is None


async def test_an_outcome_ends_everything_that_was_on_the_way(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0), clip_at(1))
        claims = [await must_claim(checkpoint), await must_claim(checkpoint)]
        for claimed in claims:
            begun = UploadState("s", claimed.key, "video/mp4", NOW)
            await checkpoint.save_upload(claimed.copy, begun)
            await checkpoint.put_off(
                claimed.copy, "timeout", again=1, not_before=NOW, tally=TALLY, now=NOW
            )
        await must_claim(checkpoint)
        await must_claim(checkpoint)
        await store(checkpoint, claims[0])
        await checkpoint.set_aside(claims[1].copy, "gone", tally=TALLY, now=NOW)
        assert await claim(checkpoint) is None
    assert rows(tmp_path, "SELECT state, claim, reason, finished_ms FROM copy ORDER BY id") == [
        ("stored", None, None, to_ms(NOW)),
        ("set_aside", None, "gone", to_ms(NOW)),
    ]
    assert rows(tmp_path, "SELECT * FROM upload") == []
    assert rows(tmp_path, "SELECT outcome, reason, bytes, seconds FROM attempt ORDER BY id") == [
        ("failed", "timeout", 10, 0.5),
        ("failed", "timeout", 10, 0.5),
        ("stored", "", 10, 0.5),
        ("set_aside", "gone", 10, 0.5),
    ]


async def test_a_store_is_used_once_a_clip_was_stored_in_it(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0), stores=("nas", "offsite"))
    assert not await checkpoint.has_stored("nas")
    await store(checkpoint, await must_claim(checkpoint))
    assert await checkpoint.has_stored("nas")
    assert not await checkpoint.has_stored("offsite")


async def test_another_key_is_free_and_forgets_the_upload(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0), clip_at(1))
    first, second = await must_claim(checkpoint), await must_claim(checkpoint)
    await checkpoint.save_upload(second.copy, UploadState("s", second.key, "video/mp4", NOW))
    key = await checkpoint.change_key(second.copy, iter([first.key, "free.mp4", "other.mp4"]))
    assert key == "free.mp4"
    await checkpoint.release(second.copy)
    again = await must_claim(checkpoint)
    assert (again.key, again.upload) == ("free.mp4", None)
    assert await checkpoint.change_key(again.copy, iter([first.key])) is None


async def test_the_history_of_a_copy_is_kept_and_bounded(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    await put_in(checkpoint, clip_at(0))
    for number in range(ATTEMPTS_KEPT + 5):
        claimed = await must_claim(checkpoint)
        await checkpoint.put_off(
            claimed.copy, f"{number}", again=1, not_before=NOW, tally=TALLY, now=NOW
        )
    history = rows(tmp_path / "state", "SELECT reason, bytes FROM attempt ORDER BY id")
    assert history == [(f"{number}", 10) for number in range(5, ATTEMPTS_KEPT + 5)]


async def test_the_history_of_one_copy_pushes_out_no_others(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    await put_in(checkpoint, clip_at(0), clip_at(1))
    first = await must_claim(checkpoint)
    await checkpoint.put_off(
        first.copy, "first", again=1, not_before=NOW + timedelta(hours=1), tally=TALLY, now=NOW
    )
    for _ in range(ATTEMPTS_KEPT + 5):
        claimed = await must_claim(checkpoint)
        await checkpoint.put_off(
            claimed.copy, "other", again=1, not_before=NOW, tally=TALLY, now=NOW
        )
    kept = rows(tmp_path / "state", "SELECT reason, count(*) FROM attempt GROUP BY reason")
    assert kept == [("first", 1), ("other", ATTEMPTS_KEPT)]


async def test_a_cancelled_caller_does_not_split_an_outcome(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
        claimed = await must_claim(checkpoint)
        committing = asyncio.create_task(store(checkpoint, claimed))
        await asyncio.sleep(0)  # the transaction is with the database's thread now
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
    assert rows(tmp_path, "SELECT state FROM copy") == [("stored",)]
    assert rows(tmp_path, "SELECT outcome FROM attempt") == [("stored",)]


async def test_the_last_cycle_is_remembered(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        assert await checkpoint.last_cycle() is None
        await checkpoint.record_cycle(NOW)
        await checkpoint.record_cycle(NOW + timedelta(hours=1))
    async with opened(tmp_path) as checkpoint:
        assert await checkpoint.last_cycle() == NOW + timedelta(hours=1)


# -- the file --------------------------------------------------------------------------------------


async def test_the_files_are_private(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as checkpoint:
        await put_in(checkpoint, clip_at(0))
        for path in (tmp_path / "state").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_what_must_survive_a_power_cut_is_on_the_disk_before_anyone_acts_on_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else waits for the disk: a claim, a chunk more, a pause."""
    seen: list[str] = []
    await checkpoint._database.run(lambda db: db.set_trace_callback(seen.append))
    fdatasync = os.fdatasync

    def sync(file: int) -> None:
        assert os.readlink(f"/proc/self/fd/{file}").endswith("-wal")
        fdatasync(file)
        seen.append("SYNC")

    monkeypatch.setattr(os, "fdatasync", sync)

    async def synced(work: Awaitable[object]) -> str:
        seen.clear()
        await work
        steps = [line for line in seen if line in {"COMMIT", "SYNC"}]
        assert steps in (["COMMIT"], ["COMMIT", "SYNC"])
        return "FULL" if "SYNC" in steps else "NORMAL"

    assert await synced(put_in(checkpoint, clip_at(0), clip_at(1), clip_at(2))) == "FULL"
    assert await synced(checkpoint.advance(PORCH, {"nas": listed(NOW)})) == "FULL"
    assert await synced(checkpoint.record_cycle(NOW)) == "NORMAL"
    assert await synced(claim(checkpoint)) == "NORMAL"
    claims = [await must_claim(checkpoint) for _ in range(2)]
    copy = claims[0].copy
    begun = UploadState("s", "k.mp4", "video/mp4", NOW)
    assert await synced(checkpoint.save_upload(copy, begun)) == "FULL"
    assert await synced(checkpoint.save_upload(copy, replace(begun, offset=10))) == "NORMAL"
    ending = replace(begun, offset=10, total=12, total_crc32c=3)
    assert await synced(checkpoint.save_upload(copy, ending)) == "FULL"
    assert await synced(checkpoint.forget_upload(copy)) == "NORMAL"
    assert await synced(checkpoint.change_key(copy, iter(["new.mp4"]))) == "FULL"
    assert await synced(checkpoint.release(copy)) == "NORMAL"
    failing = checkpoint.put_off(copy, "no", again=1, not_before=NOW, tally=TALLY, now=NOW)
    assert await synced(failing) == "FULL"
    assert await synced(checkpoint.set_aside(copy, "no", tally=TALLY, now=NOW)) == "FULL"
    assert await synced(store(checkpoint, claims[1])) == "FULL"
    journal = await checkpoint._database.run(
        lambda db: db.execute("PRAGMA journal_mode").fetchone()
    )
    assert journal == ("wal",)  # only with it NORMAL loses the latest, and never the order


async def test_outcomes_at_the_same_time_share_the_way_to_the_disk(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_in(checkpoint, *(clip_at(minute) for minute in range(8)))
    claims = [await must_claim(checkpoint) for _ in range(8)]
    began, go = threading.Event(), threading.Event()
    syncs: list[int] = []
    fdatasync = os.fdatasync

    def slow(file: int) -> None:
        began.set()
        assert go.wait(20)
        fdatasync(file)
        syncs.append(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    storing = [asyncio.create_task(store(checkpoint, claims[0]))]
    await asyncio.to_thread(began.wait, 20)
    storing += [asyncio.create_task(store(checkpoint, item)) for item in claims[1:]]
    states = "SELECT count(*) FROM copy WHERE state = 'stored'"
    while await checkpoint._database.run(lambda db: db.execute(states).fetchone()[0]) < 8:
        await asyncio.sleep(0)  # commits go on while the disk is busy
    assert not any(one.done() for one in storing)
    storing[1].cancel()  # who goes away takes nothing from the others
    go.set()
    results = await asyncio.gather(*storing, return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [asyncio.CancelledError]
    assert len(syncs) == 2


async def test_a_disk_that_fails_to_sync_is_never_taken_for_success(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_in(checkpoint, clip_at(0))
    claimed = await must_claim(checkpoint)

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", broken)
        for _ in range(2):
            with pytest.raises(CheckpointError, match="Input/output error"):
                await store(checkpoint, claimed)
    await store(checkpoint, claimed)


async def test_what_is_handed_over_is_done_in_order_one_at_a_time(checkpoint: Checkpoint) -> None:
    order: list[str] = []
    began, go = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        began.set()
        assert go.wait(20)
        order.append("slow")

    first = asyncio.create_task(checkpoint._database.run(slow))
    while not began.is_set():
        await asyncio.sleep(0.001)
    second = asyncio.create_task(checkpoint._database.run(lambda _: order.append("fast")))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert order == []  # the loop went on, the second waits for its turn
    go.set()
    await asyncio.gather(first, second)
    assert order == ["slow", "fast"]


async def test_a_transaction_that_cannot_be_ended_well_is_undone(checkpoint: Checkpoint) -> None:
    """A commit can fail (here by a deferred reference to nothing); the next one must not."""

    def work(db: sqlite3.Connection) -> bool:
        with pytest.raises(sqlite3.IntegrityError), transaction(db, durable=True):
            db.execute("PRAGMA defer_foreign_keys=ON")
            db.execute("INSERT INTO reach VALUES (4711, 'nas', 0, 0, 0, 0, NULL)")
        return db.in_transaction

    assert not await checkpoint._database.run(work)
    assert await put_in(checkpoint, clip_at(0)) == 1


async def test_a_broken_rule_of_the_database_is_a_bug_and_no_full_disk(
    checkpoint: Checkpoint,
) -> None:
    """What the operator cannot mend is not put to him as a message: it ends the process loudly."""
    await put_in(checkpoint, clip_at(0))
    with pytest.raises(sqlite3.IntegrityError):
        await checkpoint._database.run(lambda db: db.execute("UPDATE copy SET state = 'lost'"))
    assert await checkpoint.counts() == {"waiting": 1, "set_aside": 0}


async def test_clips_whose_every_key_is_taken_are_planned_all_the_same(
    checkpoint: Checkpoint,
) -> None:
    def always_the_same(_store: str, _clip: Clip) -> Iterator[str]:
        yield "same.mp4"

    listing = [clip_at(minute) for minute in range(3)]
    since = {"nas": EPOCH - timedelta(days=1)}
    decided = plan(listing, [], since=since, rules=RULES, now=NOW)
    for _ in range(2):
        await checkpoint.apply(PORCH, decided, keys=always_the_same, now=NOW)
    claims = [await must_claim(checkpoint) for _ in range(3)]
    assert {item.clip for item in claims} == set(listing)
    assert len({item.key for item in claims}) == 3
    assert await claim(checkpoint) is None


async def test_an_interrupted_transaction_is_undone(checkpoint: Checkpoint) -> None:
    def work(db: sqlite3.Connection) -> tuple[bool, list[tuple[str]]]:
        with pytest.raises(KeyboardInterrupt), transaction(db, durable=False):
            db.execute("INSERT INTO meta VALUES ('half', 'done')")
            raise KeyboardInterrupt
        return db.in_transaction, db.execute("SELECT name FROM meta").fetchall()

    assert await checkpoint._database.run(work) == (False, [])


async def test_a_closed_checkpoint_is_one_file_and_leaves_no_thread(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
        checkpoint.close()
        checkpoint.close()
    assert {path.name for path in tmp_path.iterdir()} == {database.FILE_NAME, database.LOCK_NAME}
    (tmp_path / database.FILE_NAME).write_bytes(b"no database" * 100)
    with pytest.raises(CheckpointError):
        await Checkpoint.open(tmp_path, now=NOW)
    assert [one.name for one in threading.enumerate() if "checkpoint" in one.name] == []


async def test_a_second_engine_is_refused_and_told_how_to_ask_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(EngineRunningError, match=r"works on .*SIGUSR1.*status"):
            await Checkpoint.open(tmp_path, now=NOW)
    async with opened(tmp_path):
        pass


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / database.FILE_NAME)) as connection, connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="newer nvr-backup"):
        await Checkpoint.open(tmp_path, now=NOW)
    assert rows(tmp_path, "PRAGMA user_version") == [(99,)]
    with closing(sqlite3.connect(tmp_path / database.FILE_NAME)) as connection, connection:
        connection.execute(f"PRAGMA user_version={len(database.MIGRATIONS)}")
    async with opened(tmp_path):  # the refusal released the lock
        pass


async def test_an_older_schema_is_migrated_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
    step = tmp_path / "step.sql"
    step.write_text("ALTER TABLE copy ADD COLUMN of_a_test_ms INTEGER;")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, str(step)))
    async with opened(tmp_path):
        assert rows(tmp_path, "SELECT state, of_a_test_ms FROM copy") == [("waiting", None)]
        assert rows(tmp_path, "PRAGMA user_version") == [(2,)]


async def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
    step = tmp_path / "step.sql"
    step.write_text("ALTER TABLE copy ADD COLUMN of_a_test_ms INTEGER; DROP TABLE nothing;")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, str(step)))
    with pytest.raises(CheckpointError, match="cannot be used"):
        await Checkpoint.open(tmp_path, now=NOW)
    assert not [row for row in rows(tmp_path, "PRAGMA table_info(copy)") if "of_a_test_ms" in row]
    step.write_text("ALTER TABLE copy ADD COLUMN of_a_test_ms INTEGER;")
    async with opened(tmp_path) as checkpoint:  # once mended, it goes on where it was
        assert rows(tmp_path, "PRAGMA user_version") == [(2,)]
        assert await must_claim(checkpoint)


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"x" * 5000]
)
async def test_a_file_that_is_no_database_is_refused_and_kept(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / database.FILE_NAME).write_bytes(content)
    with pytest.raises(RebuildNeeded, match="nvr-backup rebuild"):
        await Checkpoint.open(tmp_path, now=NOW)
    assert (tmp_path / database.FILE_NAME).read_bytes() == content


async def test_a_state_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="state_dir"):
        await Checkpoint.open(tmp_path / "file" / "state", now=NOW)


async def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
        pages = await checkpoint._database.run(
            lambda db: db.execute("PRAGMA page_count").fetchone()[0]
        )
        await checkpoint._database.run(
            lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchone()
        )
        clips = [clip_at(minute, id=f"{minute}" * 500) for minute in range(1, 50)]
        with pytest.raises(CheckpointError, match="full"):
            await put_in(checkpoint, *clips)
        assert await checkpoint.counts() == {"waiting": 1, "set_aside": 0}
        await store(checkpoint, await must_claim(checkpoint))
    assert rows(tmp_path, "SELECT state FROM copy") == [("stored",)]


# -- looking beside an engine ----------------------------------------------------------------------


async def test_looking_changes_nothing_and_sees_what_an_engine_did(tmp_path: Path) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
        beside = await Checkpoint.peek(tmp_path)
        try:
            assert await beside.counts() == {"waiting": 1, "set_aside": 0}
            await put_in(checkpoint, clip_at(1))
            assert await beside.counts() == {"waiting": 2, "set_aside": 0}
            with pytest.raises(CheckpointError, match="readonly"):
                await put_in(beside, clip_at(2))
        finally:
            beside.close()
        assert await checkpoint.counts() == {"waiting": 2, "set_aside": 0}
        with pytest.raises(EngineRunningError):  # the look did not give the engine's lock away
            await Checkpoint.open(tmp_path, now=NOW)


async def test_looking_at_nothing_makes_no_file(tmp_path: Path) -> None:
    beside = await Checkpoint.peek(tmp_path)
    assert await beside.counts() == {"waiting": 0, "set_aside": 0}
    beside.close()
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        Database(tmp_path, writable=False)
    assert list(tmp_path.iterdir()) == []


async def test_looking_migrates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path):
        pass
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "never read"))
    with pytest.raises(CheckpointError, match=r"older schema \(1\)"):
        await Checkpoint.peek(tmp_path)
    assert rows(tmp_path, "PRAGMA user_version") == [(1,)]
