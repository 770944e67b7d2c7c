"""What the checkpoint expects of a store's objects, and what a verification found of them.

Statements only, inside the caller's transaction. A finding changes nothing about its copy: that is
`healing`'s, on an operator's word. Nothing may be noted about a copy that meanwhile was stored
anew, so every change names the very one that was looked at.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from nvr_backup.model import from_ms, to_ms

KEYS_AT_ONCE: Final = 500
"""Keys looked up in one statement."""

ROWS_AT_ONCE: Final = 50_000
"""Rows gone through in one statement: of a million, others need not wait for all of them."""


class What(StrEnum):
    """What is wrong with a stored copy."""

    MISSING = "missing"
    """No object lies under its key."""
    SIZE = "size"
    """The object has another size than the clip that was stored."""
    CHECKSUM = "checksum"
    """The store says another CRC32C than the clip's."""
    CONTENT = "content"
    """The object's bytes, read back, are not the clip's."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A stored copy and the object that should hold it. Sizes are bytes.

    `stored_ms`: when it was stored, by which one that is stored anew meanwhile is told apart.
    """

    copy: int
    source: str
    camera: str
    start: datetime
    key: str
    size: int
    crc32c: int | None
    proven: datetime | None
    stored_ms: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one copy's object; `generation` is that of what lies there, if any.

    `stored_ms` is that of the copy that was looked at.
    """

    copy: int
    source: str
    store: str
    camera: str
    start: datetime
    key: str
    what: What
    detail: str
    stored_ms: int | None
    generation: str | None = None
    at: datetime | None = None


_EXPECTED: Final = (
    "SELECT copy.id, camera.source, camera.name, copy.start_ms, object_key, size, crc32c,"
    " copy.proven_ms, finished_ms"
)
_OF_CAMERA: Final = " JOIN camera ON camera.id = copy.camera"


def at_keys(
    db: sqlite3.Connection, store: str, keys: Sequence[str]
) -> tuple[dict[str, Expected], set[str]]:
    """The stored copies under these keys, and the keys that other copies of ours will have."""
    found: dict[str, Expected] = {}
    others: set[str] = set()
    for first in range(0, len(keys), KEYS_AT_ONCE):
        # One statement: a copy that changes its state between two would be seen by neither.
        rows = db.execute(
            f"{_EXPECTED}, state FROM copy{_OF_CAMERA} WHERE store = ?"  # noqa: S608 - our own
            " AND object_key IN (SELECT value FROM json_each(?))",
            (store, json.dumps(keys[first : first + KEYS_AT_ONCE])),
        )
        for *row, state in rows:
            one = _expected(row)
            if state == "stored":
                found[one.key] = one
            else:
                others.add(one.key)
    return found, others


def stored(
    db: sqlite3.Connection, store: str, begin: datetime, end: datetime
) -> Iterator[Expected]:
    """The stored copies of clips that began in [begin, end). Costs what these are."""
    rows = db.execute(
        f"{_EXPECTED} FROM camera CROSS JOIN clip ON clip.camera = camera.id"
        " AND clip.start_ms >= ? AND clip.start_ms < ?"
        " CROSS JOIN copy ON copy.clip = clip.id WHERE store = ? AND state = 'stored'",
        (to_ms(begin), to_ms(end), store),
    )
    return map(_expected, rows)


def found_wrong(db: sqlite3.Connection, store: str, *whats: What) -> list[Expected]:
    """The stored copies of which any of this was found."""
    rows = db.execute(
        f"{_EXPECTED} FROM finding CROSS JOIN copy ON copy.id = finding.copy{_OF_CAMERA}"  # noqa: S608
        " WHERE store = ? AND state = 'stored' AND what IN (SELECT value FROM json_each(?))",
        (store, json.dumps(whats)),
    )
    return list(map(_expected, rows))


def last_row(db: sqlite3.Connection) -> int:
    """The highest number of a copy."""
    (last,) = db.execute("SELECT ifnull(max(id), 0) FROM copy").fetchone()
    return int(last)


def readable(
    db: sqlite3.Connection,
    store: str,
    begin: datetime,
    end: datetime,
    *,
    now: datetime,
    after: int,
    limit: int,
) -> list[Expected]:
    """Of the ROWS_AT_ONCE copies after row `after` those to be read back first (see `turn`).

    Left out is what was found wrong.
    """
    rows = db.execute(
        f"{_EXPECTED} FROM copy{_OF_CAMERA} WHERE copy.id > ? AND copy.id <= ?"  # noqa: S608
        " AND +store = ? AND +state = 'stored' AND copy.start_ms >= ? AND copy.start_ms < ?"
        " AND crc32c IS NOT NULL AND copy.id NOT IN (SELECT copy FROM finding)"
        " ORDER BY CASE WHEN copy.proven_ms <= ? THEN copy.proven_ms ELSE -1 END, copy.id LIMIT ?",
        (after, after + ROWS_AT_ONCE, store, to_ms(begin), to_ms(end), to_ms(now), limit),
    )
    return list(map(_expected, rows))


def turn(one: Expected, now: datetime) -> tuple[int, int]:
    """Sorts copies, least recently proven first; a proof from the future counts as none.

    It was made while the clock was ahead, and would keep the copy from its turn until then.
    """
    proven = -1 if one.proven is None or one.proven > now else to_ms(one.proven)
    return proven, one.copy


def _expected(row: Sequence[Any]) -> Expected:
    copy, source, camera, start, key, size, crc32c, proven, stored_ms = row
    return Expected(
        copy,
        source,
        camera,
        from_ms(start),
        key,
        size or 0,
        crc32c,
        None if proven is None else from_ms(proven),
        stored_ms,
    )


# -- writing down ---------------------------------------------------------------------------------


def note(
    db: sqlite3.Connection, found: Collection[Finding], now: datetime
) -> tuple[list[Finding], list[Finding]]:
    """Keep what was found; returns what of it holds, and what of that was not known before.

    Left out is what is not true any more: the copy was stored anew since it was looked at.
    """
    holds, new = [], []
    for one in found:
        row = db.execute(
            "SELECT (SELECT what FROM finding WHERE finding.copy = copy.id) FROM copy"
            " WHERE id = ? AND state = 'stored' AND object_key = ? AND finished_ms IS ?",
            (one.copy, one.key, one.stored_ms),
        ).fetchone()
        if row is None:
            continue
        holds.append(one)
        if row[0] != one.what:
            new.append(one)
        db.execute(
            "INSERT OR REPLACE INTO finding VALUES (?, ?, ?, ?, ?)",
            (one.copy, to_ms(now), one.what, one.detail, one.generation),
        )
    return holds, new


def found_right(
    db: sqlite3.Connection, copies: Collection[Expected], *, proven: bool, now: datetime
) -> list[Finding]:
    """These copies' objects are as they should be; with `proven` their bytes were read back.

    Returns what is known to be wrong all the same: a listing alone does not take back that the
    bytes were found wrong.
    """
    rows = json.dumps([one.copy for one in copies])
    db.execute(
        "DELETE FROM finding WHERE copy IN (SELECT value FROM json_each(?))"
        " AND (? OR what != 'content')",
        (rows, proven),
    )
    if proven:
        db.executemany(
            "UPDATE copy SET proven_ms = ?, verified = 1"
            " WHERE id = ? AND state = 'stored' AND finished_ms IS ?",
            [(to_ms(now), one.copy, one.stored_ms) for one in copies],
        )
    some = f"{_KNOWN} WHERE copy.id IN (SELECT value FROM json_each(?))"  # noqa: S608 - our own
    found = db.execute(some, (rows,))
    return list(map(_finding, found))


_KNOWN: Final = (
    "SELECT copy.id, camera.source, store, camera.name, copy.start_ms, object_key, what, detail,"
    " finished_ms, finding.generation, at_ms"
    " FROM finding CROSS JOIN copy ON copy.id = finding.copy"
    " JOIN camera ON camera.id = copy.camera"
)


def known(
    db: sqlite3.Connection, stores: Collection[str], begin: datetime, end: datetime
) -> list[Finding]:
    """What was found and not put right so far, by store and time."""
    rows = db.execute(
        f"{_KNOWN} WHERE store IN (SELECT value FROM json_each(?)) AND copy.start_ms >= ?"  # noqa: S608
        " AND copy.start_ms < ? ORDER BY store, copy.start_ms, copy.id",
        (json.dumps(list(stores)), to_ms(begin), to_ms(end)),
    )
    return list(map(_finding, rows))


def _finding(row: Sequence[Any]) -> Finding:
    copy, source, store, camera, start, key, what, detail, stored_ms, generation, at = row
    return Finding(
        copy,
        source,
        store,
        camera,
        from_ms(start),
        key,
        What(what),
        detail,
        stored_ms,
        generation,
        from_ms(at),
    )


def tally(db: sqlite3.Connection) -> dict[tuple[str, What], int]:
    """How many findings there are, by store and kind."""
    rows = db.execute(
        "SELECT store, what, count(*) FROM finding CROSS JOIN copy ON copy.id = finding.copy"
        " GROUP BY store, what"
    )
    return {(store, What(what)): number for store, what, number in rows}


# -- audits ---------------------------------------------------------------------------------------

_AUDIT: Final = "audit STORE "


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found in a store: copies right and wrong, objects and bytes read back."""

    at: datetime
    right: int
    wrong: int
    read: int
    read_bytes: int


def note_audit(db: sqlite3.Connection, store: str, result: Audited) -> None:
    """Remember the latest audit of a store."""
    values = [to_ms(result.at), result.right, result.wrong, result.read, result.read_bytes]
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_AUDIT + store, json.dumps(values)))


def audits(db: sqlite3.Connection) -> dict[str, Audited]:
    """The latest audit of each store."""
    rows = db.execute("SELECT name, value FROM meta WHERE name GLOB ?", (_AUDIT + "*",))
    found = {name.removeprefix(_AUDIT): json.loads(value) for name, value in rows}
    return {store: Audited(from_ms(at), *counts) for store, (at, *counts) in found.items()}
