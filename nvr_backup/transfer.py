"""A clip's whole way, from the source's first byte to the store's confirmation.

    source.open → received → cut (content check, CRC32C) → ahead → upload.send … upload.finish

One chunk is being sent while the next is being filled; nothing else of the clip is in memory. The
upload is finished only after the content check has accepted the whole body; the state that lets a
later attempt continue is made durable by the store's calls of `record`. This module must never
report a clip as stored that the store did not confirm, and never write over an object.

What can go wrong, and what then happens to the clip:

- the source or the store fails half-way: `Transient`; the upload stays, a later attempt resumes it;
- the body is not a whole video: `Suspect`; what was sent is discarded;
- the session is gone, or bytes differ: `StartOver`; begun again at byte 0, FRESH_STARTS times;
- the key holds an object: ours (identical, or made from this very clip) counts as stored, a foreign
  one stays untouched and the clip gets a key of its own; only one that was found corrupt gives way,
  once the new one is whole;
- the process is told to stop: the chunk in flight is finished, then `Drained`; the upload resumes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any, Final, Protocol

import google_crc32c

from nvr_backup.chunks import Chunk, Progress, cut
from nvr_backup.errors import Blocked, KeyTaken, NvrBackupError, StartOver, Suspect, Unfit
from nvr_backup.metadata import describe, names_same_clip
from nvr_backup.model import Clip, StoredObject, UploadState
from nvr_backup.overlap import Witness
from nvr_backup.ports import ClipBody, ClipSource, ClipStore, Upload

FRESH_STARTS: Final = 3
"""How often one attempt begins at byte 0 before the clip goes back to the backlog."""

KEYS_TRIED: Final = 4
"""How many foreign objects one attempt walks around before the clip is set aside."""


class Drained(Exception):
    """The transfer ended between two chunks because the program is stopping."""


class Ledger(Protocol):
    """The checkpoint as one transfer sees it: its own copy's row."""

    async def save_upload(self, state: UploadState) -> None:
        """Make the upload's state durable."""
        ...

    async def forget_upload(self) -> None:
        """The next attempt begins at byte 0."""
        ...

    async def another_key(self, extension: str) -> str:
        """Fix another key for the copy, with this extension, that no other clip has."""
        ...


@dataclass(slots=True)
class Activity:
    """What a transfer has done so far, for progress displays and log lines. Bytes.

    `finishing`: the whole clip has been read, so much of it is with the store for its last answer.
    """

    size: int | None = None
    received: int = 0
    confirmed: int = 0
    resumed_at: int = 0
    finishing: int | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """A finished transfer. `verified`: the store's size and checksum were compared with ours."""

    stored: StoredObject
    verified: bool


