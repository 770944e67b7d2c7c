"""One camera's listing pass: windows → listing → planner → backlog → reach.

The reach moves only after what was listed is in the checkpoint, so a crash at any point repeats a
listing and never skips one. A listing that fails half-way keeps what was planned and leaves the
rest for the next cycle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import NvrBackupError
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.planner import KnownClip, Plan, Rules, believable, plan, reach_after, window_for
from nvr_backup.ports import ClipSource
from nvr_backup.rows import Keys

PASS_LENGTH: Final = timedelta(days=1)
"""One listing is planned and recorded at a time: bounds memory in a first cycle over months."""


@dataclass(slots=True)
class Surveyed:
    """What a listing pass found. `planned` counts copies (one for each store)."""

    listed: int = 0
    planned: int = 0
    ahead: int = 0
    additions: list[Clip] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Survey:
    """Lists a source's cameras into the checkpoint. `stores` are those the source goes to."""

    source: ClipSource
    stores: Sequence[str]
    checkpoint: Checkpoint
    rules: Rules
    keys: Keys
    dry_run: bool = False

    async def camera(
        self, camera: Camera, *, now: datetime, since: datetime | None = None
    ) -> Surveyed:
        """List one camera and plan what is new; `since` asks for another stretch than usual.

        Raises what `ClipSource.clips` raises. With `dry_run` nothing is recorded and the clips that
        would be planned are returned.
        """
        stretch = await self._stretch(camera, now, since)
        found = Surveyed()
        proven: datetime | None = None
        open_since: datetime | None = None
        whole = Window(min(stretch.since.values()), now - self.rules.settle)
        try:
            for part in whole.split(PASS_LENGTH):
                listing = [clip async for clip in self.source.clips(camera, part)]
                step = await self._plan(camera, listing, stretch, now)
                found.listed += step.listed
                found.ahead += step.ahead
                found.planned += await self._record(camera, step, found, now)
                if step.open_since is not None:
                    open_since = min(open_since or step.open_since, step.open_since)
                if listing:
                    proven = part.end
        except NvrBackupError:
            if proven is not None:
                await self._advance(camera, stretch, proven, open_since)
            raise
        if proven is not None:
            proven = whole.end  # the listing works, so its empty stretches were truly empty
        await self._advance(camera, stretch, proven, open_since)
        return found

    async def _stretch(self, camera: Camera, now: datetime, since: datetime | None) -> _Stretch:
        recorded = await self.checkpoint.reaches(camera)
        latest = await self.checkpoint.latest_start(camera)
        reaches = {
            store: believable(recorded.get(store), latest=latest, now=now) for store in self.stores
        }
        usual = {
            store: window_for(reach, rules=self.rules, now=now) for store, reach in reaches.items()
        }
        asked = {store: since or window.start for store, window in usual.items()}
        return _Stretch(reaches, usual, asked)

    async def _plan(
        self, camera: Camera, listing: Sequence[Clip], stretch: _Stretch, now: datetime
    ) -> Plan:
        known: Sequence[KnownClip] = ()
        if listing:
            starts = [clip.start for clip in listing]
            known = await self.checkpoint.known(camera, min(starts), max(starts))
        return plan(listing, known, since=stretch.since, rules=self.rules, now=now)

    async def _record(self, camera: Camera, step: Plan, found: Surveyed, now: datetime) -> int:
        if self.dry_run:
            found.additions += [addition.clip for addition in step.additions]
            return sum(len(addition.stores) for addition in step.additions)
        if not (step.additions or step.new_ids):
            return 0
        return await self.checkpoint.apply(camera, step, keys=self.keys, now=now)

    async def _advance(
        self,
        camera: Camera,
        stretch: _Stretch,
        proven: datetime | None,
        open_since: datetime | None,
    ) -> None:
        """Record how far each store is accounted for: not if less than its window was listed."""
        if self.dry_run:
            return
        await self.checkpoint.advance(
            camera,
            {
                store: reach_after(
                    reach, window=stretch.usual[store], proven=proven, open_since=open_since
                )
                for store, reach in stretch.reaches.items()
                if stretch.since[store] <= stretch.usual[store].start
            },
        )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """By store: how far it is accounted for, its usual window, where this pass begins."""

    reaches: Mapping[str, datetime | None]
    usual: Mapping[str, Window]
    since: Mapping[str, datetime]
