"""The directory store on file systems of its own: really full, really read-only, really unmounted.

Each test mounts a small tmpfs, which needs the right to mount; without it they are skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvr_backup.chunks import Progress
from nvr_backup.clock import SystemClock
from nvr_backup.errors import Blocked, Unfit
from nvr_backup.stores.directory import DirectorySettings, open_store
from tests.contract.test_store import KEY, METADATA, Sender, clip, whole

MIB = 1024 * 1024
DISK_BYTES = 4 * MIB


def _mount(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a tmpfs of 4 MiB."""
    path = tmp_path / "nas"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mounted = _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "nvr-backup-test", str(path))
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs is refused here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        while os.path.ismount(path):
            subprocess.run(["umount", str(path)], check=True)


def settings_for(path: Path) -> DirectorySettings:
    return DirectorySettings(name="nas", path=path, reserve_bytes=MIB)


async def test_a_full_disk_blocks_and_the_clip_goes_on_when_there_is_space(disk: Path) -> None:
    content = clip(8 * MIB)
    async with open_store(settings_for(disk), SystemClock()) as store:
        await store.probe()
        await Sender(clip(MIB), key="small.mp4")(store)
        sender = Sender(content)
        with pytest.raises(Blocked, match="full"):
            await sender(store)
        assert not (disk / "Front Door").exists()
        assert len(sender.states) >= 8
        with pytest.raises(Blocked, match="MiB free"):
            await store.probe()
        assert await whole(store, "small.mp4") == clip(MIB)
        assert _mount("-o", f"remount,size={4 * DISK_BYTES}", str(disk)).returncode == 0
        await store.probe()
        second = Sender(content)
        await second(store, resume=sender.states[-1])
        assert second.states[0].offset > sender.states[-1].offset
        assert (disk / KEY).read_bytes() == content
        found = await store.stat(KEY)
        assert found is not None
        assert dict(found.metadata) == METADATA


async def test_a_clip_given_up_frees_the_disk(disk: Path) -> None:
    async with open_store(settings_for(disk), SystemClock()) as store:
        free = os.statvfs(disk).f_bavail
        async with store.put(
            KEY, content_type="video/mp4", metadata={}, record=Sender(b"").record
        ) as upload:
            with pytest.raises(Blocked, match="full"):
                await Sender(clip(8 * MIB)).send_from(upload, Progress())
            await upload.discard()
        assert os.statvfs(disk).f_bavail >= free - 16  # the store's own folders stay


async def test_a_disk_without_free_inodes_is_blocked(disk: Path) -> None:
    assert _mount("-o", "remount,nr_inodes=8", str(disk)).returncode == 0
    async with open_store(settings_for(disk), SystemClock()) as store:
        for number in range(7):
            (disk / str(number)).touch()
        with pytest.raises(Blocked, match="inodes"):
            await store.probe()
        with pytest.raises(Blocked, match="full"):
            await Sender(b"x")(store)


async def test_a_disk_turned_read_only_is_blocked_and_still_read(disk: Path) -> None:
    async with open_store(settings_for(disk), SystemClock()) as store:
        await Sender(b"abc")(store)
        assert _mount("-o", "remount,ro", str(disk)).returncode == 0
        for refused in (store.probe(), Sender(b"x", key="b.mp4")(store), store.delete(KEY)):
            with pytest.raises(Blocked, match="read-only"):
                await refused
        assert await whole(store, KEY) == b"abc"


async def test_an_open_store_does_not_hold_the_disk_and_notices_its_absence(disk: Path) -> None:
    async with open_store(settings_for(disk), SystemClock()) as store:
        await Sender(b"abc")(store)
        await store.probe()
        subprocess.run(["umount", str(disk)], check=True)  # would be refused while in use
        for refused in (store.probe(), store.stat(KEY), Sender(b"abc", key="b.mp4")(store)):
            with pytest.raises(Blocked, match="lost the marker"):
                await refused
        assert os.listdir(disk) == []


async def test_a_camera_on_a_disk_of_its_own_is_set_aside_alone(disk: Path) -> None:
    async with open_store(settings_for(disk), SystemClock()) as store:
        (disk / "Front Door").mkdir()
        assert _mount("-t", "tmpfs", "nvr-backup-test", str(disk / "Front Door")).returncode == 0
        try:
            with pytest.raises(Unfit, match="is another file system"):
                await Sender(b"abc")(store)
            assert [path for path in (disk / "Front Door").rglob("*") if path.is_file()] == []
            await Sender(b"abc", key="other.mp4")(store)
        finally:
            subprocess.run(["umount", str(disk / "Front Door")], check=True)
