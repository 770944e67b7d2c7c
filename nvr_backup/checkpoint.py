"""The checkpoint: the only queue and the only memory of this program, on one SQLite file.

Rows are kept for ever; a clip that is recorded as stored is never uploaded again. An outcome is one
transaction with `synchronous=FULL`: once `commit_stored` has returned, neither a crash nor a power
cut can undo it. A claim names this process's opening of the database and is void at the next one,
so a crash needs no clean-up. What must never happen here: a copy in two states, a key for two
clips, a reach that moves before its clips are in the backlog.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from nvr_backup.backlog import (
    Wanted,
    add,
    begin_reaches,
    known_clips,
    latest_start,
    most_wanted,
    next_due,
    rename,
)
from nvr_backup.database import (
    FILE_NAME,
    CheckpointError,
    Database,
    EngineLock,
    open_checked,
    transaction,
)
from nvr_backup.lives import Lives
from nvr_backup.model import Camera, StoredObject, UploadState, from_ms, to_ms
from nvr_backup.planner import Addition, KnownClip, Plan, Rules
from nvr_backup.rows import (
    WATERMARKS,
    Claim,
    Keys,
    Reaches,
    Tally,
    note_attempt,
    read_claim,
    read_reach,
    write_reaches,
    write_upload,
)

BATCH: Final = 2000
"""Clips planned in one transaction."""

NO_OPENING: Final = 0
"""Stands for an opening where there is none (`peek`): SQLite begins at 1."""


class Checkpoint:
    """Every change of state of every clip. Opened by one engine at a time; see `open`."""

    def __init__(self, database: Database, lock: EngineLock, opening: int) -> None:
        self._database = database
        self._lock = lock
        self._opening = opening
        self.lives = Lives(database)

    @classmethod
    async def open(cls, state_dir: Path, *, now: datetime) -> Self:
        """Open, creating or migrating the database, as its only engine.

        Every page of it is looked at first. Raises EngineRunningError beside another engine,
        RebuildNeeded when the file is damaged or lost, CheckpointError when it cannot be used,
        ConfigError when it belongs to a newer program.
        """
        lock = EngineLock(state_dir)
        try:
            await asyncio.to_thread(state_dir.mkdir, parents=True, exist_ok=True, mode=0o700)
            lock.acquire()
        except OSError as err:
            raise CheckpointError(
                f"The state folder {state_dir} cannot be used: {err.strerror}.",
                hint="Set `state_dir` to a folder that the user of the service may write.",
            ) from err
        try:
            database = await open_checked(state_dir)
        except BaseException:
            lock.release()
            raise

        def begin(db: sqlite3.Connection) -> int:
            with transaction(db, durable=True):
                row = db.execute("INSERT INTO opening (opened_ms) VALUES (?)", (to_ms(now),))
            return int(row.lastrowid or 0)  # an INSERT has one

        try:
            return cls(database, lock, await database.run(begin))
        except BaseException:
            database.close()
            lock.release()
            raise

    @classmethod
    async def peek(cls, state_dir: Path) -> Self:
        """Open only to look, without the lock, beside an engine if there is one.

        Nothing is written; where there is no database yet, an empty one in memory stands for it.
        Raises CheckpointError or ConfigError like `open`.
        """
        database = await asyncio.to_thread(cls._to_look_at, state_dir)
        return cls(database, EngineLock(state_dir), opening=NO_OPENING)

    @staticmethod
    def _to_look_at(state_dir: Path) -> Database:
        with suppress(PermissionError):  # the Database says so
            if not (state_dir / FILE_NAME).exists():
                return Database(None)
        return Database(state_dir, writable=False)

    @property
    def database(self) -> Database:
        """For what is none of the queue's business (the audit)."""
        return self._database

    def close(self) -> None:
        """Finish what was begun, close the file, release the lock."""
        self._database.close()
        self._lock.release()

    # -- planning -----------------------------------------------------------------------------

    async def note_pairs(self, pairs: Collection[tuple[str, str]], now: datetime) -> None:
        """Remember when each (source, store) was first configured: `backfill` counts from then.

        Nothing for one that only looks.
        """
        if self._opening == NO_OPENING:
            return

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.executemany(
                    "INSERT OR IGNORE INTO meta VALUES (?, ?)",
                    [(f"since {source} {store}", str(to_ms(now))) for source, store in pairs],
                )

        await self._database.run_durably(work)

    async def begin_reaches(
        self, cameras: Collection[Camera], stores: Collection[str], *, rules: Rules, now: datetime
    ) -> None:
        """Fix where the listings of new cameras begin (see `backlog.begin_reaches`)."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                begin_reaches(db, cameras, stores, rules=rules, now=now)

        await self._database.run_durably(work)

    async def reaches(self, camera: Camera) -> Reaches:
        """How far the camera's listings have come, by store."""
        return await self._database.run(lambda db: read_reach(db, camera))

    async def latest_start(self, camera: Camera) -> datetime | None:
        """The start of the latest clip of the camera on record."""
        return await self._database.run(lambda db: latest_start(db, camera))

    async def known(self, camera: Camera, first: datetime, last: datetime) -> list[KnownClip]:
        """Clips of the camera on record whose start lies in [first, last]."""
        return await self._database.run(lambda db: known_clips(db, camera, first, last))

    async def apply(self, camera: Camera, plan: Plan, *, keys: Keys, now: datetime) -> int:
        """Put a plan's clips into the backlog; returns the copies added.

        At most BATCH clips in a transaction, so that outcomes need not wait long for their turn.
        """

        def work(db: sqlite3.Connection, part: Sequence[Addition]) -> int:
            with transaction(db, durable=False):
                rename(db, plan.new_ids)
                return add(db, camera, part, keys=keys, now=now, opening=self._opening)

        added = 0
        for start in range(0, max(1, len(plan.additions)), BATCH):
            part = plan.additions[start : start + BATCH]
            added += await self._database.run_durably(lambda db, part=part: work(db, part))  # type: ignore[misc]
        return added

    async def advance(
        self, camera: Camera, reaches: Reaches, *, before: Reaches | None = None
    ) -> None:
        """Record how far the camera has been listed. Only after `apply` of what was listed.

        What is not as it was `before` was put back meanwhile (`verify --fix`), and stays.
        """

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                write_reaches(db, camera, reaches, before)

        await self._database.run_durably(work)

    async def last_cycle(self) -> datetime | None:
        """When the latest cycle began."""
        sql = "SELECT value FROM meta WHERE name = 'last_cycle_ms'"
        row = await self._database.run(lambda db: db.execute(sql).fetchone())
        return None if row is None else from_ms(int(row[0]))

    async def record_cycle(self, started: datetime) -> None:
        """Remember that a cycle begins."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                said = (str(to_ms(started)),)
                db.execute("INSERT OR REPLACE INTO meta VALUES ('last_cycle_ms', ?)", said)

        await self._database.run(work)

    # -- carrying -----------------------------------------------------------------------------

    async def claim(
        self,
        *,
        sources: Collection[str],
        stores: Collection[str],
        cameras: Callable[[Camera], bool],
        busy: Mapping[tuple[str, str], int],
        due: datetime | None,
        skip: Collection[int] = (),
    ) -> Claim | None:
        """Claim the due copy that has least time left (see `most_wanted`); None if there is none.

        Only copies from `sources` to `stores` of the `cameras` wanted count. `busy` tells how many
        claims each (source, camera id) has now. `due` is the moment to compare `not_before` with;
        None takes copies whether due or not, except those in `skip` (a cycle by hand tries each
        once).
        """

        def work(db: sqlite3.Connection) -> Claim | None:
            wanted = Wanted(sources, stores, cameras, busy, due, skip)
            best = most_wanted(db, wanted, opening=self._opening)
            if best is None:
                return None
            with transaction(db, durable=False):
                db.execute("UPDATE copy SET claim = ? WHERE id = ?", (self._opening, best))
            return read_claim(db, best)

        return await self._database.run(work)

    async def next_due(self, stores: Collection[str], now: datetime) -> datetime | None:
        """The earliest `not_before` after `now` of a waiting copy for `stores`."""
        return await self._database.run(lambda db: next_due(db, stores, now))

    async def save_upload(self, copy: int, state: UploadState) -> None:
        """Remember how far an upload is.

        Its first and its finishing state reach the disk before this returns; a later one may be
        lost in a power cut, which costs at most re-sending what came after the one before.
        """
        durable = state.offset == 0 or state.total is not None

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                write_upload(db, copy, state)

        await (self._database.run_durably(work) if durable else self._database.run(work))

    async def forget_upload(self, copy: int) -> None:
        """The upload cannot be continued: the next attempt begins at byte 0."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute("DELETE FROM upload WHERE copy = ?", (copy,))

        await self._database.run(work)

    async def change_key(self, copy: int, keys: Iterator[str]) -> str | None:
        """Give a copy the first free key of `keys` (None: there is none); forget its upload."""

        def work(db: sqlite3.Connection) -> str | None:
            with transaction(db, durable=False):
                db.execute("DELETE FROM upload WHERE copy = ?", (copy,))
                for key in keys:
                    sql = "UPDATE OR IGNORE copy SET object_key = ?, replaces = NULL WHERE id = ?"
                    if db.execute(sql, (key, copy)).rowcount:
                        return key
            return None

        return await self._database.run_durably(work)

    # -- outcomes -----------------------------------------------------------------------------

    async def commit_stored(
        self, copy: int, stored: StoredObject, *, verified: bool, tally: Tally, now: datetime
    ) -> None:
        """The store confirmed the whole object. On the disk when this returns."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "UPDATE copy SET state = 'stored', claim = NULL, reason = NULL, object_key = ?,"
                    " finished_ms = ?, size = ?, crc32c = ?, generation = ?, verified = ?,"
                    " replaces = NULL, proven_ms = NULL WHERE id = ?",
                    (
                        stored.key,
                        to_ms(now),
                        stored.size,
                        stored.crc32c,
                        stored.generation,
                        verified,
                        copy,
                    ),
                )
                db.execute("DELETE FROM upload WHERE copy = ?", (copy,))
                db.execute("DELETE FROM finding WHERE copy = ?", (copy,))
                db.execute(
                    "INSERT OR IGNORE INTO meta"
                    " SELECT 'stored in ' || store, '1' FROM copy WHERE id = ?",
                    (copy,),
                )
                note_attempt(db, copy, "stored", "", tally=tally, now=now)

        await self._database.run_durably(work)

    async def release(self, copy: int, reason: str | None = None) -> None:
        """Back to the backlog as it was: the clip is not to blame (drain, blocked store).

        A `reason` is kept: a clip that blocks its store again the same way is to be put off.
        """

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "UPDATE copy SET claim = NULL, reason = ifnull(?, reason) WHERE id = ?",
                    (reason, copy),
                )

        await self._database.run(work)

    async def put_off(
        self,
        copy: int,
        reason: str,
        *,
        again: int,
        not_before: datetime,
        tally: Tally,
        now: datetime,
    ) -> None:
        """Back to the backlog after a failure, not to be tried before `not_before`.

        `again` counts the latest failures of the same kind, this one included.
        """

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "UPDATE copy SET claim = NULL, attempts = attempts + 1, not_before_ms = ?,"
                    " same_reason = ?, reason = ? WHERE id = ?",
                    (to_ms(not_before), again, reason, copy),
                )
                note_attempt(db, copy, "failed", reason, tally=tally, now=now)

        await self._database.run_durably(work)

    async def set_aside(self, copy: int, reason: str, *, tally: Tally, now: datetime) -> None:
        """Give a copy up, by name and reason, until someone asks for it again (`retry`)."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "UPDATE copy SET state = 'set_aside', claim = NULL, attempts = attempts + 1,"
                    " reason = ?, finished_ms = ? WHERE id = ?",
                    (reason, to_ms(now), copy),
                )
                db.execute("DELETE FROM upload WHERE copy = ?", (copy,))
                note_attempt(db, copy, "set_aside", reason, tally=tally, now=now)

        await self._database.run_durably(work)

    async def counts(self) -> dict[str, int]:
        """Copies by state: waiting and set_aside (stored ones are too many to count each time)."""
        sql = (
            "SELECT (SELECT count(*) FROM copy WHERE state = 'waiting'),"
            " (SELECT count(*) FROM copy WHERE state = 'set_aside')"
        )
        waiting, set_aside = await self._database.run(lambda db: db.execute(sql).fetchone())
        return {"waiting": waiting, "set_aside": set_aside}

    async def has_stored(self, store: str) -> bool:
        """Whether any clip was ever stored there."""
        sql = "SELECT 1 FROM meta WHERE name = 'stored in ' || ?"
        return await self._database.run(lambda db: db.execute(sql, (store,)).fetchone()) is not None

    async def watermarks(self) -> dict[tuple[str, str, str], datetime]:
        """By (source, camera id, store): everything that ended before it is accounted for."""
        rows = await self._database.run(lambda db: db.execute(WATERMARKS).fetchall())
        return {(source, id_, store): from_ms(mark) for source, id_, store, mark in rows}
