"""Folders and files below a root, by descriptor: safe paths, durable folders, create-only placing.

Every path is walked from the root's descriptor, one component at a time and without following
symbolic links, so no key and no link can lead outside. It must never replace an existing file, and
never report a name as durable before its folder was synced.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nvr_backup.errors import Unfit

PRIVATE = b".nvr-backup"
"""The store's own folder in the root; no key may begin with it, in whatever case."""

LOST_AND_FOUND = b"lost+found"
"""Made by mkfs in the root of a file system, readable by root only."""

COMPONENT_LIMIT_BYTES = 255
KEY_LIMIT_BYTES = 3072
"""Linux's limit for one name; and well below its 4096 for a path that is given in one piece."""

DURABLE_FOLDERS = 1024
"""Folders remembered as synced; a forgotten one is merely synced again."""

FILE_MODE = 0o640
FOLDER_MODE = 0o750
"""Footage is private: at most the owner and its group, and less where the umask says so."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_CANNOT_SYNC_A_FOLDER = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS})
_CANNOT_LINK = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EACCES}
)
_RENAME_NOREPLACE = 1


def split_key(key: str) -> tuple[bytes, ...]:
    """The components of a key; Unfit for one that is no safe relative path of this store."""
    try:
        path = key.encode()
    except UnicodeEncodeError as err:
        raise Unfit(f"The key {key!r} is not valid Unicode.") from err
    names = tuple(path.split(b"/"))
    if b"\0" in path or any(name in (b"", b".", b"..") for name in names):
        raise Unfit(f"The key {key!r} is not a relative path of ordinary names.")
    if is_private(names[0]):
        raise Unfit(f"The key {key!r} begins with a name that the store keeps for itself.")
    if len(path) > KEY_LIMIT_BYTES or max(map(len, names)) > COMPONENT_LIMIT_BYTES:
        raise Unfit(
            f"The key {key!r} is too long: {COMPONENT_LIMIT_BYTES} bytes for each name, "
            f"{KEY_LIMIT_BYTES} in all.",
            hint="Shorten the camera's name at the source, or the store's key template.",
        )
    return names


def is_private(name: bytes) -> bool:
    """Whether a name directly below the root is not footage (some file systems fold case)."""
    folded = name.lower()
    return folded.startswith(PRIVATE) or folded == LOST_AND_FOUND


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """The descriptor, closed at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_folder(above: int, name: bytes) -> int:
    """A folder directly below `above`; a symbolic link is ENOTDIR."""
    return os.open(name, _FOLDER, dir_fd=above)


def walk_to(root: int, names: tuple[bytes, ...]) -> int:
    """A new descriptor of an existing folder below `root`; of the root itself without names."""
    folder = os.dup(root)
    for name in names:
        with closing(folder):
            folder = open_folder(folder, name)
    return folder


def regular(folder: int, name: bytes) -> os.stat_result | None:
    """What is under the name, if it is a regular file."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def exists(folder: int, name: bytes) -> bool:
    """Whether anything at all is under the name."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def remove(folder: int, name: bytes) -> None:
    """Remove a file; absent is no error."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def sync_folder(folder: int) -> None:
    """Make the names in a folder durable, where the file system has such an operation.

    SMB and some FUSE file systems refuse it; their servers order names by themselves.
    """
    try:
        os.fsync(folder)
    except OSError as err:
        if err.errno not in _CANNOT_SYNC_A_FOLDER:
            raise


class Folders:
    """Creates folders so that they survive a power cut, and remembers which ones do."""

    def __init__(self) -> None:
        self._durable: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def make(self, root: int, names: tuple[bytes, ...]) -> int:
        """A new descriptor of the folder `names` below `root`, created where it is missing.

        Also a folder that was there already is synced into the one above once: whoever made it
        may have crashed, or be about to sync it in another thread.
        """
        folder = os.dup(root)
        for name in names:
            with closing(folder):
                child = self._make_one(folder, name)
            folder = child
        return folder

    def _make_one(self, above: int, name: bytes) -> int:
        try:
            child = open_folder(above, name)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name, FOLDER_MODE, dir_fd=above)
            child = open_folder(above, name)
        try:
            status = os.fstat(child)
            if not self._is_durable((status.st_dev, status.st_ino)):
                sync_folder(above)
                self._remember((status.st_dev, status.st_ino))
        except BaseException:
            os.close(child)
            raise
        return child

    def _is_durable(self, identity: tuple[int, int]) -> bool:
        with self._lock:
            if identity not in self._durable:
                return False
            self._durable.move_to_end(identity)
            return True

    def _remember(self, identity: tuple[int, int]) -> None:
        with self._lock:
            self._durable[identity] = None
            while len(self._durable) > DURABLE_FOLDERS:
                self._durable.popitem(last=False)


def place(source: int, source_name: bytes, target: int, target_name: bytes) -> None:
    """Give a finished file its final name, create-only and durably; FileExistsError if taken.

    link(2) never replaces, also on NFS. Where there are no hard links (FAT, exFAT, some SMB
    servers and FUSE file systems) renameat2(RENAME_NOREPLACE) takes its place; where there is
    neither, it is ENOTSUP, because every other way could replace a file or show an empty one.
    """
    try:
        os.link(
            source_name,
            target_name,
            src_dir_fd=source,
            dst_dir_fd=target,
            follow_symlinks=False,
        )
    except FileExistsError:
        if not _same_file(source, source_name, target, target_name):
            raise  # else: NFS linked it, lost the answer and asked again
    except OSError as err:
        if err.errno not in _CANNOT_LINK:
            raise
        _rename_noreplace(source, source_name, target, target_name)
    sync_folder(target)
    remove(source, source_name)


def _same_file(source: int, source_name: bytes, target: int, target_name: bytes) -> bool:
    ours, theirs = regular(source, source_name), regular(target, target_name)
    return ours is not None and theirs is not None and os.path.samestat(ours, theirs)


def _rename_noreplace(source: int, source_name: bytes, target: int, target_name: bytes) -> None:
    """Rename without replacing; ENOTSUP where kernel, libc or file system cannot.

    ctypes is imported here because a hardened unit (MemoryDenyWriteExecute) may refuse it, and
    the file systems that need it are rare.
    """
    unsupported = OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    try:
        import ctypes  # noqa: PLC0415

        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, OSError, AttributeError, MemoryError) as err:
        raise unsupported from err
    if renameat2(source, source_name, target, target_name, _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS):
            raise unsupported
        raise OSError(code, os.strerror(code))
    sync_folder(source)
