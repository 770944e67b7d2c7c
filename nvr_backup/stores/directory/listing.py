"""Looking at and tidying what is there: walk in key order, delete, probe, clear old partials.

All functions block; the walk is a generator, so that a listing of any length needs the names of
one folder per level only. It must never follow a symbolic link, never show the store's own folder,
and never pass off a folder it could not read as an empty one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice

from nvr_backup.errors import Blocked
from nvr_backup.model import StoredObject
from nvr_backup.stores.directory import sidecar as sidecars
from nvr_backup.stores.directory.faults import translated
from nvr_backup.stores.directory.files import (
    PRIVATE,
    closing,
    is_private,
    open_folder,
    place,
    regular,
    remove,
    split_key,
    sync_folder,
    walk_to,
)
from nvr_backup.stores.directory.settings import MIB
from nvr_backup.stores.directory.site import PARTIAL, Site, write_file

PARTIAL_LIFE_SECONDS = 7 * 24 * 3600
"""An unfinished upload untouched for so long is cleared away; its clip starts over."""

CLEARED_AT_ONCE = 1000
"""Entries looked at in one probe, so that a probe stays short."""

PROBE = PRIVATE + b"-probe-"
"""What the names of a probe's files begin with, in the root before the very first upload."""


def describe(site: Site, key: str) -> StoredObject | None:
    """The object under a key, or None."""
    names = split_key(key)
    with translated(site.path, key), closing(site.open()) as root:
        try:
            folder = walk_to(root, names[:-1])
        except (FileNotFoundError, NotADirectoryError):
            return None
        with closing(folder):
            found = regular(folder, names[-1])
        return None if found is None else sidecars.describe(root, key, found.st_size)


def delete(site: Site, key: str, generation: str | None) -> None:
    """Remove an object durably, then its sidecar; absent, or another generation, is no error."""
    names = split_key(key)
    with translated(site.path, key), site.lock(key), closing(site.open()) as root:
        try:
            folder = walk_to(root, names[:-1])
        except (FileNotFoundError, NotADirectoryError):
            return
        with closing(folder):
            found = regular(folder, names[-1])
            if found is None:
                return
            known = sidecars.describe(root, key, found.st_size)
            if generation is not None and known.generation != generation:
                return
            remove(folder, names[-1])
            sync_folder(folder)
        sidecars.erase(root, key)


def walk(site: Site, prefix: str) -> Generator[StoredObject, None, None]:
    """Every object whose key begins with `prefix`, in the order of the keys' UTF-8 bytes."""
    with translated(site.path), closing(site.open()) as root:
        yield from _walk(root, root, b"", prefix.encode(errors="surrogatepass"))


def folders(site: Site, prefix: str) -> list[str]:
    """The folders of one level whose path begins with `prefix`, each with a slash at its end."""
    wanted = prefix.encode(errors="surrogatepass")
    above, slash, _ = wanted.rpartition(b"/")
    components = tuple(above.split(b"/")) if slash else ()
    hidden = bool(components) and is_private(components[0])
    if hidden or any(name in (b"", b".", b"..") for name in components):
        return []
    with translated(site.path), closing(site.open()) as root:
        try:
            folder = walk_to(root, components)
        except (FileNotFoundError, NotADirectoryError):
            return []
        with closing(folder):
            names = _names(folder, above + slash, wanted)
    return [(above + slash + name).decode() for name in names if name.endswith(b"/")]


def _walk(root: int, folder: int, path: bytes, prefix: bytes) -> Iterator[StoredObject]:
    for name in _names(folder, path, prefix):
        full = path + name
        if not name.endswith(b"/"):
            found = regular(folder, name)
            if found is not None:
                yield sidecars.describe(root, full.decode(), found.st_size)
            continue
        try:
            child = open_folder(folder, name[:-1])
        except FileNotFoundError:
            continue  # removed meanwhile
        with closing(child):
            yield from _walk(root, child, full, prefix)


def _names(folder: int, path: bytes, prefix: bytes) -> list[bytes]:
    """The names in a folder that can lead to `prefix`, folders with a slash, in key order.

    The slash belongs to the order: all of `a/` comes after `a-b` and before `a0`.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not path and is_private(name):
                continue
            if entry.is_dir(follow_symlinks=False):
                name += b"/"
            elif not entry.is_file(follow_symlinks=False):
                continue
            full = path + name
            leads_there = full.startswith(prefix) or (
                name.endswith(b"/") and prefix.startswith(full)
            )
            if leads_there and _is_text(name):
                names.append(name)
    names.sort()
    return names


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False  # no key is like that: not ours
    return True


def probe(site: Site, *, reserve_bytes: int, now: datetime) -> None:
    """Whether a file can be created and placed here; Blocked with the reason if not."""
    with translated(site.path), closing(site.open()) as root:
        _require_space(site.path, root, reserve_bytes)
        clear_old(root, now, only=PROBE)  # of a first probe that was killed
        try:
            folder = walk_to(root, (PRIVATE, PARTIAL))
        except FileNotFoundError:  # the very first use
            folder = os.dup(root)
        else:
            clear_old(folder, now)
        with closing(folder):
            _try_out(folder)


def _require_space(path: str, root: int, reserve_bytes: int) -> None:
    space = os.fstatvfs(root)
    if space.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    free = space.f_bavail * space.f_frsize
    if free < reserve_bytes:
        raise Blocked(
            f"The disk of the store {path} is full: {free // MIB} MiB free, "
            f"{reserve_bytes // MIB} MiB are the least.",
            hint="Free some space (delete old footage) or give the store a bigger disk.",
        )
    if space.f_files and not space.f_favail:
        raise Blocked(
            f"The disk of the store {path} holds as many files as it can (no free inodes).",
            hint="Delete old footage, or format the disk with more inodes.",
        )


def _try_out(folder: int) -> None:
    """Create and place a small file as a clip would be, and remove it again."""
    name = PROBE + secrets.token_hex(16).encode()
    placed = name + b"-placed"
    try:
        write_file(folder, name, b"\0" * 4096)
        place(folder, name, folder, placed)
    finally:
        remove(folder, name)
        remove(folder, placed)


def clear_old(folder: int, now: datetime, *, only: bytes = b"") -> None:
    """Remove partial files untouched for a week, unless an upload holds them.

    Those of uploads that could still be resumed are lost with them: they start over. `only` names
    that begin so are looked at.
    """
    oldest = now.timestamp() - PARTIAL_LIFE_SECONDS
    with os.scandir(folder) as entries:
        names = [os.fsencode(entry.name) for entry in islice(entries, CLEARED_AT_ONCE)]
    for name in names:
        if not name.startswith(only):
            continue
        found = regular(folder, name)
        if found is None or found.st_mtime > oldest:
            continue
        with suppress(OSError):  # in use, or already gone: not worth a failing probe
            file = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
            with closing(file):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder, name)
