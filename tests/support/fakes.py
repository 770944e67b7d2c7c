"""In-memory source and store for tests of the core: small programs that keep the ports' contracts.

They pass the same contract suites as the real adapters. Faults are given by name and count; each is
noted when it happens, so that a test can assert that it did.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import google_crc32c

from nvr_backup.chunks import Chunk
from nvr_backup.errors import Blocked, KeyTaken, NvrBackupError, StartOver, Transient, Unfit
from nvr_backup.model import Camera, Clip, StoredObject, UploadState, Window
from nvr_backup.ports import Capabilities, Record

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def box(kind: bytes, payload: bytes) -> bytes:
    """An ISO-BMFF box."""
    return (len(payload) + 8).to_bytes(4, "big") + kind + payload


def mp4(size: int, seed: int = 0) -> bytes:
    """A box-valid MP4 of exactly `size` bytes (at least 64), different for each seed."""
    head = box(b"ftyp", b"isom\0\0\0\0isom")
    tail = box(b"moov", b"")
    room = size - len(head) - len(tail) - 8
    if room < 0:
        raise ValueError(f"an MP4 needs at least {size - room} bytes")
    block = bytes((i * 31 + seed * 17 + (i >> 8)) & 0xFF for i in range(4096))
    return head + box(b"mdat", (block * (room // 4096 + 1))[:room]) + tail


@dataclass
class Faults:
    """Errors to raise, by the name of the step; `skip` lets that many pass first."""

    armed: dict[str, list[NvrBackupError]] = field(default_factory=lambda: defaultdict(list))
    skip: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)

    def arm(self, step: str, *errors: NvrBackupError) -> None:
        self.armed[step] += errors

    def strike(self, step: str) -> None:
        if not self.armed[step]:
            return
        self.skip[step] -= 1
        if self.skip[step] < 0:
            self.happened[step] += 1
            raise self.armed[step].pop(0)

    def unused(self) -> list[str]:
        return [step for step, errors in self.armed.items() if errors]


@dataclass
class Recording:
    """A clip with its bytes. `served` overrides what is sent, `size` what is announced."""

    clip: Clip
    data: bytes
    size: int | None = None
    cut_at: int | None = None


class _Body:
    def __init__(self, source: FakeSource, data: bytes, size: int | None, offset: int):
        self.size = size
        self.offset = offset
        self._source = source
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        step = self._source.piece
        for start in range(self.offset, len(self._data), step):
            if self._source.silent_after is not None and start >= self._source.silent_after:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            self._source.faults.strike("piece")
            yield self._data[start : start + step]


class FakeSource:
    """A recorder in memory. `ranges=False`: bodies always begin at 0. Notes what it served."""

    def __init__(self, name: str = "home", *, ranges: bool = True, piece: int = 1000) -> None:
        self.name = name
        self.recordings: dict[str, Recording] = {}
        self.extra_cameras: list[Camera] = []
        self.faults = Faults()
        self.opened: list[tuple[str, int]] = []
        self.windows: list[tuple[str, Window]] = []
        self.announce_size = True
        self.hold: asyncio.Event | None = None
        self._ranges = ranges
        self.piece = piece
        self.silent_after: int | None = None

    def add(self, clip: Clip, data: bytes) -> Clip:
        self.recordings[clip.id] = Recording(clip, data)
        return clip

    def remove(self, clip_id: str) -> None:
        del self.recordings[clip_id]

    async def cameras(self) -> Sequence[Camera]:
        self.faults.strike("cameras")
        found = {item.clip.camera.id: item.clip.camera for item in self.recordings.values()}
        return [*found.values(), *self.extra_cameras]

    async def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
        self.windows.append((camera.id, window))
        self.faults.strike("clips")
        found = [
            item.clip
            for item in self.recordings.values()
            if item.clip.camera.id == camera.id
            and item.clip.start < window.end
            and (item.clip.end or item.clip.start) > window.start
        ]
        for clip in sorted(found, key=lambda clip: (clip.start, clip.id)):
            await asyncio.sleep(0)
            yield clip

    @asynccontextmanager
    async def open(self, clip: Clip, *, offset: int = 0) -> AsyncIterator[_Body]:
        self.faults.strike("open")
        if clip.id not in self.recordings:
            raise Unfit(f"The clip {clip.id} is gone.")
        recording = self.recordings[clip.id]
        if self.hold is not None:
            await self.hold.wait()
        data = recording.data[: recording.cut_at]
        granted = offset if self._ranges else 0
        self.opened.append((clip.id, granted))
        size = recording.size
        if size is None and self.announce_size and recording.cut_at is None:
            size = len(recording.data)
        yield _Body(self, data, size, granted)


class _Upload:
    def __init__(
        self,
        store: FakeStore,
        state: UploadState,
        record: Record,
        metadata: dict[str, str],
        replaces: str | None,
    ):
        self._replaces = replaces
        self.stored: StoredObject | None = None
        self._store = store
        self._state = state
        self._record = record
        self._metadata = metadata

    @property
    def confirmed(self) -> int:
        return len(self._store.sessions.get(self._state.session, b""))

    async def _append(self, chunk: Chunk) -> None:
        self._store.most_in_memory = max(self._store.most_in_memory, chunk.size)
        if self._state.session not in self._store.sessions:
            if self._state.session:
                raise StartOver("The session is gone.")
            session = f"session-{next(self._store.numbers)}"
            self._store.sessions[session] = b""
            self._state = replace(self._state, session=session)
            await self._record(self._state)
        held = self._store.sessions.get(self._state.session)
        if held is None:
            raise StartOver("The session is gone.")
        if not chunk.start <= len(held) <= chunk.end:
            raise StartOver(
                f"The store holds {len(held)} bytes, the chunk begins at {chunk.start}."
            )
        chunk.drop_until(len(held))
        data = b"".join(chunk)
        self._store.received += len(data)
        self._store.sessions[self._state.session] = held + data

    async def send(self, chunk: Chunk) -> None:
        await asyncio.sleep(0)
        if self._store.hold is not None:
            self._store.held += 1
            await self._store.hold.wait()
        self._store.faults.strike("send")
        await self._append(chunk)
        self._store.faults.strike("send-answer")
        after = chunk.after
        self._state = replace(
            self._state, offset=chunk.end, crc32c=after.crc32c, inspection=after.inspection
        )
        await self._record(self._state)

    async def finish(self, chunk: Chunk) -> StoredObject:
        await asyncio.sleep(0)
        total, crc = chunk.end, chunk.after.crc32c
        if self._store.thinks is not None:
            self._store.asked += 1
            await self._store.thinks.wait()
        await self._append(chunk)
        self._state = replace(self._state, total=total, total_crc32c=crc)
        await self._record(self._state)
        self._store.faults.strike("finish")
        there = self._store.objects.get(self._state.key)
        if there is not None and self._replaces not in {there[0].generation or ""}:
            raise KeyTaken(f"{self._state.key} exists")
        if self._state.session not in self._store.sessions:
            raise StartOver("The session is gone.")
        data = self._store.sessions[self._state.session]
        stored = StoredObject(
            self._state.key,
            len(data),
            google_crc32c.value(data),
            str(next(self._store.numbers)),
            self._state.content_type,
            self._metadata,
        )
        if (stored.size, stored.crc32c) != (total, crc):
            del self._store.sessions[self._state.session]
            raise StartOver("The bytes differ.")
        del self._store.sessions[self._state.session]
        self._store.finished[self._state.session] = stored
        self._store.objects[self._state.key] = (stored, data)
        self._store.faults.strike("finish-answer")
        return stored

    async def discard(self) -> None:
        self._store.discarded += 1
        self._store.sessions.pop(self._state.session, None)


class FakeStore:
    """A store in memory: create-only, resumable, with generations.

    While `hold` is there and not set, no chunk is taken; `held` counts those that had to wait.
    While `thinks` is there and not set, the last answer of an upload does not come; `asked` counts.
    """

    def __init__(self, *, may_stat: bool = True) -> None:
        self.objects: dict[str, tuple[StoredObject, bytes]] = {}
        self.sessions: dict[str, bytes] = {}
        self.finished: dict[str, StoredObject] = {}
        self.faults = Faults()
        self.received = 0
        self.discarded = 0
        self.most_in_memory = 0
        self.hold: asyncio.Event | None = None
        self.held = 0
        self.thinks: asyncio.Event | None = None
        self.asked = 0
        self.read_hold: asyncio.Event | None = None
        self.numbers = itertools.count(1)
        self.listings: list[str] = []
        self.reads: list[tuple[str, int]] = []
        self.served = 0
        self.piece = 1 << 16
        self._may_stat = may_stat

    async def probe(self) -> Capabilities:
        self.faults.strike("probe")
        return Capabilities(stat=self._may_stat, list=True, read=True, delete=True, resume=True)

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
    ) -> AsyncIterator[_Upload]:
        self.faults.strike("put")
        state = resume or UploadState("", key, content_type, EPOCH)
        upload = _Upload(self, state, record, dict(metadata), replaces)
        if resume is not None:
            upload.stored = self.finished.get(resume.session)
            if upload.stored is None:
                held = self.sessions.get(resume.session)
                if held is None or len(held) < resume.offset:
                    raise StartOver("The session is gone.")
        yield upload

    async def stat(self, key: str) -> StoredObject | None:
        if not self._may_stat:
            raise Blocked("The key may not look at objects.")
        self.faults.strike("stat")
        found = self.objects.get(key)
        return None if found is None else found[0]

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        self.faults.strike("list")
        self.listings.append(prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield self.objects[key][0]

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        self.faults.strike("list")
        keys = [key for key in self.objects if key.startswith(prefix)]
        heads = (key[len(prefix) :].partition("/") for key in keys)
        for folder in sorted({prefix + head + slash for head, slash, _ in heads if slash}):
            yield folder

    async def read(
        self, key: str, *, offset: int = 0, generation: str | None = None
    ) -> AsyncIterator[bytes]:
        self.faults.strike("read")
        found = self.objects.get(key)
        if found is None or generation not in {None, found[0].generation}:
            raise Unfit(f"There is no object {key}.")
        self.reads.append((key, offset))
        if self.read_hold is not None:
            await self.read_hold.wait()
        for start in range(offset, len(found[1]), self.piece):
            self.faults.strike("read-piece")
            self.served += len(found[1][start : start + self.piece])
            yield found[1][start : start + self.piece]

    async def delete(self, key: str, *, generation: str | None = None) -> None:
        found = self.objects.get(key)
        if found is not None and generation in {None, found[0].generation}:
            del self.objects[key]


PORCH = Camera("home", "porch", "Porch")


def clip_at(
    minute: float, *, seconds: float | None = 10, camera: Camera = PORCH, id: str | None = None
) -> Clip:
    """A clip that begins `minute` minutes after EPOCH."""
    start = EPOCH + timedelta(minutes=minute)
    end = None if seconds is None else start + timedelta(seconds=seconds)
    return Clip(camera, id or f"{camera.id}-{minute}", start, end)


__all__ = [
    "EPOCH",
    "PORCH",
    "FakeSource",
    "FakeStore",
    "Recording",
    "Transient",
    "box",
    "clip_at",
    "mp4",
]
