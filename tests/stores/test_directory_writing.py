"""How the directory store brings bytes into place: create-only, durable in order, and read back.

Faults are put around single system calls; every such test ends by asserting that its fault was
reached.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.errors import Blocked, KeyTaken, StartOver
from nvr_backup.stores.directory import DirectoryStore
from tests.contract.conftest import CHUNK
from tests.contract.test_store import KEY, Sender, clip, whole
from tests.stores.directory_rig import (
    Fault,
    failing,
    made_root,
    opened,
    partials,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made_root(tmp_path)


@pytest.fixture
async def store(root: Path) -> AsyncIterator[DirectoryStore]:
    async with opened(root) as store:
        yield store


# -- placing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
async def test_without_hard_links_a_rename_that_replaces_nothing(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As on exFAT and FAT (EPERM); the rename is the real kernel's."""
    fault = Fault(monkeypatch, "link", failing(code))
    await store.probe()
    content = clip(2 * CHUNK + 1)
    await Sender(content)(store)
    assert (root / KEY).read_bytes() == content

    # Between the last look and the placing, where only the rename itself can refuse.
    def overtaken(*args: Any, **kwargs: Any) -> None:
        late.real(*args, **kwargs)
        (root / "taken.mp4").write_bytes(b"theirs")

    late = Fault(monkeypatch, "replace", overtaken)
    with pytest.raises(KeyTaken):
        await Sender(b"ours", key="taken.mp4")(store)
    assert (root / "taken.mp4").read_bytes() == b"theirs"
    assert partials(root) == []
    assert late.reached == 1
    assert fault.reached >= 3


