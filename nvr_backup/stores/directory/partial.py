"""One file on its way: written aside, made durable, read back, then placed under its key.

The file in `.nvr-backup/partial` is the session of an upload; its random name goes into the
checkpoint and survives a crash. All methods block and are called one at a time. It must never
write to a file that is visible under a key, and never place one that was not read back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress

import google_crc32c

from nvr_backup.errors import KeyTaken, StartOver, Transient, Unfit
from nvr_backup.stores.directory import sidecar as sidecars
from nvr_backup.stores.directory.faults import translated
from nvr_backup.stores.directory.files import (
    FILE_MODE,
    PRIVATE,
    closing,
    exists,
    place,
    regular,
    remove,
    split_key,
    sync_folder,
    walk_to,
)
from nvr_backup.stores.directory.sidecar import Sidecar
from nvr_backup.stores.directory.site import PARTIAL, REPLACED, Site

PIECES_AT_ONCE = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024
READ_BYTES = 1024 * 1024
_TOKEN = re.compile(r"[0-9a-f]{32}", re.ASCII)


class PartialFile:
    """The unfinished file of one upload. `close` removes it unless `keep` was set.

    `replaces` is the generation ("" for none) of a corrupt file that gives way to this one.
    """

    def __init__(
        self, site: Site, key: str, token: str | None = None, *, replaces: str | None = None
    ) -> None:
        self.key = key
        self._replaces = replaces
        self.token = secrets.token_hex(16) if token is None else token
        self.keep = token is not None
        self._site = site
        self._names = split_key(key)
        self._root = -1
        self._folder = -1
        self._file = -1
        self._gone = False

    def create(self) -> None:
        """Begin a new file; KeyTaken when the key holds an object already."""
        with translated(self._site.path, self.key):
            self._root = self._site.open_for_writing()
            self._refuse_taken()
            self._folder = self._site.folders.make(self._root, (PRIVATE, PARTIAL))
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            self._file = os.open(self.token, flags, FILE_MODE, dir_fd=self._folder)
            self._hold()

    def reopen(self, offset: int) -> None:
        """Go on with a file that an earlier put left; StartOver when it cannot be.

        Whatever lies behind `offset` was never acknowledged and is cut off.
        """
        with translated(self._site.path, self.key):
            if not _TOKEN.fullmatch(self.token):
                self._gone = True
                raise StartOver(f"The upload of {self.key!r} was not begun by this store.")
            self._root = self._site.open()
            try:
                self._folder = walk_to(self._root, (PRIVATE, PARTIAL))
                flags = os.O_RDWR | os.O_NOFOLLOW
                self._file = os.open(self.token, flags, dir_fd=self._folder)
            except FileNotFoundError as err:
                self._gone = True
                raise self.doubt("is gone") from err
            self._hold()
            status = os.fstat(self._file)
            if status.st_nlink > 1:
                raise self.doubt("was already placed under a key")
            if status.st_size < offset:
                raise self.doubt("is shorter than what was confirmed")
            if status.st_size > offset:
                os.ftruncate(self._file, offset)

    def append(self, pieces: Sequence[bytes], *, at: int, crc32c: int) -> int:
        """Write from byte `at` on, sync, read back; the CRC32C `crc32c` extended by what was read.

        After the sync the kernel is told to forget the pages, so the bytes come back from the disk
        or the NAS wherever the file system obeys (local ones, NFS); where it does not (tmpfs, some
        FUSE), they come back from its memory. A disk's own cache cannot be looked behind.
        """
        with translated(self._site.path, self.key):
            end = _write(self._file, pieces, at)
            os.fdatasync(self._file)
            return _checksum(self._file, at, end, crc32c)

    def checksum(self, start: int, end: int, crc32c: int) -> int:
        """The CRC32C `crc32c` extended by the bytes [start, end) as they are on disk."""
        with translated(self._site.path, self.key):
            return _checksum(self._file, start, end, crc32c)

    def publish(self, sidecar: Sidecar) -> None:
        """Make the file visible under its key, durably and create-only, sidecar first."""
        with translated(self._site.path, self.key), self._site.lock(self.key):
            if os.fstat(self._file).st_size != sidecar.size:
                raise self.doubt("changed its size under us")
            os.fsync(self._file)
            folder = self._site.folders.make(self._root, self._names[:-1])
            with closing(folder):
                self._refuse_taken()
                self._move_aside(folder)
                sidecars.save(self._root, self._site.folders, sidecar)
                try:
                    place(self._folder, self.token.encode(), folder, self._names[-1])
                except FileExistsError as err:
                    sidecars.erase(self._root, self.key)
                    self.keep = False
                    raise self._taken() from err
            self._gone = True

    def settle(self, sidecar: Sidecar) -> None:
        """Complete a placing that a crash interrupted after its object had become visible."""
        with translated(self._site.path, self.key), self._site.lock(self.key):
            self._root = self._site.open()
            with closing(self._site.folders.make(self._root, self._names[:-1])) as folder:
                sync_folder(folder)
            known = sidecars.load(self._root, self.key)
            if known is None or known.size != sidecar.size:
                sidecars.save(self._root, self._site.folders, sidecar)
            with suppress(FileNotFoundError):
                self._folder = walk_to(self._root, (PRIVATE, PARTIAL))
            self.keep = False

    def doubt(self, what: str) -> StartOver:
        """The error for a file that cannot be continued, which `close` then removes."""
        self.keep = False
        return StartOver(f"The unfinished file of {self.key!r} in {self._site.path} {what}.")

    def close(self) -> None:
        """Release everything; the file stays only if `keep` is set. Never raises."""
        if not (self.keep or self._gone) and self._folder >= 0 and _TOKEN.fullmatch(self.token):
            with suppress(OSError):
                remove(self._folder, self.token.encode())
        for fd in (self._file, self._folder, self._root):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._file = self._folder = self._root = -1

    def _refuse_taken(self) -> None:
        try:
            folder = walk_to(self._root, self._names[:-1])
        except FileNotFoundError:
            return
        with closing(folder):
            if not exists(folder, self._names[-1]) or self._is_to_give_way(folder):
                return
            self.keep = False
            if regular(folder, self._names[-1]) is None:
                raise Unfit(
                    f"{self.key!r} cannot be kept in {self._site.path}: "
                    "something that is no file stands under its name.",
                    hint="Move it out of the way, then retry the clip.",
                )
            raise self._taken()

    def _is_to_give_way(self, folder: int) -> bool:
        found = regular(folder, self._names[-1])
        if found is None or self._replaces is None:
            return False
        there = sidecars.describe(self._root, self.key, found.st_size)
        return (there.generation or "") == self._replaces

    def _move_aside(self, folder: int) -> None:
        """Keep the corrupt file, where there is one, out of the way; under our name it stays."""
        if not exists(folder, self._names[-1]):
            return
        with closing(self._site.folders.make(self._root, (PRIVATE, REPLACED))) as replaced:
            aside = self.token.encode() + b"-" + self._names[-1]
            os.rename(self._names[-1], aside, src_dir_fd=folder, dst_dir_fd=replaced)
            sync_folder(replaced)
            sync_folder(folder)

    def _taken(self) -> KeyTaken:
        return KeyTaken(f"The store {self._site.path} already holds a file {self.key!r}.")

    def _hold(self) -> None:
        """Hold the file against another upload and against the clearing of old ones."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno == errno.EWOULDBLOCK:
                raise Transient(f"Another upload of {self.key!r} is still under way.") from err
            # a file system without locks: the checkpoint's claim alone keeps others away


