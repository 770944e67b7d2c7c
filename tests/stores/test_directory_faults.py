"""Unfinished uploads of the directory store, and disks that fail, fill up or do not answer.

Faults are put around single system calls; every such test ends by asserting that its fault was
reached.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nvr_backup.chunks import Progress
from nvr_backup.errors import Blocked, KeyTaken, NvrBackupError, StartOver, Transient, Unfit
from nvr_backup.model import UploadState
from nvr_backup.stores.directory import DirectoryStore, open_store
from tests.contract.conftest import CHUNK
from tests.contract.test_store import KEY, METADATA, Broken, Sender, clip, listed, whole
from tests.stores.directory_rig import (
    Fault,
    broken_after,
    descriptors,
    failing,
    made_root,
    opened,
    partials,
    settings_for,
)
from tests.support.clock import VirtualClock


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made_root(tmp_path)


@pytest.fixture
async def store(root: Path) -> AsyncIterator[DirectoryStore]:
    async with opened(root) as store:
        yield store


# -- resuming ------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[CHUNK // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "shorter": lambda path: os.truncate(path, 2 * CHUNK - 1),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_partial_file_starts_over(
    store: DirectoryStore, root: Path, damage: str
) -> None:
    content = clip(3 * CHUNK)
    state = await broken_after(store, content, 2)
    DAMAGES[damage](root / ".nvr-backup" / "partial" / state.session)
    with pytest.raises(StartOver):
        await Sender(content)(store, resume=state)
    assert partials(root) == []
    assert await store.stat(KEY) is None


async def test_a_partial_file_that_is_visible_elsewhere_is_never_written_to(
    store: DirectoryStore, root: Path
) -> None:
    content = clip(3 * CHUNK)
    state = await broken_after(store, content, 2)
    os.link(root / ".nvr-backup" / "partial" / state.session, root / "moved by hand.mp4")
    with pytest.raises(StartOver):
        await Sender(content)(store, resume=replace(state, offset=CHUNK))
    assert (root / "moved by hand.mp4").read_bytes() == content[: 2 * CHUNK]
    assert partials(root) == []


async def test_what_was_never_confirmed_is_cut_off(store: DirectoryStore, root: Path) -> None:
    """The clip turned out shorter than what had been written when the process died."""
    content = clip(4 * CHUNK)
    sender = Sender(content, break_after=3)
    with pytest.raises(Broken):
        await sender(store)
    shorter = content[: CHUNK + 10]
    await Sender(shorter)(store, resume=sender.states[0])
    assert (root / KEY).read_bytes() == shorter


async def test_a_live_upload_is_not_taken_over(store: DirectoryStore, root: Path) -> None:
    content = clip(3 * CHUNK)

    async def take_over(*_: object) -> None:
        with pytest.raises(Transient, match="still under way"):
            await Sender(content)(store, resume=sender.states[-1])

    sender = Sender(content, before_finish=take_over)
    await sender(store)
    assert (root / KEY).read_bytes() == content


async def test_another_keys_upload_is_not_continued(store: DirectoryStore) -> None:
    state = await broken_after(store, clip(3 * CHUNK), 2)
    with pytest.raises(StartOver):
        await Sender(clip(3 * CHUNK), key="other.mp4")(store, resume=state)


async def test_a_source_that_now_sends_something_else_is_noticed(
    store: DirectoryStore, root: Path
) -> None:
    state = await broken_after(store, clip(3 * CHUNK), 1)
    other = clip(3 * CHUNK, seed=2)
    async with store.put(
        KEY, content_type="video/mp4", metadata={}, record=Sender(b"").record, resume=state
    ) as upload:
        with pytest.raises(StartOver):  # from byte 0, and its own checksum
            await Sender(other).send_from(upload, Progress())
    assert await store.stat(KEY) is None


async def test_a_crash_between_sidecar_and_name(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Sender(b"x", key="first.mp4")(store)
    content = clip(CHUNK + 1)
    sender = Sender(content)
    with monkeypatch.context() as patch:
        fault = Fault(patch, "link", failing(errno.EIO))
        with pytest.raises(Blocked):
            await sender(store)
        assert fault.reached == 1
    assert await store.stat(KEY) is None
    assert [found.key for found in await listed(store, "")] == ["first.mp4"]
    await Sender(content)(store, resume=sender.states[-1])
    assert (root / KEY).read_bytes() == content
    found = await store.stat(KEY)
    assert found is not None
    assert dict(found.metadata) == METADATA


@pytest.mark.parametrize("sidecar", ["kept", "lost"])
async def test_a_crash_between_the_name_and_the_clearing_away(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, sidecar: str
) -> None:
    content = clip(CHUNK + 1)
    sender = Sender(content)
    with monkeypatch.context() as patch:
        fault = Fault(
            patch,
            "unlink",
            failing(errno.EIO),
            when=lambda name, **_: (
                bool(sender.states) and name == sender.states[0].session.encode()
            ),
        )
        with pytest.raises(Blocked):
            await sender(store)
        assert fault.reached == 1
    assert partials(root) == [sender.states[0].session]
    if sidecar == "lost":
        for path in (root / ".nvr-backup" / "objects").rglob("*.json"):
            path.unlink()
    stored = await Sender(content)(store, resume=sender.states[-1])
    assert stored == await store.stat(KEY)
    assert stored.crc32c is not None
    assert dict(stored.metadata) == METADATA
    assert partials(root) == []
    assert (root / KEY).read_bytes() == content
    assert (root / KEY).stat().st_nlink == 1


async def test_an_object_in_place_that_is_not_ours_is_not_taken_for_it(
    store: DirectoryStore, root: Path
) -> None:
    content = clip(CHUNK + 1)

    async def crash(state: UploadState) -> None:
        if state.total is not None:
            raise Broken

    sender = Sender(content, on_record=crash)
    with pytest.raises(Broken):
        await sender(store)
    (root / KEY).parent.mkdir(parents=True)
    (root / KEY).write_bytes(clip(CHUNK + 1, seed=2))
    with pytest.raises(KeyTaken):
        await Sender(content)(store, resume=sender.states[-1])
    assert (root / KEY).read_bytes() == clip(CHUNK + 1, seed=2)


# -- faults of the disk --------------------------------------------------------------------------

MEANINGS: dict[int, tuple[type[NvrBackupError], str]] = {
    errno.ENOSPC: (Blocked, "full"),
    errno.EDQUOT: (Blocked, "quota is used up"),
    errno.EROFS: (Blocked, "read-only"),
    errno.EACCES: (Blocked, "permission"),
    errno.ESTALE: (Blocked, "stale"),
    errno.EIO: (Blocked, "input/output"),
    errno.ENODEV: (Blocked, "device"),
    errno.ETIMEDOUT: (Blocked, "timed out"),
    errno.ENOTCONN: (Blocked, "connected"),
    errno.EMFILE: (Transient, "open files"),
    errno.EFBIG: (Unfit, "larger"),
}
CALLS = ["pwritev", "fdatasync", "pread", "fsync", "link", "replace", "mkdir"]


@pytest.mark.parametrize("code", MEANINGS, ids=errno.errorcode.__getitem__)
async def test_what_a_failing_disk_means(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    content = clip(3 * CHUNK)
    await Sender(b"x", key="first.mp4")(store)
    sender = Sender(content)
    with monkeypatch.context() as patch:
        fault = Fault(patch, "pwritev", failing(code), nth=2)
        kind, text = MEANINGS[code]
        with pytest.raises(kind) as caught:
            await sender(store)
        assert fault.reached == 2
    error = caught.value
    assert type(error) is kind
    assert text in error.message.lower()
    assert str(root) in error.message
    assert KEY in error.message
    assert error.hint or kind is Transient
    assert await store.stat(KEY) is None
    await Sender(content)(store, resume=sender.states[-1])
    assert (root / KEY).read_bytes() == content


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_may_fail_and_nothing_is_lost_or_half_there(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The nth of each kind of call fails, for every n until the upload gets through."""
    content = clip(2 * CHUNK + 1)
    await Sender(b"x", key="first.mp4")(store)
    before = descriptors()
    for nth in range(1, 100):
        key = f"cam {nth}/day/a.mp4"
        sender = Sender(content, key=key)
        with monkeypatch.context() as patch:
            fault = Fault(patch, call, failing(errno.EIO), nth=nth)
            try:
                await sender(store)
            except Blocked:
                failed = True
            else:
                failed = False
        assert failed == (fault.reached >= nth)
        if not failed:
            break
        assert not (root / key).exists() or (root / key).read_bytes() == content
        resume = sender.states[-1] if sender.states else None
        await Sender(content, key=key)(store, resume=resume)
        assert (root / key).read_bytes() == content
        assert partials(root) == []
    else:
        raise AssertionError("it never got through")
    assert nth > 1
    assert descriptors() == before


