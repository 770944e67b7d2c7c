"""Hour by hour: what the source had, and what of it is safe in a store.

Two witnesses are put side by side: what the checkpoint knows, and what the source lists now. Where
they differ the worse one counts. It judges and changes nothing; it must never call an hour safe
because nobody could be asked about it.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from enum import IntEnum
from itertools import groupby
from typing import Final

from nvr_backup.model import Clip, from_ms, to_ms
from nvr_backup.rows import is_lost

HOUR: Final = timedelta(hours=1)

ENDLESS: Final = timedelta(minutes=5)
"""A clip without an end counts for so long, as for the planner."""

_INSTANT: Final = timedelta(milliseconds=1)


class State(IntEnum):
    """What an hour is, better first: the worst of its clips decides."""

    NOTHING = 0
    """The source has nothing, and as far as we know it had nothing."""
    SAFE = 1
    UNVERIFIED = 2
    """Stored by us, but the store's answer was lost and its key may not read."""
    UNASKED = 3
    """Not listed for good so far, and the source could not be asked now."""
    WAITING = 4
    UNPLANNED = 5
    """The source has it and the checkpoint does not: older than the backfill, or missed."""
    SET_ASIDE = 6
    WRONG = 7
    """Stored, but a verification found the object missing or another one."""
    LOST = 8
    """Gone at the source before it was stored."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A camera in a store."""

    source: str
    camera_id: str
    camera: str
    store: str


@dataclass(frozen=True, slots=True)
class Known:
    """A clip of the checkpoint in one store. `size` is bytes, once stored."""

    start: datetime
    end: datetime
    state: State
    size: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """What the checkpoint knows of a pair.

    `begin`: what ended earlier is not wanted. `listed`: where its latest listing without a failure
    ended. `proven`: nothing before it is listed again.
    """

    pair: Pair
    begin: datetime
    proven: datetime
    listed: datetime
    clips: Sequence[Known]


@dataclass(slots=True)
class Cell:
    """One hour (shorter at the ends and at a clock change): clips that touch it, by state."""

    start: datetime
    end: datetime
    state: State = State.NOTHING
    clips: dict[State, int] = field(default_factory=dict)

    def add(self, state: State) -> None:
        """One more clip touches this hour."""
        self.clips[state] = self.clips.get(state, 0) + 1
        self.state = max(self.state, state)


@dataclass(frozen=True, slots=True)
class Gap:
    """Hours in a row that are not safe, in the same way."""

    state: State
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Coverage:
    """A pair's hours in order; `totals` counts its clips, each once."""

    pair: Pair
    cells: Sequence[Cell]
    totals: Mapping[State, int]
    stored_bytes: int

    def gaps(self) -> list[Gap]:
        """The stretches that are not safe, the worst first, then the longest."""
        found = [
            Gap(state, run[0].start, run[-1].end)
            for state, cells in groupby(self.cells, key=lambda cell: cell.state)
            if state > State.SAFE and (run := list(cells))
        ]
        return sorted(found, key=lambda gap: (-gap.state, gap.start - gap.end, gap.start))

    @property
    def badness(self) -> tuple[int, ...]:
        """Sorts pairs, the worst first, when used as a key in reverse."""
        hours = [sum(cell.state is state for cell in self.cells) for state in State]
        return tuple(reversed(hours[State.UNVERIFIED :]))


def hours(begin: datetime, end: datetime, zone: tzinfo | None) -> Iterator[Cell]:
    """The hours of [begin, end) as the clocks of `zone` strike them, 23 or 25 on some days."""
    start = begin
    while start < end:
        local = start.astimezone(zone)
        past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        stop = min(start - past + HOUR, end)
        yield Cell(start, stop)
        start = stop


