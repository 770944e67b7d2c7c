"""What follows a cycle: snapshots, and deposits in stores, over fakes that fail and stop."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import sqlite3
import threading
from collections import namedtuple
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nvr_backup import deposits, soundness
from nvr_backup.cli.exits import known_error
from nvr_backup.database import RebuildNeeded
from nvr_backup.deposits import KEPT, PREFIX, deposit, fetch_latest
from nvr_backup.errors import Blocked, Transient
from nvr_backup.logs import Troubles
from nvr_backup.model import EPOCH as BEGINNING
from nvr_backup.model import StoredObject
from nvr_backup.safekeeping import DEPOSIT_EVERY, Safekeeping
from nvr_backup.settings import Settings
from nvr_backup.snapshots import ROOM_BYTES, Snapshots, all_snapshots, why_unsound
from nvr_backup.workplace import Basis, Wish
from tests.conftest import Counted
from tests.support.fakes import EPOCH, FakeStore, clip_at, mp4
from tests.support.ruins import GuardedStore, Ruins
from tests.test_soundness import garbled

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def ruins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ruins:
    return Ruins(tmp_path, monkeypatch, stores={"cloud": GuardedStore(), "nas": FakeStore()})


def with_deposits(ruins: Ruins, *stores: str, keep: int = 2) -> Settings:
    return ruins.settings(checkpoint={"snapshots": keep, "stores": list(stores)})


def record(ruins: Ruins, *minutes: float) -> None:
    for minute in minutes:
        ruins.source.add(clip_at(minute), mp4(500, seed=int(minute)))


def brought(store: FakeStore) -> list[str]:
    return [key for key in sorted(store.objects) if key.startswith(PREFIX)]


def unpacked(store: FakeStore, key: str, folder: Path) -> Path:
    path = folder / "unpacked.sqlite3"
    path.write_bytes(gzip.decompress(store.objects[key][1]))
    return path


async def cycles(ruins: Ruins, settings: Settings, *hours: float) -> None:
    """A cycle after each of these waits, with a new clip each."""
    for number, wait in enumerate(hours):
        await ruins.clock.advance(wait * 3600)
        record(ruins, (ruins.clock.now() - EPOCH) / timedelta(minutes=1) - 30 + number)
        await ruins.once(settings)


async def test_a_cycle_ends_with_a_snapshot_and_no_deposit_nobody_asked_for(ruins: Ruins) -> None:
    record(ruins, 5)
    await ruins.once()
    (taken,) = (ruins.state / "snapshots").iterdir()
    assert why_unsound(taken) is None
    assert all(brought(store) == [] for store in ruins.stores.values())
    assert ruins.said("snapshot taken")[0]["file"] == str(taken)


async def test_the_daemon_keeps_snapshots_too(ruins: Ruins) -> None:
    record(ruins, 5)
    async with ruins.daemon():
        await ruins.until(lambda: ruins.said("snapshot taken"))


async def test_none_are_kept_where_none_are_wanted(ruins: Ruins) -> None:
    record(ruins, 5)
    await ruins.once(ruins.settings(checkpoint={"snapshots": 0}))
    assert not any((ruins.state / "snapshots").iterdir())


async def test_a_store_that_is_to_have_one_gets_one_a_day(ruins: Ruins) -> None:
    settings = with_deposits(ruins, "nas")
    await cycles(ruins, settings, 0, 1, 22)
    (first,) = brought(ruins.store)
    each, data = ruins.store.objects[first]
    assert (each.content_type, dict(each.metadata)) == ("application/gzip", {"kind": "checkpoint"})
    assert brought(ruins.stores["cloud"]) == []
    found = unpacked(ruins.store, first, ruins.folder)
    with closing(soundness.look_at(found)) as connection:
        stored = "SELECT count(*) FROM copy WHERE state = 'stored'"
        assert connection.execute(stored).fetchone() == (2,)
    assert data[:2] == b"\x1f\x8b"
    await cycles(ruins, settings, 1)
    assert len(brought(ruins.store)) == 2
    assert [line["part"] for line in ruins.said("snapshot brought to the store")] == [
        "stores.nas"
    ] * 2
    assert all("partial" not in path.name for path in (ruins.state / "snapshots").iterdir())


async def test_what_is_there_already_is_not_sent_again(ruins: Ruins) -> None:
    """Days without a clip: the latest snapshot is old, and in the store."""
    settings = with_deposits(ruins, "nas")
    await cycles(ruins, settings, 0)
    sent = ruins.store.received
    for _ in range(3):
        await ruins.clock.advance(2 * DEPOSIT_EVERY.total_seconds())
        await ruins.once(settings)
    assert len(brought(ruins.store)) == 1
    assert ruins.store.received == sent


@pytest.mark.parametrize("left", [b"", b"\xff\xfe\x00", b"checkpoint-", b"a" * 5000])
async def test_a_torn_note_costs_a_deposit_and_never_the_daemon(
    ruins: Ruins, left: bytes, counted: Counted
) -> None:
    settings = with_deposits(ruins, "nas")
    await cycles(ruins, settings, 0)
    note = ruins.state / "snapshots" / "deposited-nas"
    note.write_bytes(left)
    await cycles(ruins, settings, 1)
    assert len(brought(ruins.store)) == 2
    counted("fault cases")


async def test_a_note_that_cannot_be_read_is_said_once_and_ends_nothing(
    ruins: Ruins, counted: Counted
) -> None:
    settings = with_deposits(ruins, "nas")
    await cycles(ruins, settings, 0)
    note = ruins.state / "snapshots" / "deposited-nas"
    note.unlink()
    note.mkdir()
    await cycles(ruins, settings, 25)
    (said,) = ruins.said("snapshot not brought to the store")
    assert (said["level"], said["part"]) == ("warning", "stores.nas")
    assert len(ruins.store.objects) == 2 + 1  # the clips are stored all the same
    counted("fault cases")


async def test_a_deposit_from_the_future_stops_no_others(ruins: Ruins) -> None:
    settings = with_deposits(ruins, "nas")
    ruins.clock.jump(timedelta(days=1000))
    await cycles(ruins, settings, 0)
    ruins.clock.jump(timedelta(days=-1000))
    await cycles(ruins, settings, 0)
    assert len(brought(ruins.store)) == 2


async def test_deposits_carry_no_bearer_secrets(ruins: Ruins) -> None:
    """An upload that was interrupted: its session is in the snapshot, never in the deposit."""
    settings = with_deposits(ruins, "nas")
    record(ruins, 5)
    ruins.stores["cloud"].faults.arm("finish", Transient("cut"))
    await ruins.once(settings)
    with closing(soundness.look_at(all_snapshots(ruins.state, ruins.clock.now())[0])) as db:
        assert db.execute("SELECT count(*) FROM upload").fetchone() == (1,)
    found = unpacked(ruins.store, brought(ruins.store)[0], ruins.folder)
    with closing(soundness.look_at(found)) as db:
        assert db.execute("SELECT count(*) FROM upload").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM copy").fetchone() == (2,)
    assert b"session-1" not in found.read_bytes()


async def test_only_the_latest_deposits_stay(ruins: Ruins) -> None:
    settings = with_deposits(ruins, "nas")
    foreign = StoredObject(f"{PREFIX}README", 3, 1, "f")
    ruins.store.objects[foreign.key] = (foreign, b"abc")
    await cycles(ruins, settings, *[25] * (KEPT + 2))
    keys = brought(ruins.store)
    assert len(keys) == KEPT + 1
    assert foreign.key in keys
    latest = all_snapshots(ruins.state, ruins.clock.now())[0]
    assert f"{PREFIX}{latest.name}.gz" in keys


async def test_a_key_that_may_only_create_is_enough(ruins: Ruins) -> None:
    cloud = ruins.stores["cloud"]
    assert isinstance(cloud, GuardedStore)
    cloud.may_list, cloud._may_stat = False, False
    settings = with_deposits(ruins, "cloud")
    await cycles(ruins, settings, *[25] * (KEPT + 2))
    assert len(brought(cloud)) == KEPT + 2
    assert ruins.said("snapshot not brought to the store") == []


async def test_an_answer_that_was_lost_is_no_failure(ruins: Ruins, counted: Counted) -> None:
    """The deposit is there: the next try finds its key taken, and is content."""
    settings = with_deposits(ruins, "nas")
    record(ruins, 5)
    await ruins.once(ruins.settings())
    ruins.store.faults.arm("finish-answer", Transient("cut"))
    await ruins.clock.advance(3600)
    await ruins.once(settings)
    assert len(ruins.said("snapshot not brought to the store")) == 1
    async with ruins.engine(settings) as engine:
        for _ in range(2):
            await engine.once(asyncio.Event())
    assert len(brought(ruins.store)) == 1
    assert (ruins.state / "snapshots" / "deposited-nas").exists()
    counted("fault cases")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("put", Blocked("no permission", hint="Ask.")),
        ("finish", Transient("timeout")),
        ("list", Transient("timeout")),
    ],
)
async def test_a_store_that_fails_is_said_once_and_ends_nothing(
    ruins: Ruins, step: str, error: Blocked | Transient, counted: Counted
) -> None:
    settings = with_deposits(ruins, "nas", "cloud")
    record(ruins, 5)
    await ruins.once(ruins.settings())
    await ruins.clock.advance(3600)
    async with ruins.engine(settings) as engine:
        ruins.store.faults.arm(step, error, error)
        for _ in range(3):
            await engine.once(asyncio.Event())
    assert ruins.store.faults.happened[step] == 2
    warnings = ruins.said("snapshot not brought to the store")
    assert [one["level"] for one in warnings] == ["warning", "debug"]
    assert warnings[0]["reason"] == error.message
    assert len(ruins.said("snapshots reach the store again")) == 1
    assert len(brought(ruins.store)) == len(brought(ruins.stores["cloud"])) == 1
    assert ruins.store.sessions == {}
    counted("fault cases")


async def test_a_blocked_store_is_left_alone(ruins: Ruins) -> None:
    settings = with_deposits(ruins, "nas")
    ruins.store.faults.arm("probe", *[Blocked("away")] * 5)
    record(ruins, 5)
    await ruins.once(settings)
    assert ruins.store.received == 0
    assert ruins.said("snapshot not brought to the store") == []


async def test_a_full_disk_costs_snapshots_and_deposits_but_no_clip(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    settings = with_deposits(ruins, "nas")
    record(ruins, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, ROOM_BYTES))
    async with ruins.engine(settings) as engine:
        for minute in (6, 7):
            record(ruins, minute)
            await engine.once(asyncio.Event())
        assert [line["level"] for line in ruins.said("snapshot not taken")] == ["warning", "debug"]
        assert "room" in ruins.said("snapshot not taken")[0]["reason"]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 10 * ROOM_BYTES))
        await engine.once(asyncio.Event())
        assert len(ruins.said("snapshots are taken again")) == 1
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, ROOM_BYTES))
        (ruins.state / "snapshots" / "deposited-nas").unlink()
        await engine.once(asyncio.Event())
        assert "room" in ruins.said("snapshot not brought to the store")[0]["reason"]
    assert len(ruins.store.objects) == 3 + 1
    assert not list((ruins.state / "snapshots").glob("*partial*"))
    counted("fault cases")


async def test_damage_found_while_copying_ends_the_run(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    """Nothing can be carried safely on it; what there is stays as it is."""
    record(ruins, *range(300))
    await ruins.once()
    (first,) = (ruins.state / "snapshots").glob("*.sqlite3")
    before = first.read_bytes()
    await ruins.clock.advance(3600)
    record(ruins, 23 * 60)
    real = Snapshots._take

    def of_a_disk_that_fails(self: Snapshots, *arguments: Any) -> Path | None:
        with closing(sqlite3.connect(ruins.checkpoint)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            page = db.execute(
                "SELECT min(pageno) FROM dbstat WHERE name = 'clip' AND pagetype = 'leaf'"
            ).fetchone()[0]
        garbled(ruins.checkpoint, (page - 1) * 4096)
        return real(self, *arguments)

    monkeypatch.setattr(Snapshots, "_take", of_a_disk_that_fails)
    with pytest.raises((RebuildNeeded, BaseExceptionGroup)) as raised:
        await ruins.once()
    assert isinstance(known_error(raised.value), RebuildNeeded)
    assert first.read_bytes() == before
    assert list((ruins.state / "snapshots").iterdir()) == [first]
    counted("fault cases")


async def test_a_daemon_does_not_go_on_with_it_either(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(ruins, 5)

    async def damaged(*_: object) -> None:
        raise RebuildNeeded(ruins.checkpoint, "damaged: x")

    monkeypatch.setattr(Snapshots, "take", damaged)
    with pytest.raises((RebuildNeeded, BaseExceptionGroup)) as raised:
        async with ruins.daemon(), asyncio.timeout(20):
            await asyncio.Event().wait()
    assert isinstance(known_error(raised.value), RebuildNeeded)


# -- stopping -------------------------------------------------------------------------------------


async def test_a_stop_gives_up_a_deposit_that_hangs(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while `once` brings its snapshot away: the run ends, and nothing is left behind."""
    settings = with_deposits(ruins, "nas")
    record(ruins, 5)
    await ruins.once(ruins.settings())
    stop, hangs = asyncio.Event(), asyncio.Event()
    real = ruins.store.put

    @asynccontextmanager
    async def put(key: str, **options: Any) -> AsyncIterator[Any]:
        async with real(key, **options) as upload:
            hangs.set()
            await asyncio.Event().wait()
            yield upload

    monkeypatch.setattr(ruins.store, "put", put)
    async with ruins.engine(settings) as engine, asyncio.timeout(20):
        running = asyncio.create_task(engine.once(stop))
        await hangs.wait()
        assert list((ruins.state / "snapshots").glob("*partial*"))
        stop.set()
        await running
    assert not list((ruins.state / "snapshots").glob("*partial*"))
    assert brought(ruins.store) == []


