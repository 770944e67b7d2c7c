"""The ClipStore of a folder: the asynchronous side, which never touches the disk itself.

An upload writes each chunk aside, makes it durable, reads it back and compares its CRC32C with the
one taken when the bytes left the recorder; only a file of which every byte passed that is placed
under its key, create-only. It must never report an object as stored that the file system has not
given back and made durable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import islice

from nvr_backup.chunks import Chunk
from nvr_backup.clock import Clock
from nvr_backup.errors import NvrBackupError, StartOver, Unfit
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import Capabilities, Record
from nvr_backup.stores.directory import listing
from nvr_backup.stores.directory.partial import ObjectFile, PartialFile
from nvr_backup.stores.directory.settings import MIB, DirectorySettings
from nvr_backup.stores.directory.sidecar import Sidecar
from nvr_backup.stores.directory.site import Site
from nvr_backup.stores.directory.threads import DiskThreads, Lane

CHECKSUM_STEP_BYTES = 32 * MIB
"""How much is read back in one step on the disk, so that a step stays short."""

LISTED_AT_ONCE = 256
"""Objects looked up in one step on the disk."""


@asynccontextmanager
async def open_store(settings: DirectorySettings, clock: Clock) -> AsyncIterator[DirectoryStore]:
    """The store in a folder. Entering never fails: an absent disk is found by `probe`."""
    threads = DiskThreads(
        name=settings.name, root=str(settings.path), stall_seconds=settings.stall_seconds
    )
    try:
        yield DirectoryStore(settings, clock, threads)
    finally:
        threads.close()


class DirectoryStore:
    """Implements `ports.ClipStore`; the generation of an object is its upload's random name.

    Any file in the root is an object, also one put there by hand; that has no checksum, no
    generation and no metadata. The checksum in `stat` and `list` is the one that was confirmed
    when the object was stored; only `read` looks at the bytes again.
    """

    def __init__(self, settings: DirectorySettings, clock: Clock, threads: DiskThreads) -> None:
        self._settings = settings
        self._clock = clock
        self._threads = threads
        self._site = Site(settings)

    async def probe(self) -> Capabilities:
        """Look for the root and its marker, some space, and whether a file can be placed.

        Also clears away unfinished uploads that nobody continued for a week.
        """
        now = self._clock.now()
        reserve = self._settings.reserve_bytes
        await self._threads.run(lambda: listing.probe(self._site, reserve_bytes=reserve, now=now))
        return Capabilities(stat=True, list=True, read=True, delete=True, resume=True)

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
    ) -> AsyncIterator[DirectoryUpload]:
        """See `ports.ClipStore.put`. Unfit for a key that is no safe relative path."""
        session = None if resume is None else resume.session
        file = PartialFile(self._site, key, session, replaces=replaces)
        lane = self._threads.lane(file.close)
        state = UploadState(
            session=file.token,
            key=key,
            content_type=content_type,
            created_at=self._clock.now() if resume is None else resume.created_at,
        )
        upload = DirectoryUpload(
            site=self._site,
            threads=self._threads,
            lane=lane,
            file=file,
            state=state,
            metadata=metadata,
            record=record,
        )
        try:
            if resume is not None:
                await upload.resume(resume)
            yield upload
        finally:
            await lane.aclose()

    async def stat(self, key: str) -> StoredObject | None:
        """The object under the key, or None; its checksum is the one confirmed when stored."""
        return await self._threads.run(lambda: listing.describe(self._site, key))

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Every object whose key begins with `prefix`, ordered by the keys' UTF-8 bytes."""
        walk = listing.walk(self._site, prefix)
        lane = self._threads.lane(walk.close)
        try:
            while batch := await lane.run(lambda: tuple(islice(walk, LISTED_AT_ONCE))):
                for found in batch:
                    yield found
        finally:
            await lane.aclose()

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        """Folders whose path begins with `prefix`, of the one level that it leads to."""
        for found in await self._threads.run(lambda: listing.folders(self._site, prefix)):
            yield found

    async def read(
        self, key: str, *, offset: int = 0, generation: str | None = None
    ) -> AsyncIterator[bytes]:
        """The object's bytes from `offset` on; Unfit when there is no such object."""
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        file = ObjectFile(self._site, key)
        lane = self._threads.lane(file.close)
        try:
            if await lane.run(lambda: file.open(generation)) is None:
                which = "" if generation is None else f" in generation {generation}"
                raise Unfit(f"There is no object {key!r}{which} in the store {self._site.path}.")
            at = offset
            while piece := await lane.run(partial(file.read, at)):
                at += len(piece)
                yield piece
        finally:
            await lane.aclose()

    async def delete(self, key: str, *, generation: str | None = None) -> None:
        """Remove an object; absent, or there in another generation, is no error."""
        await self._threads.run(lambda: listing.delete(self._site, key, generation))


