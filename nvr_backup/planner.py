"""What a listing means: which clips are new, which have grown, how far the camera is accounted for.

Pure: no clock, no database, no network; times and rules come in, decisions go out. It must never
let a camera's reach pass a clip that it did not plan, and never take an empty listing for a proof
that there are no clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from nvr_backup.model import Clip, Window, to_ms

UNKNOWN_LENGTH: Final = timedelta(minutes=5)
"""A clip whose source does not say how long it is counts as ended this long after its start."""

WHOLE_EVERY: Final = timedelta(hours=6)
TAIL: Final = timedelta(days=2)
"""A camera that shows no clips is listed from its last one on, however long ago; of a stretch
longer than TAIL, once all it has shown is proven, only the tail is listed in every pass, the whole
of it once in WHOLE_EVERY."""

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

    `latest` is the start of the latest listed clip, `open_since` that of the oldest one that is not
    final yet (None without one); `ahead` counts clips from the future.
    """

    additions: tuple[Addition, ...]
    new_ids: tuple[NewId, ...]
    listed: int
    ahead: int
    latest: datetime | None
    open_since: datetime | None


def ended_by(clip: Clip) -> datetime:
    """When the clip ended, or is assumed to have."""
    return clip.end if clip.end is not None else clip.start + UNKNOWN_LENGTH


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the listings of one camera have come for one store; see `schema.sql`."""

    begin: datetime
    proven: datetime
    seen: datetime
    listed_until: datetime
    whole: datetime | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one pass is to list; `whole` unless it leaves out what was listed not long ago."""

    window: Window
    whole: bool


@dataclass(frozen=True, slots=True)
class Hole:
    """Days that a pass found empty while it showed clips of later ones.

    `before` is the start of the latest clip shown before the first of them (None: there was none),
    `until` the end of the last.
    """

    before: datetime | None
    until: datetime


@dataclass(frozen=True, slots=True)
class Findings:
    """What a pass showed: `latest` is the start of the latest clip listed (None: there was none).

    `complete` says that no listing failed; `open_since` is as in `Plan`.
    """

    latest: datetime | None
    open_since: datetime | None
    complete: bool
    hole: Hole | None = None


def first_reach(rules: Rules, since: datetime) -> Reach:
    """The reach of a camera and store that met at `since`: they begin a backfill earlier."""
    backfill = rules.backfill
    if not isinstance(backfill, timedelta):
        backfill = ALL_REACH if backfill == "all" else timedelta(0)
    begin = since - rules.settle - min(backfill, ALL_REACH)
    return Reach(begin, proven=begin, seen=begin, listed_until=begin)


def believable(reach: Reach, *, rules: Rules, latest: datetime | None, now: datetime) -> Reach:
    """The reach to go on from: times in the future were recorded under a wrong clock.

    What was listed under that clock is unknown, so the latest clip on record (`latest`, its start)
    takes their place, or the beginning where there is none. Where the beginning itself is in the
    future nothing was listed of the time that is the past now: it begins anew.
    """
    if reach.begin > now:
        return first_reach(rules, now)
    known = reach.begin if latest is None else max(reach.begin, min(latest, now))
    return replace(
        reach,
        proven=reach.proven if reach.proven <= now else known,
        seen=reach.seen if reach.seen <= now else known,
        listed_until=reach.listed_until if reach.listed_until <= now else known,
        whole=reach.whole if reach.whole is not None and reach.whole <= now else None,
    )


def stretch_for(reach: Reach, *, rules: Rules, now: datetime) -> Stretch:
    """What to list: [proven - lookback, now - settle], or the tail of it; never negative."""
    end = now - rules.settle
    start = max(reach.begin, reach.proven - rules.lookback)
    if start > end:
        return Stretch(Window(end, end), whole=True)
    recent = reach.whole is not None and now - reach.whole < WHOLE_EVERY
    # What was shown once is asked for again soon, unless the camera has shown nothing since.
    unproven = reach.seen > reach.proven and now - reach.listed_until < TAIL
    if recent and not unproven and end - start > TAIL:
        return Stretch(Window(end - TAIL, end), whole=False)
    return Stretch(Window(start, end), whole=True)


