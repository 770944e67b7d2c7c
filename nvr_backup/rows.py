"""The checkpoint's rows, read and written one at a time, inside the caller's transaction.

The statements that several of the checkpoint's operations share. Nothing here begins or ends a
transaction or knows why it is called.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Final

from nvr_backup.database import CheckpointError
from nvr_backup.model import Camera, Clip, UploadState, from_ms, to_ms
from nvr_backup.planner import Reach

ATTEMPTS_KEPT: Final = 50
"""Entries of a copy's history; older ones are dropped."""

WATERMARKS: Final = (
    "SELECT source, source_id, store, min(listed_until_ms, ifnull((SELECT start_ms FROM copy"
    " WHERE copy.store = reach.store AND copy.camera = reach.camera AND state = 'waiting'"
    " ORDER BY start_ms LIMIT 1), listed_until_ms)) FROM reach JOIN camera ON camera.id = camera"
)
"""(source, camera id, store, watermark): listed until, or the start of the oldest waiting copy."""

Reaches = Mapping[str, Reach]
"""How far the listings of a camera have come, by store."""

Keys = Callable[[str, Clip], Iterator[str]]
"""Object keys a clip may have in a store, in order of preference, all distinct."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on one clip for one store. `copy` is the checkpoint's handle.

    `maybe_there`: its object may exist already, because the checkpoint was lost and rebuilt without
    a listing of this store. `replaces`: see `ports.ClipStore.put`.
    """

    copy: int
    clip: Clip
    store: str
    key: str
    attempts: int
    same_reason: int
    reason: str | None
    upload: UploadState | None
    maybe_there: bool = False
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What an attempt cost: bytes received from the source, seconds."""

    received: int
    seconds: float


def camera_row(db: sqlite3.Connection, camera: Camera) -> int:
    """The camera's row, made or renamed if need be."""
    row = db.execute(
        "INSERT INTO camera (source, source_id, name) VALUES (?, ?, ?)"
        " ON CONFLICT (source, source_id) DO UPDATE SET name = excluded.name RETURNING id",
        (camera.source, camera.id, camera.name),
    ).fetchone()
    return int(row[0])


def read_reach(db: sqlite3.Connection, camera: Camera) -> dict[str, Reach]:
    """How far the camera's listings have come, by store."""
    rows = db.execute(
        "SELECT store, begin_ms, proven_ms, seen_ms, listed_until_ms, whole_ms"
        " FROM reach JOIN camera ON camera.id = reach.camera WHERE source = ? AND source_id = ?",
        (camera.source, camera.id),
    )
    return {
        store: Reach(
            from_ms(begin),
            from_ms(proven),
            from_ms(seen),
            from_ms(listed_until),
            None if whole is None else from_ms(whole),
        )
        for store, begin, proven, seen, listed_until, whole in rows
    }


def is_lost(reason: str | None) -> bool:
    """Whether a copy was set aside because the source had deleted the clip before it was stored."""
    return reason is not None and " is gone at " in reason


def first_use(db: sqlite3.Connection, source: str, store: str, now: datetime) -> datetime:
    """When a source was configured for a store, if none of its cameras was ever listed for it."""
    begun = db.execute(
        "SELECT 1 FROM reach JOIN camera ON camera.id = camera WHERE source = ? AND store = ?",
        (source, store),
    ).fetchone()
    noted = db.execute(
        "SELECT value FROM meta WHERE name = ?", (f"since {source} {store}",)
    ).fetchone()
    return now if begun is not None or noted is None else from_ms(int(noted[0]))


def write_reach(db: sqlite3.Connection, camera: int, store: str, reach: Reach) -> None:
    """Record how far a camera's listings have come for a store."""
    times = (reach.begin, reach.proven, reach.seen, reach.listed_until)
    whole = None if reach.whole is None else to_ms(reach.whole)
    db.execute(
        "INSERT OR REPLACE INTO reach VALUES (?, ?, ?, ?, ?, ?, ?)",
        (camera, store, *map(to_ms, times), whole),
    )


def write_reaches(
    db: sqlite3.Connection, camera: Camera, reaches: Reaches, before: Reaches | None
) -> None:
    """Record them, but for those that are not as they were `before` (None: all of them)."""
    row, there = camera_row(db, camera), read_reach(db, camera)
    for store, reach in reaches.items():
        if before is None or there.get(store) == before.get(store):
            write_reach(db, row, store, reach)


