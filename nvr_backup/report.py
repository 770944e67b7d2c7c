"""Questions to the checkpoint for a person who looks: what is safe, what is not, and why.

Everything here works beside a running daemon and without the engine lock. It reads; the one thing
it ever changes is `retry`, which puts copies back into the backlog in a transaction of its own. It
must never take a claim, never touch a copy that is stored, and never show an upload's session.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from nvr_backup import findings
from nvr_backup.database import LOCK_NAME, Database, transaction
from nvr_backup.findings import Audited, What
from nvr_backup.lives import danger
from nvr_backup.model import from_ms, to_ms
from nvr_backup.retention import Loss
from nvr_backup.rows import WATERMARKS, Tally, note_attempt

OVERDUE: Final = timedelta(hours=2)
"""A clip that waits longer than this since it was planned means that something is behind."""

FRESH: Final = timedelta(days=7)
"""Only clips set aside within this time make a backup count as behind: what a person has had a week
to look at, and cannot change because the clip is gone, must not hide the next trouble."""

REASONS_SHOWN: Final = 5
"""Different reasons of overdue or set-aside clips that a status names; the rest is a number."""

PACE_OVER: Final = timedelta(minutes=15)
PACE_ATTEMPTS: Final = 20_000
"""The present pace is that of so long ago, and of so many attempts at most."""

State = Literal["waiting", "stored", "set_aside"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of one camera in one store.

    `safe_until` is the watermark; `listed` is when a listing of everything after `proven` last
    succeeded (see `planner.Reach`).
    """

    source: str
    camera_id: str
    camera: str
    store: str
    safe_until: datetime | None
    proven: datetime | None
    listed: datetime | None
    stored: int
    stored_bytes: int
    waiting: int
    oldest_waiting: datetime | None
    set_aside: int


@dataclass(frozen=True, slots=True)
class Copy:
    """One clip in one store. `end` is None when the source does not say; sizes are bytes.

    `claimed` says that a worker of the latest opening holds it; that worker may be dead. `proven`
    is when its bytes were last read back and right, `wrong` what a verification found instead.
    """

    row: int
    clip_row: int
    source: str
    camera_id: str
    camera: str
    clip: str
    start: datetime
    end: datetime | None
    classes: tuple[str, ...]
    listed: datetime
    store: str
    key: str
    state: State
    attempts: int
    not_before: datetime
    reason: str | None
    finished: datetime | None
    size: int | None
    crc32c: int | None
    generation: str | None
    verified: bool
    proven: datetime | None
    wrong: str | None
    claimed: bool
    sent: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One entry of a copy's history. `received` is bytes, from the source."""

    at: datetime
    outcome: str
    reason: str
    received: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Grounds:
    """Copies that share a reason (None: never tried), with the start of the oldest.

    `fresh` of them came to it lately (FRESH).
    """

    reason: str | None
    copies: int
    oldest: datetime
    fresh: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What was stored lately: clips, their bytes, and over how long."""

    clips: int
    size: int
    over: timedelta


@dataclass(frozen=True, slots=True)
class Status:
    """The whole picture at one moment."""

    accounts: tuple[Account, ...]
    uploading: tuple[Copy, ...]
    overdue: tuple[Grounds, ...]
    set_aside: tuple[Grounds, ...]
    findings: Mapping[tuple[str, What], int]
    audits: Mapping[str, Audited]
    last_cycle: datetime | None
    pace: Pace
    danger: Loss | None


# -- getting at the database ----------------------------------------------------------------------


async def ask(state_dir: Path, question: Callable[[sqlite3.Connection], T]) -> T:
    """Ask one question, on one consistent view of the database.

    CheckpointError when there is none, RebuildNeeded when it is damaged.
    """
    with _opened(state_dir, writable=False) as database:

        def work(db: sqlite3.Connection) -> T:
            db.execute("BEGIN")
            try:
                return question(db)
            finally:
                db.execute("ROLLBACK")

        return await database.run(work)


async def change(state_dir: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do `work` in one durable transaction, beside a daemon if there is one."""
    with _opened(state_dir, writable=False):
        pass  # it exists, and in this program's schema: opening to write would create or migrate it
    with _opened(state_dir, writable=True) as database:

        def whole(db: sqlite3.Connection) -> T:
            with transaction(db, durable=True):
                return work(db)

        return await database.run(whole)


