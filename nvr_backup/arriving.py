"""A file of restored footage on its way: appended to, added up, and placed when proven whole.

A partial file has a name of its own that no player takes for a video; what a killed run left of one
is added up anew, from the disk, before it goes on. It must never replace a file that is there, and
never give an unfinished one its name. Everything here blocks.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

import google_crc32c

from nvr_backup.errors import NvrBackupError, Suspect, Unfit
from nvr_backup.model import to_ms
from nvr_backup.mp4 import ClipInspector

READ_BYTES: Final = 1024 * 1024
FILE_MODE: Final = 0o640
"""Footage is private, as in a store that is a folder."""

PART: Final = ".part"
DAMAGED: Final = ".damaged"

_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EACCES}
)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

Stopping = Callable[[], bool]
"""Asked between the pieces of a long read: whether to leave it at that."""


class Unwritable(NvrBackupError):
    """The folder that footage is restored into cannot be written."""


class Stopped(Exception):
    """A long read was left because of an interrupt."""


class Found(Enum):
    """What is under a name already."""

    NOTHING = auto()
    SAME = auto()
    OTHER = auto()


@dataclass(slots=True)
class Sum:
    """What bytes come to, as they pass. `inspector` is for bytes that only a store vouches for."""

    size: int = 0
    crc32c: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    inspector: ClipInspector | None = None
    fault: str = ""

    def add(self, piece: bytes) -> None:
        """The next bytes; never raises for what they are."""
        self.size += len(piece)
        self.crc32c = google_crc32c.extend(self.crc32c, piece)
        self.sha256.update(piece)
        if self.inspector is not None and not self.fault:
            try:
                self.inspector.feed(piece)
            except (Suspect, Unfit) as err:
                self.fault = err.message

    def verdict(self) -> str:
        """Why these bytes are no whole video; "" when they are, or when nobody asked."""
        if self.inspector is not None and not self.fault:
            try:
                self.inspector.finish()
            except (Suspect, Unfit) as err:
                self.fault = err.message
        return self.fault


class Part:
    """A partial file in `folder`, open for appending; `close` it at the end, whatever happened.

    `name` is what it is to become, `own` what it is called until then, `root` the folder of all
    footage, for messages. The descriptor `folder` is closed with it.
    """

    def __init__(
        self, folder: int, name: str, own: str, *, root: Path, inspected: bool, stopping: Stopping
    ) -> None:
        self._folder = folder
        self._name = name
        self._own = own
        self._root = root
        self._inspected = inspected
        self._file = self._opened()
        self.sum = self._fresh()
        try:
            summed(self._file, self.sum, stopping)
            if self.sum.fault:
                self.restart()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def size(self) -> int:
        """Bytes it has; the next are written behind them."""
        return self.sum.size

    def append(self, pieces: Collection[bytes]) -> None:
        """Write the next bytes."""
        for piece in pieces:
            self.sum.add(piece)
        with explained(self._root):
            write(self._file, b"".join(pieces))

    def restart(self) -> None:
        """Begin again at byte 0."""
        with explained(self._root):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self.sum = self._fresh()

    def finish(self, start: datetime) -> Found:
        """Give the whole file its name and the clip's time; durable when it returns.

        A file that has the name already stays: SAME if its bytes are these, else OTHER (then the
        partial file stays too).
        """
        with explained(self._root):
            date(self._file, start)
            os.fsync(self._file)
            try:
                place(self._folder, self._own, self._name)
            except FileExistsError:
                if not self._is_same():
                    return Found.OTHER
                os.unlink(self._own, dir_fd=self._folder)
                return Found.SAME
        return Found.NOTHING

    def set_aside(self) -> None:
        """Keep the bytes as damaged ones for now, and begin again with an empty file."""
        with explained(self._root):
            os.replace(self._own, self._aside, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.close(self._file)
            self._file = -1
            self._file = self._opened()
        self.sum = self._fresh()

    def keep_damaged(self, start: datetime) -> str | None:
        """Give what was set aside a clear name; None when there is nothing."""
        stem, dot, extension = self._name.rpartition(".")
        name = f"{stem}{DAMAGED}{dot}{extension}"
        with explained(self._root):
            try:
                file = os.open(
                    self._aside, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder
                )
            except FileNotFoundError:
                return None
            with closing(file):
                date(file, start)
            try:
                place(self._folder, self._aside, name)
            except FileExistsError:  # of an earlier run
                os.unlink(self._aside, dir_fd=self._folder)
        return name

    def close(self) -> None:
        """Let go of the file; an empty one is removed. Never raises."""
        if self._file >= 0:
            with suppress(OSError):
                status = os.fstat(self._file)
                if not status.st_size and status.st_nlink:
                    os.unlink(self._own, dir_fd=self._folder)
            with suppress(OSError):
                os.close(self._file)
        with suppress(OSError):
            os.close(self._folder)
        self._file = self._folder = -1

    @property
    def _aside(self) -> str:
        return f"{self._own.removesuffix(PART)}{DAMAGED}{PART}"

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._own, flags, FILE_MODE, dir_fd=self._folder)

    def _fresh(self) -> Sum:
        return Sum(inspector=ClipInspector() if self._inspected else None)

    def _is_same(self) -> bool:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            file = os.open(self._name, flags, dir_fd=self._folder)
        except OSError as err:
            if err.errno in {errno.ELOOP, errno.ENOENT, errno.EACCES}:
                return False
            raise
        with closing(file):
            if os.fstat(file).st_size != self.sum.size:
                return False
            found = summed(file, Sum())
        return (found.size, found.crc32c) == (self.sum.size, self.sum.crc32c)


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """OSErrors leave as Unwritable; FileExistsError is for the caller."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as err:
        raise unwritable(root, err) from err


