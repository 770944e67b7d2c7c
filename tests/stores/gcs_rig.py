"""What the tests of the Google Cloud Storage adapter share: a clock that leaps, and a clip's way.

`carry` does what the core does with a store: cuts a clip into chunks, remembers every recorded
state, and continues from one. `survives` and `fails` are the two ways an upload may end under a
script of faults. Nothing here looks into the adapter.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import google_crc32c
import pytest

from nvr_backup.chunks import Chunk, Progress
from nvr_backup.errors import NvrBackupError
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import ClipStore
from nvr_backup.stores.gcs import GcsSettings, open_store
from tests.support.gcs_double import GcsDouble, Where

BUCKET = "footage"
KEY = "Front Door/2026/01/02/03-04-05.mp4"
CHUNK = 512 * 1024
META = {"camera": "Haustür", "start": "2026-01-02T03:04:05Z"}


class LeapClock:
    """Waiting costs no time: the clock leaps ahead instead. `waits` are the durations asked for."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.wall = datetime(2026, 1, 2, tzinfo=UTC)
        self.elapsed = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.wall += timedelta(seconds=seconds)
        self.elapsed += seconds
        await asyncio.sleep(0)


def clip_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def chunks_of(
    data: bytes, *, chunk_size: int = CHUNK, start: int = 0, pieces: Sequence[int] = (65536,)
) -> list[Chunk]:
    """The clip from `start` on, in pieces of the sizes given (over and over)."""
    made: list[Chunk] = []
    position, turn = start, 0
    while not made or position < len(data):
        chunk = Chunk(position)
        while position < len(data) and chunk.size < chunk_size:
            size = min(pieces[turn % len(pieces)], chunk_size - chunk.size)
            chunk.append(data[position : position + size])
            position, turn = chunk.end, turn + 1
        crc = google_crc32c.value(data[:position])
        chunk.after = Progress(position, crc, f"at {position}")
        made.append(chunk)
    made[-1].last = True
    return made


@dataclass
class Carried:
    """The states recorded on the way, in order."""

    states: list[UploadState] = field(default_factory=list)

    async def record(self, state: UploadState) -> None:
        await asyncio.sleep(0)
        self.states.append(state)


async def carry(
    store: ClipStore,
    data: bytes,
    *,
    key: str = KEY,
    resume: UploadState | None = None,
    log: Carried | None = None,
    chunk_size: int = CHUNK,
    pieces: Sequence[int] = (65536,),
    replaces: str | None = None,
) -> StoredObject:
    """Store a clip, or finish one begun before."""
    log = log or Carried()
    async with store.put(
        key,
        content_type="video/mp4",
        metadata=META,
        record=log.record,
        resume=resume,
        replaces=replaces,
    ) as upload:
        if upload.stored is not None:
            return upload.stored
        start = resume.offset if resume is not None else 0
        *early, last = chunks_of(data, chunk_size=chunk_size, start=start, pieces=pieces)
        for chunk in early:
            await upload.send(chunk)
        return await upload.finish(last)


def settings(gcs: GcsDouble, **changes: Any) -> GcsSettings:
    plain: dict[str, Any] = {
        "name": "offsite",
        "bucket": BUCKET,
        "endpoint": gcs.url,
        "chunk_size": CHUNK,
        "stall_seconds": 20.0,
    }
    return GcsSettings(**{**plain, **changes})


@asynccontextmanager
async def opened(gcs: GcsDouble, **changes: Any) -> AsyncIterator[tuple[ClipStore, LeapClock]]:
    clock = LeapClock()
    async with open_store(settings(gcs, **changes), clock) as store:
        yield store, clock


BIG = clip_bytes(3 * CHUNK + 12345)
SMALL = clip_bytes(100_000)
BODY: dict[Where, bytes] = {"initiate": BIG, "chunk": BIG, "last": BIG, "single": SMALL}
STEPS: list[Where] = ["initiate", "chunk", "last", "single"]


def kinds(gcs: GcsDouble) -> list[str]:
    return [seen.where for seen in gcs.requests]


def stored_data(gcs: GcsDouble, key: str = KEY) -> bytes:
    return gcs.objects[BUCKET][key].data


async def survives(gcs: GcsDouble, data: bytes, **changes: Any) -> LeapClock:
    """The clip arrives despite the script, all of which happened."""
    async with opened(gcs, **changes) as (store, clock):
        got = await carry(store, data)
    held = gcs.objects[BUCKET][KEY]
    assert held.data == data
    assert held.metadata == META
    assert held.content_type == "video/mp4"
    assert (got.size, got.crc32c, got.generation) == (
        len(data),
        held.crc32c,
        str(held.generation),
    )
    assert not gcs.faults.unused()
    return clock


async def fails(gcs: GcsDouble, data: bytes, kind: type[NvrBackupError], **changes: Any) -> Any:
    """The upload ends with exactly this class of error, and no secret in it."""
    async with opened(gcs, **changes) as (store, _):
        with pytest.raises(kind) as caught:
            await carry(store, data)
    assert type(caught.value) is kind
    assert not gcs.faults.unused()
    shown = "".join(traceback.format_exception(caught.value))
    for session in gcs.sessions:
        assert session.id not in shown
    return caught.value
