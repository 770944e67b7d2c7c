"""The run of a restore over stores in memory and a real folder: what goes wrong stays by itself.

The oracle is the bytes that the test put into the stores.
"""

from __future__ import annotations

import asyncio
import os
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest
import structlog

from nvr_backup import arriving
from nvr_backup import restore as restore_module
from nvr_backup.beside import Beside
from nvr_backup.errors import Blocked, NvrBackupError, Transient
from nvr_backup.fetching import ATTEMPTS, AWAY_AFTER
from nvr_backup.footage import Holding, Place
from nvr_backup.landing import Landing
from nvr_backup.layout import lay_out
from nvr_backup.model import Clip, StoredObject
from nvr_backup.restore import Progress, Restore
from tests.support.clock import VirtualClock
from tests.support.fakes import FakeStore, clip_at, mp4

MIB = 1 << 20


class Impatient(VirtualClock):
    """Pauses pass at once, and are counted."""

    slept = 0

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        await asyncio.sleep(0)


class House:
    """Two stores, a folder, and runs from the ones into the other."""

    def __init__(self, folder: Path) -> None:
        self.into = folder / "out"
        self.stores = {"nas": FakeStore(), "offsite": FakeStore()}
        self.holdings: list[Holding] = []
        self.data: list[bytes] = []
        self.clock = Impatient()
        self.stop = asyncio.Event()

    def clip(
        self,
        minute: float,
        *,
        size: int = 300_000,
        stores: Sequence[str] = ("nas",),
        known: bool = True,
        clip: Clip | None = None,
    ) -> Holding:
        """A clip in these stores, the first is the first choice."""
        data = mp4(size, seed=int(minute))
        found = clip or clip_at(minute)
        key = f"Porch/{minute}.mp4"
        places = []
        for name in stores:
            store = self.stores[name]
            generation = str(next(store.numbers))
            crc = google_crc32c.value(data)
            store.objects[key] = (StoredObject(key, size, crc, generation), data)
            places.append(Place(name, key, size, crc if known else None, generation, "checkpoint"))
        holding = Holding(found, tuple(places))
        self.holdings.append(holding)
        self.data.append(data)
        return holding

    def change(self, store: str, minute: float, data: bytes, *, generation: str = "") -> None:
        """Other bytes under a clip's key; without a new generation the store does not know."""
        key = f"Porch/{minute}.mp4"
        told = self.stores[store].objects[key][0]
        if generation:
            told = StoredObject(key, len(data), google_crc32c.value(data), generation)
        self.stores[store].objects[key] = (told, data)

    async def run(self, *, workers: int = 2) -> Progress:
        landing = Landing(self.into, self.stop.is_set)
        landing.open()
        try:
            log = structlog.wrap_logger(None, processors=[_drop])
            run = Restore(self.stores, landing, workers=workers, clock=self.clock, log=log)
            self.last = run
            await run.run(lay_out(self.holdings), self.stop)
        finally:
            landing.close()
        return run.progress

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.into).as_posix(): path.read_bytes()
            for path in self.into.rglob("*")
            if path.is_file()
        }

    def whole(self, *but: int) -> dict[str, bytes]:
        """What must be there, without these clips."""
        targets = lay_out(self.holdings)
        return {
            target.path: data
            for number, (target, data) in enumerate(zip(targets, self.data, strict=True))
            if number not in but
        }


def _drop(*_: object) -> str:
    raise structlog.DropEvent


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


async def test_all_of_them_come_with_their_bytes_and_times(house: House) -> None:
    for minute in range(7):
        house.clip(minute, size=100_000 + minute * 777_777)
    progress = await house.run(workers=3)
    assert house.files() == house.whole()
    assert not progress.missing
    assert progress.received == sum(map(len, house.data))
    for holding, target in zip(house.holdings, lay_out(house.holdings), strict=True):
        status = (house.into / target.path).stat()
        assert status.st_mtime == holding.clip.start.timestamp()
        assert status.st_mode & 0o777 == 0o640
    again = await house.run()
    assert (again.received, len(again.restored)) == (0, 7)
    assert all(one.already and one.checked for one in again.restored)


