"""Deposits: snapshots of the checkpoint in a store, compressed, below the reserved prefix.

A deposit is what a burnt machine's successor begins with. It carries no upload sessions, which are
bearer secrets. Objects are created, never replaced; where the key may list and delete, only the
latest few stay. What is not a whole deposit must never be taken for one.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

from nvr_backup.chunks import Progress, cut
from nvr_backup.errors import Blocked, KeyTaken
from nvr_backup.keys import RESERVED
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import ClipStore
from nvr_backup.snapshots import taken_at, why_unsound

PREFIX: Final = f"{RESERVED}checkpoint/"
SUFFIX: Final = ".gz"
KEPT: Final = 7
"""Deposits that stay in a store; older ones are deleted where the key may do so."""

_PIECE_BYTES: Final = 1 << 20
_GZIP: Final = 16 + zlib.MAX_WBITS
"""What zlib calls the gzip format, so that `gunzip` opens a deposit."""


class _NoInspector:
    """A snapshot was found sound when it was taken: its bytes need no further look."""

    def feed(self, piece: bytes) -> None:
        """Nothing to look at."""

    def state(self) -> str:
        """Nothing to remember."""
        return ""

    def finish(self) -> None:
        """Nothing to find."""


async def deposit(store: ClipStore, snapshot: Path, bare: Path, *, chunk_size: int) -> None:
    """Bring a snapshot into a store, then let old deposits go; raises what a store raises.

    `bare` is its copy without upload sessions. One that is there already is left as it is. OSError
    when the copy cannot be read.
    """
    with suppress(KeyTaken):  # an earlier attempt whose answer was lost
        await _send(store, f"{PREFIX}{snapshot.name}{SUFFIX}", bare, chunk_size)
    with suppress(Blocked):  # the key need not be allowed to list or delete
        for old in (await _deposits(store))[KEPT:]:
            await store.delete(old.key, generation=old.generation)


async def fetch_latest(store: ClipStore, target: Path, now: datetime) -> datetime | None:
    """Write the latest deposit that can be relied on into a new file; when it was taken.

    None without one: what the file holds is then of no use. Those taken under a clock that was
    ahead come last. Raises what a store raises; OSError when the file cannot be written.
    """
    found = await _deposits(store)
    for one in sorted(found, key=lambda one: (_time(one) <= now, _time(one)), reverse=True):
        with await asyncio.to_thread(_new_file, target) as file:
            whole = await _unpacked(store, one, file)
        if whole and await asyncio.to_thread(why_unsound, target) is None:
            return _time(one)
    return None


async def _unpacked(store: ClipStore, one: StoredObject, file: BinaryIO) -> bool:
    """Write what a deposit holds; whether it was whole."""
    decompressor = zlib.decompressobj(_GZIP)
    try:
        async for piece in store.read(one.key, generation=one.generation):
            file.write(decompressor.decompress(piece))
        file.write(decompressor.flush())
    except zlib.error:
        return False
    return decompressor.eof


def _new_file(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    return path.open("wb")


async def _deposits(store: ClipStore) -> list[StoredObject]:
    """The latest first."""
    found = [one async for one in store.list(PREFIX) if one.key.endswith(SUFFIX)]
    return sorted(found, key=_time, reverse=True)


def _time(one: StoredObject) -> datetime:
    return taken_at(Path(one.key.removesuffix(SUFFIX)))


async def _send(store: ClipStore, key: str, file: Path, chunk_size: int) -> None:
    chunks = cut(
        _compressed(file), begin=Progress(), inspector=_NoInspector(), chunk_size=chunk_size
    )
    async with store.put(
        key, content_type="application/gzip", metadata={"kind": "checkpoint"}, record=_no_record
    ) as upload:
        try:
            async for chunk in chunks:
                await (upload.finish(chunk) if chunk.last else upload.send(chunk))
        except BaseException:
            await upload.discard()  # it is not resumed: tomorrow's is as good
            raise


async def _no_record(_state: UploadState) -> None:
    """An unfinished deposit is begun anew."""


async def _compressed(file: Path) -> AsyncIterator[bytes]:
    pieces = _compress(file)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


def _compress(file: Path) -> Iterator[bytes]:
    compressor = zlib.compressobj(wbits=_GZIP)
    with file.open("rb") as opened:
        while data := opened.read(_PIECE_BYTES):
            if piece := compressor.compress(data):
                yield piece
    yield compressor.flush()
