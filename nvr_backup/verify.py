"""Everything in a stretch of time, asked of all stores and sources, and put right on request.

Works beside a daemon and leaves all carrying to it: what is to be stored anew goes back into the
backlog. It must never touch an object, and never take a store or source that cannot be asked for
one that has nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from nvr_backup import coverage, findings, healing
from nvr_backup.adapters import open_store
from nvr_backup.clock import Clock
from nvr_backup.database import Database, transaction
from nvr_backup.errors import Blocked, Transient
from nvr_backup.findings import Finding, What
from nvr_backup.inquiry import inquire
from nvr_backup.keys import candidates
from nvr_backup.model import EPOCH, Camera, Clip, Window
from nvr_backup.settings import Settings
from nvr_backup.verification import Outcome, Step, Verification

HEALED_AT_ONCE: Final = 1000
"""Copies put back in one transaction: a daemon waits for it, and not for ever."""

FEWEST_GONE: Final = 10
"""So many objects that are missing, and fewer that are there: the wrong place, not a loss."""

CHANGED: Final = "changed meanwhile, or no key is free; verify again"
NOT_ASKED: Final = "the store could not be asked now"
MOSTLY_GONE: Final = (
    "most objects on record are not there: are bucket, prefix and path the right ones? "
    "With --accept-loss they are stored again"
)
NOWHERE: Final = "the configuration no longer has this source with this store"
"""Why something wrong was not put back into the backlog."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be verified: clips since `begin`, their bytes too if `deep`.

    `budget`: so many bytes may be read from each store. `accept_loss`: also put back what is
    missing in a store where most is.
    """

    begin: datetime
    deep: bool = False
    budget: int | None = None
    fix: bool = False
    accept_loss: bool = False


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A clip that a source lists and that should be on record for this store, and is not."""

    source: str
    camera_id: str
    camera: str
    store: str
    start: datetime


@dataclass(slots=True)
class Verified:
    """What was found. `unasked` has what could not be asked, with the reason.

    `wrong` is all that is known to be wrong now, however old; `healed` are those copies of it that
    went back into the backlog, `left` the others, with the reason.
    """

    begin: datetime
    end: datetime
    outcomes: list[Outcome] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    unplanned: list[Unplanned] = field(default_factory=list)
    wrong: list[Finding] = field(default_factory=list)
    healed: set[int] = field(default_factory=set)
    left: dict[int, str] = field(default_factory=dict)


async def verify(settings: Settings, wish: Wish, clock: Clock, step: Step) -> Verified:
    """Verify; raises CheckpointError or ConfigError, and nothing because of a store or source."""
    Database(settings.state_dir, writable=False).close()  # there is one, and in our schema
    with closing(Database(settings.state_dir)) as database:
        run = _Run(settings, wish, clock, database, step, Verified(wish.begin, clock.now()))
        for name in settings.stores:
            await run.store(name)
        await run.sources()
        result = run.result
        result.wrong = await database.run(
            lambda db: findings.known(db, settings.stores.keys(), EPOCH, result.end)
        )
        if wish.fix:
            await run.fix()
        return result


