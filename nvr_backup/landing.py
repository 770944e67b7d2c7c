"""The folder that footage is restored into: names, partial files, and what is there already.

    DIR/Front Door/2026-03-01_17-20-05Z.mp4                 whole, and proven to be
    DIR/Front Door/2026-03-01_17-20-05Z.mp4.1a2b3c4d.part   on its way; the next run goes on with it
    DIR/Front Door/2026-03-01_17-20-05Z.damaged.mp4         not what was stored, kept for a person

Camera names come from outside: every path is made here of safe names, walked by descriptor and
without following links. It must never write outside the folder, never replace or change a file
that it finds, and never let an unfinished file have a video's name. All methods block.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from nvr_backup.arriving import (
    FILE_MODE,
    PART,
    Found,
    Part,
    Stopping,
    Sum,
    Unwritable,
    closing,
    explained,
    place,
    summed,
    sync,
    write,
)
from nvr_backup.model import to_ms

FOLDER_MODE: Final = 0o750

_PART_NAME: Final = re.compile(r"(?P<file>.+)\.[0-9a-f]{8}(\.damaged)?\.part")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


class Landing:
    """The folder, made if need be and held against another restore into it until `close`.

    Reading a large file ends early, with `Stopped`, once `stopping` says so.
    """

    def __init__(self, path: Path, stopping: Stopping = lambda: False) -> None:
        self.path = path
        self._stopping = stopping
        self._root = -1

    def open(self) -> None:
        """Raises Unwritable when the folder cannot be made or is in use."""
        with explained(self.path):
            try:
                self.path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            except FileExistsError as err:
                raise Unwritable(
                    f"{self.path} is no folder.", hint="Choose another one (--into)."
                ) from err
            self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise Unwritable(
                    f"Another restore into {self.path} is under way.",
                    hint="Wait for its end, or choose another folder.",
                ) from err
            except OSError as err:  # a share without locks
                if err.errno not in _NO_LOCKS:
                    raise

    def close(self) -> None:
        """Let go of the folder. Never raises."""
        if self._root >= 0:
            with suppress(OSError):
                os.close(self._root)
            self._root = -1

    def free_bytes(self) -> int:
        """What an ordinary user may still write."""
        with explained(self.path):
            space = os.fstatvfs(self._root)
        return space.f_bavail * space.f_frsize

    def compare(
        self, folder: str, name: str, wanted: Collection[tuple[int, int | None]], start: datetime
    ) -> tuple[Found, Sum]:
        """Whether a file has one of these sizes and checksums; what its bytes come to.

        Without a known checksum a file of that size counts as the same if it has the clip's time:
        only a whole one is ever given that.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with explained(self.path):
            try:
                with self._opened(folder) as above:
                    file = os.open(name, flags, dir_fd=above)
            except FileNotFoundError:
                return Found.NOTHING, Sum()
            except OSError as err:
                if err.errno == errno.ELOOP:
                    return Found.OTHER, Sum()
                raise
            with closing(file):
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode) or status.st_size not in dict(wanted):
                    return Found.OTHER, Sum()
                found = summed(file, Sum(), self._stopping)
        if (found.size, found.crc32c) in wanted:
            return Found.SAME, found
        timed = status.st_mtime_ns // 1_000_000 == to_ms(start)
        same = timed and (found.size, None) in wanted
        return (Found.SAME if same else Found.OTHER), found

    def part(self, folder: str, name: str, token: str, *, inspected: bool) -> Part:
        """The partial file of `name` whose bytes are those of `token`, as far as it has come."""
        with explained(self.path):
            made = self._made(folder)
            try:
                return Part(
                    made,
                    name,
                    f"{name}.{token}{PART}",
                    root=self.path,
                    inspected=inspected,
                    stopping=self._stopping,
                )
            except BaseException:
                os.close(made)
                raise

    def leftovers(self, folder: str) -> dict[str, list[str]]:
        """What earlier runs have left on its way in a folder, by the name it was to become."""
        found: dict[str, list[str]] = {}
        with explained(self.path), suppress(FileNotFoundError), self._opened(folder) as above:
            for each in os.listdir(above):  # noqa: PTH208 - a descriptor: no link is followed
                match = _PART_NAME.fullmatch(each)
                if match is not None:
                    found.setdefault(match["file"], []).append(each)
        return found

    def remove_parts(self, folder: str, names: Iterable[str]) -> None:
        """Remove partial files whose clip is there now."""
        with explained(self.path), suppress(FileNotFoundError), self._opened(folder) as above:
            for name in names:
                if _PART_NAME.fullmatch(name):
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=above)

    def write_new(self, name: str, pieces: Iterable[bytes]) -> None:
        """A whole file directly in the folder; FileExistsError if the name is taken."""
        with explained(self.path):
            with suppress(FileNotFoundError):
                os.unlink(f"{name}{PART}", dir_fd=self._root)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with closing(os.open(f"{name}{PART}", flags, FILE_MODE, dir_fd=self._root)) as file:
                for piece in pieces:
                    write(file, piece)
        self.adopt(name)

    def adopt(self, name: str) -> None:
        """Let a whole `NAME.part` directly in the folder become NAME; FileExistsError if taken."""
        with explained(self.path):
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            with closing(os.open(f"{name}{PART}", flags, dir_fd=self._root)) as file:
                os.fsync(file)
            place(self._root, f"{name}{PART}", name)

    def discard(self, name: str) -> None:
        """Remove `NAME.part` directly in the folder, if it is there."""
        with explained(self.path), suppress(FileNotFoundError):
            os.unlink(f"{name}{PART}", dir_fd=self._root)

    def has(self, name: str) -> bool:
        """Whether something directly in the folder has this name."""
        with explained(self.path):
            try:
                os.stat(name, dir_fd=self._root, follow_symlinks=False)
            except FileNotFoundError:
                return False
            return True

    @contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        with closing(os.open(folder, _FOLDER, dir_fd=self._root)) as above:
            yield above

    def _made(self, folder: str) -> int:
        try:
            os.mkdir(folder, FOLDER_MODE, dir_fd=self._root)
        except FileExistsError:
            pass
        else:
            sync(self._root)
        return os.open(folder, _FOLDER, dir_fd=self._root)
