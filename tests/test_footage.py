"""What there is to restore: from the checkpoint, from the stores' listings, from both.

The oracle is what the test put into the stores and into the checkpoint.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import google_crc32c
import pytest

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import CheckpointError
from nvr_backup.errors import Blocked
from nvr_backup.footage import Footage, Known, Place, Shelf, ask_checkpoint, look
from nvr_backup.keys import DEFAULT_TEMPLATE, object_key
from nvr_backup.metadata import describe
from nvr_backup.model import Camera, Clip, StoredObject, Window, to_ms
from nvr_backup.planner import Addition, Plan
from nvr_backup.rows import Tally
from tests.support.fakes import EPOCH, PORCH, FakeStore, clip_at

GARDEN = Camera("home", "garden", "Garden")
STORES = ("nas", "offsite")


def at(hours: float) -> datetime:
    return EPOCH + timedelta(hours=hours)


class World:
    """A checkpoint and two stores that may know different things."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores = {name: FakeStore() for name in STORES}
        self.template = DEFAULT_TEMPLATE

    def put(
        self, clip: Clip, *stores: str, told: bool = True, key: str = "", data: bytes = b""
    ) -> str:
        key = key or object_key(self.template, clip)
        data = data or f"{clip.camera.id} {clip.start} {clip.end}".encode()
        for name in stores or ("nas",):
            metadata = describe(clip) if told else {}
            crc = google_crc32c.value(data) if told else None
            stored = StoredObject(key, len(data), crc, "1" if told else None, None, metadata)
            self.stores[name].objects[key] = (stored, data)
        return key

    async def record(self, clip: Clip, *stores: str, stored: bool = True) -> None:
        """The clip is on record: stored in these stores as it lies there, or waiting."""
        checkpoint = await Checkpoint.open(self.folder, now=EPOCH)
        try:
            plan = Plan(
                additions=(Addition(clip, frozenset(stores)),),
                new_ids=(),
                listed=1,
                ahead=0,
                latest=clip.start,
                open_since=None,
            )

            def keys(_store: str, one: Clip) -> Iterator[str]:
                yield object_key(self.template, one)

            await checkpoint.apply(clip.camera, plan, keys=keys, now=EPOCH)
            for name in stores if stored else ():
                claim = await checkpoint.claim(
                    sources=["home"], stores=[name], cameras=lambda _: True, busy={}, due=None
                )
                assert claim is not None
                found = self.stores[name].objects[claim.key][0]
                await checkpoint.commit_stored(
                    claim.copy, found, verified=True, tally=Tally(1, 1.0), now=EPOCH
                )
        finally:
            checkpoint.close()

    async def look(
        self,
        begin: float,
        end: float,
        *,
        known: bool = False,
        wanted: Collection[str] = (),
        full: bool = False,
        stores: Collection[str] = STORES,
    ) -> Footage:
        window = Window(at(begin), at(end))
        found: Known | None = None
        if known:
            found = await ask_checkpoint(self.folder, window, stores)
        shelves = {name: Shelf(self.stores[name], self.template) for name in stores}
        return await look(shelves, window, known=found, wanted=wanted, full=full)

    def listings(self) -> list[str]:
        return [prefix for store in self.stores.values() for prefix in store.listings]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def clips(found: Footage) -> list[Clip]:
    return [one.clip for one in found.holdings]


async def test_exactly_the_clips_that_touch_the_time_by_listing_its_days(world: World) -> None:
    begin, end = 30.0, 54.0
    for hour in range(96):
        for camera in (PORCH, GARDEN):
            world.put(clip_at(hour * 60, seconds=1800, camera=camera), "nas", "offsite")
    found = await world.look(begin + 0.25, end)
    assert {clip.start for clip in clips(found)} == {at(hour) for hour in range(30, 54)}
    assert len(found.holdings) == 48
    assert [clip.start for clip in clips(found)] == sorted(clip.start for clip in clips(found))
    assert all([p.store for p in one.places] == ["nas", "offsite"] for one in found.holdings)
    assert all(place.witness == "store" for one in found.holdings for place in one.places)
    assert {prefix.split("/", 1)[1] for prefix in world.listings()} == {
        "2026/01/01/",
        "2026/01/02/",
        "2026/01/03/",
    }


async def test_one_camera_by_name_or_id_in_any_case(world: World) -> None:
    porch, garden = clip_at(0), clip_at(0, camera=GARDEN)
    world.put(porch)
    world.put(garden)
    for wanted in ("porch", "PORCH", "Porch"):
        found = await world.look(-1, 1, wanted=[wanted])
        assert clips(found) == [porch]
        assert found.cameras == ["Garden", "Porch"]
    assert clips(await world.look(-1, 1, wanted=["attic"])) == []


async def test_a_checkpoint_that_reaches_back_spares_the_listing(world: World) -> None:
    old, new = clip_at(0), clip_at(120)
    for clip in (old, new):
        world.put(clip)
        await world.record(clip, "nas")
    found = await world.look(1, 3, known=True, stores=["nas"])
    assert clips(found) == [new]
    assert found.from_checkpoint == ["nas"]
    assert world.listings() == []
    (place,) = found.holdings[0].places
    stored = world.stores["nas"].objects[place.key][0]
    assert place == Place("nas", stored.key, stored.size, stored.crc32c, "1", "checkpoint")