def advance(reach: Reach, stretch: Stretch, found: Findings, *, now: datetime) -> Reach:
    """The reach after a pass over `stretch`; no part of it ever goes back.

    A pass without a clip proves nothing. With one, what this pass and the one before have both
    gone over is proven, up to the latest clip that both have shown; the start of a clip that is
    not final yet is never passed. Nothing behind a hole counts as shown until the hole is still
    there WHOLE_EVERY later: the recorder may swallow an error about those days.
    """
    if found.latest is None:
        whole = now if stretch.whole and found.complete else reach.whole
        return replace(reach, whole=whole)
    limit = found.open_since or stretch.window.end
    shown = min(found.latest, limit)
    listed_until = reach.listed_until
    if found.complete and listed_until >= stretch.window.start:
        listed_until = max(listed_until, min(stretch.window.end, limit))
    if not stretch.whole:
        return replace(reach, listed_until=listed_until)
    seen, whole = shown, now
    hole = found.hole
    if hole is not None:
        known_since = reach.whole if reach.listed_until >= hole.until else None
        if known_since is None or now - known_since < WHOLE_EVERY:
            seen = reach.seen if hole.before is None else min(hole.before, limit)
            whole = known_since or now  # that long ago it was seen first
    return replace(
        reach,
        proven=max(reach.proven, min(reach.seen, shown)),
        seen=max(reach.seen, seen),
        listed_until=listed_until,
        whole=whole if found.complete else reach.whole,
    )


def plan(
    listing: Sequence[Clip],
    known: Sequence[KnownClip],
    *,
    since: Mapping[str, datetime],
    rules: Rules,
    now: datetime,
) -> Plan:
    """Decide on a listing of one camera against what is `known` of the same stretch of time.

    `since` gives for each store where its listings begin: a clip that ended before it is not this
    store's. A listed clip that matches a known one by start and id, or by start and end under
    an id that is no longer listed, is the same clip; with a later end it is a longer version.
    """
    cutoff = now - rules.settle
    book = _Book(known, {clip.id for clip in listing})
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
        match = book.find(clip)
        if match is None:
            additions.append(Addition(clip, stores))
        elif clip.end is not None and clip.end > _end_of(match):
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
        latest=max((clip.start for clip in listing), default=None),
        open_since=open_since,
    )


class _Book:
    """The known clips, to be looked up as listed ones."""

    def __init__(self, known: Sequence[KnownClip], listed_ids: set[str]) -> None:
        self._by_id: dict[tuple[datetime, str], KnownClip] = {}
        self._unlisted: dict[datetime, list[KnownClip]] = defaultdict(list)
        for row in sorted(known, key=_end_of):
            self._by_id[row.start, row.id] = row  # the longest version is the last
            if row.id not in listed_ids:
                self._unlisted[row.start].append(row)

    def find(self, clip: Clip) -> KnownClip | None:
        """The known version of this clip, the longest if there are several.

        A row under another id is this clip only if that id is gone from the listing, and then only
        if both end at the same time or both ids tell the start they share (an id that is made of
        start and length changes while the clip grows). Anything else may be two clips with one
        start, as mixed-in sources list them: better stored twice than not at all.
        """
        same_id = self._by_id.get((clip.start, clip.id))
        if same_id is not None:
            return same_id
        for row in reversed(self._unlisted.get(clip.start, ())):
            if row.end == clip.end or (
                clip.end is not None
                and clip.end > _end_of(row)
                and _tells_start(row.id, clip)
                and _tells_start(clip.id, clip)
            ):
                return row
        return None


def _tells_start(id_: str, clip: Clip) -> bool:
    """Whether an id contains the clip's start, in milliseconds or seconds since the epoch."""
    ms = to_ms(clip.start)
    return str(ms) in id_ or str(ms // 1000) in id_


def _end_of(row: KnownClip) -> datetime:
    return row.end if row.end is not None else row.start + UNKNOWN_LENGTH


def _as_known(clip: Clip, row: KnownClip) -> Clip:
    """The clip with the identity of its known row, so that a new store's copy joins that row."""
    return Clip(clip.camera, clip.id, row.start, row.end, clip.classes)
