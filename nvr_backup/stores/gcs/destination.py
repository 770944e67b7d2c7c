"""The place in the bucket that an upload aims at, and what lies there.

Answers "is the object under our key the one we sent?" from the store's own words alone. It must
never remove anything but one exact generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked
from nvr_backup.model import StoredObject
from nvr_backup.stores.gcs.client import GcsClient
from nvr_backup.stores.gcs.replies import Reply, content, stored_object
from nvr_backup.stores.gcs.retry import RetryBudget
from nvr_backup.stores.gcs.session import Ending, NewObject
from nvr_backup.stores.gcs.settings import GcsSettings

CLEANUP_SECONDS_LIMIT: Final = 10.0
"""For discarding a session or a wrong object: a courtesy that must not hold anybody up."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under the key: `ours` if it is what we sent; `known` unless we may not look."""

    ours: StoredObject | None
    known: bool


class Destination:
    """Where `new` is to be created."""

    def __init__(
        self, client: GcsClient, clock: Clock, settings: GcsSettings, new: NewObject
    ) -> None:
        self._client = client
        self._clock = clock
        self._settings = settings
        self.new = new

    def step(self, doing: str) -> str:
        """The beginning of a message about this upload."""
        return f"gs://{self._settings.bucket}/{self.new.name}: {doing}"

    def budget(self, doing: str) -> RetryBudget:
        """Fresh patience for one step."""
        return RetryBudget(
            self._clock,
            seconds=self._settings.retry_seconds,
            doing=self.step(doing),
            host=self._client.endpoint.host,
        )

    def described(self, reply: Reply) -> StoredObject | None:
        """The object that an answer describes, or None when it describes none."""
        return stored_object(content(reply) or {}, self._settings.prefix)

    def is_sent(self, found: StoredObject, ending: Ending | None) -> bool:
        """Whether the store's description has the key, size and CRC32C of what we sent."""
        key = self.new.name.removeprefix(self._settings.prefix)
        theirs = (found.key, found.size, found.crc32c)
        return ending is not None and theirs == (key, ending.total, ending.crc32c)

    async def look(self, ending: Ending | None, budget: RetryBudget) -> Found:
        """Look under the key, where the permission storage.objects.get allows it.

        The object that is to be replaced is not what we sent, whatever the store says of it: rotten
        bytes keep their size and checksum there.
        """
        reply = await budget.clear(lambda: self._client.describe(self.new.name))
        if reply.status != 200:
            return Found(None, known=reply.status == 404)
        found = self.described(reply)
        if found is None:
            return Found(None, known=False)
        same = self.is_sent(found, ending) and _same(found.metadata, self.new.metadata)
        ours = same and found.generation != self.new.replaces
        return Found(found if ours else None, known=True)

    async def remove(self, found: StoredObject) -> None:
        """Remove exactly this generation, if the store lets us; best effort."""
        if found.generation:
            exactly = only_generation(found.generation)
            await self.courtesy(self._client.delete(self.new.name, exactly))

    async def courtesy(self, request: Awaitable[object]) -> None:
        """Wait for one request, bounded in time, whatever comes of it."""
        with suppress(TimeoutError, Blocked):
            async with asyncio.timeout(CLEANUP_SECONDS_LIMIT):
                await request


def only_generation(generation: str) -> dict[str, str]:
    """Query that limits a deletion to one generation, twice over: emulators heed either."""
    return {"generation": generation, "ifGenerationMatch": generation}


def _same(theirs: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    return dict(theirs) == dict(ours)