def records(
    db: sqlite3.Connection, begin: datetime, end: datetime, *, cameras: Collection[int] | None
) -> list[Record]:
    """What the checkpoint knows of clips that touch [begin, end), by camera and store.

    Of the versions of a clip that grew only the longest counts. `cameras` are rows; None is all.
    """
    found: dict[Pair, dict[datetime, Known]] = {}
    reached: dict[Pair, tuple[datetime, datetime, datetime]] = {}
    rows = db.execute(
        "SELECT camera.id, source, camera.source_id, name, reach.store, begin_ms, reach.proven_ms,"
        " listed_until_ms"
        " FROM reach JOIN camera ON camera.id = reach.camera"
    ).fetchall()
    pairs = {}
    for row, source, camera_id, name, store, *times in rows:
        if cameras is None or row in cameras:
            pair = pairs[row, store] = Pair(source, camera_id, name, store)
            first, proven, listed = map(from_ms, times)
            reached[pair] = (first, proven, listed)
            found[pair] = {}
    sql = (
        "SELECT copy.camera, copy.store, clip.start_ms, clip.end_ms, state, reason, verified, size,"
        " EXISTS (SELECT 1 FROM finding WHERE finding.copy = copy.id)"
        " FROM copy JOIN clip ON clip.id = copy.clip"
        " WHERE copy.start_ms < ? AND ifnull(clip.end_ms, clip.start_ms + ?) >= ?"
        " ORDER BY ifnull(clip.end_ms, clip.start_ms)"
    )
    for row, store, start_ms, end_ms, state, reason, verified, size, wrong in db.execute(
        sql, (to_ms(end), ENDLESS // _INSTANT, to_ms(begin))
    ):
        if (row, store) not in pairs:
            continue
        start = from_ms(start_ms)
        stop = start + ENDLESS if end_ms is None else from_ms(end_ms)
        judged = State.WRONG if wrong else _state(state, reason, verified)
        known = Known(start, stop, judged, size or 0)
        found[pairs[row, store]][start] = known
    return [Record(pair, *reached[pair], list(clips.values())) for pair, clips in found.items()]


def _state(state: str, reason: str | None, verified: int | None) -> State:
    match state:
        case "stored":
            return State.SAFE if verified else State.UNVERIFIED
        case "waiting":
            return State.WAITING
        case _:
            return State.LOST if is_lost(reason) else State.SET_ASIDE


def unplanned(record: Record, listed: Iterable[Clip], *, settled: datetime) -> list[Clip]:
    """What the source lists of a pair and is wanted, was listed for good, and is not on record."""
    return [
        clip
        for clip in _unknown(record, listed, settled)
        if record.begin < _end(clip) <= record.proven
    ]


def _unknown(record: Record, listed: Iterable[Clip], settled: datetime) -> Iterator[Clip]:
    starts = {clip.start for clip in record.clips}
    for clip in listed:
        if clip.start not in starts and _end(clip) <= settled:
            yield clip


def _end(clip: Clip) -> datetime:
    return clip.end or clip.start + ENDLESS


def judge(
    record: Record,
    listed: Iterable[Clip] | None,
    *,
    begin: datetime,
    end: datetime,
    settled: datetime,
    zone: tzinfo | None,
) -> Coverage:
    """A pair's hours. `listed` is what the source lists now; None: it could not be asked.

    A listed clip that ended after `settled` is not final and no concern yet.
    """
    cells = list(hours(begin, end, zone))
    begins = [cell.start for cell in cells]
    totals: dict[State, int] = {}
    clips = list(record.clips)
    clips += [
        Known(
            clip.start,
            _end(clip),
            State.WAITING if _end(clip) > record.proven else State.UNPLANNED,
        )
        for clip in _unknown(record, listed or (), settled)
    ]
    for known in clips:
        totals[known.state] = totals.get(known.state, 0) + 1
        stop = max(known.end, known.start + _INSTANT)
        for at in range(max(0, bisect_right(begins, known.start) - 1), len(cells)):
            if cells[at].start >= stop:
                break
            if cells[at].end > known.start:
                cells[at].add(known.state)
    if listed is None:
        for cell in cells:
            if cell.end > record.listed:
                cell.state = max(cell.state, State.UNASKED)
    return Coverage(record.pair, cells, totals, sum(clip.size for clip in clips))
