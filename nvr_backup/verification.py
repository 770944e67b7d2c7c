"""One store held against the checkpoint: is what was stored still there, and is it still the same?

    compare     the store's listing by days → copies by key → the others looked up one by one
    read_again  what was found corrupt: are its bytes still wrong?
    read_back   the copies whose bytes were not read for longest, within a budget of bytes

Nothing is believed at first sight: what looks wrong is asked for once more, and counts only against
the copy as it is on record by then. It must never change anything in the store, and never call a
copy wrong because the store, or the way to it, failed; one object that cannot be read must not keep
the others from being read.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import accumulate
from typing import Final, TypeVar

import google_crc32c

from nvr_backup import findings
from nvr_backup.abreast import each, in_order
from nvr_backup.clock import Clock
from nvr_backup.database import Database, transaction
from nvr_backup.errors import Blocked, Transient, Unfit
from nvr_backup.findings import Expected, Finding, What
from nvr_backup.keys import day_of, start_of
from nvr_backup.model import StoredObject
from nvr_backup.ports import Capabilities, ClipStore
from nvr_backup.prefixes import days, list_days

LOOKUPS_AT_ONCE: Final = 8
"""Objects that were not listed are asked for with so many requests at a time."""

READS_AT_ONCE: Final = 2
"""Objects read back at the same time: one alone seldom fills a line, many would hold up uploads."""

FAILURES_IN_A_ROW: Final = 3
"""So many objects that cannot be read, and none in between that can: it is the store."""

BATCH: Final = 500
STRAYS_KEPT: Final = 1000
"""Unknown objects that are named; the rest is a number."""

Step = Callable[["Outcome"], None]
T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """What became of a verification so far. `read_bytes` left the store.

    `right` and `found` are copies, `new` those that were not known to be wrong; of `unchecked`
    nothing could be learnt, for the reason in `limits`. `unread` are keys of objects that could not
    be read, with the reason; they are no findings. `strays` are objects that no clip on record has
    or will have.
    """

    store: str
    right: int = 0
    found: dict[int, Finding] = field(default_factory=dict)
    new: list[Finding] = field(default_factory=list)
    unchecked: int = 0
    strays: list[StoredObject] = field(default_factory=list)
    stray_count: int = 0
    read: int = 0
    read_bytes: int = 0
    unread: dict[str, str] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What is wrong, each copy once."""
        return list(self.found.values())

    def limit(self, text: str) -> None:
        """Something could not be looked at; each is said once."""
        if text not in self.limits:
            self.limits.append(text)