@dataclass(slots=True)
class Transfer:
    """Everything one clip's way needs. `run` may be called once; `key` may change on the way.

    `finishing` is called when nothing but the store's last answer is awaited.
    """

    clip: Clip
    key: str
    source: ClipSource
    store: ClipStore
    store_name: str
    ledger: Ledger
    activity: Activity
    chunk_size: int
    stop: asyncio.Event
    finishing: Callable[[], None]
    maybe_there: bool = False  # stored by us before the checkpoint was lost, in a store not listed
    replaces: str | None = None  # generation of the corrupt object under the key

    async def run(self, resume: UploadState | None) -> Carried:
        """Carry the clip; raises what `errors` names, or Drained."""
        for fresh_starts in range(FRESH_STARTS + 1):
            try:
                with _blamed(f"sources.{self.clip.camera.source}"):
                    return await self._attempt_or_settle(resume)
            except StartOver:
                await self.ledger.forget_upload()
                if fresh_starts == FRESH_STARTS:
                    raise
            resume = None
        raise AssertionError("the last fresh start returns or raises")

    async def _attempt_or_settle(self, resume: UploadState | None) -> Carried:
        for _ in range(KEYS_TRIED):
            try:
                return await self._attempt(resume)
            except _Taken as taken:
                carried = await self._settle(taken)
                if carried is not None:
                    return carried
                await self._take_another_key(_extension(taken.key))
                resume = None
        raise Unfit(
            f"{KEYS_TRIED} object keys in a row hold objects that are not this clip, "
            f"the last one {self.key}.",
            hint="Look who else writes there; give the store a prefix or key_template of its own.",
        )

    async def _attempt(self, resume: UploadState | None) -> Carried:
        async with AsyncExitStack() as stack:
            upload: Upload | None = None
            begin = Progress()
            if resume is not None:
                upload = await self._put(stack, resume.key, resume.content_type, resume)
                if upload.stored is not None:
                    return _confirmed(upload.stored, resume.total, resume.total_crc32c)
                begin = Progress(resume.offset, resume.crc32c, resume.inspection)
                self.key = resume.key
            return await self._carry(stack, upload, begin)

    async def _carry(
        self, stack: AsyncExitStack, upload: Upload | None, begin: Progress
    ) -> Carried:
        inspector = Witness(begin.inspection)
        proof = inspector.proof
        offset = begin.offset - len(proof)
        async with drained_by(self.stop):
            body = await stack.enter_async_context(self.source.open(self.clip, offset=offset))
        self.activity.size = body.size
        self.activity.resumed_at = begin.offset
        pieces = self._received(body, begin, proof)
        stack.push_async_callback(pieces.aclose)
        chunks = cut(pieces, begin=begin, inspector=inspector, chunk_size=self.chunk_size)
        async with ahead(chunks, self.stop) as prefetched:
            async for chunk in prefetched:
                if upload is None:
                    content_type = await self._fit(inspector)
                    upload = await self._put(stack, self.key, content_type, None)
                if chunk.last:
                    return await self._finish(upload, chunk)
                with self._store_blamed(), _taken(self.key):
                    await upload.send(chunk)
                self.activity.confirmed = chunk.end
        raise AssertionError("a cut body ends with its last chunk or an error")

    async def _put(
        self, stack: AsyncExitStack, key: str, content_type: str, resume: UploadState | None
    ) -> Upload:
        known = None if resume is None else (resume.total, resume.total_crc32c)
        with self._store_blamed(), _taken(key, known):
            upload = await stack.enter_async_context(
                self.store.put(
                    key,
                    content_type=content_type,
                    metadata=describe(self.clip),
                    record=self.ledger.save_upload,
                    resume=resume,
                    replaces=self.replaces,
                )
            )

        async def discard_if_void(_: object, err: BaseException | None, __: object) -> None:
            if isinstance(err, (StartOver, Suspect, Unfit)):
                await upload.discard()
                await self.ledger.forget_upload()

        stack.push_async_exit(discard_if_void)
        return upload

    async def _fit(self, inspector: Witness) -> str:
        """Content type, and the key's extension, after what the first bytes turned out to be."""
        container = inspector.container
        if container is None:
            raise Suspect("The body is too short to be a video.")
        if _extension(self.key) != container.extension:
            await self._take_another_key(container.extension)
        return container.content_type

    async def _take_another_key(self, extension: str) -> None:
        self.key = await self.ledger.another_key(extension)
        self.replaces = None

    async def _received(
        self, body: ClipBody, begin: Progress, proof: bytes
    ) -> AsyncGenerator[bytes]:
        """The body's pieces from `begin` on, counted; its size is held against what was said."""
        ahead_of_us = begin.offset - body.offset
        if ahead_of_us < 0:
            raise StartOver(f"The source skipped {-ahead_of_us} bytes of the clip.")
        # What the store already holds is read once more, all of it where the source cannot begin
        # in the middle, else the end of it: its checksum proves that it is the same stream.
        crc, known = 0, begin.crc32c
        if body.offset:
            known = google_crc32c.value(proof[-ahead_of_us:] if ahead_of_us else b"")
        position = body.offset
        async for piece in body:
            position += len(piece)
            self.activity.received += len(piece)
            fresh = piece
            if ahead_of_us:
                again, fresh = piece[:ahead_of_us], piece[ahead_of_us:]
                ahead_of_us -= len(again)
                crc = google_crc32c.extend(crc, again)
                if not ahead_of_us and crc != known:
                    raise StartOver("The clip has changed since its upload began.")
            if fresh:
                yield fresh
        if ahead_of_us:
            raise StartOver("The clip has become shorter since its upload began.")
        if body.size is not None and position != body.size:
            raise Suspect(f"The source announced {body.size} bytes and sent {position}.")

    async def _finish(self, upload: Upload, chunk: Chunk) -> Carried:
        self.activity.finishing = chunk.size
        self.finishing()
        try:
            with self._store_blamed(), _taken(self.key, (chunk.end, chunk.after.crc32c)):
                stored = await upload.finish(chunk)
        except BaseException:
            self.activity.finishing = None  # there may be another attempt
            raise
        self.activity.confirmed = chunk.end
        return _confirmed(stored, chunk.end, chunk.after.crc32c)

    async def _settle(self, taken: _Taken) -> Carried | None:
        """Whose object lies under the key? Ours counts as stored; None: somebody else's."""
        try:
            with self._store_blamed():
                stored = await self.store.stat(taken.key)
        except Blocked:
            with self._store_blamed():
                may_look = (await self.store.probe()).stat
            if may_look:
                raise  # it is not the permission: the store itself does not work now
            # We may create but not look. An answer of our own that was lost explains the object,
            # and the store checked our request's checksum before it created that; so does a
            # checkpoint that was lost.
            size = taken.size
            if self.maybe_there and size is None:  # refused before all of it was read
                size = self.activity.size or self.activity.received
            if (taken.maybe_ours or self.maybe_there) and size is not None:
                return Carried(StoredObject(taken.key, size, taken.crc32c), verified=False)
            return None
        if stored is None:
            self.replaces = None
            raise StartOver("The object that held the key is gone.")
        if self.replaces is not None and (stored.generation or "") == self.replaces:
            return None  # the corrupt one, which the store will not replace, whatever it says of it
        if taken.size is not None and stored.crc32c is not None:
            same = (stored.size, stored.crc32c) == (taken.size, taken.crc32c)
            return Carried(stored, verified=True) if same else None
        if self.replaces is None and names_same_clip(stored.metadata, self.clip):
            return Carried(stored, verified=False)
        return None

    def _store_blamed(self) -> AbstractContextManager[None]:
        return _blamed(f"stores.{self.store_name}")


