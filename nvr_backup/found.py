"""Objects that a store turned out to hold, into the checkpoint's rows, in the caller's transaction.

An object whose metadata names its clip makes that clip stored; the others are kept loose until
someone knows more. Rows are added, waiting and set-aside copies become stored: nothing that is
recorded as stored is ever changed, and no row is lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final

from nvr_backup.database import CheckpointError
from nvr_backup.metadata import kept_id
from nvr_backup.model import Camera, Clip, StoredObject, to_ms
from nvr_backup.planner import ALL_REACH, UNKNOWN_LENGTH
from nvr_backup.rows import Keys, Tally, clip_row, note_attempt, read_claim

LOOSE: Final = (
    "CREATE TEMP TABLE loose (store TEXT, object_key TEXT, size INTEGER, crc32c INTEGER,"
    " generation TEXT, PRIMARY KEY (store, object_key)) WITHOUT ROWID"
)
"""Objects that do not say which clip they are; gone when the database is closed."""

_TALLY: Final = Tally(received=0, seconds=0.0)


class Verdict(Enum):
    """What an object meant."""

    NEW = auto()
    """A clip that was not on record, or not for this store."""
    SETTLED = auto()
    """A copy that was waiting or set aside, and is stored in truth."""
    KNOWN = auto()
    """On record already: as stored, or as corrupt."""
    TWICE = auto()
    """Another object of a clip that is on record as stored under another key."""


def take_in(
    db: sqlite3.Connection,
    store: str,
    clip: Clip,
    found: StoredObject,
    *,
    keys: Keys,
    now: datetime,
) -> Verdict:
    """Record that `found` is `clip`'s object in this store.

    CheckpointError when a clip that waits under this key cannot be given another.
    """
    camera = _camera(db, clip.camera)
    row = _row_of(db, camera, clip)
    if row is None:
        row = clip_row(db, camera, clip, now)
    own = db.execute(
        "SELECT id, state, replaces FROM copy WHERE clip = ? AND store = ?", (row, store)
    ).fetchone()
    if own is not None and own[2] is not None and own[2] == (found.generation or ""):
        return Verdict.KNOWN  # found corrupt: its clip waits to take its place
    holder = db.execute(
        "SELECT id, state, camera, start_ms, clip FROM copy WHERE store = ? AND object_key = ?",
        (store, found.key),
    ).fetchone()
    if holder is not None and holder[1] == "stored":
        _drop_if_bare(db, row)
        return Verdict.KNOWN
    if own is not None and own[1] == "stored":
        return Verdict.TWICE
    if holder is not None and (own is None or own[0] != holder[0]):
        if own is None and holder[2:4] == (camera, to_ms(clip.start)):
            # Another version of this clip waited under the key that this one was stored under.
            db.execute("UPDATE copy SET clip = ? WHERE id = ?", (row, holder[0]))
            _drop_if_bare(db, holder[4])
            own = holder
        else:
            _give_other_key(db, holder[0], store, found.key, keys)
    if own is None:
        inserted = db.execute(
            "INSERT INTO copy (clip, store, camera, start_ms, object_key) VALUES (?, ?, ?, ?, ?)",
            (row, store, camera, to_ms(clip.start), found.key),
        )
        _settle(db, int(inserted.lastrowid or 0), found, now)
        return Verdict.NEW
    _settle(db, own[0], found, now)
    return Verdict.SETTLED


def _camera(db: sqlite3.Connection, camera: Camera) -> int:
    """The camera's row, made if need be; an object may be older than the camera's latest name."""
    db.execute(
        "INSERT OR IGNORE INTO camera (source, source_id, name) VALUES (?, ?, ?)",
        (camera.source, camera.id, camera.name),
    )
    row = db.execute(
        "SELECT id FROM camera WHERE source = ? AND source_id = ?", (camera.source, camera.id)
    ).fetchone()
    return int(row[0])


def _row_of(db: sqlite3.Connection, camera: int, clip: Clip) -> int | None:
    """The row of this very version of a clip; its id may be known in full, and here as a hash."""
    end = -1 if clip.end is None else to_ms(clip.end)
    rows = db.execute(
        "SELECT id, source_id FROM clip"
        " WHERE camera = ? AND start_ms = ? AND ifnull(end_ms, -1) = ?",
        (camera, to_ms(clip.start), end),
    )
    return next((row for row, id_ in rows if clip.id in (id_, kept_id(id_))), None)


def _drop_if_bare(db: sqlite3.Connection, row: int) -> None:
    """A version of a clip that no store has and none waits for is nothing to be remembered."""
    db.execute(
        "DELETE FROM clip WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM copy WHERE clip = ?1)",
        (row,),
    )


def _give_other_key(db: sqlite3.Connection, copy: int, store: str, taken: str, keys: Keys) -> None:
    """The clip that was to get this key gets its next one; what it had uploaded was for this."""
    clip = read_claim(db, copy).clip
    db.execute("DELETE FROM upload WHERE copy = ?", (copy,))
    for key in (*keys(store, clip), f"{copy}-{store}.mp4"):
        if key == taken:
            continue
        changed = db.execute("UPDATE OR IGNORE copy SET object_key = ? WHERE id = ?", (key, copy))
        if changed.rowcount:
            return
    raise CheckpointError(f"No object key is free for copy {copy} in {store}.")


def _settle(db: sqlite3.Connection, copy: int, found: StoredObject, now: datetime) -> None:
    db.execute(
        "UPDATE copy SET state = 'stored', claim = NULL, reason = NULL, object_key = ?,"
        " finished_ms = ?, size = ?, crc32c = ?, generation = ?, verified = 0, replaces = NULL"
        " WHERE id = ?",
        (found.key, to_ms(now), found.size, found.crc32c, found.generation, copy),
    )
    db.execute("DELETE FROM upload WHERE copy = ?", (copy,))
    note_attempt(db, copy, "found", "", tally=_TALLY, now=now)


# -- objects that do not say which clip they are --------------------------------------------------


def keep_loose(db: sqlite3.Connection, store: str, found: StoredObject) -> bool:
    """Remember an object without metadata; False when its key is on record as a stored clip's."""
    known = db.execute(
        "SELECT 1 FROM copy WHERE store = ? AND object_key = ? AND state = 'stored'",
        (store, found.key),
    ).fetchone()
    if known is not None:
        return False
    db.execute(
        "INSERT OR REPLACE INTO loose VALUES (?, ?, ?, ?, ?)",
        (store, found.key, found.size, found.crc32c, found.generation),
    )
    return True


