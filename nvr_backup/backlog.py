"""The checkpoint's queue, in the caller's transaction: what a listing adds, which copy comes next.

The statements behind `Checkpoint`'s planning and claiming. Nothing here begins or ends a
transaction. What must never happen: a clip known twice, a copy that is stored or being uploaded
changed by a listing, a camera whose listings begin later than its clips on record require.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from nvr_backup.model import Camera, from_ms, to_ms
from nvr_backup.planner import Addition, KnownClip, NewId, Reach, Rules, first_reach
from nvr_backup.retention import edge_ms, urgency_ms
from nvr_backup.rows import (
    Keys,
    camera_row,
    clip_row,
    first_use,
    insert_copy,
    read_reach,
    write_reach,
)

TURNS: Final = 8
FAIR_TURN: Final = 7
LATE_TURN: Final = 3
"""Outcomes are counted by so many; which of them are followed by a choice of another kind."""

_UNBELIEVABLE_MS: Final = 12 * 3600 * 1000
"""A copy put off for longer than this was put off under a wrong clock: it is due."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which copies a worker may claim; see `Checkpoint.claim`."""

    sources: Collection[str]
    stores: Collection[str]
    cameras: Callable[[Camera], bool]
    busy: Mapping[tuple[str, str], int]
    due: datetime | None
    skip: Collection[int]


# -- what a listing adds --------------------------------------------------------------------------


def begin_reaches(
    db: sqlite3.Connection,
    cameras: Collection[Camera],
    stores: Collection[str],
    *,
    rules: Rules,
    now: datetime,
) -> None:
    """Fix where the listings of those cameras begin that are new to a store.

    The first cameras that a source ever shows begin a backfill before the source was configured;
    later ones a backfill before now. In a checkpoint that was rebuilt the first ones also begin no
    later than the oldest clip of theirs that was found (`begin SOURCE STORE`).
    """
    for store in stores:
        new = [camera for camera in cameras if store not in read_reach(db, camera)]
        for source in {camera.source for camera in new}:
            reach = first_reach(rules, min(first_use(db, source, store, now), now))
            found = _take_found_begin(db, source, store)
            if found is not None and found < reach.begin:
                reach = Reach(begin=found, proven=found, seen=found, listed_until=found)
            for camera in new:
                if camera.source == source:
                    write_reach(db, camera_row(db, camera), store, reach)


def _take_found_begin(db: sqlite3.Connection, source: str, store: str) -> datetime | None:
    row = db.execute(
        "DELETE FROM meta WHERE name = ? RETURNING value", (f"begin {source} {store}",)
    ).fetchone()
    return None if row is None else from_ms(int(row[0]))


def latest_start(db: sqlite3.Connection, camera: Camera) -> datetime | None:
    """The start of the latest clip of the camera on record."""
    row = db.execute(
        "SELECT max(start_ms) FROM clip WHERE camera ="
        " (SELECT id FROM camera WHERE source = ? AND source_id = ?)",
        (camera.source, camera.id),
    ).fetchone()
    return None if row[0] is None else from_ms(row[0])


def known_clips(
    db: sqlite3.Connection, camera: Camera, first: datetime, last: datetime
) -> list[KnownClip]:
    """Clips of the camera on record whose start lies in [first, last]."""
    rows = db.execute(
        "SELECT clip.id, clip.source_id, clip.start_ms, clip.end_ms, group_concat(store, ' ')"
        " FROM clip LEFT JOIN copy ON copy.clip = clip.id"
        " WHERE clip.camera = (SELECT id FROM camera WHERE source = ? AND source_id = ?)"
        " AND clip.start_ms BETWEEN ? AND ? GROUP BY clip.id",
        (camera.source, camera.id, to_ms(first), to_ms(last)),
    ).fetchall()
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


def rename(db: sqlite3.Connection, new_ids: Sequence[NewId]) -> None:
    """Known clips that their source now lists under other ids."""
    for new in new_ids:
        db.execute("UPDATE OR IGNORE clip SET source_id = ? WHERE id = ?", (new.id, new.row))


def add(
    db: sqlite3.Connection,
    camera: Camera,
    additions: Sequence[Addition],
    *,
    keys: Keys,
    now: datetime,
    opening: int,
) -> int:
    """Put clips of a camera into the backlog; returns the copies added or made longer.

    `opening` is this process's: copies that it holds are left as they are.
    """
    row = camera_row(db, camera)
    return sum(_add(db, row, one, keys=keys, now=now, opening=opening) for one in additions)


