"""The checkpoint's SQLite file: opened safely, migrated, locked to one engine, on one thread.

This module knows files, schema versions and transactions and nothing about clips. It must never let
two engines work on one database, never open a database of a newer program, and never wait for the
disk on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Final, TypeVar

from nvr_backup import soundness
from nvr_backup.errors import ConfigError, NvrBackupError

FILE_NAME: Final = "checkpoint.sqlite3"
LOCK_NAME: Final = "engine.lock"
IN_MEMORY: Final = Path(":memory:")

MIGRATIONS: Final[tuple[str, ...]] = ("schema.sql",)
"""Scripts in order: the database's `user_version` says how many of them it has seen."""

T = TypeVar("T")


class CheckpointError(NvrBackupError):
    """The checkpoint cannot be read or written; nothing can be carried safely without it."""


REBUILD: Final = (
    "Nothing was changed. Run `nvr-backup rebuild` (with the same --config): it makes a new one "
    "from what the stores hold, uploads nothing, and keeps the old file aside."
)


class RebuildNeeded(CheckpointError):
    """The checkpoint is damaged or lost: it stays as it is until `nvr-backup rebuild` is run."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"The checkpoint {path} is {what}.", hint=REBUILD)


class EngineRunningError(NvrBackupError):
    """Another engine (`run` or `once`) works on this state folder (exit 75)."""


def hand_over(path: Path) -> None:
    """What root made (`sudo nvr-backup …`) belongs to the owner of the folder that it is in.

    The service of another user could not open it otherwise; SQLite does so with its own files.
    """
    if os.geteuid() == 0:
        folder = path.parent.stat()
        with suppress(PermissionError):  # root without that right: a container, a share
            os.chown(path, folder.st_uid, folder.st_gid)


class EngineLock:
    """Held while an engine works on a state folder; released by the kernel if the process dies."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / LOCK_NAME
        self._file = -1

    def acquire(self) -> None:
        """Take the lock; EngineRunningError names the process that holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise EngineRunningError(
                f"Another nvr-backup (process {holder or 'unknown'}) works on {self._path.parent}.",
                hint="To start a cycle in the running daemon, send it SIGUSR1: "
                "`systemctl kill -s SIGUSR1 nvr-backup`, or `kill -USR1 "
                f"{holder or 'PID'}`. To see what it does: `nvr-backup status`.",
            ) from err
        hand_over(self._path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._file = descriptor

    def release(self) -> None:
        """Give the lock back; the file stays, else two processes could lock two different files."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Database:
    """One connection, used only from one thread of its own.

    `writable=False` serves the commands that look while a daemon works. Without a state folder the
    database is empty, in memory, and gone when it is closed. Raises RebuildNeeded for a file that
    is lost or evidently damaged; with `check` every page of it is looked at first.
    """

    def __init__(
        self, state_dir: Path | None, *, writable: bool = True, check: bool = False
    ) -> None:
        self.path = IN_MEMORY if state_dir is None else state_dir / FILE_NAME
        self._closed = False
        self._log = _WriteAheadLog(self.path)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        try:
            self._connection = self._executor.submit(self._open, writable, check).result()
        except BaseException:
            self._executor.shutdown()
            raise

    def _open(self, writable: bool, check: bool) -> sqlite3.Connection:
        try:
            if self.path is not IN_MEMORY and (what := soundness.lost(self.path)) is not None:
                raise RebuildNeeded(self.path, what)
            if check and self.path.exists():
                self._refuse(soundness.examine(self.path, MIGRATIONS))
            if not writable and not self.path.exists():
                raise CheckpointError(
                    f"There is no checkpoint at {self.path} yet.",
                    hint="Run `nvr-backup once` or start the daemon first, or name the right "
                    "configuration with --config.",
                )
            if writable and self.path is not IN_MEMORY:
                # SQLite would create it with the umask's mode, and so its journal.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                hand_over(self.path)
            connection = sqlite3.connect(
                self.path,
                timeout=soundness.BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, *soundness.SQLITE_ERRORS) as err:
            if soundness.is_damage(err):
                raise RebuildNeeded(self.path, f"damaged: {err}") from err
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be opened: {err}.",
                hint="Its folder (state_dir) must exist and belong to the user of the service; "
                "other users need sudo, or `sudo -u` that user.",
            ) from err
        try:
            self._prepare(connection, writable)
        except soundness.SQLITE_ERRORS as err:
            connection.close()
            if soundness.is_damage(err):
                raise RebuildNeeded(self.path, f"damaged: {err}") from err
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be used: {err}.",
                hint="Look for a full or failing disk and start again. Never delete it: it is the "
                "record of what is stored.",
            ) from err
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, writable: bool) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._refuse(soundness.foreign(connection))
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"The checkpoint {self.path} was written by a newer nvr-backup (schema {version}, "
                f"this program knows {len(MIGRATIONS)}).",
                hint="Install the newer version again; nothing was changed.",
            )
        if not writable:
            connection.execute("PRAGMA query_only=1")
            if version < len(MIGRATIONS):
                raise CheckpointError(
                    f"The checkpoint {self.path} has an older schema ({version}).",
                    hint="Start the daemon, or run `nvr-backup once`: either migrates it.",
                )
            return
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        self._migrate(connection, version)

    def _refuse(self, what: str | None) -> None:
        if what is not None:
            raise RebuildNeeded(self.path, what)

    def _migrate(self, connection: sqlite3.Connection, version: int) -> None:
        for number in range(version, len(MIGRATIONS)):
            script = files("nvr_backup").joinpath(MIGRATIONS[number]).read_text("utf-8")
            connection.execute("PRAGMA synchronous=FULL")
            # One transaction a step: a crash leaves the old schema or the new one.
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number + 1};\nCOMMIT;"
            )

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work(connection)` in the database's thread.

        Cancelling the caller does not stop the work: what was handed over is done, in order.
        """
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._executor, self._guarded, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            done.add_done_callback(_seen)  # nobody is left to hear of an error
            raise

    async def run_durably(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Like `run`; what was committed is on the disk when this returns."""
        result = await self.run(work)
        try:
            await self._log.reach_disk()
        except OSError as err:
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be brought to the disk: {err.strerror}.",
                hint="Look for a failing disk and start again.",
            ) from err
        return result

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connection)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a bug of ours
        except soundness.SQLITE_ERRORS as err:
            if soundness.is_damage(err):
                raise RebuildNeeded(self.path, f"damaged: {err}") from err
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be read or written: {err}.",
                hint="Look for a full or failing disk and start again; what was recorded is safe.",
            ) from err

    def close(self) -> None:
        """Finish what was begun and close; short, and safe to call twice."""
        if not self._closed:
            self._closed = True
            with suppress(sqlite3.Error):  # every outcome is on the disk already
                self._executor.submit(self._connection.close).result()
            self._executor.shutdown()
            self._log.close()


async def open_checked(state_dir: Path) -> Database:
    """The database, looked at page by page; not on the event loop's thread, it can take seconds."""
    opening = asyncio.ensure_future(asyncio.to_thread(Database, state_dir, check=True))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The lock must not be given back while a thread of ours may still write.
        await asyncio.wait({opening})
        if opening.exception() is None:
            opening.result().close()
        raise


class _WriteAheadLog:
    """Brings SQLite's write-ahead log to the disk, at once for all who wait at the same time.

    In WAL mode `synchronous=FULL` is one sync of the log after each commit (sqlite.org/wal.html);
    with `synchronous=NORMAL` and this, many transactions share one, and the next transaction need
    not wait for it. SQLite itself syncs the log before it moves anything into the database.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}-wal")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-disk")
        self._file = -1
        self._asked = 0
        self._reached = 0
        self._syncing: asyncio.Future[None] | None = None

    async def reach_disk(self) -> None:
        """Everything committed before this call is on the disk when it returns; OSError."""
        self._asked += 1
        mine = self._asked
        while self._reached < mine:
            if self._syncing is None:
                self._syncing = asyncio.ensure_future(self._sync_once())
                self._syncing.add_done_callback(_seen)
            await asyncio.shield(self._syncing)

    async def _sync_once(self) -> None:
        asked = self._asked
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._sync)
            self._reached = asked
        finally:
            self._syncing = None

    def _sync(self) -> None:
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        os.fdatasync(self._file)

    def close(self) -> None:
        """Give the file back. SQLite has removed or synced the log by then."""
        self._thread.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _seen(done: asyncio.Future[T]) -> None:
    if not done.cancelled():
        done.exception()


@contextmanager
def transaction(connection: sqlite3.Connection, *, durable: bool) -> Iterator[None]:
    """All or nothing. `durable`: on the disk when the block ends; else atomic, and durable soon.

    In WAL mode `synchronous=NORMAL` can lose the latest transactions in a power cut, never their
    order or the database's integrity (sqlite.org/pragma.html#pragma_synchronous).
    """
    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back on some errors (a full disk)
            connection.execute("ROLLBACK")
        raise