class Verification:
    """Verifies one store for clips that began in [begin, end). `step` hears of progress."""

    def __init__(
        self,
        name: str,
        store: ClipStore,
        template: str,
        database: Database,
        *,
        begin: datetime,
        end: datetime,
        clock: Clock,
        step: Step,
    ) -> None:
        self.outcome = Outcome(name)
        self._name = name
        self._store = store
        self._template = template
        self._database = database
        self._begin = begin
        self._end = end
        self._clock = clock
        self._step = step
        self._may: Capabilities | None = None
        self._failures = 0  # objects that could not be read, in a row

    async def compare(self) -> None:
        """Hold every stored copy against what the store says of its object.

        Also those from before that were found wrong: they may have been put right. Raises Blocked
        or Transient when the store cannot be asked; what was found until then is on record.
        """
        may = await self._capabilities()
        seen: set[int] = set()
        if may.list:
            async with aclosing(self._listed()) as batches:
                async for batch in batches:
                    await self._take(batch, seen)
        else:
            self.outcome.limit("its key may not list objects: unknown ones cannot be found")
        if not (may.list or may.stat):
            unseen = await self._unseen(seen)
            self.outcome.unchecked += len(unseen)
            self.outcome.limit("its key may not look at objects: nothing could be compared")
            return
        unseen = await self._unseen(seen)
        doubted = await self._database.run(lambda db: findings.found_wrong(db, self._name, *What))
        unseen += [one for one in doubted if not self._begin <= one.start < self._end]
        for first in range(0, len(unseen), BATCH):
            await self._look_up(unseen[first : first + BATCH])

    async def read_again(self, budget: int | None) -> None:
        """Read what was found corrupt, whenever it began, up to `budget` bytes: is it still?

        Raises like `compare`.
        """
        if (await self._capabilities()).read:
            corrupt = await self._database.run(
                lambda db: findings.found_wrong(db, self._name, What.CONTENT)
            )
            await each(in_order(_within(budget, corrupt)), self._read_one, READS_AT_ONCE)

    async def read_back(self, budget: int | None) -> None:
        """Read objects and compare their bytes, least recently proven first, up to `budget` bytes.

        An object larger than what is left of it ends the reading, unless it is the first: it would
        never be read. Raises like `compare`.
        """
        if not (await self._capabilities()).read:
            self.outcome.limit("its key may not read objects: no content could be compared")
            return
        await each(self._to_be_read(budget), self._read_one, READS_AT_ONCE)

    # -- comparing ----------------------------------------------------------------------------

    async def _capabilities(self) -> Capabilities:
        if self._may is None:
            self._may = await self._store.probe()
        return self._may

    async def _listed(self) -> AsyncGenerator[list[StoredObject]]:
        # A key has its day in UTC; a listing may show more days than were asked for.
        last = max(self._begin, self._end - timedelta(milliseconds=1))
        wanted = days(self._begin.date(), last.date())
        batch: list[StoredObject] = []
        async with aclosing(list_days(self._store, self._template, wanted)) as listing:
            async for found in listing:
                batch.append(found)
                if len(batch) >= BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    async def _take(self, batch: Sequence[StoredObject], seen: set[int]) -> None:
        keys = [found.key for found in batch]
        known, ours = await self._database.run(lambda db: findings.at_keys(db, self._name, keys))
        right: list[Expected] = []
        doubtful: list[Expected] = []
        for found in batch:
            one = known.get(found.key)
            if one is None:
                if found.key not in ours:
                    self._stray(found)
            elif self._begin <= one.start < self._end:
                seen.add(one.copy)
                (right if _difference(one, found) is None else doubtful).append(one)
        await self._count_right(right)
        await self._look_up(doubtful)

    def _stray(self, found: StoredObject) -> None:
        start, day = start_of(self._template, found.key), day_of(self._template, found.key)
        if start is not None and not self._begin <= start < self._end:
            return
        if day is not None and not self._begin.date() <= day <= self._end.date():
            return
        self.outcome.stray_count += 1
        if len(self.outcome.strays) < STRAYS_KEPT:
            self.outcome.strays.append(found)

    async def _unseen(self, seen: set[int]) -> list[Expected]:
        return await self._database.run(
            lambda db: [
                one
                for one in findings.stored(db, self._name, self._begin, self._end)
                if one.copy not in seen
            ]
        )

    async def _look_up(self, copies: Sequence[Expected]) -> None:
        """Ask for each object by its key, and judge."""
        if not copies:
            return
        if not (await self._capabilities()).stat:
            self.outcome.unchecked += len(copies)
            self.outcome.limit("its key may not look at single objects: not all could be compared")
            return
        right: list[Expected] = []
        wrong: list[Finding] = []

        async def look_up(one: Expected) -> None:
            found = await self._store.stat(one.key)
            difference = _difference(one, found)
            if difference is None:
                right.append(one)
            else:
                wrong.append(self._finding(one, difference, found))

        await each(in_order(copies), look_up, LOOKUPS_AT_ONCE)
        await self._count_right(right)
        await self._count_wrong(wrong)

    # -- reading back -------------------------------------------------------------------------

    async def _to_be_read(self, budget: int | None) -> AsyncGenerator[Expected]:
        tried: set[int] = set()
        begun = 0
        while True:
            some = await self._least_proven(len(tried) + BATCH)
            fresh = [one for one in some if one.copy not in tried]
            if not fresh:
                return
            for one in fresh:
                if budget is not None and tried and begun + one.size > budget:
                    return
                tried.add(one.copy)
                begun += one.size
                yield one

    async def _least_proven(self, limit: int) -> list[Expected]:
        """The copies to be read back first. In parts: nobody waits for a million rows."""
        first: list[Expected] = []
        now = self._clock.now()
        last = await self._database.run(findings.last_row)
        for after in range(0, last, findings.ROWS_AT_ONCE):
            some = await self._database.run(
                partial(
                    findings.readable,
                    store=self._name,
                    begin=self._begin,
                    end=self._end,
                    now=now,
                    after=after,
                    limit=limit,
                )
            )
            first = heapq.nsmallest(limit, [*first, *some], key=partial(findings.turn, now=now))
        return first

    async def _read_one(self, one: Expected) -> None:
        """Read an object, a second time if its bytes are not those that were stored."""
        try:
            difference, found = await self._read_twice(one)
        except (Blocked, Transient) as err:
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW:
                raise
            if len(self.outcome.unread) < STRAYS_KEPT:
                self.outcome.unread[one.key] = str(err)
            return
        self._failures = 0
        self.outcome.read += 1
        if difference is not None:
            await self._count_wrong([self._finding(one, difference, found)])
            return
        now = self._clock.now()
        await self._write(lambda db: findings.found_right(db, [one], proven=True, now=now))
        if self.outcome.found.pop(one.copy, None) is not None:
            self.outcome.right += 1
        self._step(self.outcome)

    async def _read_twice(
        self, one: Expected
    ) -> tuple[tuple[What, str] | None, StoredObject | None]:
        for _ in range(2):  # from the look on: another object may have come meanwhile
            found = await self._store.stat(one.key)
            difference = _difference(one, found)
            if found is not None and difference is None:
                difference = await self._content_difference(one, found)
            if difference is None:
                break
        return difference, found

    async def _content_difference(
        self, one: Expected, found: StoredObject
    ) -> tuple[What, str] | None:
        crc, size = 0, 0
        try:
            async for piece in self._store.read(one.key, generation=found.generation):
                crc = google_crc32c.extend(crc, piece)
                size += len(piece)
                self.outcome.read_bytes += len(piece)
                self._step(self.outcome)
        except Unfit:
            return What.MISSING, "it went away while it was being read"
        if size != one.size:
            return What.CONTENT, f"{size} bytes could be read, {one.size} were stored"
        if crc != one.crc32c:
            return (
                What.CONTENT,
                f"its bytes have CRC32C {crc:08x}, {one.crc32c or 0:08x} was stored",
            )
        return None

    # -- on record ----------------------------------------------------------------------------

    def _finding(
        self, one: Expected, difference: tuple[What, str], found: StoredObject | None
    ) -> Finding:
        return Finding(
            one.copy,
            one.source,
            self._name,
            one.camera,
            one.start,
            one.key,
            *difference,
            one.stored_ms,
            None if found is None else found.generation,
        )

    async def _count_right(self, copies: Sequence[Expected]) -> None:
        if copies:
            now = self._clock.now()
            still = await self._write(
                lambda db: findings.found_right(db, copies, proven=False, now=now)
            )
            self.outcome.found.update({one.copy: one for one in still})
            self.outcome.right += len(copies) - len(still)
            self._step(self.outcome)

    async def _count_wrong(self, found: Sequence[Finding]) -> None:
        if found:
            now = self._clock.now()
            holds, new = await self._write(lambda db: findings.note(db, found, now))
            self.outcome.found.update({one.copy: one for one in holds})
            self.outcome.new += new
            self._step(self.outcome)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def whole(db: sqlite3.Connection) -> T:
            with transaction(db, durable=False):
                return work(db)

        return await self._database.run(whole)


def _difference(one: Expected, found: StoredObject | None) -> tuple[What, str] | None:
    """What tells the object from the one that was stored, by the store's own words."""
    if found is None:
        return What.MISSING, "there is no such object"
    if found.size != one.size:
        return What.SIZE, f"the object has {found.size} bytes, {one.size} were stored"
    if None not in {found.crc32c, one.crc32c} and found.crc32c != one.crc32c:
        return (
            What.CHECKSUM,
            f"the object has CRC32C {found.crc32c or 0:08x}, {one.crc32c or 0:08x} was stored",
        )
    return None


def _within(budget: int | None, copies: Sequence[Expected]) -> list[Expected]:
    """As many of them as have no more than `budget` bytes together."""
    sums = accumulate(one.size for one in copies)
    return [one for one, size in zip(copies, sums, strict=True) if budget is None or size <= budget]
