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
from nvr_backup.errors import NvrBackupError
from nvr_backup.model import EPOCH, Camera, Clip, Window
from nvr_backup.planner import (
    Findings,
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


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Surveyed:
    """What a listing pass found. `planned` counts copies (one for each store)."""

    listed: int = 0
    planned: int = 0
    ahead: int = 0
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
        self, camera: Camera, *, now: datetime, since: datetime | None = None
    ) -> Surveyed:
        """List one camera and plan what is new; `since` asks for another stretch than usual.

        Raises what `ClipSource.clips` raises. With `dry_run` nothing is recorded and the clips that
        would be planned are returned.
        """
        bearings = await self._bearings(camera, now, since)
        found = Surveyed()
        shown = Findings(latest=None, open_since=None, complete=False)
        whole = Window(min(bearings.since.values()), max(now - self.rules.settle, EPOCH))
        try:
            for part in whole.split(PASS_LENGTH):
                self.step()
                listing = [clip async for clip in self.source.clips(camera, part)]
                step = await self._plan(camera, listing, bearings, now)
                found.listed += step.listed
                found.ahead += step.ahead
                found.planned += await self._record(camera, step, found, now)
                shown = Findings(
                    latest=max(filter(None, (shown.latest, step.latest)), default=None),
                    open_since=min(filter(None, (shown.open_since, step.open_since)), default=None),
                    complete=False,
                )
        except NvrBackupError:
            await self._advance(camera, bearings, shown, now)
            raise
        await self._advance(camera, bearings, replace(shown, complete=True), now)
        return found

    async def _bearings(self, camera: Camera, now: datetime, since: datetime | None) -> _Bearings:
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
        return _Bearings(reaches, usual, asked)

    async def _plan(
        self, camera: Camera, listing: Sequence[Clip], bearings: _Bearings, now: datetime
    ) -> Plan:
        known: Sequence[KnownClip] = ()
        if listing:
            starts = [clip.start for clip in listing]
            known = await self.checkpoint.known(camera, min(starts), max(starts))
        return plan(listing, known, since=bearings.since, rules=self.rules, now=now)

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
        )


@dataclass(frozen=True, slots=True)
class _Bearings:
    """By store: how far its listings have come, its usual stretch, where this pass begins."""

    reaches: Mapping[str, Reach]
    usual: Mapping[str, Stretch]
    since: Mapping[str, datetime]
