"""Objects that do not say which clip they are, matched with the clips that a source still lists.

An object lies under the key that a clip would get, and has the size that the source announces for
that clip: it is that clip's object. Anything less stays open; when the clip is carried, its bytes
are compared with the object's. Nothing of a clip's body is read here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from nvr_backup import found
from nvr_backup.adapters import open_source
from nvr_backup.clock import Clock
from nvr_backup.database import Database, transaction
from nvr_backup.errors import Blocked, NvrBackupError, Transient
from nvr_backup.found import Verdict
from nvr_backup.keys import day_of, spellings
from nvr_backup.model import Camera, Clip, StoredObject, Window
from nvr_backup.planner import ended_by
from nvr_backup.ports import ClipSource
from nvr_backup.rows import Keys
from nvr_backup.settings import Settings

_DAY: Final = timedelta(days=1)
_MATCHED: Final = frozenset({Verdict.NEW, Verdict.SETTLED})


@dataclass(frozen=True, slots=True)
class Match:
    """An object whose clip was found."""

    store: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Matching:
    """Asks the sources of the settings for the clips of the database's loose objects."""

    settings: Settings
    clock: Clock
    database: Database
    keys: Keys

    async def run(self, stores: Collection[str]) -> tuple[list[Match], dict[str, str]]:
        """Matches in these stores, and the sources that could not be asked with the reason."""
        days = {store: await self._days(store) for store in stores}
        matches: list[Match] = []
        unasked: dict[str, str] = {}
        for name in self.settings.sources:
            wanted = {s: days[s] for s in self.settings.stores_of(name) if days.get(s)}
            if not wanted:
                continue
            try:
                async with open_source(name, self.settings.sources[name], self.clock) as source:
                    for camera in await source.cameras():
                        await self._camera(source, camera, wanted, matches)
            except (Blocked, Transient) as err:
                unasked[name] = err.message
        return matches, unasked

    async def _days(self, store: str) -> frozenset[date]:
        template = self.settings.stores[store].key_template
        keys = await self.database.run(lambda db: found.loose_keys(db, store))
        return frozenset(day for key in keys if (day := day_of(template, key)) is not None)

    async def _camera(
        self,
        source: ClipSource,
        camera: Camera,
        wanted: Mapping[str, frozenset[date]],
        matches: list[Match],
    ) -> None:
        final = self.clock.now() - self.settings.schedule.settle
        for day in sorted(frozenset().union(*wanted.values())):
            begin = datetime.combine(day, time(), UTC)
            listed = [clip async for clip in source.clips(camera, Window(begin, begin + _DAY))]
            for clip in listed:
                if clip.start.date() != day or ended_by(clip) > final:
                    continue
                for store in wanted:
                    match = await self._match(source, clip, store)
                    if match is not None:
                        matches.append(match)

    async def _match(self, source: ClipSource, clip: Clip, store: str) -> Match | None:
        keys = [*spellings(self.keys(store, clip))]
        there = await self.database.run(lambda db: found.loose_at(db, store, keys))
        if not there:
            return None
        size = await _size(source, clip)
        now = self.clock.now()
        for each in there:
            if each.size != size:
                continue

            def work(db: sqlite3.Connection, each: StoredObject = each) -> Verdict:
                with transaction(db, durable=False):
                    verdict = found.take_in(db, store, clip, each, keys=self.keys, now=now)
                    if verdict in _MATCHED:
                        found.no_longer_loose(db, store, each.key)
                return verdict

            if await self.database.run(work) in _MATCHED:
                return Match(store, each.key, each.size)
        return None


async def _size(source: ClipSource, clip: Clip) -> int | None:
    """What the source announces; None when it does not say, or cannot serve the clip now."""
    try:
        async with source.open(clip) as body:
            return body.size
    except Blocked:
        raise
    except NvrBackupError:
        return None