@dataclass(frozen=True, slots=True)
class _Run:
    """One verification. `may_replace` has the stores whose keys may delete.

    `mostly_gone` has those in which more is missing than there.
    """

    settings: Settings
    wish: Wish
    clock: Clock
    database: Database
    step: Step
    result: Verified
    may_replace: set[str] = field(default_factory=set)
    mostly_gone: set[str] = field(default_factory=set)

    async def store(self, name: str) -> None:
        """Compare one store, and read back from it if that is wished."""
        place = self.settings.stores[name]
        opened = open_store(
            name,
            place,
            self.clock,
            chunk_size=self.settings.transfer.chunk_size,
            used_before=await self.database.run(lambda db: _has_stored(db, name)),
        )
        try:
            async with opened as store:
                if (await store.probe()).delete:
                    self.may_replace.add(name)
                verification = Verification(
                    name,
                    store,
                    place.key_template,
                    self.database,
                    begin=self.result.begin,
                    end=self.result.end,
                    clock=self.clock,
                    step=self.step,
                )
                self.result.outcomes.append(verification.outcome)
                await verification.compare()
                if not self.wish.accept_loss and _mostly_gone(
                    verification.outcome, self.wish.begin
                ):
                    self.mostly_gone.add(name)
                await verification.read_again(self.wish.budget)
                if self.wish.deep:
                    await verification.read_back(self._left(verification.outcome))
        except (Blocked, Transient) as err:
            self.result.unasked[f"stores.{name}"] = str(err)

    def _left(self, outcome: Outcome) -> int | None:
        """What may still be read."""
        budget = self.wish.budget
        return None if budget is None else max(0, budget - outcome.read_bytes)

    async def sources(self) -> None:
        """What the sources list and nobody planned."""
        settings, result = self.settings, self.result
        records = await self.database.run(
            lambda db: coverage.records(db, result.begin, result.end, cameras=None)
        )
        cameras = {(record.pair.source, record.pair.camera_id) for record in records}

        def wanted(camera: Camera) -> bool:
            return (camera.source, camera.id) in cameras

        # What began before is wanted of no camera: a recorder is not asked for it day by day.
        wanted_since = min((record.begin for record in records), default=result.begin)
        window = Window(max(result.begin, wanted_since), result.end)
        answer = await inquire(settings.sources, window, wanted=wanted, clock=self.clock)
        for part, why in answer.unheard.items():
            result.unasked[f"sources.{part}"] = why
        for record in records:
            pair = record.pair
            if pair.source in settings.sources and pair.store in settings.stores_of(pair.source):
                listed = answer.of(pair.source, pair.camera_id) or ()
                settled = result.end - settings.schedule.settle
                result.unplanned += [
                    Unplanned(pair.source, pair.camera_id, pair.camera, pair.store, clip.start)
                    for clip in coverage.unplanned(record, listed, settled=settled)
                ]

    async def fix(self) -> None:
        """Back into the backlog with what is wrong; what was missed is to be listed again."""
        result = self.result
        templates = {name: store.key_template for name, store in self.settings.stores.items()}

        def keys(store: str, clip: Clip) -> Iterator[str]:
            return candidates(templates[store], clip)

        def heal(db: sqlite3.Connection, some: Sequence[Finding]) -> None:
            with transaction(db, durable=True):
                now = self.clock.now()
                healed = healing.heal(db, some, keys, may_replace=self.may_replace, now=now)
                result.healed.update(one.copy for one in healed)

        def list_again(db: sqlite3.Connection) -> None:
            with transaction(db, durable=True):
                for one in result.unplanned:
                    healing.list_again(db, one.source, one.camera_id, one.store, one.start)

        left = {one.copy: self._why_left(one) for one in result.wrong}
        wanted = [one for one in result.wrong if left[one.copy] is None]
        for first in range(0, len(wanted), HEALED_AT_ONCE):
            await self.database.run(partial(heal, some=wanted[first : first + HEALED_AT_ONCE]))
        await self.database.run(list_again)
        result.left.update(
            (copy, why or CHANGED) for copy, why in left.items() if copy not in result.healed
        )

    def _why_left(self, one: Finding) -> str | None:
        """Why this is not to be stored anew; None: it is."""
        if f"stores.{one.store}" in self.result.unasked:
            return NOT_ASKED
        if one.what is What.MISSING and one.store in self.mostly_gone:
            return MOSTLY_GONE
        settings = self.settings
        if one.source in settings.sources and one.store in settings.stores_of(one.source):
            return None
        return NOWHERE


def _mostly_gone(outcome: Outcome, since: datetime) -> bool:
    """Findings from before `since` say nothing of the others of their time."""
    found = [one.what for one in outcome.found.values() if one.start >= since]
    gone = found.count(What.MISSING)
    return gone >= FEWEST_GONE and gone > len(found) - gone + outcome.right


def _has_stored(db: sqlite3.Connection, store: str) -> bool:
    row = db.execute("SELECT 1 FROM meta WHERE name = ?", (f"stored in {store}",)).fetchone()
    return row is not None