class _Taken(Exception):
    """KeyTaken, with what we know of our own bytes at that moment."""

    def __init__(self, key: str, maybe_ours: bool, size: int | None, crc32c: int | None) -> None:
        super().__init__(key)
        self.key = key
        self.maybe_ours = maybe_ours
        self.size = size
        self.crc32c = crc32c


@contextmanager
def _taken(key: str, ours: tuple[int | None, int | None] | None = None) -> Iterator[None]:
    try:
        yield
    except KeyTaken as err:
        raise _Taken(key, err.maybe_ours, *(ours or (None, None))) from err


@contextmanager
def _blamed(origin: str) -> Iterator[None]:
    try:
        yield
    except NvrBackupError as err:
        err.origin = err.origin or origin
        raise


def _confirmed(stored: StoredObject, total: int | None, crc32c: int | None) -> Carried:
    """Hold the store's word against our own; StartOver when they differ."""
    if stored.size != total or stored.crc32c not in {None, crc32c}:
        raise StartOver(
            f"The store holds {stored.size} bytes with CRC32C {stored.crc32c} under {stored.key}, "
            f"we sent {total} with {crc32c}."
        )
    return Carried(stored, verified=stored.crc32c is not None)


def _extension(key: str) -> str:
    name = key.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:] if dot > 0 else ""


@asynccontextmanager
async def drained_by(stop: asyncio.Event) -> AsyncIterator[None]:
    """Interrupt the block when `stop` is set: it then raises Drained.

    Only around waiting that leaves nothing half-done.
    """
    try:
        async with asyncio.timeout(None) as limit:
            watch = asyncio.create_task(_expire(limit, stop), name="stop")
            try:
                yield
            finally:
                watch.cancel()
                await asyncio.wait({watch})
    except TimeoutError:
        if limit.expired():
            raise Drained from None
        raise


async def _expire(limit: asyncio.Timeout, stop: asyncio.Event) -> None:
    await stop.wait()
    limit.reschedule(0.0)


@asynccontextmanager
async def ahead(
    chunks: AsyncGenerator[Chunk], stop: asyncio.Event
) -> AsyncIterator[AsyncIterator[Chunk]]:
    """Iterate over `chunks` with the next one being read while the present one is in use.

    Raises Drained instead of yielding when `stop` is set, also while the source is silent.
    """
    reading: asyncio.Task[Chunk] | None = None
    stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait(), name="stop")

    async def prefetched() -> AsyncIterator[Chunk]:
        nonlocal reading
        while True:
            if reading is None:
                reading = asyncio.create_task(_next(chunks), name="read")
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                raise Drained
            chunk = reading.result()
            reading = None if chunk.last else asyncio.create_task(_next(chunks), name="read")
            yield chunk
            if chunk.last:
                return

    iterator = prefetched()
    try:
        yield iterator
    finally:
        ending: set[asyncio.Task[Any]] = {stopping} if reading is None else {stopping, reading}
        for child in ending:
            child.cancel()
        await asyncio.wait(ending)
        if reading is not None and not reading.cancelled():
            reading.exception()  # seen: the transfer is ending for another reason
        await chunks.aclose()


async def _next(chunks: AsyncGenerator[Chunk]) -> Chunk:
    return await anext(chunks)