def unwritable(root: Path, err: OSError) -> Unwritable:
    """What an error of the folder's file system means."""
    if err.errno in _FULL:
        return Unwritable(
            f"The disk of {root} is full.",
            hint="Free some space and run the same command again: it goes on from here. "
            "Or choose another folder or a shorter time.",
        )
    if err.errno in {errno.ENOTDIR, errno.ELOOP}:
        return Unwritable(
            f"In {root} something that is no folder, or is a link, has a camera's name.",
            hint="Move it away, or choose another folder.",
        )
    why = err.strerror or str(err)
    return Unwritable(
        f"{root} cannot be written: {why}.",
        hint="Choose a folder that you may write (--into), on a disk that works.",
    )


@contextmanager
def closing(file: int) -> Iterator[int]:
    """A descriptor, closed at the end."""
    try:
        yield file
    finally:
        os.close(file)


def summed(file: int, into: Sum, stopping: Stopping = lambda: False) -> Sum:
    """All of a file's bytes from where it stands, added up; it then stands at its end."""
    while piece := os.read(file, READ_BYTES):
        into.add(piece)
        if stopping():
            raise Stopped
    return into


def write(file: int, content: bytes) -> None:
    """All of `content`, however little the system takes at once."""
    done = 0
    while done < len(content):
        written = os.write(file, memoryview(content)[done:])
        if not written:
            raise OSError(errno.EIO, "the file system takes no more bytes")
        done += written


def date(file: int, start: datetime) -> None:
    """The file is as old as its clip: a convenience that not every file system grants."""
    with suppress(OSError, OverflowError):
        os.utime(file, ns=(to_ms(start) * 1_000_000,) * 2)


def place(folder: int, own: str, name: str) -> None:
    """Give a finished file its name, durably; FileExistsError if something has it.

    Without hard links (FAT, some shares) it is looked and then renamed: nobody else restores here.
    """
    try:
        os.link(own, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(own, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(own, dir_fd=folder)
    sync(folder)


def sync(folder: int) -> None:
    """What names a folder holds, on the disk."""
    with suppress(OSError):  # some shares cannot; their servers order names by themselves
        os.fsync(folder)
