"""The checkpoint made anew, or completed, from what the stores hold.

    what is there (a sound checkpoint, else the latest sound snapshot, else nothing)
      └─ every store's listing → objects that name their clip → stored
           └─ the others: asked of the source, by object key and size → stored
                └─ listings begin again at the oldest clip found

Nothing is uploaded, and nothing is lost: a sound checkpoint is only added to, in place; a damaged
one stays where it is until its successor is complete and on the disk, and is then kept aside under
a dated name. Killed at any point, it can be run again. What is not known to be stored is not
recorded as stored; the next cycle lists it, and carries it or finds it under its key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from typing import Final

from nvr_backup import found
from nvr_backup.adapters import open_store
from nvr_backup.clock import Clock
from nvr_backup.database import Database, transaction
from nvr_backup.errors import Blocked, Transient
from nvr_backup.found import Verdict
from nvr_backup.keys import RESERVED, candidates, day_of
from nvr_backup.matching import Matching
from nvr_backup.metadata import clip_of
from nvr_backup.model import StoredObject
from nvr_backup.planner import Rules, first_reach
from nvr_backup.ports import ClipStore
from nvr_backup.rows import Keys
from nvr_backup.settings import Settings
from nvr_backup.workplace import Basis, Start, Wish, alone, put_in_place, workplace

BATCH: Final = 1000
"""Objects recorded in one transaction; so many are held in memory."""


@dataclass(slots=True)
class Inventory:
    """What one store's objects meant. Counts of objects; `bytes` of those that are stored clips."""

    store: str
    objects: int = 0
    bytes: int = 0
    new: int = 0
    settled: int = 0
    known: int = 0
    twice: int = 0
    loose: int = 0
    matched: int = 0
    unread: str = ""

    @property
    def unmatched(self) -> int:
        """Objects of which nobody knows which clip they are."""
        return self.loose - self.matched

    def count(self, verdict: Verdict) -> None:
        """One more object that meant this."""
        match verdict:
            case Verdict.NEW:
                self.new += 1
            case Verdict.SETTLED:
                self.settled += 1
            case Verdict.KNOWN:
                self.known += 1
            case Verdict.TWICE:
                self.twice += 1


@dataclass(slots=True)
class Rebuilt:
    """What came of it. `kept` names where the old files are now.

    `unasked` are the sources that could not be asked about loose objects, with the reason.
    """

    start: Start
    kept: list[str] = field(default_factory=list)
    inventories: list[Inventory] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)


Tell = Callable[[Inventory], None]
"""Called after each batch of a store's objects."""


async def rebuild(settings: Settings, wish: Wish, clock: Clock, tell: Tell) -> Rebuilt:
    """Make or complete the checkpoint of the settings' state folder.

    Raises EngineRunningError beside an engine; Blocked or Transient when a store cannot be reached
    (a damaged checkpoint is then as it was); CheckpointError and ConfigError like an engine.
    """
    with alone(settings.state_dir, wish):
        async with workplace(settings, wish, clock) as (database, start):
            rebuilt = Rebuilt(start)
            work = _Work(settings, clock, database)
            await database.run(lambda db: db.execute(found.LOOSE))
            for name in settings.stores:
                inventory = Inventory(name)
                rebuilt.inventories.append(inventory)
                if name in wish.without:
                    inventory.unread = "left out as asked"
                else:
                    await work.take_stock(inventory, tell)
            await work.match(rebuilt)
            await work.conclude(rebuilt)
        if start.basis is not Basis.CHECKPOINT and not wish.dry_run:
            rebuilt.kept = put_in_place(settings.state_dir, clock.now())
        return rebuilt


