"""The source as the daemon sees it: the fake of the contract suites, in bad weather.

What is wrong with an answer (a lie) is noted, because the invariants may only ask for what the
source has shown. A lie may not go on for ever: what a recorder never shows, nobody can store.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nvr_backup.errors import Transient, Unfit
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.ports import ClipBody
from tests.simulation.sites import Life, Site
from tests.simulation.world import World
from tests.support.fakes import FakeSource

STALL_SECONDS = 60.0
LONGEST_LISTING_SECONDS = 900.0
NARROW = timedelta(seconds=1)
LONGEST_SPELL = timedelta(hours=5)
"""Shorter than `planner.WHOLE_EVERY`: what stays empty for longer may be taken as empty."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One listing as it was answered: when it was asked for (true time), and what it left out.

    Listings of windows that adjoin belong to one pass, which has a number.
    """

    moment: datetime
    window: Window
    hidden: frozenset[str]
    empty: bool
    run: int


@dataclass
class SourceSite(Site):
    """A recorder. `shown` are the listings of each camera that were answered in full."""

    name: str = ""
    fake: FakeSource = field(default_factory=FakeSource)
    shown: dict[str, list[Shown]] = field(default_factory=lambda: defaultdict(list))
    hidden: dict[str, frozenset[str]] = field(default_factory=lambda: defaultdict(frozenset))
    spells: dict[str, datetime] = field(default_factory=dict)
    gone: set[tuple[str, str]] = field(default_factory=set)
    bad_bodies: Counter[tuple[str, str]] = field(default_factory=Counter)
    blind: timedelta | None = None  # during a spell nothing older than this is listed
    ranges: bool = True
    says_size: bool = True


class SimulatedSource:
    """`ports.ClipSource` on a site, for one life of the daemon."""

    def __init__(
        self, site: SourceSite, world: World, life: Life, true: Callable[[], datetime]
    ) -> None:
        self._site = site
        self._world = world
        self._life = life
        self._true = true

    async def cameras(self) -> Sequence[Camera]:
        site = self._site
        await site.pause()
        self._life.check()
        self._world.advance()
        site.check_up("source")
        if site.luck("camera list failed"):
            raise site.transient()
        found = await site.fake.cameras()
        if site.luck("camera list short", 0.3):
            found = found[: site.rng.randint(0, len(found))]
        return found

    async def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
        site = self._site
        await site.pause(LONGEST_LISTING_SECONDS if site.weather.slow > 0.2 else 2.0)
        self._life.check()
        self._world.advance()
        site.check_up("listing")
        if site.luck("listing failed"):
            raise site.transient()
        asked = self._true()
        found = [clip async for clip in site.fake.clips(camera, window)]
        given = self._lie(camera, window, found)
        fails_at = -1
        if found and site.luck("listing failed half-way", 1.0):
            fails_at = site.rng.randrange(len(given) + 1)
        for number, clip in enumerate(given):
            if number == fails_at:
                raise site.transient()
            yield clip
        if fails_at == len(given):
            raise site.transient()
        if window.end - window.start == NARROW:
            return  # a look for a single clip, which is no part of a pass
        shown = {clip.id for clip in given}
        hidden = frozenset(clip.id for clip in found if clip.id not in shown)
        if given:
            site.hidden[camera.id] = site.hidden[camera.id] - shown | hidden
        before = site.shown[camera.id][-1:]
        run = before[0].run if before else 0
        if not before or before[0].window.end != window.start:
            run += 1
        site.shown[camera.id].append(Shown(asked, window, hidden, not given, run))

    def _lie(self, camera: Camera, window: Window, found: list[Clip]) -> list[Clip]:
        """What is listed in place of the truth.

        In answers that show something, any clip is left out at most once in a row. Each camera has
        one spell of answers that show nothing, some of them for all days but the latest.
        """
        site = self._site
        if not found:
            return found
        if self._in_spell(camera):
            if site.blind is not None and window.end < self._true() - site.blind:
                site.happened["old days not listed"] += 1
                return []
            if site.luck("empty listing", 1.5):
                return []
        listed = found
        if site.luck("listing cut short", 0.7):
            listed = found[: site.rng.randrange(len(found))]
        elif site.luck("listing with gaps", 0.7):
            listed = [clip for clip in found if site.rng.random() < 0.7]
        shown = {clip.id for clip in listed} | site.hidden[camera.id]
        return [clip for clip in found if clip.id in shown] or found

    def _in_spell(self, camera: Camera) -> bool:
        began = self._site.spells.setdefault(camera.id, self._true())
        return self._true() - began < LONGEST_SPELL

    @asynccontextmanager
    async def open(self, clip: Clip, *, offset: int = 0) -> AsyncIterator[ClipBody]:
        site = self._site
        await site.pause()
        self._life.check()
        self._world.advance()
        site.check_up("clip")
        if site.luck("clip not served"):
            raise site.transient()
        recording = site.fake.recordings.get(clip.id)
        if recording is None or recording.clip.camera.id != clip.camera.id:
            site.gone.add((clip.camera.id, clip.id))
            site.happened["clip gone"] += 1
            raise Unfit(f"The clip {clip.id} is gone.")
        async with site.fake.open(clip, offset=offset if site.ranges else 0) as body:
            yield _Body(site, self._life, clip, body, len(recording.data), recording.data)


class _Body:
    """A body that may be cut, stall, end too early, or be something else."""

    def __init__(
        self, site: SourceSite, life: Life, clip: Clip, body: ClipBody, whole: int, data: bytes
    ) -> None:
        self.offset = body.offset
        self.size: int | None = whole if site.says_size else None
        self._body = body
        self._life = life
        self._site = site
        self._cut_at: int | None = None
        self._how = ""
        if site.luck("body", 1.5):
            self._how = site.rng.choice(("cut", "stall", "early", "html", "empty", "wrong size"))
            site.happened[f"body: {self._how}"] += 1
            self._cut_at = site.rng.randint(min(self.offset, whole), whole)
            if self._how in ("early", "html", "empty", "wrong size"):
                site.bad_bodies[clip.camera.id, clip.id] += 1
            if self._how == "wrong size":
                self.size, self._cut_at = whole + site.rng.randint(1, 99), None
            elif self._how == "html":
                self.size, self.offset = 18, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._how == "empty":
            return
        if self._how == "html":
            yield b"<html>busy</html>\n"
            return
        at = self.offset
        async for piece in self._body:
            await self._site.pause()
            self._life.check()
            if self._site.weather.down:
                raise Transient("The clip's transfer broke off.")
            if self._cut_at is not None and at + len(piece) >= self._cut_at:
                if self._cut_at > at:
                    yield piece[: self._cut_at - at]
                if self._how == "early":
                    return
                if self._how == "stall":
                    await asyncio.sleep(STALL_SECONDS)
                raise Transient("The clip's transfer broke off.")
            at += len(piece)
            yield piece