@contextmanager
def _opened(state_dir: Path, *, writable: bool) -> Iterator[Database]:
    database = Database(state_dir, writable=writable)
    try:
        yield database
    finally:
        database.close()


def engine_process(state_dir: Path) -> int | None:
    """The process that holds the state folder's engine lock; None when no engine runs.

    Looks at the kernel's list of locks (proc_locks(5)) instead of trying the lock, which could
    turn away a daemon that starts at this moment.
    """
    try:
        inode = (state_dir / LOCK_NAME).stat().st_ino
        locks = Path("/proc/locks").read_text("ascii")
    except OSError:
        return None
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


# -- reading --------------------------------------------------------------------------------------


def status(db: sqlite3.Connection, *, now: datetime) -> Status:
    """What is safe and what is not."""
    return Status(
        accounts=tuple(accounts(db)),
        uploading=tuple(_copies(db, "copy.claim = (SELECT max(id) FROM opening)", (), limit=100)),
        overdue=tuple(_grounds(db, "waiting", now, listed_before=now - OVERDUE)),
        set_aside=tuple(_grounds(db, "set_aside", now)),
        findings=findings.tally(db),
        audits=findings.audits(db),
        last_cycle=last_cycle(db),
        pace=pace(db, now=now),
        danger=danger(db, now),
    )


def pace(db: sqlite3.Connection, *, now: datetime) -> Pace:
    """How fast clips are being stored, by the attempts of the last PACE_OVER."""
    begin = to_ms(now - PACE_OVER)
    clips_, size, first = db.execute(
        "SELECT count(*), ifnull(sum(bytes), 0), min(at_ms - seconds * 1000) FROM attempt"
        " WHERE id > (SELECT ifnull(max(id), 0) - ? FROM attempt)"
        " AND at_ms BETWEEN ? AND ? AND outcome = 'stored'",
        (PACE_ATTEMPTS, begin, to_ms(now)),
    ).fetchone()
    over = PACE_OVER if first is None else now - from_ms(round(max(first, begin)))
    return Pace(clips_, size, max(over, timedelta(seconds=1)))


def last_cycle(db: sqlite3.Connection) -> datetime | None:
    """When the latest cycle began; None before the first."""
    row = db.execute("SELECT value FROM meta WHERE name = 'last_cycle_ms'").fetchone()
    return None if row is None else from_ms(int(row[0]))


def accounts(db: sqlite3.Connection) -> list[Account]:
    """Every camera in every store it ever went to, by source, name and store."""
    marks = {
        (source, id_, store): from_ms(mark)
        for source, id_, store, mark in db.execute(WATERMARKS).fetchall()
    }
    listed = {
        (camera, store): (from_ms(proven), None if whole is None else from_ms(whole))
        for camera, store, proven, whole in db.execute(
            "SELECT camera, store, proven_ms, whole_ms FROM reach"
        )
    }
    counted: dict[tuple[int, str], dict[str, tuple[int, int, int]]] = {}
    for camera, store, state, copies, size, oldest in db.execute(
        "SELECT camera, store, state, count(*), ifnull(sum(size), 0), min(start_ms)"
        " FROM copy GROUP BY camera, store, state"
    ):
        counted.setdefault((camera, store), {})[state] = (copies, size, oldest)
    names = {
        row: (source, source_id, name)
        for row, source, source_id, name in db.execute(
            "SELECT id, source, source_id, name FROM camera"
        )
    }
    found = []
    for camera, store in listed.keys() | counted.keys():
        source, source_id, name = names[camera]
        proven, whole = listed.get((camera, store), (None, None))
        states = counted.get((camera, store), {})
        stored = states.get("stored", (0, 0, 0))
        waiting = states.get("waiting", (0, 0, 0))
        found.append(
            Account(
                source=source,
                camera_id=source_id,
                camera=name,
                store=store,
                safe_until=marks.get((source, source_id, store)),
                proven=proven,
                listed=whole,
                stored=stored[0],
                stored_bytes=stored[1],
                waiting=waiting[0],
                oldest_waiting=from_ms(waiting[2]) if waiting[0] else None,
                set_aside=states.get("set_aside", (0, 0, 0))[0],
            )
        )
    return sorted(found, key=lambda a: (a.source, a.camera.casefold(), a.camera_id, a.store))


