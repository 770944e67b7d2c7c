"""Clips back from the stores into a folder: several at a time, every byte checked, resumable.

    a file of that name is there      its bytes are proven to be the clip's: nothing to do
      └─ the first place of a clip    read → partial file → size and CRC32C → its name
           └─ else the next place, else it is missing, by name and reason

It reads from stores and writes into one folder. It must never change anything in a store, never
give other bytes a clip's name, and never let one bad object, store or file stop the others.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from structlog.typing import FilteringBoundLogger

from nvr_backup.arriving import Found, Part, Stopped, Sum, Unwritable
from nvr_backup.beside import Beside
from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked, NvrBackupError, Transient, Unfit
from nvr_backup.fetching import Away, Damaged, Fetch, Reader, is_inspected, token
from nvr_backup.footage import Place
from nvr_backup.landing import Landing
from nvr_backup.layout import Target
from nvr_backup.ports import ClipStore
from nvr_backup.transfer import Drained, drained_by

SPARE_BYTES: Final = 4 * 1024 * 1024
"""Left free on the disk."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A clip that is there. `place` is where it came from, or would have.

    `checked` says that its bytes have the checksum that was recorded when it was stored; a clip
    for which none is known was only found to be a whole video. `already`: from an earlier run.
    """

    target: Target
    place: Place
    size: int
    crc32c: int
    sha256: str
    checked: bool
    already: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """A clip that is not there, and why. `damaged` is the file with what came of it, if any.

    `asked` is false when all its stores had failed before.
    """

    target: Target
    reason: str
    hint: str
    damaged: str | None = None
    asked: bool = True


@dataclass(slots=True)
class Running:
    """A clip on its way: of its `wanted` bytes (0: not asked for yet) `received` have come.

    `written` of them are on the disk.
    """

    target: Target
    began: float
    wanted: int = 0
    received: int = 0
    written: int = 0


@dataclass(slots=True)
class Progress:
    """How far it has come; `received` are bytes from stores."""

    total: int = 0
    total_bytes: int = 0
    received: int = 0
    restored: list[Restored] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Clips that have an outcome."""
        return len(self.restored) + len(self.missing)


