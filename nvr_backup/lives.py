"""The checkpoint's memory of how long footage lives, and what its backlog has to fear.

Columns of `camera` and questions about `copy` and `attempt`; see `retention` for what they mean. It
must never change a copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import inf
from typing import Final

from nvr_backup.database import Database, transaction
from nvr_backup.model import Camera, from_ms, to_ms
from nvr_backup.retention import SHORT, Life, Load, Loss, first_loss

RATE_OVER: Final = timedelta(hours=6)
RATE_ATTEMPTS: Final = 2000
"""The present rate is that of so many attempts at most, none older than this."""

STARTING: Final = timedelta(minutes=10)
"""For so long after the start nothing is said of a rate that nobody has seen."""

_ROW: Final = "(SELECT id FROM camera WHERE source = ? AND source_id = ?)"


class Lives:
    """Belongs to a Checkpoint."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, camera: Camera) -> Life | None:
        """What is known of a camera."""

        def work(db: sqlite3.Connection) -> Life | None:
            row = db.execute(
                "SELECT oldest_ms, looked_ms, watched_ms, moved FROM camera"
                " WHERE source = ? AND source_id = ?",
                (camera.source, camera.id),
            ).fetchone()
            return None if row is None else _life(*row)

        return await self._database.run(work)

    async def note(self, camera: Camera, life: Life) -> None:
        """Remember it. Losing it in a power cut costs one look."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.execute(
                    "UPDATE camera SET oldest_ms = ?, looked_ms = ?, watched_ms = ?, moved = ?,"
                    " speed = ? WHERE source = ? AND source_id = ?",
                    (
                        *map(to_ms, (life.oldest, life.looked, life.since)),
                        life.moved,
                        life.speed,
                        camera.source,
                        camera.id,
                    ),
                )

        await self._database.run(work)

    async def starts(
        self, camera: Camera, since: datetime, *, skip: int, limit: int
    ) -> list[datetime]:
        """Starts of the camera's clips on record that began at `since` or later, oldest first."""

        def work(db: sqlite3.Connection) -> list[datetime]:
            rows = db.execute(
                f"SELECT start_ms FROM clip WHERE camera = {_ROW} AND start_ms >= ?"  # noqa: S608
                " ORDER BY start_ms LIMIT ? OFFSET ?",
                (camera.source, camera.id, to_ms(since), limit, skip),
            )
            return [from_ms(start) for (start,) in rows]

        return await self._database.run(work)

    async def count(self, camera: Camera, since: datetime) -> int:
        """How many there are of those."""
        sql = f"SELECT count(*) FROM clip WHERE camera = {_ROW} AND start_ms >= ?"  # noqa: S608
        values = (camera.source, camera.id, to_ms(since))
        (found,) = await self._database.run(lambda db: db.execute(sql, values).fetchone())
        return int(found)

    async def waiting(self, camera: Camera, *, limit: int = -1) -> list[datetime]:
        """Starts of the camera's waiting copies, oldest first; all of them, or so many."""
        sql = (
            "SELECT start_ms FROM copy WHERE state = 'waiting' AND camera ="
            " (SELECT id FROM camera WHERE source = ? AND source_id = ?)"
            " ORDER BY start_ms LIMIT ?"
        )
        values = (camera.source, camera.id, limit)
        found = await self._database.run(lambda db: db.execute(sql, values).fetchall())
        return [from_ms(start) for (start,) in found]

    async def danger(self, now: datetime, *, margin: float = 1.0) -> Loss | None:
        """See the function of this name."""
        return await self._database.run(lambda db: danger(db, now, margin=margin))


def danger(db: sqlite3.Connection, now: datetime, *, margin: float = 1.0) -> Loss | None:
    """What the source will delete unstored within SHORT, at this share of the present rate."""
    each = seconds_each(db, now)
    if each is None:
        return None
    loss = first_loss(loads(db, now), seconds_each=None if each == inf else each / margin)
    return loss if loss is not None and loss.left <= SHORT else None


def loads(db: sqlite3.Connection, now: datetime) -> list[Load]:
    """The backlog by camera and hour, with the time that the oldest of each has left."""
    lives = {
        row: (name, _life(*life))
        for row, name, *life in db.execute(
            "SELECT id, name, oldest_ms, looked_ms, watched_ms, moved FROM camera"
        )
    }
    found = []
    for row, copies, first in db.execute(
        "SELECT camera, count(*), min(start_ms) FROM copy WHERE state = 'waiting'"
        " GROUP BY camera, start_ms / 3600000"
    ):
        name, life = lives[row]
        left = None if life is None else life.left(from_ms(first))
        if life is not None and left is not None:
            left -= max(timedelta(), now - life.looked)
        found.append(Load(name, copies, left))
    return found


def seconds_each(db: sqlite3.Connection, now: datetime) -> float | None:
    """What a copy has taken lately: time in which anything was tried, for each that was stored.

    Infinite: none was stored; None: it is not known yet.
    """
    begin = to_ms(now - RATE_OVER)
    rows: Sequence[tuple[int, float, str]] = db.execute(
        "SELECT at_ms, seconds, outcome FROM attempt"
        " WHERE id > (SELECT ifnull(max(id), 0) - ? FROM attempt) AND at_ms BETWEEN ? AND ?"
        " ORDER BY at_ms",
        (RATE_ATTEMPTS, begin, to_ms(now)),
    ).fetchall()
    stored = sum(outcome == "stored" for _, _, outcome in rows)
    if not stored:
        (opened,) = db.execute("SELECT max(opened_ms) FROM opening").fetchone()
        fresh = opened is None or opened > to_ms(now - STARTING)
        return None if fresh else inf
    busy, until = 0.0, float(begin)
    for at, seconds, _ in rows:
        busy += max(0.0, at - max(until, at - 1000 * seconds))
        until = max(until, at)
    return max(busy / 1000, 0.001) / stored


def _life(
    oldest: int | None, looked: int | None, watched: int | None, moved: float | None
) -> Life | None:
    if oldest is None or looked is None or watched is None:
        return None
    return Life(from_ms(oldest), from_ms(looked), from_ms(watched), moved or 0.0)