def _add(
    db: sqlite3.Connection,
    camera: int,
    addition: Addition,
    *,
    keys: Keys,
    now: datetime,
    opening: int,
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
                (row, addition.instead_of, opening),
            )
        }
        db.execute(
            "DELETE FROM clip WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM copy WHERE clip = ?1)",
            (addition.instead_of,),
        )
    for store in sorted(addition.stores - moved):
        insert_copy(db, row, camera=camera, clip=clip, store=store, keys=keys)
    return len(addition.stores)


# -- which copy comes next ------------------------------------------------------------------------


def most_wanted(db: sqlite3.Connection, wanted: Wanted, *, opening: int) -> int | None:
    """The free copy that has least time left, shared out fairly; None if there is none.

    A camera's turn comes by the time its oldest clip has left, times the claims it would then have:
    who has half the time gets twice the workers. Where nothing vanishes all have the same time, and
    the camera with the fewest claims comes first, then the oldest clip. A clip that is about to
    vanish, or most likely has, would be carried in vain: those with more time go first. Every
    TURNS-th time all count as having the same time, so that no camera waits for ever behind another
    that records more than can be carried; and every TURNS-th time one that most likely is gone is
    asked for, so that its loss becomes known.
    """
    due_ms = to_ms(wanted.due) if wanted.due is not None else 1 << 62
    (outcomes,) = db.execute("SELECT ifnull(max(id), 0) FROM attempt").fetchone()
    turn = outcomes % TURNS
    best: dict[bool, tuple[int, int, int, int]] = {}
    rows = db.execute(
        "SELECT id, source, source_id, name, oldest_ms, looked_ms, speed FROM camera ORDER BY id"
    ).fetchall()
    for camera, source, source_id, name, oldest_ms, looked_ms, speed in rows:
        if source not in wanted.sources or not wanted.cameras(Camera(source, source_id, name)):
            continue
        load = wanted.busy.get((source, source_id), 0)
        edge = 0
        if speed:
            looked_at = looked_ms if wanted.due is None else max(looked_ms, due_ms)
            edge = edge_ms(oldest_ms, speed, looked_at - looked_ms)
        for store in wanted.stores:
            for since, late in ((edge, False), (0, True)) if edge else ((0, False),):
                found = _oldest(
                    db, (store, camera), due_ms, since, skip=wanted.skip, opening=opening
                )
                if found is not None and (not late or found[0] < edge):
                    left = urgency_ms(edge, speed, found[0]) if turn != FAIR_TURN else 1
                    key = (left * (load + 1), load, *found)
                    best[late] = min(best.get(late, key), key)
    late_first = turn == LATE_TURN
    chosen = best.get(late_first) or best.get(not late_first)
    return None if chosen is None else chosen[3]


def _oldest(
    db: sqlite3.Connection,
    place: tuple[str, int],
    due_ms: int,
    since_ms: int,
    *,
    skip: Collection[int],
    opening: int,
) -> tuple[int, int] | None:
    """(start_ms, copy) of the oldest free copy that begins at `since_ms` or later.

    `place` is a store and a camera's row.
    """
    for copy, start in db.execute(
        "SELECT id, start_ms FROM copy WHERE state = 'waiting' AND store = ?1 AND camera = ?2"
        " AND start_ms >= ?6"
        " AND (not_before_ms <= ?3 OR not_before_ms > ?3 + ?4) AND claim IS NOT ?5"
        " ORDER BY start_ms, id",
        (*place, due_ms, _UNBELIEVABLE_MS, opening, since_ms),
    ):
        if copy not in skip:
            return start, copy
    return None


def next_due(db: sqlite3.Connection, stores: Collection[str], now: datetime) -> datetime | None:
    """The earliest `not_before` after `now` of a waiting copy for `stores`."""
    sql = (
        "SELECT not_before_ms FROM copy WHERE state = 'waiting' AND store = ?"
        " AND not_before_ms > ? ORDER BY not_before_ms LIMIT 1"
    )
    rows = (db.execute(sql, (store, to_ms(now))).fetchone() for store in stores)
    return min((from_ms(row[0]) for row in rows if row is not None), default=None)
