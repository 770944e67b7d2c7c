"""Snapshots: online copies of the checkpoint, the latest few, in a folder beside it.

Each is one self-contained file that SQLite has found sound before it took its place, so a rebuild
can begin with it. Taking one must never hold up an outcome, never leave half a file under a
snapshot's name, never fill the disk that the checkpoint itself needs, and never replace a sound
snapshot by a damaged one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from nvr_backup import soundness
from nvr_backup.clock import Clock
from nvr_backup.database import FILE_NAME, MIGRATIONS, CheckpointError, RebuildNeeded, hand_over
from nvr_backup.model import EPOCH

STEP_PAGES: Final = 1024
REST_SECONDS: Final = 0.005
"""Between two steps of 4 MiB: whoever waits for the disk meanwhile gets it."""

FREE_BYTES: Final = 8 * 1024**2
PACE_BYTES_PER_SECOND: Final = 32 * 1024
"""A checkpoint larger than FREE_BYTES is copied so seldom that no more than this is written on
average: a flash card is not worn out by a large one (2.8 GB a day at most)."""

ROOM_BYTES: Final = 64 * 1024**2
"""What must be left free on the disk beside the new snapshot."""

_LOOK_EVERY: Final = 10_000
"""Instructions of SQLite between two looks whether the program is stopping: a millisecond."""

T = TypeVar("T")

_TIME: Final = "%Y%m%dT%H%M%S.%f"
_PARTIAL: Final = ".partial"

_FINGERPRINT: Final = (
    "SELECT (SELECT max(id) FROM clip), (SELECT max(id) FROM copy), (SELECT max(id) FROM attempt),"
    " (SELECT count(*) FROM copy WHERE state = 'waiting')"
)
"""Differs whenever a clip was planned, carried, failed, set aside or retried. How far listings
have come is left out: a rebuild lists again anyway."""


class _Abandoned(Exception):
    """The program is stopping."""


class Snapshots:
    """Takes snapshots of the checkpoint in a state folder. `stop` may be called at any time."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._stopping = threading.Event()

    async def take(self, keep: int) -> Path | None:
        """A new snapshot, and the `keep` latest ones stay; None when there is no need for one.

        Raises RebuildNeeded when the checkpoint itself turns out to be damaged, CheckpointError
        when no snapshot can be written.
        """
        try:
            now = self._clock.now()
            return await _to_its_end(lambda: self._take(keep, now))
        except _Abandoned:
            return None
        except (OSError, *soundness.SQLITE_ERRORS) as err:
            raise CheckpointError(
                f"No snapshot of the checkpoint could be written: {err}.",
                hint=f"Look for a full or failing disk below {self._state_dir}.",
            ) from err

    async def bare_copy(self, snapshot: Path) -> Path | None:
        """A copy beside the snapshot without upload sessions, not even in pages out of use.

        For the caller to remove; None when the program is stopping. CheckpointError when there is
        no room for it; OSError or one of SQLITE_ERRORS when it cannot be made.
        """
        target = snapshot.with_name(f"{snapshot.name}.bare{_PARTIAL}")
        try:
            await _to_its_end(lambda: self._write_bare(snapshot, target))
        except _Abandoned:
            return None
        except BaseException:
            target.unlink(missing_ok=True)  # cancelled when it was complete already
            raise
        return target

    def stop(self) -> None:
        """Give up what is under way, and take no more."""
        self._stopping.set()

    def _write_bare(self, snapshot: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        try:
            with closing(soundness.look_at(snapshot)) as source:
                _require_room(target.parent, _bytes_of(source), ROOM_BYTES)
                _new_file(target)
                source.set_progress_handler(self._stopping.is_set, _LOOK_EVERY)
                source.execute("VACUUM INTO ?", (str(target),))
            with closing(sqlite3.connect(target, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=OFF")
                connection.execute("PRAGMA secure_delete=ON")
                connection.execute("DELETE FROM upload")
        except BaseException as err:
            target.unlink(missing_ok=True)
            if self._stopping.is_set():
                raise _Abandoned from err
            raise

    def _take(self, keep: int, now: datetime) -> Path | None:
        folder = self._state_dir / soundness.SNAPSHOTS_FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        hand_over(folder)
        for left_over in folder.glob(f"*{_PARTIAL}*"):
            left_over.unlink()
        taken = all_snapshots(self._state_dir, now)
        _prune(taken[keep:])
        if not keep:
            return None
        with closing(soundness.look_at(self._state_dir / FILE_NAME)) as source:
            source.execute("BEGIN")  # one state of it, whatever is written meanwhile
            mark = source.execute(_FINGERPRINT).fetchone()
            size = _bytes_of(source)
            if taken and (_is_too_soon(taken[0], size, now) or _mark_of(taken[0]) == mark):
                return None
            _require_room(folder, size, ROOM_BYTES)
            target = folder / f"checkpoint-{now:{_TIME}}Z.sqlite3"
            partial = target.with_name(target.name + _PARTIAL)
            try:
                self._write(source, partial)
                partial.rename(target)
            finally:
                partial.unlink(missing_ok=True)
        _sync(folder)
        _prune(all_snapshots(self._state_dir, now)[keep:])
        return target

    def _write(self, source: sqlite3.Connection, partial: Path) -> None:
        def step(_status: int, _remaining: int, _total: int) -> None:
            if self._stopping.wait(REST_SECONDS):
                raise _Abandoned

        _copy(source, partial, step)
        hand_over(partial)
        if what := soundness.examine(partial, MIGRATIONS):
            if mine := soundness.damage(source, self._state_dir / FILE_NAME):
                raise RebuildNeeded(self._state_dir / FILE_NAME, mine)
            raise CheckpointError(
                f"A snapshot of the checkpoint came out {what}.",
                hint="Look for a failing disk.",
            )
        _sync(partial)


def sound_snapshots(state_dir: Path, now: datetime) -> Iterator[Path]:
    """The snapshots that can be relied on, the latest first."""
    for path in all_snapshots(state_dir, now):
        if why_unsound(path) is None:
            yield path


def why_unsound(path: Path) -> str | None:
    """Why this file cannot stand in for the checkpoint; None when it can."""
    try:
        if what := soundness.examine(path, MIGRATIONS):
            return what
        with closing(soundness.look_at(path)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
    except (OSError, *soundness.SQLITE_ERRORS) as err:
        return f"not usable: {err}"
    if not 0 < version <= len(MIGRATIONS):
        return f"of schema {version}, this program knows {len(MIGRATIONS)}"
    return None


def copy_database(source: Path, target: Path, *, leave: int = 0) -> None:
    """Copy a checkpoint or a snapshot, with what its write-ahead log holds.

    CheckpointError when it cannot be done, or fewer than `leave` bytes would stay free beside it.
    """
    try:
        with closing(soundness.look_at(source)) as connection:
            _require_room(target.parent, _bytes_of(connection), leave)
            _copy(connection, target, lambda *_: None)
    except (OSError, *soundness.SQLITE_ERRORS) as err:
        raise CheckpointError(f"{source} cannot be copied to {target}: {err}.") from err


def _copy(source: sqlite3.Connection, target: Path, step: Callable[[int, int, int], None]) -> None:
    """In steps; the file is whole, but not yet on the disk, when this returns."""
    _new_file(target)
    with closing(sqlite3.connect(target, isolation_level=None)) as written:
        # Nobody looks at it before it is complete: no journal, and one sync at the end.
        written.execute("PRAGMA journal_mode=OFF")
        written.execute("PRAGMA synchronous=OFF")
        source.backup(written, pages=STEP_PAGES, progress=step)
        written.execute("PRAGMA journal_mode=DELETE")  # a single file, without a log beside it


def _new_file(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _require_room(folder: Path, size: int, leave: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + leave:
        raise CheckpointError(
            f"There is no room for a copy of the checkpoint: {free // 1024**2} MiB are free below "
            f"{folder}, it needs {-(-(size + leave) // 1024**2)} MiB.",
            hint="Free some space there.",
        )


async def _to_its_end(work: Callable[[], T]) -> T:
    """In a thread; who is cancelled meanwhile waits for its end, so that nothing is left behind."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # seen: the caller ends for another reason
        raise


def taken_at(path: Path) -> datetime:
    """When a snapshot was taken, by its name: copying a file changes the file's own time."""
    try:
        return datetime.strptime(path.name, f"checkpoint-{_TIME}Z.sqlite3").replace(tzinfo=UTC)
    except ValueError:
        return EPOCH


def all_snapshots(state_dir: Path, now: datetime) -> list[Path]:
    """The latest first; those taken under a clock that was ahead are the last."""
    folder = state_dir / soundness.SNAPSHOTS_FOLDER

    def age(path: Path) -> tuple[bool, datetime]:
        return taken_at(path) <= now, taken_at(path)

    return sorted(folder.glob(soundness.SNAPSHOT_PATTERN), key=age, reverse=True)


def _prune(old: list[Path]) -> None:
    for path in old:
        path.unlink(missing_ok=True)


def _is_too_soon(latest: Path, size: int, now: datetime) -> bool:
    elapsed = (now - taken_at(latest)).total_seconds()
    return 0 <= elapsed < max(0, size - FREE_BYTES) / PACE_BYTES_PER_SECOND


def _mark_of(path: Path) -> tuple[int, ...] | None:
    try:
        with closing(soundness.look_at(path)) as connection:
            found: tuple[int, ...] = connection.execute(_FINGERPRINT).fetchone()
            return found
    except (OSError, *soundness.SQLITE_ERRORS):
        return None


def _bytes_of(connection: sqlite3.Connection) -> int:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return int(pages) * int(connection.execute("PRAGMA page_size").fetchone()[0])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