def clip_row(db: sqlite3.Connection, camera: int, clip: Clip, now: datetime) -> int:
    """The row of this very version of a clip, made if need be."""
    end = None if clip.end is None else to_ms(clip.end)
    identity = (camera, to_ms(clip.start), clip.id, -1 if end is None else end)
    row = db.execute(
        "SELECT id FROM clip"
        " WHERE camera = ? AND start_ms = ? AND source_id = ? AND ifnull(end_ms, -1) = ?",
        identity,
    ).fetchone()
    if row is not None:
        return int(row[0])
    inserted = db.execute(
        "INSERT INTO clip (camera, source_id, start_ms, end_ms, camera_name, classes, listed_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            camera,
            clip.id,
            to_ms(clip.start),
            end,
            clip.camera.name,
            json.dumps(clip.classes),
            to_ms(now),
        ),
    )
    return int(inserted.lastrowid or 0)


def insert_copy(
    db: sqlite3.Connection, row: int, *, camera: int, clip: Clip, store: str, keys: Keys
) -> None:
    """Put a clip into a store's backlog under the first of its keys that is free.

    Should another clip hold every one of them, the row's own number makes a key.
    """
    if db.execute("SELECT 1 FROM copy WHERE clip = ? AND store = ?", (row, store)).fetchone():
        return
    for key in chain(keys(store, clip), [f"{row}-{store}.mp4"]):
        inserted = db.execute(
            "INSERT INTO copy (clip, store, camera, start_ms, object_key) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (store, object_key) DO NOTHING",
            (row, store, camera, to_ms(clip.start), key),
        )
        if inserted.rowcount:
            return
    raise CheckpointError(f"No object key is free for clip {row} in {store}.")


def read_claim(db: sqlite3.Connection, copy: int) -> Claim:
    """All a worker needs to know of a copy."""
    row = db.execute(
        "SELECT copy.store, object_key, attempts, same_reason, reason, clip.source_id,"
        " clip.start_ms, end_ms, camera_name, classes, camera.source, camera.source_id,"
        " clip.start_ms < CAST((SELECT value FROM meta WHERE name = 'unread ' || copy.store)"
        " AS INTEGER), replaces"
        " FROM copy JOIN clip ON clip.id = copy.clip JOIN camera ON camera.id = clip.camera"
        " WHERE copy.id = ?",
        (copy,),
    ).fetchone()
    store, key, attempts, same, reason, clip_id, start, end, name, classes, *of = row
    source, camera_id, unread, replaces = of
    clip = Clip(
        Camera(source, camera_id, name),
        clip_id,
        from_ms(start),
        None if end is None else from_ms(end),
        tuple(json.loads(classes)),
    )
    upload = read_upload(db, copy)
    return Claim(copy, clip, store, key, attempts, same, reason, upload, bool(unread), replaces)


def read_upload(db: sqlite3.Connection, copy: int) -> UploadState | None:
    """The state of a copy's unfinished upload."""
    row = db.execute(
        "SELECT session, object_key, content_type, created_ms, offset_bytes, crc32c, inspection,"
        " total_bytes, total_crc32c FROM upload WHERE copy = ?",
        (copy,),
    ).fetchone()
    if row is None:
        return None
    session, key, content_type, created, offset, crc, inspection, total, total_crc = row
    return UploadState(
        session, key, content_type, from_ms(created), offset, crc, inspection, total, total_crc
    )


def write_upload(db: sqlite3.Connection, copy: int, state: UploadState) -> None:
    """Replace the state of a copy's unfinished upload."""
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


def note_attempt(
    db: sqlite3.Connection, copy: int, outcome: str, reason: str, *, tally: Tally, now: datetime
) -> None:
    """Add to a copy's history and drop what is older than the ATTEMPTS_KEPT latest."""
    db.execute(
        "INSERT INTO attempt (copy, at_ms, outcome, reason, bytes, seconds)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (copy, to_ms(now), outcome, reason, tally.received, tally.seconds),
    )
    db.execute(
        "DELETE FROM attempt WHERE copy = ?1 AND id <="
        " (SELECT id FROM attempt WHERE copy = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        (copy, ATTEMPTS_KEPT),
    )
