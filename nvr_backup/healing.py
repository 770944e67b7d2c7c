"""What a verification found wrong, put back into the backlog on an operator's word.

Statements only, inside the caller's transaction. Nothing in a store is touched here: a wrong object
stays until the clip is stored anew, and for ever if the recorder has deleted it. Nothing here may
turn a copy back into waiting that meanwhile was stored anew, so every change names the very copy
and object that were looked at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

from nvr_backup.findings import Finding, What
from nvr_backup.keys import spellings
from nvr_backup.model import to_ms
from nvr_backup.rows import Keys, Tally, note_attempt, read_claim

_NO_WORK: Final = Tally(0, 0.0)

_WORDS: Final[Mapping[What, str]] = {
    What.MISSING: "missing",
    What.SIZE: "with a wrong size",
    What.CHECKSUM: "with a wrong checksum",
    What.CONTENT: "corrupt",
}


def heal(
    db: sqlite3.Connection,
    found: Collection[Finding],
    keys: Keys,
    *,
    may_replace: Collection[str],
    now: datetime,
) -> list[Finding]:
    """Put the copies of what was found back into the backlog; returns those that were.

    What lies under the key, and is wrong, may be replaced in the stores of `may_replace`;
    elsewhere the clip is stored under the first free one of its other `keys`.
    """
    healed = []
    for one in found:
        still = db.execute(
            "SELECT 1 FROM finding JOIN copy ON copy.id = finding.copy WHERE copy = ?"
            " AND state = 'stored' AND object_key = ? AND finished_ms IS ? AND what = ?"
            " AND finding.generation IS ?",
            (one.copy, one.key, one.stored_ms, one.what, one.generation),
        ).fetchone()
        if still is None:
            continue
        replaces = None
        if one.what is not What.MISSING:
            if one.store in may_replace:
                replaces = one.generation or ""
            elif not _moved(db, one, keys):
                continue
        db.execute(
            "UPDATE copy SET state = 'waiting', claim = NULL, attempts = 0, same_reason = 0,"
            " not_before_ms = 0, finished_ms = NULL, verified = NULL, proven_ms = NULL,"
            " replaces = ?, reason = ? WHERE id = ?",
            (replaces, f"Found {_WORDS[one.what]} in the store.", one.copy),
        )
        db.execute("DELETE FROM finding WHERE copy = ?", (one.copy,))
        db.execute("DELETE FROM upload WHERE copy = ?", (one.copy,))
        note_attempt(db, one.copy, "found_wrong", one.detail, tally=_NO_WORK, now=now)
        healed.append(one)
    return healed


def _moved(db: sqlite3.Connection, one: Finding, keys: Keys) -> bool:
    """Whether another key was free. The latest possible one is the copy's own number."""
    extension = "." + one.key.rpartition(".")[2]
    own = f"{one.copy}-{one.store}{extension}"
    if one.key == own:
        return False
    plain = list(keys(one.store, read_claim(db, one.copy).clip))
    wanted = [key for key in spellings(plain) if key.endswith(extension)] or plain
    if one.key in wanted:
        # Never one before it: an object that was found wrong earlier may lie there still, and its
        # store would say of it that it is the clip.
        del wanted[: wanted.index(one.key) + 1]
    sql = "UPDATE OR IGNORE copy SET object_key = ? WHERE id = ?"
    return any(db.execute(sql, (key, one.copy)).rowcount for key in (*wanted, own))


def list_again(
    db: sqlite3.Connection, source: str, camera_id: str, store: str, start: datetime
) -> None:
    """Let the next cycle list a camera for this store from `start` on: something was missed there.

    The watermark goes back with it until that listing has been done.
    """
    db.execute(
        "UPDATE reach SET proven_ms = min(proven_ms, ?1), seen_ms = min(seen_ms, ?1),"
        " listed_until_ms = min(listed_until_ms, ?1), whole_ms = NULL WHERE store = ?2"
        " AND camera = (SELECT id FROM camera WHERE source = ?3 AND source_id = ?4)",
        (to_ms(start), store, source, camera_id),
    )
