"""`rebuild` over fakes: what becomes of a checkpoint, of the listings, and of every object."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import CheckpointError, EngineRunningError, RebuildNeeded
from nvr_backup.errors import Blocked, ConfigError, Transient
from nvr_backup.metadata import describe
from nvr_backup.model import Camera, StoredObject
from nvr_backup.rebuild import BATCH
from nvr_backup.workplace import Basis, Wish
from tests.conftest import Counted
from tests.support.fakes import EPOCH, PORCH, FakeSource, FakeStore, clip_at, mp4
from tests.support.ruins import GuardedStore, Ruins
from tests.test_soundness import garbled, statement

GARDEN = Camera("home", "garden", "Garden")


@pytest.fixture
def ruins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ruins:
    return Ruins(tmp_path, monkeypatch, stores={"cloud": GuardedStore(), "nas": FakeStore()})


def record(source: FakeSource, *minutes: float, camera: Camera = PORCH, size: int = 0) -> None:
    for minute in minutes:
        data = mp4(size or 300 + int(minute) % 1000, seed=int(minute) + len(camera.id))
        source.add(clip_at(minute, camera=camera), data)


async def at_home(ruins: Ruins, clips: int = 8) -> None:
    """Two cameras with clips, all of them stored in both stores."""
    record(ruins.source, *(60 * hour for hour in range(clips)))
    record(ruins.source, *(60 * hour + 7 for hour in range(clips)), camera=GARDEN)
    await ruins.once()
    assert [len(store.objects) for store in ruins.stores.values()] == [2 * clips] * 2


def rows(ruins: Ruins, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(ruins.checkpoint)) as connection:
        return connection.execute(sql).fetchall()


async def nothing_new(ruins: Ruins, sent: int) -> None:
    objects = ruins.objects()
    await ruins.once()
    assert ruins.sent() == sent
    assert ruins.objects() == objects
    assert rows(ruins, "SELECT DISTINCT state FROM copy") == [("stored",)]


async def test_a_lost_checkpoint_comes_back_and_nothing_is_sent(
    ruins: Ruins, counted: Counted
) -> None:
    await at_home(ruins)
    marks, sent, objects = await ruins.watermarks(), ruins.sent(), ruins.objects()
    before = rows(
        ruins, "SELECT store, object_key, size, crc32c, generation FROM copy ORDER BY 1, 2"
    )
    ruins.lose()
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.basis is Basis.NOTHING
    assert rebuilt.kept == []
    assert [(one.store, one.objects, one.new) for one in rebuilt.inventories] == [
        ("cloud", 16, 16),
        ("nas", 16, 16),
    ]
    assert all(one.unmatched == 0 for one in rebuilt.inventories)
    assert rebuilt.inventories[0].bytes == sum(len(data) for _, data in objects["cloud"].values())
    assert ruins.objects() == objects
    sql = "SELECT store, object_key, size, crc32c, generation FROM copy ORDER BY 1, 2"
    assert rows(ruins, sql) == before
    await nothing_new(ruins, sent)
    assert await ruins.watermarks() == marks  # where they were, to the millisecond
    again = await ruins.rebuild()
    assert again.start.basis is Basis.CHECKPOINT
    assert [(one.new, one.known) for one in again.inventories] == [(0, 16), (0, 16)]
    counted("fault cases")


async def test_more_objects_than_a_batch(ruins: Ruins) -> None:
    del ruins.stores["cloud"]
    for minute in range(BATCH + 3):
        clip = clip_at(minute / 2)
        key = f"{minute:05}.mp4"
        metadata = describe(clip)
        stored = StoredObject(key, 5, 6, str(minute), "video/mp4", metadata)
        ruins.store.objects[key] = (stored, b"")
    rebuilt = await ruins.rebuild()
    assert rebuilt.inventories[0].new == BATCH + 3
    assert ruins.told == [("nas", BATCH), ("nas", BATCH + 3)]
    assert rows(ruins, "SELECT count(*) FROM copy WHERE state = 'stored'") == [(BATCH + 3,)]


async def test_what_was_waiting_is_planned_again_and_carried(ruins: Ruins) -> None:
    await at_home(ruins)
    record(ruins.source, 600, 601)
    for store in ruins.stores.values():
        store.faults.arm("put", *[Transient("no")] * 2)
    await ruins.once()
    ruins.lose()
    await ruins.rebuild()
    await ruins.once()
    assert rows(ruins, "SELECT state, count(*) FROM copy GROUP BY 1") == [("stored", 36)]
    assert [len(store.objects) for store in ruins.stores.values()] == [18, 18]


async def test_a_camera_that_slept_is_listed_again_from_the_oldest_clip(ruins: Ruins) -> None:
    """Longer ago than the backfill: what lay between the found clips is not known."""
    await at_home(ruins)
    await ruins.clock.advance(20 * 86400)
    record(ruins.source, 20 * 1440 + 5)
    await ruins.once()
    sent = ruins.sent()
    ruins.lose()
    record(ruins.source, 65)  # nobody had seen it in time
    await ruins.rebuild()
    await ruins.once()
    assert ruins.sent() == sent + 2 * len(ruins.source.recordings["porch-65"].data)
    assert rows(ruins, "SELECT min(begin_ms) FROM reach") == [
        (int(EPOCH.timestamp() * 1000) + 10_000,)  # where the very first clip ended
    ]


# -- what there is to begin with ------------------------------------------------------------------


async def test_a_damaged_checkpoint_is_kept_and_a_snapshot_taken_up(
    ruins: Ruins, counted: Counted
) -> None:
    await at_home(ruins)
    record(ruins.source, 605)
    for store in ruins.stores.values():
        store.faults.arm("put", Transient("no"))
    await ruins.once()
    await ruins.clock.advance(3600)
    (snapshot,) = sorted(ruins.state.glob("snapshots/*"))[-1:]
    garbled(ruins.checkpoint, 4096 * 3)
    damaged = ruins.checkpoint.read_bytes()
    with pytest.raises(RebuildNeeded):
        await ruins.once()
    rebuilt = await ruins.rebuild()
    assert (rebuilt.start.basis, rebuilt.start.snapshot) == (Basis.SNAPSHOT, str(snapshot))
    assert "damaged" in rebuilt.start.damage
    (kept,) = map(Path, rebuilt.kept)
    assert kept.read_bytes() == damaged
    assert kept.name == f"checkpoint.sqlite3.damaged-{ruins.clock.now():%Y%m%dT%H%M%SZ}"
    # What only the checkpoint knew is still known: what waits, and why.
    assert (
        rows(ruins, "SELECT state, attempts, reason FROM copy WHERE state != 'stored'")
        == [("waiting", 1, "no")] * 2
    )
    await ruins.once()
    assert rows(ruins, "SELECT DISTINCT state FROM copy") == [("stored",)]
    assert [len(store.objects) for store in ruins.stores.values()] == [17, 17]
    counted("fault cases")


async def test_what_a_snapshot_does_not_know_yet_is_added(ruins: Ruins) -> None:
    await at_home(ruins)
    old = next(ruins.state.glob("snapshots/*")).read_bytes()
    record(ruins.source, 600, 601)
    await ruins.once()
    sent = ruins.sent()
    (ruins.folder / "usb.sqlite3").write_bytes(old)
    ruins.checkpoint.unlink()
    rebuilt = await ruins.rebuild(Wish(snapshot=ruins.folder / "usb.sqlite3"))
    assert [(one.new, one.known) for one in rebuilt.inventories] == [(2, 16), (2, 16)]
    assert (ruins.folder / "usb.sqlite3").read_bytes() == old
    await nothing_new(ruins, sent)


@pytest.mark.parametrize("kind", ["no database", "empty", "newer", "absent"])
async def test_a_snapshot_that_cannot_be_used_is_refused_by_name(ruins: Ruins, kind: str) -> None:
    await at_home(ruins)
    damaged = ruins.folder / "usb.sqlite3"
    if kind != "absent":
        damaged.write_bytes(b"no database" if kind == "no database" else b"")
    if kind == "newer":
        statement("PRAGMA user_version=99")(damaged)
    ruins.checkpoint.unlink()
    before = ruins.files()
    with pytest.raises(CheckpointError, match="is no snapshot to begin with"):
        await ruins.rebuild(Wish(snapshot=damaged))
    assert {**before, "engine.lock": b""} == {**ruins.files(), "engine.lock": b""}


async def test_without_snapshots_it_begins_with_nothing(ruins: Ruins) -> None:
    await at_home(ruins)
    sent = ruins.sent()
    ruins.checkpoint.unlink()
    rebuilt = await ruins.rebuild(Wish(use_snapshots=False))
    assert rebuilt.start.basis is Basis.NOTHING
    await nothing_new(ruins, sent)


async def test_a_newer_programs_snapshot_is_passed_over(ruins: Ruins) -> None:
    await at_home(ruins)
    (snapshot,) = ruins.state.glob("snapshots/*")
    newer = snapshot.with_name("checkpoint-20260101T235959.000000Z.sqlite3")
    newer.write_bytes(snapshot.read_bytes())
    statement("PRAGMA user_version=99")(newer)
    older = snapshot.with_name("checkpoint-20260101T000000.000000Z.sqlite3")
    snapshot.rename(older)
    ruins.checkpoint.unlink()
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.snapshot == str(older)
    assert newer.exists()


async def test_a_newer_programs_checkpoint_is_left_alone(ruins: Ruins) -> None:
    await at_home(ruins)
    statement("PRAGMA user_version=99")(ruins.checkpoint)
    before = ruins.files()
    with pytest.raises(ConfigError, match="newer"):
        await ruins.rebuild()
    assert ruins.files() == before


@pytest.mark.parametrize("kind", ["no file", "an empty file", "a header"])
async def test_a_first_start_that_was_killed_can_be_rebuilt(ruins: Ruins, kind: str) -> None:
    await at_home(ruins)
    sent = ruins.sent()
    ruins.lose()
    ruins.state.mkdir()
    if kind == "an empty file":
        ruins.checkpoint.touch()
    if kind == "a header":
        statement("PRAGMA journal_mode=WAL")(ruins.checkpoint)
    rebuilt = await ruins.rebuild()
    assert rebuilt.kept == []
    assert rebuilt.inventories[0].new == 16
    await nothing_new(ruins, sent)


# -- objects that are not ours, or do not say so ------------------------------------------------


async def test_foreign_objects_are_never_touched(ruins: Ruins, counted: Counted) -> None:
    await at_home(ruins)
    sent = ruins.sent()
    foreign = {
        "Porch/2026/01/01/12-00-00.mp4": b"x" * 400,
        "notes.txt": b"hello",
        "Porch/1999/01/01/12-00-00.mp4": b"old",
        "_nvr-backup/checkpoint/checkpoint-20260101T000000.000000Z.sqlite3.gz": b"garbage",
    }
    for key, data in foreign.items():
        ruins.store.objects[key] = (StoredObject(key, len(data), 1, "f", "text/plain"), data)
    mislabelled = StoredObject("z.mp4", 3, 1, "f", "video/mp4", {"source": "home"})
    ruins.store.objects["z.mp4"] = (mislabelled, b"abc")
    objects = ruins.objects()
    ruins.lose()
    rebuilt = await ruins.rebuild()
    nas = rebuilt.inventories[1]
    assert (nas.store, nas.objects, nas.new, nas.unmatched) == ("nas", 20, 16, 4)
    assert ruins.objects() == objects
    await nothing_new(ruins, sent)
    counted("fault cases")


async def test_a_foreign_object_under_a_clips_key_is_walked_around(ruins: Ruins) -> None:
    await at_home(ruins, 1)
    ruins.lose()
    record(ruins.source, 600)
    foreign = StoredObject("Porch/2026/01/01/10-00-00.mp4", 3, 1, "f")
    ruins.store.objects[foreign.key] = (foreign, b"abc")
    rebuilt = await ruins.rebuild()
    assert rebuilt.inventories[1].unmatched == 1
    await ruins.once()
    assert ruins.store.objects[foreign.key] == (foreign, b"abc")
    assert rows(ruins, "SELECT DISTINCT state FROM copy") == [("stored",)]
    assert len(ruins.store.objects) == 4


def without_metadata(store: FakeStore) -> None:
    for key, (each, data) in store.objects.items():
        store.objects[key] = (replace(each, metadata={}), data)


async def test_objects_without_metadata_are_matched_by_key_and_size(
    ruins: Ruins, counted: Counted
) -> None:
    await at_home(ruins)
    marks, sent = await ruins.watermarks(), ruins.sent()
    without_metadata(ruins.store)
    key = "Porch/2026/01/01/03-00-00.mp4"
    each, data = ruins.store.objects[key]
    ruins.store.objects[key] = (replace(each, size=each.size - 1), data[:-1])
    ruins.lose()
    rebuilt = await ruins.rebuild()
    nas = rebuilt.inventories[1]
    assert (nas.new, nas.loose, nas.matched, nas.unmatched) == (0, 16, 15, 1)
    assert rebuilt.unasked == {}
    assert nas.bytes == sum(len(data) for _, data in ruins.store.objects.values()) - len(data) + 1
    await ruins.once()
    cut = len(ruins.source.recordings["porch-180"].data)
    assert ruins.sent() == sent + 2 * cut  # that one clip: its key was taken, then under another
    assert len(ruins.store.objects) == 17
    assert await ruins.watermarks() == marks
    counted("fault cases")


async def test_a_sound_checkpoint_learns_of_objects_without_metadata_too(ruins: Ruins) -> None:
    await at_home(ruins)
    without_metadata(ruins.store)
    rebuilt = await ruins.rebuild()
    nas = rebuilt.inventories[1]
    assert (nas.known, nas.loose, nas.matched) == (16, 0, 0)


# -- stores that do not answer -------------------------------------------------------------------


@pytest.mark.parametrize("may_stat", [True, False], ids=["may look", "may only create"])
async def test_a_store_that_may_not_be_listed_gets_no_clip_twice(
    ruins: Ruins, may_stat: bool, counted: Counted
) -> None:
    await at_home(ruins)
    cloud = ruins.stores["cloud"]
    assert isinstance(cloud, GuardedStore)
    cloud.may_list, cloud._may_stat = False, may_stat
    marks, objects = await ruins.watermarks(), ruins.objects()
    ruins.lose()
    rebuilt = await ruins.rebuild()
    assert rebuilt.inventories[0].unread == "The key may not list objects."
    assert rebuilt.inventories[1].new == 16
    await ruins.once()
    assert ruins.objects() == objects
    assert await ruins.watermarks() == marks
    sql = "SELECT DISTINCT state, verified FROM copy WHERE store = 'cloud'"
    assert rows(ruins, sql) == [("stored", int(may_stat))]
    counted("fault cases")


async def test_an_object_of_later_is_not_taken_for_ours_unseen(ruins: Ruins) -> None:
    """Only what may have been stored before the checkpoint was lost is believed without a look."""
    await at_home(ruins, 1)
    cloud = ruins.stores["cloud"]
    assert isinstance(cloud, GuardedStore)
    cloud.may_list, cloud._may_stat = False, False
    ruins.lose()
    await ruins.rebuild()
    record(ruins.source, 25 * 60)
    foreign = StoredObject("Porch/2026/01/02/01-00-00.mp4", 3, 1, "f")
    cloud.objects[foreign.key] = (foreign, b"abc")
    await ruins.clock.advance(2 * 3600)
    await ruins.once()
    assert len(cloud.objects) == 4  # ours is there too, under another key
    assert cloud.objects[foreign.key] == (foreign, b"abc")


async def test_a_store_that_may_be_listed_after_all_ends_the_doubt(ruins: Ruins) -> None:
    await at_home(ruins)
    cloud = ruins.stores["cloud"]
    assert isinstance(cloud, GuardedStore)
    sent = ruins.sent()
    cloud.may_list = False
    ruins.lose()
    await ruins.rebuild()
    doubt = "SELECT name FROM meta WHERE name LIKE 'unread %'"
    assert rows(ruins, doubt) == [("unread cloud",)]
    await ruins.rebuild(Wish(without=frozenset({"cloud"})))
    assert rows(ruins, doubt) == [("unread cloud",)]
    cloud.may_list = True
    rebuilt = await ruins.rebuild()
    assert rebuilt.inventories[0].new == 16
    assert rows(ruins, doubt) == []
    await nothing_new(ruins, sent)


async def test_a_checkpoint_begun_after_the_loss_has_doubts_too(
    ruins: Ruins, counted: Counted
) -> None:
    """Somebody started the daemon before the rebuild: its checkpoint is sound and knows nothing."""
    await at_home(ruins)
    cloud = ruins.stores["cloud"]
    assert isinstance(cloud, GuardedStore)
    cloud.may_list, cloud._may_stat = False, False
    objects = ruins.objects()
    ruins.lose()
    async with ruins.engine():
        pass  # it was stopped again at once
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.basis is Basis.CHECKPOINT
    await ruins.once()
    assert ruins.objects() == objects  # nothing is there twice
    counted("fault cases")


async def test_a_sound_checkpoint_has_no_doubts_about_a_store_left_out(ruins: Ruins) -> None:
    await at_home(ruins)
    await ruins.rebuild(Wish(without=frozenset({"cloud"})))
    assert rows(ruins, "SELECT name FROM meta WHERE name LIKE 'unread %'") == []


@pytest.mark.parametrize("error", [Transient("timeout"), Blocked("bucket gone", hint="Make it.")])
async def test_a_store_that_fails_changes_nothing_of_a_damaged_checkpoint(
    ruins: Ruins, error: Transient | Blocked, counted: Counted
) -> None:
    await at_home(ruins)
    sent = ruins.sent()
    garbled(ruins.checkpoint, 4096 * 3)
    before = ruins.files()
    ruins.store.faults.arm("list", error)
    with pytest.raises(type(error)) as raised:
        await ruins.rebuild()
    assert raised.value.origin == "stores.nas"
    assert "--without nas" in raised.value.hint
    assert error.hint in raised.value.hint
    assert ruins.files() == before
    with pytest.raises(RebuildNeeded):
        await ruins.once()
    await ruins.rebuild()
    await nothing_new(ruins, sent)
    counted("fault cases")


async def test_a_listing_that_breaks_off_harms_no_sound_checkpoint(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at_home(ruins)
    sent = ruins.sent()
    monkeypatch.setattr("nvr_backup.rebuild.BATCH", 3)
    statement("DELETE FROM attempt")(ruins.checkpoint)
    statement("DELETE FROM copy WHERE id % 2")(ruins.checkpoint)  # as if it had forgotten them
    real = ruins.store.list

    async def breaking(prefix: str):  # type: ignore[no-untyped-def]
        count = 0
        async for each in real(prefix):
            count += 1
            if count == 8:
                raise Transient("cut")
            yield each

    with monkeypatch.context() as patch:
        patch.setattr(ruins.store, "list", breaking)
        with pytest.raises(Transient):
            await ruins.rebuild()
    rebuilt = await ruins.rebuild()
    nas = rebuilt.inventories[1]
    assert nas.new + nas.known == 16
    assert nas.new < 8
    await nothing_new(ruins, sent)


async def test_an_empty_folder_in_a_known_stores_place_is_told_apart(ruins: Ruins) -> None:
    """What is not mounted must not look as if all clips were gone (the adapter refuses it)."""
    await at_home(ruins)
    await ruins.rebuild()
    assert ruins.used_before == {"cloud": True, "nas": True}
    ruins.checkpoint.unlink()
    await ruins.rebuild()  # with a snapshot
    assert ruins.used_before == {"cloud": True, "nas": True}
    ruins.lose()
    await ruins.rebuild()
    assert ruins.used_before == {"cloud": False, "nas": False}
    await ruins.rebuild()
    assert ruins.used_before == {"cloud": True, "nas": True}


# -- beside others ---------------------------------------------------------------------------------


async def test_beside_an_engine_it_refuses_and_changes_nothing(
    ruins: Ruins, counted: Counted
) -> None:
    await at_home(ruins)
    async with ruins.engine():
        before = ruins.files()
        with pytest.raises(EngineRunningError):
            await ruins.rebuild()
        dry = await ruins.rebuild(Wish(dry_run=True))
        assert [one.known for one in dry.inventories] == [16, 16]
        assert ruins.files() == before
    await ruins.rebuild()
    counted("fault cases")


async def test_no_engine_starts_beside_it(ruins: Ruins, monkeypatch: pytest.MonkeyPatch) -> None:
    await at_home(ruins)
    ruins.checkpoint.unlink()
    real = ruins.store.list
    refused = []

    async def meanwhile(prefix: str):  # type: ignore[no-untyped-def]
        with pytest.raises(EngineRunningError):
            await Checkpoint.open(ruins.state, now=ruins.clock.now())
        refused.append(prefix)
        async for each in real(prefix):
            yield each

    monkeypatch.setattr(ruins.store, "list", meanwhile)
    await ruins.rebuild()
    assert refused == [""]


@pytest.mark.parametrize("fate", ["sound", "damaged", "gone"])
async def test_a_dry_run_says_the_same_and_changes_nothing(ruins: Ruins, fate: str) -> None:
    await at_home(ruins)
    if fate == "damaged":
        garbled(ruins.checkpoint, 4096 * 3)
    if fate == "gone":
        ruins.checkpoint.unlink()
    before = ruins.files()
    names = {path.name for path in ruins.state.iterdir()}
    dry = await ruins.rebuild(Wish(dry_run=True))
    assert ruins.files() == before
    assert {path.name for path in ruins.state.iterdir()} <= names | {
        f"{ruins.checkpoint.name}{end}" for end in ("-wal", "-shm")
    }
    assert dry.kept == []
    real = await ruins.rebuild()
    assert (dry.start, dry.inventories) == (real.start, real.inventories)


async def test_the_clock_can_show_the_same_second_twice(ruins: Ruins) -> None:
    """A machine without a clock of its own: what was kept aside first is not overwritten."""
    await at_home(ruins)
    kept = []
    for number in range(3):
        ruins.checkpoint.write_bytes(b"garbage %d" % number)
        kept += (await ruins.rebuild()).kept
    assert [Path(name).read_bytes() for name in kept] == [b"garbage 0", b"garbage 1", b"garbage 2"]


async def test_a_renamed_camera_is_called_as_its_latest_clip_says(ruins: Ruins) -> None:
    """Its first objects come first in the listing, under the old name."""
    for minute, name in ((5, "Alley"), (65, "Yard")):
        record(ruins.source, minute, camera=replace(PORCH, name=name))
    await ruins.once()
    ruins.lose()
    await ruins.rebuild()
    assert rows(ruins, "SELECT name FROM camera") == [("Yard",)]


async def test_listings_reach_back_to_objects_that_nobody_knows(ruins: Ruins) -> None:
    """One of them may be a cut-off copy of a clip that the recorder still has."""
    await at_home(ruins)
    await ruins.clock.advance(10 * 86400)
    record(ruins.source, 2 * 1440 + 5)
    key = "Porch/2026/01/03/00-05-00.mp4"
    for store in ruins.stores.values():
        store.objects.clear()
        store.objects[key] = (StoredObject(key, 7, 1, "cut"), b"cut off")
    ruins.lose()
    rebuilt = await ruins.rebuild()
    assert [one.unmatched for one in rebuilt.inventories] == [1, 1]
    await ruins.once()
    whole = ruins.source.recordings["porch-2885"].data
    for store in ruins.stores.values():
        assert whole in [data for _, data in store.objects.values()]
        assert store.objects[key][1] == b"cut off"


async def test_a_store_that_is_left_out_is_not_asked(ruins: Ruins) -> None:
    await at_home(ruins)
    ruins.lose()
    ruins.stores["cloud"].faults.arm("list", Transient("it must not be asked"))
    rebuilt = await ruins.rebuild(Wish(without=frozenset({"cloud"})))
    assert rebuilt.inventories[0].unread == "left out as asked"
    assert rebuilt.inventories[1].new == 16