async def test_a_name_the_file_system_refuses_is_the_clips_own_fault(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Sender(b"x", key="first.mp4")(store)
    fault = Fault(
        monkeypatch, "mkdir", failing(errno.EINVAL), when=lambda name, *_, **__: name == b"cam: 1"
    )
    with pytest.raises(Unfit, match="characters"):
        await Sender(b"x", key="cam: 1/a.mp4")(store)
    assert fault.reached == 1


# -- a disk that does not answer -----------------------------------------------------------------


async def test_a_disk_that_does_not_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told so after the limit; the stuck thread itself closes and clears up when it comes back."""
    before = descriptors()
    gate = threading.Event()
    async with opened(root, stall_seconds=0.2) as store:
        await Sender(b"x", key="first.mp4")(store)
        with monkeypatch.context() as patch:

            def hang(fd: int) -> None:
                gate.wait()
                fault.real(fd)

            fault = Fault(patch, "fdatasync", hang, nth=1)
            with pytest.raises(Blocked, match="not answered"):
                await Sender(b"abc")(store)
            assert fault.reached == 1
            assert len(partials(root)) == 1
            await Sender(b"xyz", key="meanwhile.mp4")(store)
        gate.set()
    async with asyncio.timeout(60):
        while descriptors() > before:
            await asyncio.sleep(0.001)
    assert len(partials(root)) == 1  # its end was recorded: it may be taken up again
    async with opened(root) as store:
        await Sender(b"abc")(store)
    assert (root / KEY).read_bytes() == b"abc"


async def test_a_cancelled_upload_waits_for_its_own_write(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    before = descriptors()

    def slow(fd: int) -> None:
        entered.set()
        gate.wait()
        fault.real(fd)

    fault = Fault(monkeypatch, "fdatasync", slow, nth=2)
    sender = Sender(clip(3 * CHUNK))
    task = asyncio.create_task(_run(sender, store))
    try:
        await asyncio.to_thread(entered.wait)
        for _ in range(3):
            task.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not task.done()
    finally:
        gate.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert fault.reached == 2
    assert descriptors() <= before + 1  # asyncio.to_thread's pool may keep nothing; ours neither
    await Sender(clip(3 * CHUNK))(store, resume=sender.states[-1])
    assert (root / KEY).read_bytes() == clip(3 * CHUNK)


async def _run(sender: Sender, store: DirectoryStore) -> None:
    await sender(store)


async def test_no_descriptor_is_left_open(store: DirectoryStore, root: Path) -> None:
    await Sender(b"x", key="first.mp4")(store)
    before = descriptors()
    state = await broken_after(store, clip(3 * CHUNK), 2)
    with pytest.raises(StartOver):
        await Sender(b"x")(store, resume=replace(state, crc32c=1))
    with pytest.raises(KeyTaken):
        await Sender(b"x", key="first.mp4")(store)
    with pytest.raises(Unfit):
        await whole(store, "none.mp4")
    await listed(store, "")
    await store.probe()
    async for found in store.list(""):
        assert found
        break
    await store.delete("first.mp4")
    assert descriptors() <= before + 2  # the listing left early is closed by the loop, later


# -- probing and clearing up ---------------------------------------------------------------------


async def test_a_disk_with_too_little_space_is_blocked(root: Path) -> None:
    async with opened(root, reserve_bytes=1 << 60) as store:
        with pytest.raises(Blocked, match="MiB free"):
            await store.probe()


async def test_a_week_old_partial_file_is_cleared_away_unless_in_use(root: Path) -> None:
    clock = VirtualClock()
    content = clip(3 * CHUNK)
    async with open_store(settings_for(root), clock) as store:
        old = await broken_after(store, content, 1)
        young = await broken_after(store, content, 1)
        week = timedelta(days=7)

        async def probe(upload: object, chunk: object) -> None:
            folder = root / ".nvr-backup" / "partial"
            for name in partials(root):
                touched = clock.now() - week - timedelta(seconds=1)
                if name == young.session:
                    touched += timedelta(seconds=2)
                os.utime(folder / name, (touched.timestamp(), touched.timestamp()))
            (folder / "left-aside.json").touch()
            os.utime(folder / "left-aside.json", (0, 0))
            await store.probe()
            assert partials(root) == sorted([young.session, live.states[-1].session])

        live = Sender(content, before_finish=probe)
        await live(store)
        with pytest.raises(StartOver):
            await Sender(content, key=old.key)(store, resume=old)


@pytest.fixture
def _no_stray_threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


@pytest.mark.usefixtures("_no_stray_threads")
async def test_closing_ends_the_threads(root: Path) -> None:
    async with opened(root) as store:
        await Sender(b"x")(store)
    assert not [one for one in threading.enumerate() if one.name.startswith("disk-nas")]