async def test_with_neither_links_nor_such_a_rename_the_store_is_blocked(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    fault = Fault(monkeypatch, "link", failing(errno.ENOTSUP))
    monkeypatch.setattr(ctypes, "CDLL", failing(errno.ENOENT))
    with pytest.raises(Blocked, match="neither make hard links"):
        await store.probe()
    assert os.listdir(root) == []
    with pytest.raises(Blocked, match="neither make hard links"):
        await Sender(b"x")(store)
    assert [path.name for path in root.iterdir()] == [".nvr-backup"]
    assert fault.reached == 2


async def test_an_nfs_server_whose_answer_was_lost(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link was made, the answer lost, the request repeated by the kernel: EEXIST."""
    await Sender(b"x", key="first.mp4")(store)

    def linked_twice(*args: Any, **kwargs: Any) -> None:
        fault.real(*args, **kwargs)
        fault.real(*args, **kwargs)

    fault = Fault(monkeypatch, "link", linked_twice)
    await Sender(b"abc")(store)
    assert (root / KEY).read_bytes() == b"abc"
    assert partials(root) == []
    assert fault.reached == 1


async def test_a_foreign_file_in_the_last_moment_wins(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*args: Any, **kwargs: Any) -> None:
        (root / "a.mp4").write_bytes(b"foreign")
        fault.real(*args, **kwargs)

    await Sender(b"x", key="first.mp4")(store)
    fault = Fault(monkeypatch, "link", overtaken)
    with pytest.raises(KeyTaken):
        await Sender(b"our own", key="a.mp4")(store)
    assert fault.reached == 1
    found = await store.stat("a.mp4")
    assert found is not None
    assert (found.crc32c, dict(found.metadata)) == (None, {})  # ours is not said of theirs
    assert await whole(store, "a.mp4") == b"foreign"
    assert partials(root) == []


# -- durable, and in order -----------------------------------------------------------------------


class Diary:
    """What happened to the disk, in order, and in which threads."""

    NAMES = (
        *("pwritev", "pread", "fsync", "fdatasync", "link", "replace", "mkdir", "unlink", "open"),
        "rename",
    )

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.entries: list[tuple[str, str]] = []
        self.threads: set[int] = set()
        self._root = root
        for name in self.NAMES:
            self._watch(patch, name)

    def _watch(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            what = self._what(name, args, kwargs)
            result = real(*args, **kwargs)
            self.entries.append((name, what))
            self.threads.add(threading.get_ident())
            return result

        patch.setattr(os, name, call)

    def _what(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if isinstance(args[0], int):
            path = Path(os.readlink(f"/proc/self/fd/{args[0]}"))
        else:
            target = args[1] if name in ("link", "replace", "rename") else args[0]
            folder = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
            base = self._root if folder is None else Path(os.readlink(f"/proc/self/fd/{folder}"))
            path = base / os.fsdecode(target)
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else "-"

    def index(self, name: str, what: str) -> int:
        return self.entries.index((name, what))

    def last(self, name: str, what: str) -> int:
        return len(self.entries) - 1 - self.entries[::-1].index((name, what))


async def test_a_corrupt_file_is_durably_aside_before_another_gets_its_name(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Sender(b"spoilt", key="cam/day/a.mp4")(store)
    there = await store.stat("cam/day/a.mp4")
    assert there is not None
    diary = Diary(monkeypatch, root)
    sender = Sender(b"well", key="cam/day/a.mp4", replaces=there.generation)
    await sender(store)
    token = sender.states[0].session
    aside = ".nvr-backup/replaced"
    moved = diary.index("rename", f"{aside}/{token}-a.mp4")
    assert (
        diary.index("fsync", f".nvr-backup/partial/{token}")
        < moved
        < diary.last("fsync", aside)
        < diary.index("link", "cam/day/a.mp4")
    )
    assert "cam/day" in [what for name, what in diary.entries[moved:] if name == "fsync"]
    assert (root / aside / f"{token}-a.mp4").read_bytes() == b"spoilt"


async def test_everything_is_durable_before_what_needs_it(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(monkeypatch, root)
    sender = Sender(clip(2 * CHUNK + 1), key="cam/day/a.mp4")
    await sender(store)
    token = sender.states[0].session
    data = f".nvr-backup/partial/{token}"
    (sidecar,) = (
        path.relative_to(root).as_posix() for path in (root / ".nvr-backup/objects").rglob("*.json")
    )
    shard = os.path.dirname(sidecar)
    placed = diary.index("link", "cam/day/a.mp4")
    # Every byte written is synced, and read back after that, before the file gets its name.
    written = [
        i for i, (name, what) in enumerate(diary.entries) if (name, what) == ("pwritev", data)
    ]
    assert len(written) >= 3
    for start, end in zip(written, [*written[1:], placed], strict=True):
        calls = [name for name, what in diary.entries[start:end] if what == data]
        assert "fdatasync" in calls
        assert "pread" in calls[calls.index("fdatasync") :]
    # The sidecar is whole, named and durable before.
    assert (
        diary.index("fsync", f"{data}.json")
        < diary.index("replace", sidecar)
        < diary.last("fsync", shard)
        < placed
    )
    # Each new folder is named durably in the one above before anything relies on it.
    for folder in ("cam", "cam/day", ".nvr-backup", ".nvr-backup/objects", shard):
        made = diary.index("mkdir", folder)
        above = os.path.dirname(folder) or "."
        synced = [
            i for i, entry in enumerate(diary.entries) if entry == ("fsync", above) and i > made
        ]
        assert synced
        assert synced[0] < placed
    # The name itself is durable before the file aside goes and before `finish` returns.
    assert placed < diary.last("fsync", "cam/day") < diary.last("unlink", data)
    # None of it held up the event loop.
    assert threading.get_ident() not in diary.threads


async def test_a_folder_made_by_a_crashed_process_is_synced_too(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "cam" / "day").mkdir(parents=True)
    diary = Diary(monkeypatch, root)
    await Sender(b"x", key="cam/day/a.mp4")(store)
    placed = diary.index("link", "cam/day/a.mp4")
    assert diary.index("fsync", ".") < placed
    assert diary.index("fsync", "cam") < placed
    again = Diary(monkeypatch, root)
    await Sender(b"x", key="cam/day/b.mp4")(store)
    assert ("fsync", "cam") not in again.entries


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
async def test_a_share_that_cannot_sync_folders_will_do(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def is_folder(fd: int) -> bool:
        return stat.S_ISDIR(os.fstat(fd).st_mode)

    fault = Fault(monkeypatch, "fsync", failing(code), when=is_folder)
    await Sender(b"abc")(store)
    assert (root / KEY).read_bytes() == b"abc"
    assert fault.reached


# -- bytes that do not come back -----------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_disk_that_changes_a_byte_stores_nothing(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    def corrupt(fd: int, pieces: list[bytes], at: int) -> int:
        first = bytes(pieces[0])
        changed = bytes([first[0] ^ 0x10]) + first[1:]
        return int(fault.real(fd, [changed, *pieces[1:]], at))

    fault = Fault(monkeypatch, "pwritev", corrupt, nth=nth)
    content = clip(2 * CHUNK + 1)
    with pytest.raises(StartOver, match="reads back differently"):
        await Sender(content)(store)
    assert fault.reached == nth
    assert await store.stat(KEY) is None
    assert partials(root) == []
    await Sender(content)(store)
    assert (root / KEY).read_bytes() == content


async def test_writes_cut_short_by_the_kernel(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = iter(range(1, 10_000_000))

    def short(fd: int, pieces: list[bytes], at: int) -> int:
        return int(fault.real(fd, [b"".join(pieces)[: 7919 + next(lengths)]], at))

    fault = Fault(monkeypatch, "pwritev", short)
    content = clip(2 * CHUNK + 5)
    await Sender(content, piece_sizes=lambda: 3001)(store)
    assert (root / KEY).read_bytes() == content
    assert fault.reached > 10


async def test_a_file_system_that_takes_nothing_is_not_asked_for_ever(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, "pwritev", lambda *_: 0)
    with pytest.raises(Blocked):
        await Sender(b"abc")(store)
    assert fault.reached == 1


async def test_a_file_changed_under_us_is_not_placed(store: DirectoryStore, root: Path) -> None:
    async def append(*_: object) -> None:
        (partial,) = (root / ".nvr-backup" / "partial").iterdir()
        with partial.open("ab") as file:
            file.write(b"x" * (2 * CHUNK))

    with pytest.raises(StartOver, match="changed its size"):
        await Sender(clip(CHUNK + 1), before_finish=append)(store)
    assert await store.stat(KEY) is None