class DirectoryUpload:
    """Implements `ports.Upload`. The partial file is the session."""

    def __init__(
        self,
        *,
        site: Site,
        threads: DiskThreads,
        lane: Lane,
        file: PartialFile,
        state: UploadState,
        metadata: Mapping[str, str],
        record: Record,
    ) -> None:
        self._site = site
        self._threads = threads
        self._lane = lane
        self._file = file
        self._state = state
        self._metadata = dict(metadata)
        self._record = record
        self._open = False
        self._stored: StoredObject | None = None

    @property
    def confirmed(self) -> int:
        """Bytes that are durable and were read back."""
        return self._state.offset

    @property
    def stored(self) -> StoredObject | None:
        """The object, once there is one."""
        return self._stored

    async def resume(self, state: UploadState) -> None:
        """Take up a recorded state: read back what it claims, or find the object in place."""
        if state.key != self._state.key:
            raise StartOver(f"The recorded upload belongs to {state.key!r}.")
        if await self._finished_before(state):
            return
        await self._lane.run(lambda: self._file.reopen(state.offset))
        self._open = True
        if await self._checksum(self._file.checksum, self._lane, state.offset) != state.crc32c:
            raise self._file.doubt("does not hold the bytes that were confirmed")
        self._state = replace(state, total=None, total_crc32c=None)

    async def send(self, chunk: Chunk) -> None:
        """Write, sync and read back a chunk, then record how far the upload is."""
        if chunk.end <= self.confirmed:
            return  # re-sent from an earlier start: all of it is here
        self._refuse_gap(chunk)
        await self._begin()
        if not self._file.keep:
            await self._note(self._state)  # before its first byte: no death leaves a nameless file
        await self._append(chunk)
        self._state = replace(
            self._state,
            offset=chunk.end,
            crc32c=chunk.after.crc32c,
            inspection=chunk.after.inspection,
        )
        await self._note(self._state)

    async def finish(self, chunk: Chunk) -> StoredObject:
        """Write, sync and read back the last chunk, then place the file under its key."""
        self._refuse_gap(chunk)
        sidecar = self._sidecar(chunk.end, chunk.after.crc32c)
        await self._begin()
        await self._note(replace(self._state, total=sidecar.size, total_crc32c=sidecar.crc32c))
        await self._append(chunk)
        await self._lane.run(lambda: self._file.publish(sidecar))
        self._stored = sidecar.describes(sidecar.size)
        return self._stored

    async def discard(self) -> None:
        """Leave nothing behind: the partial file goes when the block is left."""
        self._file.keep = False

    async def _begin(self) -> None:
        if not self._open:
            await self._lane.run(self._file.create)
            self._open = True

    async def _note(self, state: UploadState) -> None:
        """Record a state: from the first one on the file stays for the next attempt.

        Where nothing could be recorded (a full state disk, restart after restart) it must not
        stay: nobody would come back for it. After a cancellation it may have been recorded.
        """
        nameless = not self._file.keep
        self._file.keep = True
        try:
            await self._record(state)
        except NvrBackupError:
            self._file.keep = not nameless
            raise

    def _refuse_gap(self, chunk: Chunk) -> None:
        if chunk.start > self.confirmed:
            raise ValueError(f"the chunk begins at {chunk.start}, only {self.confirmed} are here")

    async def _append(self, chunk: Chunk) -> None:
        chunk.drop_until(self.confirmed)
        # iter(): a chunk's length is in bytes, and tuple() would make room for as many pieces.
        pieces, at, before = tuple(iter(chunk)), chunk.start, self._state.crc32c
        crc = await self._lane.run(lambda: self._file.append(pieces, at=at, crc32c=before))
        if crc != chunk.after.crc32c:
            raise self._file.doubt(f"reads back differently before byte {chunk.end}")

    async def _finished_before(self, state: UploadState) -> bool:
        """Whether the object is in place with the total and checksum recorded before placing it."""
        if state.total is None or state.total_crc32c is None:
            return False
        found = ObjectFile(self._site, state.key)
        lane = self._threads.lane(found.close)
        try:
            if await lane.run(found.open) != state.total:
                return False
            if await self._checksum(found.checksum, lane, state.total) != state.total_crc32c:
                return False
        finally:
            await lane.aclose()
        sidecar = self._sidecar(state.total, state.total_crc32c)
        await self._lane.run(lambda: self._file.settle(sidecar))
        self._state = state
        self._stored = await self._threads.run(lambda: listing.describe(self._site, state.key))
        return self._stored is not None

    async def _checksum(
        self, checksum: Callable[[int, int, int], int], lane: Lane, end: int
    ) -> int:
        crc, at = 0, 0
        while at < end:
            step = min(at + CHECKSUM_STEP_BYTES, end)
            crc = await lane.run(partial(checksum, at, step, crc))
            at = step
        return crc

    def _sidecar(self, size: int, crc32c: int) -> Sidecar:
        return Sidecar(
            key=self._state.key,
            size=size,
            crc32c=crc32c,
            generation=self._file.token,
            content_type=self._state.content_type,
            metadata=self._metadata,
        )