@pytest.mark.parametrize("harm", ["flipped", "short", "long"])
async def test_wrong_bytes_are_read_once_more_and_then_named_and_kept(
    house: House, harm: str
) -> None:
    for minute in range(3):
        house.clip(minute)
    good = house.data[1]
    bad = {"flipped": flipped(good, 5), "short": good[:-1], "long": good + b"x"}[harm]
    house.change("nas", 1, bad)
    progress = await house.run()
    (missing,) = progress.missing
    assert missing.target.holding == house.holdings[1]
    assert "'Porch/1.mp4' is damaged" in missing.reason
    assert [key for key, _ in house.stores["nas"].reads].count("Porch/1.mp4") == 2
    assert missing.damaged == "Porch/2026-01-01_00-01-00Z.damaged.mp4"
    files = house.files()
    assert files.pop(missing.damaged) == bad
    assert files == house.whole(1)

    house.change("nas", 1, good)  # healed: the next run has it
    healed = await house.run()
    assert not healed.missing
    assert house.files() == house.whole() | {missing.damaged: bad}


async def test_a_damaged_object_is_taken_from_the_other_store(house: House) -> None:
    house.clip(0, stores=("nas", "offsite"))
    house.change("nas", 0, flipped(house.data[0], 9))
    progress = await house.run()
    assert [one.place.store for one in progress.restored] == ["offsite"]
    assert house.files() == house.whole()


async def test_a_fault_of_the_way_is_no_fault_of_the_object(house: House) -> None:
    house.clip(0)
    store = house.stores["nas"]
    house.change("nas", 0, flipped(house.data[0], 9))

    async def read(key: str, *, offset: int = 0, generation: str | None = None):  # type: ignore[no-untyped-def]
        async for piece in FakeStore.read(store, key, offset=offset, generation=generation):
            yield piece
        house.change("nas", 0, house.data[0])

    store.read = read  # type: ignore[method-assign]
    assert not (await house.run()).missing
    assert house.files() == house.whole()


