"""One camera's listing pass: windows → listing → planner → backlog → reach.

The reach moves only after what was listed is in the checkpoint, so a crash at any point repeats a
listing and never skips one. A listing that fails half-way keeps what was planned and leaves the
rest for the next cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import NvrBackupError, Transient
from nvr_backup.model import EPOCH, Camera, Clip, Window
from nvr_backup.planner import (
    CLOCK_TOLERANCE,
    Findings,
    Hole,
    KnownClip,
    Plan,
    Reach,
    Rules,
    Stretch,
    advance,
    believable,
    first_reach,
    plan,
    stretch_for,
)
from nvr_backup.ports import ClipSource
from nvr_backup.rows import Keys

PASS_LENGTH: Final = timedelta(days=1)
"""One listing is planned and recorded at a time: bounds memory in a first cycle over months."""

WHOLE_REACH: Final = timedelta(days=120)
"""Few recorders keep clips for longer, and a day of a camera without clips costs a request, too."""


AHEAD_REACH: Final = timedelta(hours=15)
"""How far into the future is looked for clips of a recorder whose clock is off: by a time zone."""


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Surveyed:
    """What a listing pass found. `planned` counts copies (one for each store).

    `ahead` are clips from the future; None when it is not known whether there are any.
    """

    listed: int = 0
    planned: int = 0
    ahead: int | None = None
    additions: list[Clip] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Survey:
    """Lists a source's cameras into the checkpoint. `stores` are those the source goes to.

    `step` is called before each part of a listing: a long one shows that it goes on.
    """

    source: ClipSource
    stores: Sequence[str]
    checkpoint: Checkpoint
    rules: Rules
    keys: Keys
    dry_run: bool = False
    step: Callable[[], None] = _nothing

    async def begin(self, cameras: Sequence[Camera], *, now: datetime) -> None:
        """Fix where the listings of cameras that are new begin, before anything can fail."""
        if not self.dry_run:
            await self.checkpoint.begin_reaches(cameras, self.stores, rules=self.rules, now=now)

    async def camera(
        self,
        camera: Camera,
        *,
        now: datetime,
        since: datetime | None = None,
        whole: bool = False,
    ) -> Surveyed:
        """List one camera and plan what is new; `since` asks for another stretch than usual.

        `whole` asks for all that is wanted: since the beginning, WHOLE_REACH at most.

        Raises what `ClipSource.clips` raises. With `dry_run` nothing is recorded and the clips that
        would be planned are returned.
        """
        bearings = await self._bearings(camera, now, since, whole=whole)
        found = Surveyed()
        shown = Findings(latest=None, open_since=None, complete=False)
        empty_until: datetime | None = None
        stretch = Window(min(bearings.since.values()), max(now - self.rules.settle, EPOCH))
        try:
            for part in stretch.split(PASS_LENGTH):
                self.step()
                listing = [clip async for clip in self.source.clips(camera, part)]
                step = await self._plan(camera, listing, bearings, now)
                found.listed += step.listed
                found.planned += await self._record(camera, step, found, now)
                empty_until, shown = _noted(part, step, empty_until, shown)
        except NvrBackupError:
            await self._advance(camera, bearings, shown, now)
            raise
        await self._advance(camera, bearings, replace(shown, complete=True), now)
        found.ahead = await self._look_ahead(camera, now)
        return found

    async def _look_ahead(self, camera: Camera, now: datetime) -> int | None:
        """Count clips from the future, which no stretch that is listed would ever show.

        They are planned when their time has come. A failure here is nobody's trouble: recorders
        need not answer such a question.
        """
        self.step()
        future = Window(now + CLOCK_TOLERANCE, now + AHEAD_REACH)
        try:
            return len(
                [c async for c in self.source.clips(camera, future) if c.start > future.start]
            )
        except Transient:
            return None

    async def _bearings(
        self, camera: Camera, now: datetime, since: datetime | None, *, whole: bool
    ) -> _Bearings:
        recorded = await self.checkpoint.reaches(camera)
        latest = await self.checkpoint.latest_start(camera)
        reaches = {
            store: believable(
                recorded.get(store) or first_reach(self.rules, now),
                rules=self.rules,
                latest=latest,
                now=now,
            )
            for store in self.stores
        }
        usual = {
            store: stretch_for(reach, rules=self.rules, now=now) for store, reach in reaches.items()
        }
        asked = {store: since or stretch.window.start for store, stretch in usual.items()}
        if whole:
            asked = {
                store: min(asked[store], max(reach.begin, now - WHOLE_REACH))
                for store, reach in reaches.items()
            }
        return _Bearings(recorded, reaches, usual, asked)

    async def _plan(
        self, camera: Camera, listing: Sequence[Clip], bearings: _Bearings, now: datetime
    ) -> Plan:
        known: Sequence[KnownClip] = ()
        if listing:
            starts = [clip.start for clip in listing]
            known = await self.checkpoint.known(camera, min(starts), max(starts))
        # A clip that is listed for one store is planned for every store that has not got it.
        since = {
            store: min(start, bearings.reaches[store].begin)
            for store, start in bearings.since.items()
        }
        return plan(listing, known, since=since, rules=self.rules, now=now)

    async def _record(self, camera: Camera, step: Plan, found: Surveyed, now: datetime) -> int:
        if self.dry_run:
            # A clip across two parts is listed in both, and nothing was recorded in between.
            new = [item for item in step.additions if item.clip not in found.additions]
            found.additions += [addition.clip for addition in new]
            return sum(len(addition.stores) for addition in new)
        if not (step.additions or step.new_ids):
            return 0
        return await self.checkpoint.apply(camera, step, keys=self.keys, now=now)

    async def _advance(
        self, camera: Camera, bearings: _Bearings, shown: Findings, now: datetime
    ) -> None:
        """Record how far each store has come: not if less than its stretch was asked for."""
        if self.dry_run:
            return
        await self.checkpoint.advance(
            camera,
            {
                store: advance(reach, bearings.usual[store], shown, now=now)
                for store, reach in bearings.reaches.items()
                if bearings.since[store] <= bearings.usual[store].window.start
            },
            before=bearings.recorded,
        )


@dataclass(frozen=True, slots=True)
class _Bearings:
    """By store: how far its listings have come, its usual stretch, where this pass begins.

    `reaches` is what is believed of what is `recorded`.
    """

    recorded: Mapping[str, Reach]
    reaches: Mapping[str, Reach]
    usual: Mapping[str, Stretch]
    since: Mapping[str, datetime]


def _noted(
    part: Window, step: Plan, empty_until: datetime | None, shown: Findings
) -> tuple[datetime | None, Findings]:
    """What a pass has shown with one more part of it; up to when its latest parts were empty."""
    if step.latest is None:
        return part.end, shown
    hole = shown.hole
    if empty_until is not None:
        hole = Hole(shown.latest if hole is None else hole.before, empty_until)
    latest = max(filter(None, (shown.latest, step.latest)))
    open_since = min(filter(None, (shown.open_since, step.open_since)), default=None)
    return None, Findings(latest, open_since, complete=False, hole=hole)
