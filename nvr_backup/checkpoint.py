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

from nvr_backup.database import FILE_NAME, CheckpointError, Database, EngineLock, transaction
from nvr_backup.model import Camera, StoredObject, UploadState, from_ms, to_ms
from nvr_backup.planner import Addition, KnownClip, Plan, Reach, Rules, first_reach
from nvr_backup.rows import (
    WATERMARKS,
    Claim,
    Keys,
    Tally,
    camera_row,
    clip_row,
    first_use,
    insert_copy,
    note_attempt,
    read_claim,
    read_reach,
    write_reach,
)

BATCH: Final = 2000
"""Clips planned in one transaction."""

NO_OPENING: Final = 0
"""Stands for an opening where there is none (`peek`): SQLite begins at 1."""

_UNBELIEVABLE_MS: Final = 12 * 3600 * 1000
"""A copy put off for longer than this was put off under a wrong clock: it is due."""


class Checkpoint:
    """Every change of state of every clip. Opened by one engine at a time; see `open`."""

    def __init__(self, database: Database, lock: EngineLock, opening: int) -> None:
        self._database = database
        self._lock = lock
        self._opening = opening

    @classmethod
    async def open(cls, state_dir: Path, *, now: datetime) -> Self:
        """Open, creating or migrating the database, as its only engine.

        Raises EngineRunningError beside another engine, CheckpointError when the file cannot be
        used, ConfigError when it belongs to a newer program.
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
            database = Database(state_dir)
        except BaseException:
            lock.release()
            raise

        def begin(db: sqlite3.Connection) -> int:
            with transaction(db, durable=True):
                row = db.execute("INSERT INTO opening (opened_ms) VALUES (?)", (to_ms(now),))
            assert row.lastrowid is not None  # noqa: S101 - an INSERT has one
            return row.lastrowid

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
        """Fix where the listings of new cameras begin.

        The first cameras that a source ever shows begin a backfill before the source was
        configured, however long it took to reach it; later ones a backfill before now.
        """

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                for store in stores:
                    new = [camera for camera in cameras if store not in read_reach(db, camera)]
                    for source in {camera.source for camera in new}:
                        since = min(first_use(db, source, store, now), now)
                        for camera in new:
                            if camera.source == source:
                                reach = first_reach(rules, since)
                                write_reach(db, camera_row(db, camera), store, reach)

        await self._database.run_durably(work)

    async def reaches(self, camera: Camera) -> Mapping[str, Reach]:
        """How far the camera's listings have come, by store."""
        return await self._database.run(lambda db: read_reach(db, camera))

    async def latest_start(self, camera: Camera) -> datetime | None:
        """The start of the latest clip of the camera on record."""
        sql = (
            "SELECT max(start_ms) FROM clip WHERE camera ="
            " (SELECT id FROM camera WHERE source = ? AND source_id = ?)"
        )
        row = await self._database.run(
            lambda db: db.execute(sql, (camera.source, camera.id)).fetchone()
        )
        return None if row[0] is None else from_ms(row[0])

    async def known(self, camera: Camera, first: datetime, last: datetime) -> list[KnownClip]:
        """Clips of the camera on record whose start lies in [first, last]."""
        sql = (
            "SELECT clip.id, clip.source_id, clip.start_ms, clip.end_ms, group_concat(store, ' ')"
            " FROM clip LEFT JOIN copy ON copy.clip = clip.id"
            " WHERE clip.camera = (SELECT id FROM camera WHERE source = ? AND source_id = ?)"
            " AND clip.start_ms BETWEEN ? AND ? GROUP BY clip.id"
        )
        rows = await self._database.run(
            lambda db: db.execute(
                sql, (camera.source, camera.id, to_ms(first), to_ms(last))
            ).fetchall()
        )
        return [
            KnownClip(
                row=row,
                id=source_id,
                start=from_ms(start),
                end=None if end is None else from_ms(end),
                stores=frozenset((stores or "").split()),
            )
            for row, source_id, start, end, stores in rows
        ]

    async def apply(self, camera: Camera, plan: Plan, *, keys: Keys, now: datetime) -> int:
        """Put a plan's clips into the backlog; returns the copies added.

        At most BATCH clips in a transaction, so that outcomes need not wait long for their turn.
        """

        def work(db: sqlite3.Connection, part: Sequence[Addition]) -> int:
            with transaction(db, durable=False):
                row = camera_row(db, camera)
                for new in plan.new_ids:
                    db.execute(
                        "UPDATE OR IGNORE clip SET source_id = ? WHERE id = ?", (new.id, new.row)
                    )
                return sum(self._add(db, row, addition, keys, now) for addition in part)

        added = 0
        for start in range(0, max(1, len(plan.additions)), BATCH):
            part = plan.additions[start : start + BATCH]
            added += await self._database.run_durably(lambda db, part=part: work(db, part))  # type: ignore[misc]
        return added

    def _add(
        self, db: sqlite3.Connection, camera: int, addition: Addition, keys: Keys, now: datetime
    ) -> int:
        clip = addition.clip
        row = clip_row(db, camera, clip, now)
        moved: set[str] = set()
        if addition.instead_of is not None:
            # Copies that nobody has begun, or that were given up, become the longer version.
            moved = {
                store
                for (store,) in db.execute(
                    "UPDATE copy SET clip = ?1, state = 'waiting', attempts = 0, same_reason = 0,"
                    " not_before_ms = 0, reason = NULL, finished_ms = NULL"
                    " WHERE clip = ?2 AND state != 'stored' AND claim IS NOT ?3"
                    " AND id NOT IN (SELECT copy FROM upload)"
                    " AND store NOT IN (SELECT store FROM copy WHERE clip = ?1) RETURNING store",
                    (row, addition.instead_of, self._opening),
                )
            }
            db.execute(
                "DELETE FROM clip WHERE id = ?1 AND NOT EXISTS"
                " (SELECT 1 FROM copy WHERE clip = ?1)",
                (addition.instead_of,),
            )
        for store in sorted(addition.stores - moved):
            insert_copy(db, row, camera=camera, clip=clip, store=store, keys=keys)
        return len(addition.stores)

    async def advance(self, camera: Camera, reaches: Mapping[str, Reach]) -> None:
        """Record how far the camera has been listed. Only after `apply` of what was listed."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                row = camera_row(db, camera)
                for store, reach in reaches.items():
                    write_reach(db, row, store, reach)

        await self._database.run_durably(work)

    async def last_cycle(self) -> datetime | None:
        """When the latest cycle began."""
        row = await self._database.run(
            lambda db: db.execute("SELECT value FROM meta WHERE name = 'last_cycle_ms'").fetchone()
        )
        return None if row is None else from_ms(int(row[0]))

    async def record_cycle(self, started: datetime) -> None:
        """Remember that a cycle begins."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "INSERT INTO meta VALUES ('last_cycle_ms', ?1)"
                    " ON CONFLICT (name) DO UPDATE SET value = ?1",
                    (str(to_ms(started)),),
                )

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
        """Claim the oldest due copy of the camera with the fewest claims; None if there is none.

        Only copies from `sources` to `stores` of the `cameras` wanted count. `busy` tells how many
        claims each (source, camera id) has now. `due` is the moment to compare `not_before` with;
        None takes copies whether due or not, except those in `skip` (a cycle by hand tries each
        once).
        """

        def work(db: sqlite3.Connection) -> Claim | None:
            due_ms = to_ms(due) if due is not None else 1 << 62
            best: tuple[int, int, int] | None = None
            rows = db.execute("SELECT id, source, source_id, name FROM camera").fetchall()
            for camera, source, source_id, name in rows:
                if source not in sources or not cameras(Camera(source, source_id, name)):
                    continue
                load = busy.get((source, source_id), 0)
                if best is not None and load > best[0]:
                    continue
                for store in stores:
                    oldest = self._oldest(db, store, camera, due_ms, skip)
                    if oldest is not None and (best is None or (load, *oldest) < best):
                        best = (load, *oldest)
            if best is None:
                return None
            with transaction(db, durable=False):
                db.execute("UPDATE copy SET claim = ? WHERE id = ?", (self._opening, best[2]))
            return read_claim(db, best[2])

        return await self._database.run(work)

    def _oldest(
        self, db: sqlite3.Connection, store: str, camera: int, due_ms: int, skip: Collection[int]
    ) -> tuple[int, int] | None:
        """(start_ms, copy) of the oldest free copy."""
        for copy, start in db.execute(
            "SELECT id, start_ms FROM copy WHERE state = 'waiting' AND store = ?1 AND camera = ?2"
            " AND (not_before_ms <= ?3 OR not_before_ms > ?3 + ?4) AND claim IS NOT ?5"
            " ORDER BY start_ms, id",
            (store, camera, due_ms, _UNBELIEVABLE_MS, self._opening),
        ):
            if copy not in skip:
                return start, copy
        return None

    async def next_due(self, stores: Collection[str], now: datetime) -> datetime | None:
        """The earliest `not_before` after `now` of a waiting copy for `stores`."""
        sql = (
            "SELECT not_before_ms FROM copy WHERE state = 'waiting' AND store = ?"
            " AND not_before_ms > ? ORDER BY not_before_ms LIMIT 1"
        )

        def work(db: sqlite3.Connection) -> list[int]:
            rows = (db.execute(sql, (store, to_ms(now))).fetchone() for store in stores)
            return [row[0] for row in rows if row is not None]

        return min(map(from_ms, await self._database.run(work)), default=None)

    async def save_upload(self, copy: int, state: UploadState) -> None:
        """Remember how far an upload is.

        Its first and its finishing state reach the disk before this returns; a later one may be
        lost in a power cut, which costs at most re-sending what came after the one before.
        """
        durable = state.offset == 0 or state.total is not None

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "INSERT OR REPLACE INTO upload VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        copy,
                        state.session,
                        state.key,
                        state.content_type,
                        to_ms(state.created_at),
                        state.offset,
                        state.crc32c,
                        state.inspection,
                        state.total,
                        state.total_crc32c,
                    ),
                )

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
                    try:
                        db.execute("UPDATE copy SET object_key = ? WHERE id = ?", (key, copy))
                    except sqlite3.IntegrityError:
                        continue
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
                    " finished_ms = ?, size = ?, crc32c = ?, generation = ?, verified = ?"
                    " WHERE id = ?",
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
        name = f"stored in {store}"
        sql = "SELECT 1 FROM meta WHERE name = ?"
        return await self._database.run(lambda db: db.execute(sql, (name,)).fetchone()) is not None

    async def watermarks(self) -> dict[tuple[str, str, str], datetime]:
        """By (source, camera id, store): everything that ended before it is accounted for."""
        rows = await self._database.run(lambda db: db.execute(WATERMARKS).fetchall())
        return {(source, id_, store): from_ms(mark) for source, id_, store, mark in rows}