@pytest.mark.parametrize("kept", [1, MIB, MIB + 1, 3 * MIB])
async def test_a_partial_file_goes_on_and_is_no_clip_meanwhile(house: House, kept: int) -> None:
    house.clip(0, size=3 * MIB + 5)
    store = house.stores["nas"]
    store.faults.arm("read-piece", *[Blocked("Away.")])
    store.piece = 4096
    store.faults.skip["read-piece"] = -(-kept // 4096)
    progress = await house.run()
    assert [one.reason for one in progress.missing] == ["Away."]
    assert all(name.endswith(".part") for name in house.files())
    held = sum(map(len, house.files().values()))
    assert held == kept // MIB * MIB  # whole batches
    store.reads.clear()
    assert not (await house.run()).missing
    assert store.reads == [("Porch/0.mp4", held)]
    assert house.files() == house.whole()


async def test_what_a_power_cut_made_of_a_partial_file_costs_one_more_reading(house: House) -> None:
    house.clip(0, size=3 * MIB)
    store = house.stores["nas"]
    store.piece = MIB
    store.faults.arm("read-piece", Blocked("Away."))
    store.faults.skip["read-piece"] = 2
    await house.run()
    ((name, content),) = house.files().items()
    (house.into / name).write_bytes(bytes(len(content)))
    store.reads.clear()
    assert not (await house.run()).missing
    assert store.reads == [("Porch/0.mp4", 2 * MIB), ("Porch/0.mp4", 0)]
    assert house.files() == house.whole()


async def test_another_store_goes_on_with_the_same_partial_file(house: House) -> None:
    house.clip(0, size=3 * MIB, stores=("nas", "offsite"))
    house.stores["nas"].piece = MIB
    house.stores["nas"].faults.arm("read-piece", Blocked("Away."))
    house.stores["nas"].faults.skip["read-piece"] = 2
    assert not (await house.run()).missing
    assert house.stores["offsite"].reads == [("Porch/0.mp4", 2 * MIB)]
    assert house.files() == house.whole()


async def test_another_file_of_that_name_is_left_alone(house: House) -> None:
    for minute in range(2):
        house.clip(minute)
    path = house.into / "Porch" / "2026-01-01_00-01-00Z.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(flipped(house.data[1], 0))
    progress = await house.run()
    assert "Another file has its name" in progress.missing[0].reason
    assert house.files() == house.whole(1) | {
        "Porch/2026-01-01_00-01-00Z.mp4": flipped(house.data[1], 0)
    }


async def test_a_file_that_appears_meanwhile_is_left_alone(house: House) -> None:
    house.clip(0)
    store = house.stores["nas"]
    reading, path = store.read, house.into / "Porch" / "2026-01-01_00-00-00Z.mp4"

    async def read(key: str, *, offset: int = 0, generation: str | None = None):  # type: ignore[no-untyped-def]
        async for piece in reading(key, offset=offset, generation=generation):
            yield piece
        path.write_bytes(b"somebody else's")

    store.read = read  # type: ignore[method-assign]
    progress = await house.run()
    assert "Another file has its name" in progress.missing[0].reason
    assert path.read_bytes() == b"somebody else's"


@pytest.mark.parametrize("what", ["link", "folder", "file-for-folder"])
async def test_a_link_or_folder_in_the_way_leads_nowhere(house: House, what: str) -> None:
    house.clip(0)
    outside = house.into.parent / "outside"
    outside.mkdir()
    (outside / "file.mp4").write_bytes(house.data[0])
    house.into.mkdir()
    path = house.into / "Porch" / "2026-01-01_00-00-00Z.mp4"
    if what == "file-for-folder":
        path.parent.write_bytes(b"x")
    elif what == "link":
        path.parent.mkdir()
        path.symlink_to(outside / "file.mp4")
    else:
        path.parent.symlink_to(outside)
    progress = await house.run()
    assert len(progress.missing) == 1
    assert os.listdir(outside) == ["file.mp4"]


async def test_an_object_that_was_replaced_counts_if_it_has_the_same_bytes(house: House) -> None:
    house.clip(0)
    house.clip(1)
    house.clip(2)
    house.change("nas", 0, house.data[0], generation="77")
    house.change("nas", 1, mp4(300_000, seed=99), generation="78")
    del house.stores["nas"].objects["Porch/2.mp4"]
    progress = await house.run(workers=1)
    assert [one.place.generation for one in progress.restored] == ["77"]
    reasons = [one.reason for one in progress.missing]
    assert "is damaged: its CRC32C is" in reasons[0]
    assert "There is no object" in reasons[1]


async def test_a_hiccup_is_asked_again_and_goes_on_where_it_was(house: House) -> None:
    house.clip(0, size=4 * MIB)
    store = house.stores["nas"]
    store.piece = MIB
    store.faults.arm("read-piece", *[Transient("Hiccup.")] * (ATTEMPTS - 1))
    store.faults.skip["read-piece"] = 2
    assert not (await house.run()).missing
    assert house.clock.slept == ATTEMPTS - 1
    assert [offset for _, offset in store.reads] == [0, 2 * MIB, 2 * MIB]
    assert house.files() == house.whole()


@pytest.mark.parametrize("error", [Blocked("It is away.", hint="Mount it."), Transient("Silent.")])
async def test_a_store_that_is_away_is_not_asked_for_ever(
    house: House, error: NvrBackupError
) -> None:
    for minute in range(20):
        house.clip(minute, stores=("nas", "offsite") if minute % 2 else ("nas",))
    store = house.stores["nas"]
    store.faults.arm("read", *[error] * 100)
    progress = await house.run(workers=1)
    asked = AWAY_AFTER * (ATTEMPTS if isinstance(error, Transient) else 1)
    assert store.faults.happened["read"] == asked
    assert {name: err.message for name, err in house.last.away.items()} == {"nas": error.message}
    assert len(progress.missing) == 10
    assert [one.reason for one in progress.missing if one.asked] == [error.message] * 2
    told = "stores.nas failed 3 times in a row: not asked for it."
    assert {one.reason for one in progress.missing if not one.asked} == {told}
    assert house.files() == house.whole(*range(0, 20, 2))


async def test_one_object_that_fails_does_not_make_its_store_be_away(house: House) -> None:
    for minute in range(30):
        house.clip(minute)
    store = house.stores["nas"]
    reading = store.read
    bad = {f"Porch/{minute}.mp4" for minute in range(0, 30, AWAY_AFTER - 1)}

    def read(key: str, *, offset: int = 0, generation: str | None = None):  # type: ignore[no-untyped-def]
        if key in bad:
            raise Transient("503 for this one.")
        return reading(key, offset=offset, generation=generation)

    store.read = read  # type: ignore[method-assign]
    progress = await house.run(workers=1)
    assert len(progress.missing) == len(bad)
    assert not house.last.away


async def test_what_does_not_fit_on_the_disk_is_named_and_smaller_clips_come(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.clip(0, size=5 * MIB)
    house.clip(1, size=2 * MIB)
    house.clip(2, size=2 * MIB)
    room = 3 * MIB + restore_module.SPARE_BYTES

    used, write = 0, arriving.write

    def count(file: int, content: bytes) -> None:
        nonlocal used
        used += len(content)
        write(file, content)

    monkeypatch.setattr(arriving, "write", count)
    monkeypatch.setattr(Landing, "free_bytes", lambda _: room - used)
    house.stores["nas"].piece = 4096
    progress = await house.run(workers=3)
    assert sorted(one.target.size for one in progress.missing) == [2 * MIB, 5 * MIB]
    assert all("has no room" in one.reason for one in progress.missing)
    assert [one.size for one in progress.restored] == [2 * MIB]
    room = 100 * MIB
    assert not (await house.run()).missing
    assert house.files() == house.whole()


async def test_a_disk_that_is_full_after_all_keeps_the_part(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.clip(0, size=3 * MIB)
    write = os.write
    written = 0

    def full(file: int, content: bytes | memoryview) -> int:
        nonlocal written
        if len(content) > 1000:
            if written >= MIB:
                raise OSError(28, "No space left on device")
            written += len(content)
        return write(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        progress = await house.run()
    assert "is full" in progress.missing[0].reason
    (part,) = house.files()
    assert part.endswith(".part")
    assert not (await house.run()).missing
    assert house.stores["nas"].reads[-1] == ("Porch/0.mp4", MIB)
    assert house.files() == house.whole()


async def test_without_a_checksum_only_a_whole_video_counts(house: House) -> None:
    house.clip(0, known=False)
    house.clip(1, known=False)
    house.clip(2, known=False)
    house.clip(3, known=False)
    house.change("nas", 3, mp4(5000))  # whole, but not of that size
    house.change("nas", 1, b"<html>" + bytes(299_994))
    house.change("nas", 2, house.data[2][:-8] + bytes(8))
    progress = await house.run()
    assert [one.checked for one in progress.restored] == [False]
    reasons = sorted(one.reason.split(" is damaged: ")[1] for one in progress.missing)
    assert [reason[:11] for reason in reasons] == ["Damaged: on", "Not a video", "it has 5,00"]
    assert house.files()["Porch/2026-01-01_00-01-00Z.damaged.mp4"][:6] == b"<html>"
    again = await house.run()
    assert [one.already for one in again.restored] == [True]


async def test_a_store_alone_does_not_vouch_for_what_is_no_video(house: House) -> None:
    """Somebody else may have put it there: its checksum is then right, and says nothing."""
    page = b"<html>" + bytes(999)
    house.clip(0)
    house.change("nas", 0, page, generation="9")
    place = Place("nas", "Porch/0.mp4", len(page), google_crc32c.value(page), "9", "store")
    house.holdings[0] = replace(house.holdings[0], places=(place,))
    progress = await house.run()
    assert "Not a video" in progress.missing[0].reason


async def test_an_interrupt_ends_a_silent_store_at_once_and_the_rest_goes_on_later(
    house: House,
) -> None:
    for minute in range(6):
        house.clip(minute, size=3 * MIB)
    store = house.stores["nas"]
    reading, silent = store.read, asyncio.Event()

    async def read(key: str, *, offset: int = 0, generation: str | None = None):  # type: ignore[no-untyped-def]
        async for piece in reading(key, offset=offset, generation=generation):
            yield piece
            if key == "Porch/3.mp4" and store.served > 10 * MIB:
                silent.set()
                await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "read", read)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(house.run(workers=1))
            await silent.wait()
            house.stop.set()
            async with asyncio.timeout(20):
                progress = await running
    assert len(progress.restored) == 3
    assert not progress.missing
    assert not progress.running
    house.stop = asyncio.Event()
    store.reads.clear()
    progress = await house.run(workers=1)
    assert [one.already for one in progress.restored] == [True] * 3 + [False] * 3
    assert store.reads[0][1] == MIB  # where the silent one was left
    assert house.files() == house.whole()


async def test_a_long_comparison_is_left_at_an_interrupt(house: House) -> None:
    house.clip(0, size=8 * MIB)
    await house.run()
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return True

    house.stop.is_set = stopping  # type: ignore[method-assign]
    progress = await house.run()
    assert asked == 1
    assert not progress.restored


async def test_what_others_left_on_the_way_is_cleared_with_the_clip(house: House) -> None:
    house.clip(0)
    folder = house.into / "Porch"
    folder.mkdir(parents=True)
    kept = ["2026-01-01_00-00-01Z.mp4.00000000.part", "notes.part", "x.mp4.part"]
    old = ["2026-01-01_00-00-00Z.mp4.00000000.part", "2026-01-01_00-00-00Z.mp4.1a.damaged.part"]
    old[1] = "2026-01-01_00-00-00Z.mp4.0000000a.damaged.part"
    for name in kept + old:
        (folder / name).write_bytes(b"x")
    await house.run()
    assert set(house.files()) == {f"Porch/{name}" for name in kept} | set(house.whole())


async def test_memory_does_not_depend_on_the_size_of_a_clip(house: House) -> None:
    async def peak(size: int) -> int:
        store = house.stores["nas"]
        piece = bytes(64 * 1024)

        async def read(key: str, *, offset: int = 0, generation: str | None = None):  # type: ignore[no-untyped-def]
            for _ in range(size // len(piece)):
                yield piece

        crc = 0
        for _ in range(size // len(piece)):
            crc = google_crc32c.extend(crc, piece)
        place = Place("nas", f"{size}.mp4", size, crc, None, "checkpoint")
        house.holdings = [Holding(clip_at(size / MIB), (place,))]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(store, "read", read)
            tracemalloc.start()
            try:
                assert not (await house.run()).missing
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    await peak(MIB)
    small, large = await peak(4 * MIB), await peak(64 * MIB)
    assert large < small + MIB


async def test_a_step_beside_the_loop_is_never_abandoned() -> None:
    beside, begun, release = Beside(1, "test"), threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        release.wait(20)

    waiting = asyncio.create_task(beside.run(step))
    await asyncio.to_thread(begun.wait, 20)
    for _ in range(3):
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    beside.close()
