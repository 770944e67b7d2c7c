"""The directory store beyond the contract: what the operator finds, keys, and an absent NAS."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nvr_backup.errors import Blocked, KeyTaken, NvrBackupError, Unfit
from nvr_backup.stores.directory import DirectorySettings, DirectoryStore
from nvr_backup.stores.directory import site as site_module
from tests.contract.conftest import CHUNK
from tests.contract.test_store import KEY, METADATA, Sender, clip, listed, whole
from tests.stores.directory_rig import (
    Fault,
    failing,
    made_root,
    opened,
    partials,
    settings_for,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made_root(tmp_path)


@pytest.fixture
async def store(root: Path) -> AsyncIterator[DirectoryStore]:
    async with opened(root) as store:
        yield store


# -- what the operator finds ---------------------------------------------------------------------


async def test_footage_is_plain_files_and_the_rest_is_one_hidden_folder(
    store: DirectoryStore, root: Path
) -> None:
    content = clip(CHUNK + 1)
    await Sender(content)(store)
    assert sorted(os.listdir(root)) == [".nvr-backup", "Front Door"]
    assert (root / KEY).read_bytes() == content
    assert os.listdir((root / KEY).parent) == ["23-59-58.mp4"]
    assert partials(root) == []
    assert (root / KEY).stat().st_nlink == 1
    (sidecar,) = (root / ".nvr-backup" / "objects").rglob("*.json")
    described = json.loads(sidecar.read_bytes())
    assert described["key"] == KEY
    assert described["size"] == len(content)
    assert described["metadata"] == METADATA


async def test_footage_is_private_and_the_umask_may_narrow_it(
    store: DirectoryStore, root: Path
) -> None:
    def modes() -> set[int]:
        return {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}

    before = os.umask(0o000)
    try:
        await Sender(b"x", key="a/b.mp4")(store)
        assert modes() == {0o640, 0o750}
        os.umask(0o077)
        await Sender(b"x", key="c/d.mp4")(store)
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "c/d.mp4").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "c").stat().st_mode) == 0o700


async def test_a_file_put_there_by_hand_is_an_object_without_a_past(
    store: DirectoryStore, root: Path
) -> None:
    (root / "by hand.mp4").write_bytes(b"abc")
    found = await store.stat("by hand.mp4")
    assert found is not None
    assert (found.size, found.crc32c, found.generation, dict(found.metadata)) == (3, None, None, {})
    assert await listed(store, "") == [found]
    assert await whole(store, "by hand.mp4") == b"abc"
    with pytest.raises(KeyTaken):
        await Sender(b"other", key="by hand.mp4")(store)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b'{"key": 1}', b"\xff", b" " * 2_000_000, b"[" * 100_000]
)
async def test_a_damaged_sidecar_hides_nothing(
    store: DirectoryStore, root: Path, damage: bytes
) -> None:
    await Sender(b"abc")(store)
    (sidecar,) = (root / ".nvr-backup" / "objects").rglob("*.json")
    sidecar.write_bytes(damage)
    found = await store.stat(KEY)
    assert found is not None
    assert (found.size, found.crc32c, dict(found.metadata)) == (3, None, {})
    assert await listed(store, "") == [found]
    await store.delete(KEY)
    assert not sidecar.exists()


async def test_a_changed_file_is_not_what_its_sidecar_says(
    store: DirectoryStore, root: Path
) -> None:
    await Sender(b"abcdef")(store)
    (root / KEY).write_bytes(b"abc")
    found = await store.stat(KEY)
    assert found is not None
    assert (found.size, found.crc32c, found.generation) == (3, None, None)


async def test_the_sidecar_of_a_vanished_object_does_not_stick_to_the_next(
    store: DirectoryStore, root: Path
) -> None:
    await Sender(b"abc", metadata={"whose": "old"})(store)
    (root / KEY).unlink()
    assert await store.stat(KEY) is None
    await Sender(b"xyz", metadata={"whose": "new"})(store)
    found = await store.stat(KEY)
    assert found is not None
    assert dict(found.metadata) == {"whose": "new"}


async def test_the_listing_leaves_out_what_is_no_footage(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.mp4").write_bytes(b"x")
    await Sender(b"x", key="cam/a.mp4")(store)
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "cam" / "link.mp4").symlink_to(tmp_path / "outside" / "secret.mp4")
    os.mkfifo(root / "cam" / "pipe.mp4")
    os.close(os.open(bytes(root) + b"/cam/\xff.mp4", os.O_CREAT))
    (root / "lost+found").mkdir()
    (root / "lost+found" / "x").write_bytes(b"x")
    assert [found.key for found in await listed(store, "")] == ["cam/a.mp4"]
    for key in ("linked/secret.mp4", "cam/link.mp4", "cam/pipe.mp4"):
        assert await store.stat(key) is None
        with pytest.raises(Unfit):
            await whole(store, key)


async def test_a_folder_with_more_clips_than_one_step_lists(
    store: DirectoryStore, root: Path
) -> None:
    await Sender(b"x", key="cam/a.mp4")(store)
    for number in range(600):
        (root / "cam" / f"{number:04}.mp4").write_bytes(b"x")
    keys = [found.key for found in await listed(store, "cam/0")]
    assert keys == [f"cam/{number:04}.mp4" for number in range(600)]


async def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Sender(b"x", key="a/1.mp4")(store)
    await Sender(b"x", key="b/1.mp4")(store)
    fault = Fault(
        monkeypatch, "open", failing(errno.EACCES), when=lambda path, *_, **__: path == b"b"
    )
    with pytest.raises(Blocked, match="permission denied"):
        await listed(store, "")
    assert fault.reached


# -- keys ----------------------------------------------------------------------------------------

UNSAFE = {
    "empty": "",
    "absolute": "/etc/passwd",
    "up": "../outside.mp4",
    "up-inside": "a/../../outside.mp4",
    "dot": "a/./b.mp4",
    "empty-part": "a//b.mp4",
    "folder": "a/",
    "nul": "a\0b.mp4",
    "private": ".nvr-backup/store.json",
    "private-other-case": ".NVR-Backup/partial/x",
    "lost+found": "lost+found/a.mp4",
    "long-name": "a/" + "ü" * 128,
    "long": "/".join(["a" * 250] * 13),
    "surrogate": "a/\udc80.mp4",
}


@pytest.mark.parametrize("key", UNSAFE.values(), ids=UNSAFE.keys())
async def test_an_unsafe_key_touches_nothing(
    store: DirectoryStore, root: Path, tmp_path: Path, key: str
) -> None:
    with pytest.raises(Unfit):
        await Sender(b"x", key=key)(store)
    for refused in (store.stat(key), store.delete(key), whole(store, key)):
        with pytest.raises(Unfit):
            await refused
    assert os.listdir(root) == []
    assert os.listdir(tmp_path) == ["footage"]


async def test_a_symbolic_link_leads_nowhere(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.mp4").write_bytes(b"x")
    (root / "cam").symlink_to(outside)
    with pytest.raises(Unfit, match="symbolic link"):
        await Sender(b"x", key="cam/a.mp4")(store)
    await store.delete("cam/b.mp4")
    assert os.listdir(outside) == ["b.mp4"]


@pytest.mark.parametrize("kind", ["folder", "link"])
async def test_something_else_under_the_key_is_neither_replaced_nor_taken_for_a_clip(
    store: DirectoryStore, root: Path, kind: str
) -> None:
    if kind == "folder":
        (root / "a.mp4").mkdir()
    else:
        (root / "a.mp4").symlink_to("nowhere")
    with pytest.raises(Unfit, match="no file"):
        await Sender(b"x", key="a.mp4")(store)
    assert os.path.lexists(root / "a.mp4")
    assert not (root / "nowhere").exists()


async def test_a_file_where_a_folder_must_be_concerns_this_clip_only(
    store: DirectoryStore, root: Path
) -> None:
    (root / "cam").write_bytes(b"")
    with pytest.raises(Unfit, match="where its folder must be"):
        await Sender(b"x", key="cam/a.mp4")(store)
    await Sender(b"x", key="cam2/a.mp4")(store)


# -- is it the store at all? ---------------------------------------------------------------------


async def every_operation(store: DirectoryStore) -> list[NvrBackupError]:
    """What each operation raises."""
    raised = []
    for operation in (
        store.probe(),
        Sender(b"x")(store),
        store.stat(KEY),
        listed(store, ""),
        whole(store, KEY),
        store.delete(KEY),
    ):
        with pytest.raises(NvrBackupError) as caught:
            await operation
        raised.append(caught.value)
    return raised


@pytest.mark.parametrize("what", ["missing", "file"])
async def test_the_root_is_never_created(tmp_path: Path, what: str) -> None:
    root = tmp_path / "nas" / "footage"
    root.parent.mkdir()
    if what == "file":
        root.write_bytes(b"")
    async with opened(root) as store:
        for error in await every_operation(store):
            assert isinstance(error, Blocked)
            assert str(root) in error.message
            assert "mkdir -p" in error.hint
    assert root.is_file() == (what == "file")
    assert not root.is_dir()


async def test_an_unmounted_share_is_neither_filled_nor_taken_for_empty(root: Path) -> None:
    async with opened(root) as store:
        await Sender(b"abc")(store)
        mounted = root.rename(root.with_name("elsewhere"))
        root.mkdir()
        for error in await every_operation(store):
            assert isinstance(error, Blocked)
            assert "mount it" in error.hint
        assert os.listdir(root) == []
        root.rmdir()
        mounted.rename(root)
        await store.probe()
        assert await whole(store, KEY) == b"abc"


async def test_an_unmounted_share_is_noticed_after_a_restart(root: Path) -> None:
    async with opened(root, used_before=True) as store:
        for error in await every_operation(store):
            assert isinstance(error, Blocked)
        assert os.listdir(root) == []
        (root / ".nvr-backup").mkdir()
        (root / ".nvr-backup" / "store.json").touch()  # as the hint says
        await Sender(b"abc")(store)


async def test_another_disk_is_noticed_until_a_restart(root: Path) -> None:
    async with opened(root) as store:
        await Sender(b"abc")(store)
        marker = root / ".nvr-backup" / "store.json"
        marker.write_bytes(b'{"format": 1, "id": "another"}')
        for error in await every_operation(store):
            assert isinstance(error, Blocked)
            assert "another store" in error.message
    async with opened(root) as store:
        assert await whole(store, KEY) == b"abc"


async def test_a_newer_format_is_left_alone(root: Path) -> None:
    (root / ".nvr-backup").mkdir()
    (root / ".nvr-backup" / "store.json").write_bytes(b'{"format": 2}')
    async with opened(root) as store:
        for error in await every_operation(store):
            assert isinstance(error, Blocked)
            assert "newer" in error.message
    assert os.listdir(root / ".nvr-backup") == ["store.json"]


async def test_the_first_probe_leaves_not_even_the_marker(
    store: DirectoryStore, root: Path
) -> None:
    await store.probe()
    assert os.listdir(root) == []


async def test_many_at_once_agree_on_one_marker(store: DirectoryStore, root: Path) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(_stored(store, f"{number}.mp4"))
    assert partials(root) == []
    assert json.loads((root / ".nvr-backup" / "store.json").read_bytes())["format"] == 1


def test_a_marker_left_by_another_thread_after_the_look_is_not_a_lost_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = site_module._read_marker
    shared = site_module.Site(settings_for(root))
    overtaken = False

    def look_and_be_overtaken(opened_root: int) -> bytes | None:
        nonlocal overtaken
        seen = read(opened_root)
        if not overtaken:
            overtaken = True
            os.close(shared.open_for_writing())  # the other thread, from here to its end
        return seen

    monkeypatch.setattr(site_module, "_read_marker", look_and_be_overtaken)
    os.close(shared.open())
    assert overtaken
    (root / ".nvr-backup" / "store.json").unlink()
    with pytest.raises(Blocked, match="lost the marker"):  # and from now on it would be
        shared.open()


async def _stored(store: DirectoryStore, key: str) -> None:
    await Sender(key.encode(), key=key)(store)


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        DirectorySettings(name="nas", path=Path("footage"))