def waiting(db: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """Waiting copies by (source, camera id)."""
    return {
        (source, source_id): copies
        for source, source_id, copies in db.execute(
            "SELECT source, source_id, count(*) FROM copy JOIN camera ON camera.id = copy.camera"
            " WHERE state = 'waiting' GROUP BY camera.id"
        )
    }


def cameras(db: sqlite3.Connection, names: Collection[str]) -> dict[str, list[int]]:
    """For each of `names` the rows of the cameras called so, or with this id, in any case."""
    known = db.execute("SELECT id, source_id, name FROM camera").fetchall()
    return {
        wanted: [
            row
            for row, source_id, name in known
            if wanted.casefold() in (name.casefold(), source_id.casefold())
        ]
        for wanted in names
    }


def camera_names(db: sqlite3.Connection) -> list[str]:
    """The names of all cameras on record."""
    return sorted({name for (name,) in db.execute("SELECT name FROM camera")}, key=str.casefold)


def clips(
    db: sqlite3.Connection, *, state: State | None, camera_rows: Collection[int] | None, limit: int
) -> tuple[list[Copy], int]:
    """The latest copies, newest first, and how many there are in all."""
    conditions, values = ["1"], list[object]()
    if state is not None:
        conditions.append(f"copy.state = '{state}'")  # a literal, so that partial indexes serve
    if camera_rows is not None:
        conditions.append("copy.camera IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(list(camera_rows)))
    where = " AND ".join(conditions)
    total = db.execute(f"SELECT count(*) FROM copy WHERE {where}", values).fetchone()[0]  # noqa: S608 - conditions are ours
    return _copies(db, where, values, limit=limit), total


def copies(db: sqlite3.Connection, rows: Collection[int]) -> dict[int, Copy]:
    """Copies by their row."""
    where = "copy.id IN (SELECT value FROM json_each(?))"
    found = _copies(db, where, (json.dumps(list(rows)),), limit=len(rows))
    return {copy.row: copy for copy in found}


def find(db: sqlite3.Connection, text: str) -> list[Copy]:
    """Every copy of the clip with this id, or that has this object key, oldest first."""
    where = (
        "copy.clip IN (SELECT id FROM clip WHERE source_id = ?1"
        " UNION SELECT clip FROM copy WHERE object_key = ?1)"
    )
    return _copies(db, where, (text,), limit=1000)[::-1]


def find_at(
    db: sqlite3.Connection, camera_rows: Collection[int], begin: datetime, end: datetime, limit: int
) -> list[Copy]:
    """Copies of clips of these cameras that touch [begin, end), oldest first, at most `limit`."""
    where = (
        "copy.camera IN (SELECT value FROM json_each(?)) AND copy.start_ms < ?"
        " AND ifnull(clip.end_ms, copy.start_ms + 1) > ?"
    )
    values = (json.dumps(list(camera_rows)), to_ms(end), to_ms(begin))
    return _copies(db, where, values, limit=limit)[::-1]


def attempts(db: sqlite3.Connection, copy: int) -> list[Attempt]:
    """A copy's history, oldest first."""
    return [
        Attempt(from_ms(at), outcome, reason, received, seconds)
        for at, outcome, reason, received, seconds in db.execute(
            "SELECT at_ms, outcome, reason, bytes, seconds FROM attempt WHERE copy = ? ORDER BY id",
            (copy,),
        )
    ]


def sound(db: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file; empty when it is sound."""
    found = [str(row[0]) for row in db.execute("PRAGMA quick_check(5)")]
    return [] if found == ["ok"] else found


# -- the one change -------------------------------------------------------------------------------


def retry(db: sqlite3.Connection, rows: Sequence[int] | None, *, now: datetime) -> list[Copy]:
    """Put copies back into the backlog, to be tried at once; returns those that were.

    A set-aside copy starts afresh, a waiting one merely waits no longer; a stored one is left
    alone. `rows` of None means all that are set aside or put off.
    """
    where = "(copy.state = 'set_aside' OR (copy.state = 'waiting' AND copy.not_before_ms > ?))"
    values: tuple[object, ...] = (to_ms(now),)
    if rows is not None:
        where = "copy.state != 'stored' AND copy.id IN (SELECT value FROM json_each(?))"
        values = (json.dumps(list(rows)),)
    found = _copies(db, where, values, limit=-1)[::-1]
    for copy in found:
        if copy.state == "set_aside":
            db.execute(
                "UPDATE copy SET state = 'waiting', attempts = 0, same_reason = 0,"
                " not_before_ms = 0, finished_ms = NULL WHERE id = ?",
                (copy.row,),
            )
        else:
            db.execute("UPDATE copy SET not_before_ms = 0 WHERE id = ?", (copy.row,))
        note_attempt(db, copy.row, "retried", "", tally=Tally(0, 0.0), now=now)
    return found


# -- rows -----------------------------------------------------------------------------------------

_COPY: Final = (
    "SELECT copy.id, clip.id, camera.source, camera.source_id, camera.name, clip.source_id,"
    " clip.start_ms, clip.end_ms, clip.classes, clip.listed_ms, copy.store, copy.object_key,"
    " copy.state, copy.attempts, copy.not_before_ms, copy.reason, copy.finished_ms, copy.size,"
    " copy.crc32c, copy.generation, copy.verified, copy.proven_ms, finding.detail,"
    " copy.state = 'waiting' AND copy.claim = (SELECT max(id) FROM opening),"
    " upload.offset_bytes"
    " FROM copy JOIN clip ON clip.id = copy.clip JOIN camera ON camera.id = clip.camera"
    " LEFT JOIN upload ON upload.copy = copy.id LEFT JOIN finding ON finding.copy = copy.id"
)


def _copies(
    db: sqlite3.Connection, where: str, values: Sequence[object], *, limit: int
) -> list[Copy]:
    """Copies newest first; a negative limit is none."""
    sql = f"{_COPY} WHERE {where} ORDER BY copy.start_ms DESC, copy.id DESC LIMIT {limit}"
    return [_copy(row) for row in db.execute(sql, values)]


def _copy(row: tuple[Any, ...]) -> Copy:
    (copy, clip, source, camera_id, camera, clip_id, start, end, classes, listed, *rest) = row
    (store, key, state, attempts_, not_before, reason, finished, *rest) = rest
    (size, crc32c, generation, verified, proven, wrong, claimed, sent) = rest
    return Copy(
        row=copy,
        clip_row=clip,
        source=source,
        camera_id=camera_id,
        camera=camera,
        clip=clip_id,
        start=from_ms(start),
        end=None if end is None else from_ms(end),
        classes=tuple(json.loads(classes)),
        listed=from_ms(listed),
        store=store,
        key=key,
        state=state,
        attempts=attempts_,
        not_before=from_ms(not_before),
        reason=reason,
        finished=None if finished is None else from_ms(finished),
        size=size,
        crc32c=crc32c,
        generation=generation,
        verified=bool(verified),
        proven=None if proven is None else from_ms(proven),
        wrong=wrong,
        claimed=bool(claimed),
        sent=sent,
    )


def _grounds(
    db: sqlite3.Connection, state: State, now: datetime, *, listed_before: datetime | None = None
) -> list[Grounds]:
    """Reasons of the copies in this state, the most frequent first; the rest under the last."""
    before = 1 << 62 if listed_before is None else to_ms(listed_before)
    rows = db.execute(
        "SELECT reason, count(*), min(copy.start_ms), total(finished_ms > ?)"  # noqa: S608 - state is ours
        " FROM copy JOIN clip ON clip.id = copy.clip"
        f" WHERE state = '{state}' AND listed_ms < ? GROUP BY reason ORDER BY 2 DESC, 3",
        (to_ms(now - FRESH), before),
    ).fetchall()
    found = [Grounds(why, number, from_ms(start), int(fresh)) for why, number, start, fresh in rows]
    shown, rest = found[:REASONS_SHOWN], found[REASONS_SHOWN:]
    if rest:
        shown.append(
            Grounds(
                f"{len(rest)} other reasons",
                sum(grounds.copies for grounds in rest),
                min(grounds.oldest for grounds in rest),
                sum(grounds.fresh for grounds in rest),
            )
        )
    return shown