@dataclass(frozen=True, slots=True)
class _Work:
    settings: Settings
    clock: Clock
    database: Database

    @property
    def keys(self) -> Keys:
        templates = {name: store.key_template for name, store in self.settings.stores.items()}
        return lambda store, clip: candidates(templates[store], clip)

    async def take_stock(self, inventory: Inventory, tell: Tell) -> None:
        """Record every object of a store; a store that may not be listed is noted as unread."""
        name = inventory.store
        opened = open_store(
            name,
            self.settings.stores[name],
            self.clock,
            chunk_size=self.settings.transfer.chunk_size,
            used_before=await self._used_before(name),
        )
        try:
            async with opened as store:
                try:
                    await self._list(store, inventory, tell)
                except Blocked as err:
                    if (await store.probe()).list:
                        raise  # it is not the permission
                    inventory.unread = err.message
        except (Blocked, Transient) as err:
            err.origin = err.origin or f"stores.{name}"
            err.hint = f"{err.hint} Or leave it out for now: --without {name}.".strip()
            raise

    async def _used_before(self, store: str) -> bool:
        return await self.database.run(lambda db: found.has_stored(db, store))

    async def _list(self, store: ClipStore, inventory: Inventory, tell: Tell) -> None:
        batch: list[StoredObject] = []
        async for each in store.list(""):
            if each.key.startswith(RESERVED):
                continue
            batch.append(each)
            if len(batch) == BATCH:
                await self._record(batch, inventory)
                tell(inventory)
                batch = []
        await self._record(batch, inventory)
        tell(inventory)

    async def _record(self, batch: Collection[StoredObject], inventory: Inventory) -> None:
        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                for each in batch:
                    self._take_in(db, each, inventory)

        await self.database.run(work)

    def _take_in(self, db: sqlite3.Connection, each: StoredObject, inventory: Inventory) -> None:
        clip = clip_of(each.metadata)
        inventory.objects += 1
        if clip is not None:
            now = self.clock.now()
            verdict = found.take_in(db, inventory.store, clip, each, keys=self.keys, now=now)
            inventory.count(verdict)
        elif found.keep_loose(db, inventory.store, each):
            inventory.loose += 1
            return
        else:
            inventory.known += 1
        inventory.bytes += each.size

    async def match(self, rebuilt: Rebuilt) -> None:
        """Ask the sources about objects that do not say which clip they are."""
        loose = {one.store: one for one in rebuilt.inventories if one.loose}
        if loose:
            asked = Matching(self.settings, self.clock, self.database, self.keys)
            matches, rebuilt.unasked = await asked.run(loose)
            for match in matches:
                loose[match.store].matched += 1
                loose[match.store].bytes += match.size

    async def conclude(self, rebuilt: Rebuilt) -> None:
        """What follows for the listings; on the disk when it returns."""
        now = self.clock.now()
        schedule = self.settings.schedule
        rules = Rules(schedule.settle, schedule.lookback, schedule.backfill)
        unread = frozenset(one.store for one in rebuilt.inventories if one.unread)
        loose = {
            one.store: await self._first_day(one.store)
            for one in rebuilt.inventories
            if one.unmatched
        }
        hints = found.Hints(
            fresh=first_reach(rules, now).begin,
            unread=unread,
            loose={store: day for store, day in loose.items() if day is not None},
        )

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=True):
                found.name_cameras(db)
                for store in self.settings.stores:
                    found.note_stored(db, store)
                    if store not in unread:
                        found.note_read(db, store)
                    elif rebuilt.start.basis is not Basis.CHECKPOINT or not found.has_stored(
                        db, store
                    ):
                        found.note_unread(db, store, now)
                for source in self.settings.sources:
                    stores = self.settings.stores_of(source)
                    found.begin_listings(db, source, stores, hints=hints, now=now)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        await self.database.run(work)

    async def _first_day(self, store: str) -> datetime | None:
        """The first day that a key without a clip names."""
        template = self.settings.stores[store].key_template
        keys = await self.database.run(lambda db: found.loose_keys(db, store))
        first = min(filter(None, (day_of(template, key) for key in keys)), default=None)
        return None if first is None else datetime.combine(first, time(), UTC)