async def test_a_checkpoint_that_begins_later_is_not_the_whole_truth(world: World) -> None:
    old, new = clip_at(0), clip_at(120)
    world.put(old)
    world.put(new)
    await world.record(new, "nas")
    found = await world.look(-1, 3, known=True, stores=["nas"])
    assert clips(found) == [old, new]
    assert found.from_checkpoint == []
    assert [one.places[0].witness for one in found.holdings] == ["store", "checkpoint"]
    assert [len(one.places) for one in found.holdings] == [1, 1]


async def test_what_a_rebuild_could_not_read_is_listed(world: World) -> None:
    old, new = clip_at(0), clip_at(120)
    for clip in (old, new):
        world.put(clip)
        await world.record(clip, "nas")
    with closing(sqlite3.connect(world.folder / "checkpoint.sqlite3")) as db, db:
        db.execute("INSERT INTO meta VALUES ('unread nas', ?)", (str(to_ms(at(1.5))),))
    assert (await world.look(1, 3, known=True, stores=["nas"])).from_checkpoint == []
    assert (await world.look(1.6, 3, known=True, stores=["nas"])).from_checkpoint == ["nas"]


async def test_what_is_in_no_store_is_told_with_its_state(world: World) -> None:
    stored, waiting = clip_at(0), clip_at(1)
    world.put(stored)
    await world.record(stored, "nas")
    await world.record(waiting, "nas", stored=False)
    found = await world.look(0, 1, known=True, stores=["nas"])
    assert clips(found) == [stored]
    assert [(copy.clip, copy.state) for copy in found.absent] == [(waiting.id, "waiting")]
    assert (await world.look(0, 1, known=True, stores=["nas"], wanted=["x"])).absent == []


async def test_a_clip_that_one_store_lacks_comes_from_the_other(world: World) -> None:
    clip = clip_at(0)
    world.put(clip, "offsite")
    await world.record(clip, "offsite")
    found = await world.look(-1, 1, known=True)
    assert [[place.store for place in one.places] for one in found.holdings] == [["offsite"]]
    assert not found.absent


async def test_objects_without_metadata_are_told_by_their_keys(world: World) -> None:
    clip = clip_at(61, camera=Camera("home", "1", "Hof"))
    key = world.put(clip, "nas", told=False)
    world.stores["nas"].objects["Hof/notes.txt"] = (StoredObject("Hof/notes.txt", 3), b"abc")
    found = await world.look(1, 2, stores=["nas"])
    (one,) = found.holdings
    assert (one.clip.camera.name, one.clip.start) == ("Hof", clip.start)
    assert (one.places[0].key, one.places[0].crc32c) == (key, None)
    assert clips(await world.look(1, 2, stores=["nas"], wanted=["hof"])) == [one.clip]
    assert clips(await world.look(1, 2, stores=["nas"], wanted=["x"])) == []


async def test_a_copy_without_metadata_joins_the_one_that_tells(world: World) -> None:
    clip = clip_at(0)
    world.put(clip, "offsite")
    world.put(clip, "nas", told=False)
    found = await world.look(-1, 1)
    (one,) = found.holdings
    assert one.clip == clip
    assert [(place.store, place.crc32c is None) for place in one.places] == [
        ("nas", True),
        ("offsite", False),
    ]


async def test_other_keys_than_the_template_makes_are_found_when_nothing_else_is(
    world: World,
) -> None:
    clip = clip_at(0)
    world.put(clip, key="old/way/of/naming.mp4")
    assert clips(await world.look(-1, 1, stores=["nas"])) == [clip]
    other = clip_at(1)
    world.put(other)
    assert clips(await world.look(-1, 1, stores=["nas"])) == [other]
    assert clips(await world.look(-1, 1, stores=["nas"], full=True)) == [clip, other]


async def test_our_own_objects_are_no_clips(world: World) -> None:
    world.put(clip_at(0))
    key = "_nvr-backup/checkpoint/20260101T000000000Z.sqlite3.gz"
    world.stores["nas"].objects[key] = (StoredObject(key, 1), b"x")
    found = await world.look(-1, 1, stores=["nas"], full=True)
    assert (len(found.holdings), found.silent) == (1, 0)


async def test_a_store_that_cannot_be_listed_is_left_to_the_others(world: World) -> None:
    clip = clip_at(0)
    world.put(clip, "nas", "offsite")
    world.stores["nas"].faults.arm("list", Blocked("Not mounted."))
    found = await world.look(-1, 1)
    assert clips(found) == [clip]
    assert [place.store for place in found.holdings[0].places] == ["offsite"]
    assert {name: err.message for name, err in found.unlisted.items()} == {"nas": "Not mounted."}
    for store in world.stores.values():
        store.faults.arm("list", Blocked("Not mounted."))
    with pytest.raises(Blocked):
        await world.look(-1, 1)


async def test_an_id_that_changed_after_one_copy_was_stored_is_one_clip(world: World) -> None:
    before, after = clip_at(0, id="a"), clip_at(0, id="b")
    world.put(before, "nas", data=b"same")
    world.put(after, "offsite", data=b"same")
    found = await world.look(-1, 1)
    assert [len(one.places) for one in found.holdings] == [2]


async def test_a_longer_version_is_another_clip(world: World) -> None:
    world.put(clip_at(0, seconds=5))
    world.put(clip_at(0, seconds=9), key="Porch/2026/01/01/00-00-00_12345678.mp4")
    assert len((await world.look(-1, 1, stores=["nas"])).holdings) == 2


async def test_a_machine_without_a_checkpoint_is_told_so(world: World) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        await world.look(-1, 1, known=True)