class ObjectFile:
    """A stored file being read. All methods block and are called one at a time."""

    def __init__(self, site: Site, key: str) -> None:
        self._site = site
        self._key = key
        self._names = split_key(key)
        self._file = -1

    def open(self, generation: str | None = None) -> int | None:
        """Its size in bytes, or None when there is no such object (in this generation)."""
        with (
            translated(self._site.path, self._key),
            self._site.lock(self._key),
            closing(self._site.open()) as root,
        ):
            try:
                folder = walk_to(root, self._names[:-1])
            except (FileNotFoundError, NotADirectoryError):
                return None
            with closing(folder):
                if regular(folder, self._names[-1]) is None:
                    return None
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                try:
                    self._file = os.open(self._names[-1], flags, dir_fd=folder)
                except FileNotFoundError:
                    return None
            size = os.fstat(self._file).st_size
            found = sidecars.describe(root, self._key, size)
            return size if generation in {None, found.generation} else None

    def read(self, offset: int) -> bytes:
        """The next bytes from `offset` on, at most `READ_BYTES`; empty at the end."""
        with translated(self._site.path, self._key):
            return os.pread(self._file, READ_BYTES, offset)

    def checksum(self, start: int, end: int, crc32c: int) -> int:
        """The CRC32C `crc32c` extended by the bytes [start, end) as they are on disk."""
        with translated(self._site.path, self._key):
            return _checksum(self._file, start, end, crc32c)

    def close(self) -> None:
        """Release the descriptor. Never raises."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1


def _write(file: int, pieces: Sequence[bytes], at: int) -> int:
    """Write all pieces from byte `at` on with as few system calls as possible; where they end."""
    waiting: list[bytes | memoryview] = list(pieces)
    first = 0
    while first < len(waiting):
        written = os.pwritev(file, waiting[first : first + PIECES_AT_ONCE], at)
        if written == 0 and any(waiting[first : first + PIECES_AT_ONCE]):
            raise OSError(errno.EIO, "the file system takes no more bytes")
        at += written
        while first < len(waiting) and written >= len(waiting[first]):
            written -= len(waiting[first])
            first += 1
        if written:
            waiting[first] = memoryview(waiting[first])[written:]
    return at


def _checksum(file: int, start: int, end: int, crc32c: int) -> int:
    """Extend a CRC32C by the bytes [start, end), past the page cache where that is possible."""
    with suppress(OSError):  # advice; a file system without a page cache has nothing to forget
        os.posix_fadvise(file, start, end - start, os.POSIX_FADV_DONTNEED)
    while start < end:
        piece = os.pread(file, min(READ_BYTES, end - start), start)
        if not piece:
            break  # shorter than it should be: the checksum or the size will tell
        crc32c = google_crc32c.extend(crc32c, piece)
        start += len(piece)
    return crc32c
