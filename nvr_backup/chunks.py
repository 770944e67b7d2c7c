"""A clip on its way: cut into chunks that are their own replay buffers.

A chunk keeps the pieces exactly as they were received (no join, no copy) until the store has
acknowledged them, so a failed request can be sent again from memory and a store never needs a
second look at the source for a mere hiccup. At its end every chunk carries what a resumed upload
needs there: the clip's CRC32C and the content check's state up to that byte. Memory in use is at
most one chunk being sent and one being filled, whatever the size of the clip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import google_crc32c

TINY: Final = 4096
"""Bytes; a piece that is smaller joins a small one before it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far into a clip we are: `offset` bytes, their CRC32C, the content check's state."""

    offset: int = 0
    crc32c: int = 0
    inspection: str = ""


class Inspector(Protocol):
    """A content check that walks the bytes once, in order (see `mp4.ClipInspector`)."""

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes; raises Suspect or Unfit when they cannot be a clip's."""
        ...

    def state(self) -> str:
        """What a new inspector needs to continue after the bytes fed so far."""
        ...

    def finish(self) -> None:
        """The bytes have ended; raises Suspect when they are not a whole clip."""
        ...


class Chunk:
    """Consecutive bytes [start, end) of a clip, as the pieces in which they arrived.

    `after` is the clip's progress at `end`; `last` says that the clip ends there and that the
    content check accepted all of it.
    """

    __slots__ = ("_pieces", "after", "end", "last", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.after = Progress(offset=start)
        self.last = False
        self._pieces: deque[bytes] = deque()

    @property
    def size(self) -> int:
        """Bytes it holds. Not `__len__`: a length hint would make tuple(chunk) reserve so much."""
        return self.end - self.start

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def append(self, piece: bytes) -> None:
        """Add the next bytes. Tiny pieces are joined, else each would cost more than it holds."""
        if len(piece) < TINY and self._pieces and len(self._pieces[-1]) < TINY:
            self._pieces[-1] += piece
        else:
            self._pieces.append(piece)
        self.end += len(piece)

    def drop_until(self, offset: int) -> None:
        """Forget the bytes before `offset`: the store holds them. ValueError outside the chunk."""
        if not self.start <= offset <= self.end:
            raise ValueError(f"offset {offset} is outside the chunk {self.start}-{self.end}")
        while self.start < offset:
            piece = self._pieces.popleft()
            excess = self.start + len(piece) - offset
            if excess > 0:
                self._pieces.appendleft(piece[-excess:])
                self.start = offset
            else:
                self.start += len(piece)


async def cut(
    pieces: AsyncIterable[bytes], *, begin: Progress, inspector: Inspector, chunk_size: int
) -> AsyncGenerator[Chunk]:
    """Read, check and hash `pieces` into chunks of `chunk_size` bytes; the last may be shorter.

    `begin` is the progress at the first piece and `inspector` must be in that state. A full chunk
    is held back until the next piece or the end arrives, so that a clip of exactly one chunk is
    recognised as such; an empty body yields nothing but the inspector's error.
    """
    crc = begin.crc32c
    chunk = Chunk(begin.offset)
    async for piece in pieces:
        rest = piece
        while rest:
            if chunk.size == chunk_size:
                chunk.after = Progress(chunk.end, crc, inspector.state())
                yield chunk
                chunk = Chunk(chunk.end)
            room = chunk_size - chunk.size
            part, rest = (rest, b"") if len(rest) <= room else (rest[:room], rest[room:])
            inspector.feed(part)
            crc = google_crc32c.extend(crc, part)
            chunk.append(part)
    inspector.finish()
    chunk.after = Progress(chunk.end, crc, inspector.state())
    chunk.last = True
    yield chunk
