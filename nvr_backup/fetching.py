"""One object's bytes out of a store into one partial file, until they are proven or given up.

It decides what a failure means: a store that hiccups is asked again, bytes that are wrong are read
once more from the beginning (the fault may be that of an earlier run's file, or of the way), and
an object that was replaced counts if it holds the same bytes. It must never accept bytes that are
not those that were stored, nor ask a store for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, cast

from nvr_backup.arriving import Part, Sum
from nvr_backup.beside import Beside
from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked, NvrBackupError, Transient, Unfit
from nvr_backup.footage import Place
from nvr_backup.ports import ClipStore

BATCH_BYTES: Final = 1024 * 1024
"""Written at once; what is held in memory is this and one piece of the store's."""

ATTEMPTS: Final = 3
"""At one object, after a failure that may pass; a store has retried by itself before it fails."""
PAUSE_SECONDS: Final = 2.0

READINGS: Final = 2
"""Of an object whose bytes are wrong."""

AWAY_AFTER: Final = 3
"""So many objects in a row that fail, and a store is not asked any more."""


class Away(Blocked):
    """A store that has failed too often was not asked for this object."""


class Damaged(NvrBackupError):
    """What a store has under a key is not what was stored, as often as it is read."""


@dataclass(slots=True)
class Reader:
    """A store in use. `away` is why it is not asked any more."""

    name: str
    store: ClipStore
    away: Blocked | Transient | None = None
    _failures: int = 0

    def require(self) -> None:
        """Raises Away once the store is not asked any more."""
        if self.away is not None:
            raise Away(f"stores.{self.name} failed {AWAY_AFTER} times in a row: not asked for it.")

    def failed(self, err: Blocked | Transient) -> bool:
        """An object could not be read, perhaps because of the store; whether it is away now."""
        self._failures += 1
        if self.away is not None or self._failures < AWAY_AFTER:
            return False
        self.away = err
        return True

    def worked(self) -> None:
        """The store has answered."""
        self._failures = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """What fetching needs besides the object: threads, time, and whom to tell.

    `begun(size, received)` is called on a thread before bytes are asked for, and may refuse with
    Unwritable; `received(bytes)` for every piece, `written(bytes)` once they are on the disk;
    `gone(reader)` once for a store that is away.
    """

    beside: Beside
    clock: Clock
    begun: Callable[[int, int], None]
    received: Callable[[int], None]
    written: Callable[[int], None]
    gone: Callable[[Reader], None]

    async def fill(self, reader: Reader, part: Part, place: Place) -> Place:
        """Receive what the partial file lacks until all of it is proven; returns what was read.

        Raises Damaged (the bytes are then set aside), Unfit when there is no such object, Blocked
        or Transient when the store fails, Unwritable.
        """
        wrong = failed = replaced = 0
        while True:
            reader.require()
            try:
                await self._receive(reader.store, part, place)
                why = _judged(part.sum, place)
            except Unfit as err:
                replaced += 1
                if replaced > ATTEMPTS:
                    raise
                place = await self._as_it_is_now(reader.store, part, place, err)
                continue
            except (Blocked, Transient) as err:
                failed += 1
                if isinstance(err, Blocked) or failed >= ATTEMPTS:
                    if reader.failed(err):
                        self.gone(reader)
                    raise
                await self.clock.sleep(PAUSE_SECONDS * failed)
                continue
            reader.worked()
            if not why:
                return place
            wrong += 1
            if wrong >= READINGS:
                await self.beside.run(part.set_aside)
                raise Damaged(f"The object {place.key!r} is damaged: {why}")
            await self.beside.run(part.restart)

    async def _receive(self, store: ClipStore, part: Part, place: Place) -> None:
        """The bytes that the partial file lacks, and a little more if there are too many."""
        if part.size > place.size:
            await self.beside.run(part.restart)
        await self.beside.run(lambda: self.begun(place.size, part.size))
        batch: list[bytes] = []
        held = 0
        pieces = store.read(place.key, offset=part.size, generation=place.generation)
        async with aclosing(cast("AsyncGenerator[bytes]", pieces)) as stream:
            async for piece in stream:
                batch.append(piece)
                held += len(piece)
                self.received(len(piece))
                if held >= BATCH_BYTES or part.size + held > place.size:
                    await self._append(part, batch)
                    batch, held = [], 0
                    if part.size > place.size:
                        return
        if batch:
            await self._append(part, batch)

    async def _append(self, part: Part, batch: Sequence[bytes]) -> None:
        before = part.size
        await self.beside.run(lambda: part.append(batch))
        self.written(part.size - before)

    async def _as_it_is_now(self, store: ClipStore, part: Part, place: Place, err: Unfit) -> Place:
        """The object that is under the key now: what counts is whether it has the same bytes."""
        if place.generation is None:
            raise err
        found = await store.stat(place.key)
        if found is None or found.generation == place.generation:
            raise err
        if place.crc32c is not None:
            return replace(place, generation=found.generation)
        await self.beside.run(part.restart)  # nothing would tell the bytes of the two apart
        return replace(place, generation=found.generation, size=found.size, crc32c=found.crc32c)


def is_inspected(place: Place) -> bool:
    """Whether the bytes must look like a whole video besides.

    A store vouches for whatever lies in it, also for what somebody else put there; the checkpoint
    knows what left the recorder.
    """
    return place.crc32c is None or place.witness == "store"


def token(place: Place) -> str:
    """Names bytes: a partial file of the same content goes on, whichever store it came from."""
    content = f"{place.size} {place.crc32c}"
    if place.crc32c is None:
        content += f" {place.store} {place.key} {place.generation}"
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:8]


def _judged(found: Sum, place: Place) -> str:
    """Why these bytes are not the clip's; "" when they are."""
    if found.size > place.size:
        return f"it has more than {place.size:,} bytes."
    if found.size < place.size:
        return f"it has {found.size:,} bytes, not {place.size:,}."
    if place.crc32c not in {None, found.crc32c}:
        who = "the checkpoint recorded" if place.witness == "checkpoint" else "its store states"
        return f"its CRC32C is {found.crc32c:08x}, {who} {place.crc32c:08x}."
    return found.verdict()
