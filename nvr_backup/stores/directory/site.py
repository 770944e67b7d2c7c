"""The root folder of a store and the marker by which it is recognised.

The root is opened anew for every operation, so nothing here keeps a share from being unmounted,
and each opening looks at the marker `.nvr-backup/store.json`: a folder that lost it, or carries
another one, is not the store but most likely the mount point of an absent disk. This must never
create the root, and never let an absent store look like an empty one.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from contextlib import suppress

from nvr_backup.errors import Blocked
from nvr_backup.stores.directory.files import (
    FILE_MODE,
    PRIVATE,
    Folders,
    closing,
    open_folder,
    place,
    remove,
    sync_folder,
)
from nvr_backup.stores.directory.settings import DirectorySettings

FORMAT = 1
PARTIAL = b"partial"
OBJECTS = b"objects"
REPLACED = b"replaced"
_MARKER = b"store.json"
_MARKER_LIMIT_BYTES = 4096
_ABOUT = (
    "This folder is a store of nvr-backup. The footage lies beside .nvr-backup as ordinary files; "
    "objects/ holds their metadata and partial/ the unfinished uploads."
)
_KEY_LOCKS = 64


class Site:
    """The store's place on disk, shared by everything that works in it. All methods block."""

    def __init__(self, settings: DirectorySettings) -> None:
        self.path = str(settings.path)
        self.folders = Folders()
        self._used_before = settings.used_before
        self._seen: bytes | None = None
        self._locks = tuple(threading.Lock() for _ in range(_KEY_LOCKS))

    def lock(self, key: str) -> threading.Lock:
        """Held while the object under a key and its sidecar appear or vanish together."""
        return self._locks[hash(key) % _KEY_LOCKS]

    def open(self) -> int:
        """A new descriptor of the root; Blocked when it is not there or not this store."""
        try:
            root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise Blocked(
                f"The store's folder {self.path} does not exist.",
                hint="Mount the disk or share it is on; at the first use create the folder "
                f"(mkdir -p {self.path}), owned by the user nvr-backup runs as.",
            ) from err
        # What was known before the look: another thread may leave the first marker right after it.
        known = self._seen is not None or self._used_before
        try:
            self._recognise(_read_marker(root), known=known)
        except BaseException:
            os.close(root)
            raise
        return root

    def open_for_writing(self) -> int:
        """Like `open`; at the very first use the marker is left in the root."""
        root = self.open()
        try:
            if self._seen is None:
                self._leave_marker(root)
        except BaseException:
            os.close(root)
            raise
        return root

    def _recognise(self, marker: bytes | None, *, known: bool) -> None:
        if marker is None:
            if not known:
                return
            raise Blocked(
                f"The folder {self.path} lost the marker .nvr-backup/store.json of this store.",
                hint="Most likely the disk or share is not mounted: mount it. If this is the "
                "right folder, put an empty file of that name there.",
            )
        if _format(marker) > FORMAT:
            raise Blocked(
                f"The store in {self.path} was written by a newer nvr-backup.",
                hint="Update nvr-backup.",
            )
        if self._seen is not None and marker != self._seen:
            raise Blocked(
                f"The folder {self.path} now holds another store than before.",
                hint="Mount the former disk again, or restart nvr-backup to go on with this one.",
            )
        self._seen = marker

    def _leave_marker(self, root: int) -> None:
        content = json.dumps(
            {"format": FORMAT, "id": secrets.token_hex(16), "about": _ABOUT}, indent=1
        ).encode()
        with closing(self.folders.make(root, (PRIVATE, PARTIAL))) as partial:
            name = b"store-%s.json" % secrets.token_hex(16).encode()
            try:
                write_file(partial, name, content)
                with closing(self.folders.make(root, (PRIVATE,))) as private:
                    with suppress(FileExistsError):  # another thread or process was first
                        place(partial, name, private, _MARKER)
                    sync_folder(private)
            finally:
                with suppress(OSError):
                    remove(partial, name)
        self._recognise(_read_marker(root), known=True)


def write_file(folder: int, name: bytes, content: bytes) -> None:
    """A small new file, durable but for its name."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE, dir_fd=folder)
    with closing(file):
        done = 0
        while done < len(content):
            done += os.write(file, content[done:])
        os.fsync(file)


def read_file(folder: int, name: bytes, limit_bytes: int) -> bytes | None:
    """A small file's content; None when there is none or it is larger than the limit."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    with closing(file):
        content = b""
        while len(content) <= limit_bytes:
            piece = os.read(file, limit_bytes + 1 - len(content))
            if not piece:
                return content
            content += piece
        return None


def _read_marker(root: int) -> bytes | None:
    try:
        private = open_folder(root, PRIVATE)
    except FileNotFoundError:
        return None
    with closing(private):
        return read_file(private, _MARKER, _MARKER_LIMIT_BYTES)


def _format(marker: bytes) -> int:
    """The marker's format; an operator's empty or unreadable one counts as the first."""
    try:
        value = json.loads(marker)
    except ValueError:
        return FORMAT
    found = value.get("format") if isinstance(value, dict) else None
    return found if isinstance(found, int) else FORMAT