def loose_keys(db: sqlite3.Connection, store: str) -> list[str]:
    """The keys of a store's loose objects."""
    return [key for (key,) in db.execute("SELECT object_key FROM loose WHERE store = ?", (store,))]


def loose_at(db: sqlite3.Connection, store: str, keys: Iterable[str]) -> list[StoredObject]:
    """The loose objects under `keys`, in their order."""
    sql = "SELECT size, crc32c, generation FROM loose WHERE store = ? AND object_key = ?"
    rows = ((key, db.execute(sql, (store, key)).fetchone()) for key in keys)
    return [StoredObject(key, *row) for key, row in rows if row is not None]


def no_longer_loose(db: sqlite3.Connection, store: str, key: str) -> None:
    """Somebody knew more of it."""
    db.execute("DELETE FROM loose WHERE store = ? AND object_key = ?", (store, key))


# -- what follows from all of it ------------------------------------------------------------------


def name_cameras(db: sqlite3.Connection) -> None:
    """Cameras that only objects told of are called as their latest clip says."""
    db.execute(
        "UPDATE camera SET name = (SELECT camera_name FROM clip WHERE clip.camera = camera.id"
        " ORDER BY start_ms DESC LIMIT 1)"
        " WHERE id NOT IN (SELECT camera FROM reach)"
        " AND EXISTS (SELECT 1 FROM clip WHERE clip.camera = camera.id)"
    )


def note_stored(db: sqlite3.Connection, store: str) -> None:
    """The store has held clips of ours: an empty folder in its place is not it."""
    db.execute(
        "INSERT OR IGNORE INTO meta SELECT ?1, '1' WHERE EXISTS"
        " (SELECT 1 FROM copy WHERE store = ?2 AND state = 'stored')",
        (f"stored in {store}", store),
    )


def has_stored(db: sqlite3.Connection, store: str) -> bool:
    """Whether the checkpoint knows of clips in the store."""
    sql = "SELECT 1 FROM meta WHERE name = ?"
    return db.execute(sql, (f"stored in {store}",)).fetchone() is not None


def note_unread(db: sqlite3.Connection, store: str, now: datetime) -> None:
    """Objects may lie in the store that this checkpoint does not know, of clips until now."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"unread {store}", str(to_ms(now))))


def note_read(db: sqlite3.Connection, store: str) -> None:
    """Everything that lies in the store is known."""
    db.execute("DELETE FROM meta WHERE name = ?", (f"unread {store}",))


@dataclass(frozen=True, slots=True)
class Hints:
    """What listings have to reach back to, besides the clips that were found.

    `fresh` is where a new installation would begin; `unread` are the stores that told nothing;
    `loose` has for each store the first day that objects without a clip may belong to.
    """

    fresh: datetime
    unread: Collection[str]
    loose: Mapping[str, datetime]


def begin_listings(
    db: sqlite3.Connection, source: str, stores: Collection[str], *, hints: Hints, now: datetime
) -> None:
    """Let every camera of a source be listed again from the oldest clip that was found.

    What lay between the clips that were found is not known, so nothing counts as listed. A store
    that told nothing begins where the source's others do; one that holds nothing begins like a new
    one. Where a camera's listings have been recorded already, nothing changes.
    """
    ends = {store: _oldest_end(db, source, store) for store in stores}
    oldest = min((end for end in ends.values() if end is not None), default=None)
    for store, own in ends.items():
        found = [oldest if own is None and store in hints.unread else own]
        found += [to_ms(hints.loose[store]) if store in hints.loose else None]
        known = [begin for begin in found if begin is not None]
        if known:
            begin = max(min(*known, to_ms(hints.fresh)), to_ms(now - ALL_REACH))
            _begin(db, source, store, begin)


def _begin(db: sqlite3.Connection, source: str, store: str, begin: int) -> None:
    listed = db.execute(
        "SELECT 1 FROM reach JOIN camera ON camera.id = camera WHERE source = ? AND store = ?",
        (source, store),
    ).fetchone()
    if listed is None:  # the first cameras that will be shown may be others than those found
        db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"begin {source} {store}", str(begin))
        )
    db.execute(
        "INSERT OR IGNORE INTO reach"
        " SELECT id, ?1, ?2, ?2, ?2, ?2, NULL FROM camera WHERE source = ?3",
        (store, begin, source),
    )


def _oldest_end(db: sqlite3.Connection, source: str, store: str) -> int | None:
    row = db.execute(
        "SELECT min(ifnull(end_ms, clip.start_ms + ?)) FROM copy JOIN clip ON clip.id = copy.clip"
        " JOIN camera ON camera.id = copy.camera"
        " WHERE source = ? AND store = ? AND state = 'stored'",
        (UNKNOWN_LENGTH // timedelta(milliseconds=1), source, store),
    ).fetchone()
    return None if row[0] is None else int(row[0])
