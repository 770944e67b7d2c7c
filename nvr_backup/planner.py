"""What a listing means: which clips are new, which have grown, how far the camera is accounted for.

Pure: no clock, no database, no network; times and rules come in, decisions go out. It must never
let a camera's reach pass a clip that it did not plan, and never take an empty listing for a proof
that there are no clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from nvr_backup.model import Clip, Window

UNKNOWN_LENGTH: Final = timedelta(minutes=5)
"""A clip whose source does not say how long it is counts as ended this long after its start."""

QUIET_REACH: Final = timedelta(days=30)
"""Listings that stay empty are repeated from the last clip on, at most this far back."""

ALL_REACH: Final = timedelta(days=730)
"""How far back `backfill = "all"` asks; recorders of our kind keep weeks, not years."""

CLOCK_TOLERANCE: Final = timedelta(minutes=2)
"""A clip that begins later than this in the future says that the recorder's clock is off."""

Backfill = timedelta | Literal["all", "none"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of the schedule that decides what is planned."""

    settle: timedelta
    lookback: timedelta
    backfill: Backfill


@dataclass(frozen=True, slots=True)
class KnownClip:
    """A clip the checkpoint already holds; `row` is its own handle for it."""

    row: int
    id: str
    start: datetime
    end: datetime | None
    stores: frozenset[str]


@dataclass(frozen=True, slots=True)
class Addition:
    """A clip to put into the backlog of `stores`.

    `instead_of` is the known row of which it is a longer version: copies of that row on which
    nobody has begun become copies of this one, the others keep what they have.
    """

    clip: Clip
    stores: frozenset[str]
    instead_of: int | None = None


@dataclass(frozen=True, slots=True)
class NewId:
    """A known clip that its source now lists under another id."""

    row: int
    id: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions on one listed window.

    `open_since` is the start of the oldest listed clip that is not final yet (None without one);
    `ahead` counts clips from the future.
    """

    additions: tuple[Addition, ...]
    new_ids: tuple[NewId, ...]
    listed: int
    ahead: int
    open_since: datetime | None


def ended_by(clip: Clip) -> datetime:
    """When the clip ended, or is assumed to have."""
    return clip.end if clip.end is not None else clip.start + UNKNOWN_LENGTH


def believable(
    reach: datetime | None, *, latest: datetime | None, now: datetime
) -> datetime | None:
    """The reach to go on from: a reach in the future was recorded under a wrong clock.

    What was listed under that clock is unknown, so the latest clip on record (`latest`, its start)
    takes its place, or a first time (None) where there is none.
    """
    if reach is None or reach <= now:
        return reach
    return min(latest, now) if latest is not None else None


def window_for(reach: datetime | None, *, rules: Rules, now: datetime) -> Window:
    """The window to list: [reach - lookback, now - settle].

    A reach of None, a first time, goes back by `backfill`. The window can be empty, never negative.
    """
    end = now - rules.settle
    if reach is not None:
        start = min(reach, end) - rules.lookback
    elif isinstance(rules.backfill, timedelta):
        start = end - min(rules.backfill, ALL_REACH)
    else:
        start = end - (ALL_REACH if rules.backfill == "all" else timedelta(0))
    return Window(start, end)


def plan(
    listing: Sequence[Clip],
    known: Sequence[KnownClip],
    *,
    since: Mapping[str, datetime],
    rules: Rules,
    now: datetime,
) -> Plan:
    """Decide on a listing of one camera against what is `known` of the same stretch of time.

    `since` gives for each store the start of its own window: a clip that ended before it is not
    this store's. A listed clip that matches a known one by start and id, or by start and end under
    an id that is no longer listed, is the same clip; with a later end it is a longer version.
    """
    cutoff = now - rules.settle
    same_start: dict[datetime, list[KnownClip]] = defaultdict(list)
    for row in known:
        same_start[row.start].append(row)
    listed_ids = {clip.id for clip in listing}
    additions: list[Addition] = []
    new_ids: list[NewId] = []
    open_since: datetime | None = None
    ahead = 0
    for clip in listing:
        if clip.start > now + CLOCK_TOLERANCE:
            ahead += 1
        if ended_by(clip) > cutoff:
            open_since = min(open_since or clip.start, clip.start)
            continue
        stores = frozenset(name for name, start in since.items() if ended_by(clip) >= start)
        match = _match(clip, same_start.get(clip.start, ()), listed_ids)
        if match is None:
            additions.append(Addition(clip, stores))
        elif clip.end is not None and match.end is not None and clip.end > match.end:
            additions.append(Addition(clip, stores, instead_of=match.row))
        else:
            if match.id != clip.id:
                new_ids.append(NewId(match.row, clip.id))
            if stores - match.stores:
                additions.append(Addition(_as_known(clip, match), stores - match.stores))
    return Plan(
        additions=tuple(addition for addition in additions if addition.stores),
        new_ids=tuple(new_ids),
        listed=len(listing),
        ahead=ahead,
        open_since=open_since,
    )


def _match(clip: Clip, rows: Sequence[KnownClip], listed_ids: set[str]) -> KnownClip | None:
    """The known version of this clip, the longest if there are several.

    A row under another id is this clip only if that id is gone from the listing: two cameras'
    worth of mixed-in sources may well list two clips with the same start.
    """
    same_id = [row for row in rows if row.id == clip.id]
    candidates = same_id or [row for row in rows if row.id not in listed_ids]
    return max(candidates, key=lambda row: row.end or row.start, default=None)


def _as_known(clip: Clip, row: KnownClip) -> Clip:
    """The clip with the identity of its known row, so that a new store's copy joins that row."""
    return Clip(clip.camera, clip.id, row.start, row.end, clip.classes)


def reach_after(
    reach: datetime | None,
    *,
    window: Window,
    proven: datetime | None,
    open_since: datetime | None,
) -> datetime:
    """How far a camera is accounted for after `window` was listed.

    `proven` is the end of the stretch that was listed without error *and* with evidence that the
    listing works (at least one clip came); None without evidence. Then the reach stays where it
    was, so that the same stretch is asked again, at most QUIET_REACH back. It never passes the
    start of a clip that is not final, and never goes back.
    """
    floor = min(reach, window.end) if reach is not None else window.start
    if proven is None:
        return max(floor, window.end - QUIET_REACH)
    ahead = min(proven, open_since) if open_since is not None else proven
    return max(floor, ahead)
