"""Where a rebuilt checkpoint is made, what it begins with, and how it takes the old one's place.

A sound checkpoint is worked on in place. Anything else stays untouched until its successor is
complete and on the disk; then it is moved aside, never removed. A kill at any point leaves the old
files where they were or beside, under a dated name, and no engine starts before a rebuild is done.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Final

from nvr_backup import soundness
from nvr_backup.adapters import open_store
from nvr_backup.clock import Clock
from nvr_backup.database import (
    FILE_NAME,
    CheckpointError,
    Database,
    EngineLock,
    RebuildNeeded,
    hand_over,
)
from nvr_backup.deposits import PREFIX, fetch_latest
from nvr_backup.errors import NvrBackupError
from nvr_backup.model import EPOCH
from nvr_backup.settings import Settings
from nvr_backup.snapshots import ROOM_BYTES, copy_database, sound_snapshots, why_unsound

BUILDING: Final = f"{FILE_NAME}.rebuilding"
"""A folder beside the checkpoint: its successor while it is being made."""

_DRY_RUN: Final = "dry-run-"


class Basis(StrEnum):
    """What a rebuild begins with."""

    CHECKPOINT = "checkpoint"
    """The present one is sound: it is only added to."""
    SNAPSHOT = "snapshot"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. `without` are stores that are not to be listed."""

    dry_run: bool = False
    snapshot: Path | None = None
    use_snapshots: bool = True
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Start:
    """What there is to begin with. `damage` says what is wrong with the old file ("": nothing)."""

    basis: Basis
    damage: str = ""
    snapshot: str = ""


@contextmanager
def alone(state_dir: Path, wish: Wish) -> Iterator[None]:
    """No engine works meanwhile: EngineRunningError. A dry run touches nothing that one has."""
    if wish.dry_run:
        yield
        return
    lock = EngineLock(state_dir)
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except OSError as err:
        raise _unusable(state_dir, err) from err
    try:
        yield
    finally:
        lock.release()


@asynccontextmanager
async def workplace(
    settings: Settings, wish: Wish, clock: Clock
) -> AsyncIterator[tuple[Database, Start]]:
    """The database to write to: the sound checkpoint itself, or one that can take its place."""
    state_dir = settings.state_dir
    if not wish.dry_run:
        # Of one that was killed.
        for left_over in (state_dir / BUILDING, *state_dir.glob(f"{_DRY_RUN}*")):
            shutil.rmtree(left_over, ignore_errors=True)
    sound, damage = _examined(state_dir, writable=not wish.dry_run)
    if sound and not wish.dry_run:
        database = Database(state_dir)
        try:
            yield database, Start(Basis.CHECKPOINT)
        finally:
            database.close()
        return
    folder = _fresh_folder(state_dir, wish)
    try:
        if sound:
            copy_database(state_dir / FILE_NAME, folder / FILE_NAME, leave=ROOM_BYTES)
            start = Start(Basis.CHECKPOINT)
        else:
            start = await _started(settings, wish, clock, folder, damage)
        database = Database(folder, check=True)
        try:
            yield database, start
        finally:
            database.close()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if wish.dry_run:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(state_dir: Path, now: datetime) -> list[str]:
    """The new file takes the old one's place; returns where the old files are now.

    The old write-ahead log must be away first, on the disk as well: after a power cut SQLite would
    replay it into the new file.
    """
    built = state_dir / BUILDING / FILE_NAME
    if built.with_name(f"{FILE_NAME}-wal").exists():
        raise CheckpointError(
            f"The new checkpoint {built} could not be completed.",
            hint="Look for a full or failing disk and run this again.",
        )
    try:
        _sync(built)
        _sync(built.parent)
        kept = _moved_aside(state_dir, now)
        _sync(state_dir)
        built.rename(state_dir / FILE_NAME)
        _sync(state_dir)
        shutil.rmtree(built.parent)
    except OSError as err:
        raise _unusable(state_dir, err) from err
    return kept


