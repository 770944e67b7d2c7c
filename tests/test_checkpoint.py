"""The checkpoint on real files: identity, claims, outcomes, locking, schema."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from nvr_backup import database
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import CheckpointError, EngineRunningError
from nvr_backup.errors import ConfigError
from nvr_backup.model import Camera, Clip, StoredObject, UploadState, to_ms
from nvr_backup.planner import Rules, plan
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
    with sqlite3.connect(folder / database.FILE_NAME) as connection:
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


async def test_a_waiting_clip_that_grew_keeps_its_key_and_is_carried_once(
    checkpoint: Checkpoint,
) -> None:
    await put_in(checkpoint, clip_at(0, seconds=10, id="a"))
    await put_in(checkpoint, clip_at(0, seconds=25, id="b"))
    claimed = await must_claim(checkpoint)
    assert (claimed.clip.id, claimed.key) == ("b", f"Porch/{to_ms(EPOCH)}.mp4")
    assert await claim(checkpoint) is None


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
    def only_one(store: str, clip: Clip) -> Iterator[str]:
        yield "always the same"

    decided = plan([clip_at(0), clip_at(1)], [], since={"nas": EPOCH}, rules=RULES, now=NOW)
    with pytest.raises(CheckpointError, match="No free object key"):
        await checkpoint.apply(PORCH, decided, keys=only_one, now=NOW)
    assert await checkpoint.known(PORCH, EPOCH, NOW) == []
    assert await checkpoint.counts() == {"waiting": 0, "set_aside": 0}


async def test_reach_and_watermark(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(5), clip_at(10))
    await checkpoint.advance(PORCH, {"nas": NOW})
    mark = ("home", "Porch", "nas")
    assert (await checkpoint.reaches(PORCH)) == {"nas": NOW}
    assert (await checkpoint.latest_start(PORCH)) == clip_at(10).start
    assert (await checkpoint.latest_start(GARDEN)) is None
    assert (await checkpoint.watermarks())[mark] == clip_at(5).start
    await store(checkpoint, await must_claim(checkpoint))
    assert (await checkpoint.watermarks())[mark] == clip_at(10).start
    second = await must_claim(checkpoint)
    await checkpoint.put_off(second.copy, "no", not_before=NOW, tally=TALLY, now=NOW)
    assert (await checkpoint.watermarks())[mark] == clip_at(10).start
    await checkpoint.set_aside(second.copy, "gone", tally=TALLY, now=NOW)
    assert (await checkpoint.watermarks())[mark] == NOW


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
    await checkpoint.put_off(first.copy, "timeout", not_before=later, tally=TALLY, now=NOW)
    assert await claim(checkpoint) is None
    assert await checkpoint.next_due(sources=["home"], stores=["nas"]) == later
    assert await checkpoint.next_due(sources=["home"], stores=["x"]) is None
    again = await must_claim(checkpoint, hours=1)
    assert (again.attempts, again.same_reason, again.reason) == (1, 1, "timeout")


async def test_a_cycle_by_hand_takes_what_is_not_due_but_each_only_once(
    checkpoint: Checkpoint,
) -> None:
    await put_in(checkpoint, clip_at(0))
    first = await must_claim(checkpoint)
    later = NOW + timedelta(hours=1)
    await checkpoint.put_off(first.copy, "timeout", not_before=later, tally=TALLY, now=NOW)
    assert (await must_claim(checkpoint, due=False)).copy == first.copy
    await checkpoint.release(first.copy)
    assert await claim(checkpoint, due=False, skip=(first.copy,)) is None


async def test_patience_counts_only_the_same_reason_in_a_row(checkpoint: Checkpoint) -> None:
    await put_in(checkpoint, clip_at(0))
    counted = []
    for reason in ("cut", "cut", "timeout", "cut", "cut", "cut"):
        claimed = await must_claim(checkpoint)
        counted.append(claimed.same_reason)
        await checkpoint.put_off(claimed.copy, reason, not_before=NOW, tally=TALLY, now=NOW)
    assert counted == [0, 1, 2, 1, 1, 2]
    assert (await must_claim(checkpoint)).attempts == 6


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
        await checkpoint.put_off(claimed.copy, f"{number}", not_before=NOW, tally=TALLY, now=NOW)
    history = rows(tmp_path / "state", "SELECT reason, bytes FROM attempt ORDER BY id")
    assert history == [(f"{number}", 10) for number in range(5, ATTEMPTS_KEPT + 5)]


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


async def test_outcomes_reach_the_disk_before_they_return(checkpoint: Checkpoint) -> None:
    seen: list[str] = []
    await checkpoint._database.run(lambda db: db.set_trace_callback(seen.append))
    await put_in(checkpoint, clip_at(0))
    claimed = await must_claim(checkpoint)
    await store(checkpoint, claimed)
    commits = [line for line in seen if line.startswith(("PRAGMA synchronous", "COMMIT"))]
    assert commits == [
        "PRAGMA synchronous=FULL", "COMMIT",
        "PRAGMA synchronous=NORMAL", "COMMIT",
        "PRAGMA synchronous=FULL", "COMMIT",
    ]  # fmt: skip
    assert (
        await checkpoint._database.run(lambda db: db.execute("PRAGMA journal_mode").fetchone())
    )[0] == "wal"


async def test_a_second_engine_is_refused_and_told_how_to_ask_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(EngineRunningError, match=r"works on .*SIGUSR1.*status"):
            await Checkpoint.open(tmp_path, now=NOW)
    async with opened(tmp_path):
        pass


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with sqlite3.connect(tmp_path / database.FILE_NAME) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="newer nvr-backup"):
        await Checkpoint.open(tmp_path, now=NOW)
    assert rows(tmp_path, "PRAGMA user_version") == [(99,)]
    with sqlite3.connect(tmp_path / database.FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version={len(database.MIGRATIONS)}")
    async with opened(tmp_path):  # the refusal released the lock
        pass


async def test_an_older_schema_is_migrated_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
    step = tmp_path / "step.sql"
    step.write_text("ALTER TABLE copy ADD COLUMN proven_ms INTEGER;")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, str(step)))
    async with opened(tmp_path):
        assert rows(tmp_path, "SELECT state, proven_ms FROM copy") == [("waiting", None)]
        assert rows(tmp_path, "PRAGMA user_version") == [(2,)]


async def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as checkpoint:
        await put_in(checkpoint, clip_at(0))
    step = tmp_path / "step.sql"
    step.write_text("ALTER TABLE copy ADD COLUMN proven_ms INTEGER; DROP TABLE nothing;")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, str(step)))
    with pytest.raises(CheckpointError, match="cannot be used"):
        await Checkpoint.open(tmp_path, now=NOW)
    monkeypatch.undo()
    async with opened(tmp_path):
        assert rows(tmp_path, "PRAGMA user_version") == [(1,)]


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"x" * 5000]
)
async def test_a_file_that_is_no_database_is_refused_and_kept(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / database.FILE_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match="Move it aside"):
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