class Restore:
    """One run. `progress` may be looked at while it goes on, and has everything at its end."""

    def __init__(
        self,
        stores: Mapping[str, ClipStore],
        landing: Landing,
        *,
        workers: int,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self.progress = Progress()
        self._readers = {name: Reader(name, store) for name, store in stores.items()}
        self._landing = landing
        self._workers = workers
        self._clock = clock
        self._log = log
        self._beside = Beside(workers, "landing")
        self._room = threading.Lock()
        self._leftovers: dict[str, dict[str, list[str]]] = {}

    @property
    def away(self) -> dict[str, Blocked | Transient]:
        """Stores that could not be used any more, and why."""
        return {name: reader.away for name, reader in self._readers.items() if reader.away}

    async def run(self, targets: Sequence[Target], stop: asyncio.Event) -> None:
        """Restore all of them, in their order; leaves early once `stop` is set, resumable."""
        self.progress.total = len(targets)
        self.progress.total_bytes = sum(target.size for target in targets)
        waiting = iter(targets)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(self._workers, len(targets))):
                    group.create_task(self._work(waiting, stop), name=f"restore-{number}")
        finally:
            self._beside.close()

    async def _work(self, waiting: Iterator[Target], stop: asyncio.Event) -> None:
        with suppress(Drained, Stopped):
            async with drained_by(stop):
                for target in waiting:
                    await self._restore(target)

    async def _restore(self, target: Target) -> None:
        running = Running(target, self._clock.monotonic())
        self.progress.running[target.path] = running
        try:
            found = await self._outcome(target, running)
        except Unwritable as err:
            found = Missing(target, err.message, err.hint)
        finally:
            del self.progress.running[target.path]
        log = self._log.bind(file=target.path)
        if isinstance(found, Missing):
            self.progress.missing.append(found)
            say = log.warning if found.asked else log.debug
            key = target.holding.places[0].key
            say("clip not restored", key=key, reason=found.reason, hint=found.hint)
            return
        self.progress.restored.append(found)
        say, what = (
            (log.debug, "clip was there already") if found.already else (log.info, "clip restored")
        )
        say(what, bytes=found.size, store=found.place.store, verified=found.checked)

    async def _outcome(self, target: Target, running: Running) -> Restored | Missing:
        already = await self._already(target)
        if already is not None:
            return already
        failures: list[tuple[Place, NvrBackupError]] = []
        for place in target.holding.places:
            try:
                found = await self._from(target, place, running)
            except (Damaged, Unfit, Blocked, Transient) as err:
                failures.append((place, err))
            else:
                await self._tidy(target)
                return found
        reason, hint = failures[0][1].message, failures[0][1].hint
        if len(failures) > 1:
            reason = " ".join(f"{place.store}: {err.message}" for place, err in failures)
        damaged = [place for place, err in failures if isinstance(err, Damaged)]
        kept = await self._keep_damaged(target, damaged[0]) if damaged else None
        asked = any(not isinstance(err, Away) for _, err in failures)
        return Missing(target, reason, hint, kept, asked)

    async def _already(self, target: Target) -> Restored | Missing | None:
        """What is under the clip's name: the clip, something else, or nothing."""
        start, places = target.holding.clip.start, target.holding.places
        wanted = {(place.size, place.crc32c) for place in places}
        what, found = await self._beside.run(
            lambda: self._landing.compare(target.folder, target.file, wanted, start)
        )
        if what is Found.NOTHING:
            return None
        if what is Found.OTHER:
            return _other(target)
        await self._tidy(target)
        alike = (place for place in places if (place.size, place.crc32c) == _of(found))
        place = next(alike, None)
        return _restored(target, place or places[0], found, checked=place is not None, already=True)

    async def _from(self, target: Target, place: Place, running: Running) -> Restored | Missing:
        """The clip out of one place; raises Damaged, Unfit, Blocked, Transient or Unwritable."""

        def begun(size: int, received: int) -> None:
            self._take_room(running, size, received)

        def received(number: int) -> None:
            running.received += number
            self.progress.received += number

        def written(number: int) -> None:
            running.written += number

        fetch = Fetch(self._beside, self._clock, begun, received, written, self._gone)
        async with self._part(target, place) as part:
            read = await fetch.fill(self._readers[place.store], part, place)
            start = target.holding.clip.start
            if await self._beside.run(lambda: part.finish(start)) is Found.OTHER:
                return _other(target)
            checked = read.crc32c is not None
            return _restored(target, read, part.sum, checked=checked, already=False)

    def _gone(self, reader: Reader) -> None:
        if reader.away is not None:
            reason, hint = reader.away.message, reader.away.hint
            self._log.warning(
                "store failed", part=f"stores.{reader.name}", reason=reason, hint=hint
            )

    def _take_room(self, running: Running, size: int, received: int) -> None:
        """Unwritable unless the rest fits, besides what else is on its way."""
        with self._room:
            running.wanted, running.received, running.written = 0, received, received
            others = sum(
                max(0, one.wanted - one.written) for one in tuple(self.progress.running.values())
            )
            if size - received > self._landing.free_bytes() - others - SPARE_BYTES:
                raise Unwritable(
                    f"The disk of {self._landing.path} has no room for its {size:,} bytes.",
                    hint="Free some space and run the same command again: it goes on from here. "
                    "Or choose another folder or a shorter time.",
                )
            running.wanted = size

    # -- partial files ------------------------------------------------------------------------

    @asynccontextmanager
    async def _part(self, target: Target, place: Place) -> AsyncIterator[Part]:
        opened: list[Part] = []
        folder, file, inspected = target.folder, target.file, is_inspected(place)

        def open_() -> None:
            opened.append(self._landing.part(folder, file, token(place), inspected=inspected))

        try:
            await self._beside.run(open_)
            yield opened[0]
        finally:
            for part in opened:
                await self._beside.run(part.close)

    async def _keep_damaged(self, target: Target, place: Place) -> str | None:
        """Leave what came of a damaged object to a person, under a name that says so."""
        start = target.holding.clip.start
        async with self._part(target, place) as part:
            name = await self._beside.run(lambda: part.keep_damaged(start))
        return name and f"{target.folder}/{name}"

    async def _tidy(self, target: Target) -> None:
        """Remove what was left on the way to a clip that is there now."""
        folder, file = target.folder, target.file
        if folder not in self._leftovers:
            self._leftovers[folder] = await self._beside.run(
                lambda: self._landing.leftovers(folder)
            )
        names = list(self._leftovers[folder].get(file, ()))
        if len(target.holding.places) > 1:  # this run may have tried others
            tokens = {token(place) for place in target.holding.places}
            names += [
                f"{file}.{each}{end}" for each in tokens for end in (".part", ".damaged.part")
            ]
        if names:
            await self._beside.run(lambda: self._landing.remove_parts(folder, names))


def _restored(
    target: Target, place: Place, found: Sum, *, checked: bool, already: bool
) -> Restored:
    digest = found.sha256.hexdigest()
    return Restored(
        target, place, found.size, found.crc32c, digest, checked=checked, already=already
    )


def _of(found: Sum) -> tuple[int, int | None]:
    return (found.size, found.crc32c)


def _other(target: Target) -> Missing:
    return Missing(
        target,
        f"Another file has its name: {target.path}.",
        "It was left as it is. Move it away, or restore into another folder.",
    )