def _moved_aside(state_dir: Path, now: datetime) -> list[str]:
    """The old file and its log, under names that nothing has; one that is empty holds nothing."""
    kept = []
    name = _free_name(state_dir, f"{FILE_NAME}.damaged-{now:%Y%m%dT%H%M%SZ}")
    for suffix in ("", "-wal"):
        old = state_dir / f"{FILE_NAME}{suffix}"
        with suppress(FileNotFoundError):
            if not old.stat().st_size:
                old.unlink()
                continue
            aside = state_dir / f"{name}{suffix}"
            old.rename(aside)
            kept.append(str(aside))
    (state_dir / f"{FILE_NAME}-shm").unlink(missing_ok=True)
    return kept


def _free_name(state_dir: Path, name: str) -> str:
    """A clock can show the same second again: what is kept already is never replaced."""
    names = (f"{name}-{number}" if number > 1 else name for number in count(1))
    return next(name for name in names if not any(state_dir.glob(f"{name}*")))


def _examined(state_dir: Path, *, writable: bool) -> tuple[bool, str]:
    """Whether there is a sound checkpoint, and what is wrong otherwise.

    `writable`: one with an older schema is then migrated, as at every start.
    """
    path = state_dir / FILE_NAME
    try:
        if soundness.lost(path) is None and not (path.exists() and path.stat().st_size):
            return False, f"There is no checkpoint {path}."
        Database(state_dir, writable=writable, check=True).close()
    except RebuildNeeded as err:
        return False, err.message
    except OSError as err:
        raise _unusable(state_dir, err) from err
    return True, ""


async def _started(
    settings: Settings, wish: Wish, clock: Clock, folder: Path, damage: str
) -> Start:
    """Put what to begin with into the folder: a snapshot, if there is a sound one."""
    target = folder / FILE_NAME
    leave = ROOM_BYTES if wish.dry_run else 0
    if wish.snapshot is not None:
        if what := why_unsound(wish.snapshot):
            raise CheckpointError(f"{wish.snapshot} is no snapshot to begin with: it is {what}.")
        copy_database(wish.snapshot, target, leave=leave)
        return Start(Basis.SNAPSHOT, damage, str(wish.snapshot))
    if wish.use_snapshots:
        for snapshot in sound_snapshots(settings.state_dir, clock.now()):
            copy_database(snapshot, target, leave=leave)
            return Start(Basis.SNAPSHOT, damage, str(snapshot))
        try:
            store = await _fetched(settings, wish, clock, target)
        except OSError as err:
            raise _unusable(settings.state_dir, err) from err
        if store is not None:
            return Start(Basis.SNAPSHOT, damage, f"stores.{store}, {PREFIX}")
    return Start(Basis.NOTHING, damage)


async def _fetched(settings: Settings, wish: Wish, clock: Clock, target: Path) -> str | None:
    """The store whose latest deposit is now in `target`; None when no store gave a sound one.

    A store that cannot be asked says so when it is listed.
    """
    now = clock.now()
    best: tuple[tuple[bool, datetime], str, Path] | None = None
    for name, place in settings.stores.items():
        if name in wish.without:
            continue
        file = target.with_name(f"from-{name}")
        opened = open_store(
            name, place, clock, chunk_size=settings.transfer.chunk_size, used_before=False
        )
        with suppress(NvrBackupError):
            async with opened as store:
                taken = await fetch_latest(store, file, now)
                age = taken is not None and taken <= now, taken or EPOCH
                if taken and (best is None or age > best[0]):
                    best = age, name, file
    if best is None:
        return None
    copy_database(best[2], target)
    return best[1]


def _fresh_folder(state_dir: Path, wish: Wish) -> Path:
    try:
        if wish.dry_run:
            place = state_dir if os.access(state_dir, os.W_OK) else None
            return Path(tempfile.mkdtemp(prefix=_DRY_RUN, dir=place))
        folder = state_dir / BUILDING
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        folder.mkdir(mode=0o700)
        hand_over(folder)  # what is made in it takes its owner from it
    except OSError as err:
        raise _unusable(state_dir, err) from err
    return folder


def _unusable(state_dir: Path, err: OSError) -> CheckpointError:
    return CheckpointError(
        f"The state folder {state_dir} cannot be used: {err.strerror}.",
        hint="Run this as the user of the service (`sudo -u nvr-backup`); look for a full disk.",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