async def test_a_store_stays_open_until_the_deposit_is_there(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload that replaces the store must not close it under a deposit."""
    settings = with_deposits(ruins, "nas")
    record(ruins, 5)
    await ruins.once(ruins.settings())
    hangs, go_on = asyncio.Event(), asyncio.Event()
    real = ruins.store.put

    @asynccontextmanager
    async def put(key: str, **options: Any) -> AsyncIterator[Any]:
        async with real(key, **options) as upload:
            hangs.set()
            await go_on.wait()
            assert "nas" not in ruins.closed
            yield upload

    async with ruins.engine(settings) as engine, asyncio.timeout(20):
        monkeypatch.setattr(ruins.store, "put", put)
        ruins.closed.clear()
        running = asyncio.create_task(engine.once(asyncio.Event()))
        await hangs.wait()
        engine.stores["nas"].retire()
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
        await running
    assert len(brought(ruins.store)) == 1


async def test_a_stop_while_the_copy_is_made_leaves_none(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was complete in the same moment."""
    record(ruins, 5)
    await ruins.once()
    (taken,) = (ruins.state / "snapshots").iterdir()
    entered, go_on = threading.Event(), threading.Event()
    snapshots = Snapshots(ruins.state, ruins.clock)
    real = snapshots._write_bare

    def held(*arguments: Path) -> None:
        entered.set()
        assert go_on.wait(20)
        real(*arguments)

    monkeypatch.setattr(snapshots, "_write_bare", held)
    copying = asyncio.create_task(snapshots.bare_copy(taken))
    await asyncio.to_thread(entered.wait, 20)
    copying.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({copying})
    assert copying.cancelled()
    assert list((ruins.state / "snapshots").iterdir()) == [taken]


async def test_a_stop_gives_up_the_snapshot_itself(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large checkpoint on a slow disk must not hold up the end of the daemon."""
    record(ruins, 5)
    await ruins.once(ruins.settings(checkpoint={"snapshots": 0}))
    monkeypatch.setattr("nvr_backup.snapshots.STEP_PAGES", 1)
    monkeypatch.setattr("nvr_backup.snapshots.REST_SECONDS", 60.0)
    keeping = Safekeeping(
        ruins.state, clock=ruins.clock, log=ruins.log(), troubles=Troubles(ruins.clock)
    )
    running = asyncio.create_task(keeping.keep(ruins.settings(), {}))
    folder = ruins.state / "snapshots"
    async with asyncio.timeout(20):
        while not list(folder.iterdir()):
            await asyncio.sleep(0.001)
        keeping.stop()
        await running
    assert list(folder.iterdir()) == []
    assert ruins.said("snapshot not taken") == []


async def test_nothing_is_begun_once_it_is_to_stop(ruins: Ruins) -> None:
    record(ruins, 5)
    stop = asyncio.Event()
    stop.set()
    async with ruins.engine() as engine:
        await engine.once(stop)
    assert not (ruins.state / "snapshots").exists()


async def test_one_at_a_time(ruins: Ruins, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle that ends while the last one's snapshot is still being brought away."""
    record(ruins, 5)
    await ruins.once()
    keeping = Safekeeping(
        ruins.state, clock=ruins.clock, log=ruins.log(), troubles=Troubles(ruins.clock)
    )
    entered, go_on = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    async def slow(_self: object, keep: int) -> None:
        calls.append(keep)
        entered.set()
        await go_on.wait()

    monkeypatch.setattr("nvr_backup.snapshots.Snapshots.take", slow)
    first = asyncio.create_task(keeping.keep(ruins.settings(), {}))
    await entered.wait()
    await keeping.keep(ruins.settings(), {})
    go_on.set()
    await first
    assert calls == [2]


# -- the day they are needed ----------------------------------------------------------------------


async def burnt(ruins: Ruins, *minutes: float) -> int:
    """Stored with deposits, some clips more after them, and then the machine is gone."""
    settings = with_deposits(ruins, "nas", "cloud")
    record(ruins, 1, 2, 3)
    await ruins.once(settings)
    record(ruins, *minutes)
    await ruins.once(settings)
    ruins.lose()
    return ruins.sent()


async def test_a_burnt_machines_successor_begins_with_a_deposit(
    ruins: Ruins, counted: Counted
) -> None:
    sent = await burnt(ruins, 9)
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.basis is Basis.SNAPSHOT
    assert rebuilt.start.snapshot.startswith("stores.")
    assert [(one.new, one.known) for one in rebuilt.inventories] == [(1, 3), (1, 3)]
    await ruins.once()
    assert ruins.sent() == sent
    counted("fault cases")


async def test_the_latest_deposit_of_all_stores_is_taken(ruins: Ruins) -> None:
    await burnt(ruins)
    await ruins.clock.advance(86400 * 2)
    cloud = ruins.stores["cloud"]
    (key,) = brought(cloud)
    later = key.replace("20260102", "20260103")
    cloud.objects[later] = (_renamed(cloud.objects[key][0], later), cloud.objects[key][1])
    future = key.replace("20260102", "20990103")
    ruins.store.objects[future] = (_renamed(cloud.objects[key][0], future), cloud.objects[key][1])
    del ruins.store.objects[key]
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.snapshot.startswith("stores.cloud")
    ruins.lose()
    rebuilt = await ruins.rebuild(Wish(without=frozenset({"cloud"})))
    assert rebuilt.start.snapshot.startswith("stores.nas")


def _renamed(each: StoredObject, key: str) -> StoredObject:
    return StoredObject(
        key, each.size, each.crc32c, each.generation, each.content_type, each.metadata
    )


@pytest.mark.parametrize("how", ["cut", "garbled", "empty", "no database", "long ago cut"])
async def test_a_deposit_that_is_not_whole_is_passed_over(
    ruins: Ruins, how: str, counted: Counted
) -> None:
    sent = await burnt(ruins)
    for store in ruins.stores.values():
        (key,) = brought(store)
        each, data = store.objects[key]
        later = key.replace("00-00", "00-01").replace("T000000", "T000001")
        assert later != key
        broken = {
            "cut": data[:-9],
            "garbled": data[:100] + bytes(50) + data[150:],
            "empty": b"",
            "no database": gzip.compress(b"no database" * 100),
            "long ago cut": data[: len(data) // 2],
        }[how]
        store.objects[later] = (_renamed(each, later), broken)
    await ruins.clock.advance(60)
    for store in ruins.stores.values():
        taken = await fetch_latest(store, ruins.folder / "fetched", ruins.clock.now())
        assert taken == EPOCH + timedelta(hours=24)  # the one before it
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.basis is Basis.SNAPSHOT
    assert all(one.known == 3 for one in rebuilt.inventories)
    await ruins.once()
    assert ruins.sent() == sent
    counted("fault cases")


async def test_without_a_whole_deposit_it_begins_with_nothing(ruins: Ruins) -> None:
    sent = await burnt(ruins)
    for store in ruins.stores.values():
        (key,) = brought(store)
        store.objects[key] = (store.objects[key][0], b"garbage")
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.basis is Basis.NOTHING
    assert all(one.new == 3 for one in rebuilt.inventories)
    await ruins.once()
    assert ruins.sent() == sent


async def test_a_store_that_cannot_be_asked_for_one_says_so_when_it_is_listed(
    ruins: Ruins,
) -> None:
    await burnt(ruins)
    ruins.store.faults.arm("list", Transient("away"))
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.snapshot.startswith("stores.cloud")
    ruins.lose()
    ruins.store.faults.arm("list", Transient("away"), Transient("away"))
    with pytest.raises(Transient):
        await ruins.rebuild()


async def test_a_deposit_from_the_future_is_the_last_to_be_taken(ruins: Ruins) -> None:
    """It was taken under a wrong clock: nobody knows when."""
    await burnt(ruins)
    (key,) = brought(ruins.store)
    each, data = ruins.store.objects[key]
    future = key.replace("20260102", "20990103")
    ruins.store.objects[future] = (_renamed(each, future), data)
    target, now = ruins.folder / "fetched", ruins.clock.now()
    assert await fetch_latest(ruins.store, target, now) == now
    del ruins.store.objects[key]
    ahead = await fetch_latest(ruins.store, target, now)
    assert ahead is not None
    assert ahead.year == 2099


async def test_a_clock_that_is_behind_hides_no_deposit(ruins: Ruins) -> None:
    """The successor's clock is not set yet."""
    await burnt(ruins)
    ruins.clock.jump(BEGINNING - ruins.clock.now())
    rebuilt = await ruins.rebuild()
    assert rebuilt.start.basis is Basis.SNAPSHOT


async def test_a_full_disk_while_fetching_is_one_clear_error(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    await burnt(ruins)

    def full(*_: object) -> object:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(deposits, "_new_file", full)
        with pytest.raises(Exception, match="No space left") as raised:
            await ruins.rebuild()
    assert "CheckpointError" in type(raised.value).__name__
    assert not list(ruins.state.glob("*rebuilding*"))
    await ruins.rebuild()
    counted("fault cases")


async def test_a_deposit_of_many_chunks_arrives_whole(tmp_path: Path) -> None:
    store = FakeStore()
    bare = tmp_path / "bare"
    bare.write_bytes(os.urandom(3_000_000))
    snapshot = tmp_path / "checkpoint-20260101T000000.000000Z.sqlite3"
    await deposit(store, snapshot, bare, chunk_size=256 * 1024)
    ((each, data),) = store.objects.values()
    assert gzip.decompress(data) == bare.read_bytes()
    assert each.key == f"{PREFIX}{snapshot.name}.gz"
    assert store.most_in_memory <= 256 * 1024
    before = dict(store.objects)
    await deposit(store, snapshot, bare, chunk_size=256 * 1024)  # taken: left as it is
    assert store.objects == before
    assert await fetch_latest(FakeStore(), tmp_path / "none", BEGINNING) is None
