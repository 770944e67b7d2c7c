"""The store as the daemon sees it: the fake of the contract suites, in bad weather."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from nvr_backup.chunks import Chunk
from nvr_backup.errors import Blocked, StartOver
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import Capabilities, Record, Upload
from tests.simulation.sites import Life, Site
from tests.support.fakes import FakeStore


class Shelf(dict[str, tuple[StoredObject, bytes]]):
    """The objects of a store: what was put there once stays, and every change is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: list[str] = []

    def __setitem__(self, key: str, value: tuple[StoredObject, bytes]) -> None:
        if key in self:
            self.broken.append(f"{key} was overwritten")
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.broken.append(f"{key} was deleted")
        super().__delitem__(key)


@dataclass
class StoreSite(Site):
    """A store. `spoilt` are keys of objects whose bytes were harmed, `foreign` somebody else's."""

    name: str = ""
    fake: FakeStore = field(default_factory=FakeStore)
    shelf: Shelf = field(default_factory=Shelf)
    spoilt: set[str] = field(default_factory=set)
    foreign: dict[str, bytes] = field(default_factory=dict)
    may_stat: bool = True

    def __post_init__(self) -> None:
        self.fake = FakeStore(may_stat=self.may_stat)
        self.fake.objects = self.shelf

    def lose_sessions(self, *, finished: bool) -> None:
        """Unfinished uploads are gone; with `finished` also what tells of those that ended."""
        self.happened["sessions lost"] += 1
        self.fake.sessions.clear()
        if finished and self.may_stat:
            self.fake.finished.clear()

    def place(self, key: str, data: bytes) -> None:
        """Somebody else puts an object there."""
        if key not in self.shelf:
            self.happened["foreign object"] += 1
            self.foreign[key] = data
            self.shelf[key] = (StoredObject(key, len(data), 1, "9"), data)


class SimulatedStore:
    """`ports.ClipStore` on a site, for one life of the daemon."""

    def __init__(self, site: StoreSite, life: Life) -> None:
        self._site = site
        self._life = life

    async def probe(self) -> Capabilities:
        await self._step("probe")
        return await self._site.fake.probe()

    async def _step(self, what: str) -> None:
        site = self._site
        await site.pause()
        self._life.check()
        site.check_up("store")
        if site.weather.full and what in ("put", "send", "finish"):
            site.happened["store full"] += 1
            raise Blocked("There is no space left: 4096 bytes.", hint="Make room.")
        if site.luck(f"{what} failed"):
            raise site.transient()

    @asynccontextmanager
    async def put(
        self,
        key: str,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        record: Record,
        resume: UploadState | None = None,
        replaces: str | None = None,
    ) -> AsyncIterator[Upload]:
        await self._step("put")
        async with self._site.fake.put(
            key,
            content_type=content_type,
            metadata=metadata,
            record=record,
            resume=resume,
            replaces=replaces,
        ) as upload:
            yield _Upload(self, self._site, self._life, key, upload)

    async def stat(self, key: str) -> StoredObject | None:
        await self._step("stat")
        return await self._site.fake.stat(key)

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        await self._step("list")
        async for found in self._site.fake.list(prefix):
            yield found

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        await self._step("list")
        async for found in self._site.fake.folders(prefix):
            yield found

    async def read(
        self, key: str, *, offset: int = 0, generation: str | None = None
    ) -> AsyncIterator[bytes]:
        await self._step("read")
        async for piece in self._site.fake.read(key, offset=offset, generation=generation):
            yield piece

    async def delete(self, key: str, *, generation: str | None = None) -> None:
        await self._step("delete")
        await self._site.fake.delete(key, generation=generation)


class _Upload:
    """An upload whose requests and answers may be lost, and whose bytes may be harmed."""

    def __init__(
        self, store: SimulatedStore, site: StoreSite, life: Life, key: str, upload: Upload
    ) -> None:
        self._store = store
        self._site = site
        self._life = life
        self._key = key
        self._upload = upload

    @property
    def confirmed(self) -> int:
        return self._upload.confirmed

    @property
    def stored(self) -> StoredObject | None:
        return self._upload.stored

    async def send(self, chunk: Chunk) -> None:
        await self._store._step("send")
        site = self._site
        if site.luck("session lost", 0.3):
            raise StartOver("The session is gone.")
        if site.luck("answer to a chunk lost", 0.5):
            site.fake.faults.arm("send-answer", site.transient())
        await self._upload.send(chunk)

    async def finish(self, chunk: Chunk) -> StoredObject:
        await self._store._step("finish")
        site = self._site
        if site.luck("bytes harmed on the way", 0.3):
            for session, held in site.fake.sessions.items():
                if held:
                    site.fake.sessions[session] = held[:-1] + bytes([held[-1] ^ 1])
        existed = self._key in site.shelf
        stored = await self._upload.finish(chunk)
        self._life.check()
        if site.luck("answer to the end lost", 0.5):
            raise site.transient()
        if site.may_stat and not existed and site.luck("wrong object left behind", 0.2):
            return self._spoil(stored)
        if site.may_stat and site.luck("wrong size reported", 0.3):
            return replace(stored, size=stored.size + 1)
        if site.may_stat and site.luck("wrong checksum reported", 0.3):
            return replace(stored, crc32c=(stored.crc32c or 0) ^ 1)
        return stored

    def _spoil(self, stored: StoredObject) -> StoredObject:
        """The store holds other bytes than it was sent, and says so only by their checksum."""
        site = self._site
        _, data = site.shelf[stored.key]
        harmed = data[:-1] + bytes([data[-1] ^ 0x40])
        told = replace(stored, crc32c=(stored.crc32c or 0) ^ 0x5A5A)
        dict.__setitem__(site.shelf, stored.key, (told, harmed))
        for session, finished in site.fake.finished.items():
            if finished.key == stored.key:
                site.fake.finished[session] = told
        site.spoilt.add(stored.key)
        return told

    async def discard(self) -> None:
        self._life.check()
        await self._upload.discard()
