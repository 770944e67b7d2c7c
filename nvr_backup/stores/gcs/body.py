"""A request body that sends the pieces of a chunk as they are, without joining or copying them.

It is written at most once: a second attempt needs a new body, after the store was asked what it
already holds. It must never let the HTTP library resend it in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from aiohttp import Payload
from aiohttp.abc import AbstractStreamWriter

from nvr_backup.ports import Allow

YIELD_BYTES: Final = 1024 * 1024
"""The event loop gets its turn after so many bytes: 6 ms of lag instead of up to 125."""

SLICE_BYTES: Final = 256 * 1024
"""Larger pieces are handed over in slices, so that a slow line shows progress often enough."""


def _nothing() -> None:
    """Progress that nobody watches."""


class PiecesBody(Payload):
    """`head`, then the first `size` bytes of `pieces`, then `tail`.

    `progress` is called whenever the connection took more; `complete` says that it took all. With
    `allow` no byte goes before it was asked; `waiting` is called before that, because how long it
    takes is our own doing and no silence of the store's.
    """

    _autoclose = True

    def __init__(
        self, pieces: Iterable[bytes], size: int, *, head: bytes = b"", tail: bytes = b""
    ) -> None:
        super().__init__(None)
        # A tuple of references: the chunk may be cut while a cancelled writer still looks at it.
        # Through iter(), because tuple() would reserve len(chunk) places, and that counts bytes.
        self._pieces = tuple(iter(pieces))
        if sum(map(len, self._pieces)) < size:
            raise ValueError(f"the pieces are less than the announced {size} bytes")
        self._payload_size = size
        self._head = head
        self._tail = tail
        self._size = len(head) + size + len(tail)
        self.progress: Callable[[], None] = _nothing
        self.waiting: Callable[[], None] = _nothing
        self.allow: Allow | None = None
        self.complete = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Demanded by aiohttp for logging bodies, which must not happen with a clip."""
        raise TypeError("a clip's bytes are not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write everything; the older of aiohttp's two entry points."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write everything; `content_length` is our own size and needs no clipping.

        aiohttp resends the body of a PUT once when a kept-alive connection breaks, unless the
        payload calls itself consumed.
        """
        if self._consumed:
            raise RuntimeError("a body is sent once; ask the store before sending again")
        self._consumed = True
        since_yield = 0
        for part in self._parts():
            if self.allow is None or self.allow.unlimited:
                await writer.write(part)
                self.progress()
            else:
                await self._write_allowed(writer, memoryview(part), self.allow)
            since_yield += len(part)
            if since_yield >= YIELD_BYTES:
                since_yield = 0
                await asyncio.sleep(0)
        self.complete = True

    async def _write_allowed(
        self, writer: AbstractStreamWriter, left: memoryview, allow: Allow
    ) -> None:
        while left:
            self.waiting()
            allowed = await allow.take(len(left))
            self.progress()
            await writer.write(left[:allowed])
            self.progress()
            left = left[allowed:]

    def _parts(self) -> Iterator[bytes | memoryview]:
        if self._head:
            yield self._head
        left = self._payload_size
        for piece in self._pieces:
            if left <= 0:
                break
            if len(piece) <= SLICE_BYTES and len(piece) <= left:
                left -= len(piece)
                yield piece
                continue
            view = memoryview(piece)[:left]
            left -= len(view)
            for start in range(0, len(view), SLICE_BYTES):
                yield view[start : start + SLICE_BYTES]
        if self._tail:
            yield self._tail
