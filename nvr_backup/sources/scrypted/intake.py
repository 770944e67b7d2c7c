"""The rest of a large body, received straight into a buffer of ours.

aiohttp passes a body on in the portions in which the kernel had it, through its parser, a copy and
a dozen calls for each. For a body whose length is known there is nothing left to parse once its
head is read, so the connection's protocol is replaced (`Transport.set_protocol`) and the rest is
collected into pieces that are larger and fewer. The connection ends with the body. It must never
take more than the announced length, and never hold more than two pieces.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, cast

import aiohttp

PIECE_BYTES: Final = 1024 * 1024
WORTHWHILE_BYTES: Final = 4 * 1024 * 1024
"""A shorter rest is not worth a connection: one that was taken over cannot be used again."""
PATIENCE_SECONDS: Final = 1.0
"""A piece that is not full after this time is passed on as it is: a slow line shows progress."""


async def taken_over(
    response: aiohttp.ClientResponse, size: int, stall_seconds: float
) -> AsyncIterator[bytes]:
    """The pieces of a body of `size` bytes of which nothing was read so far.

    Raises TimeoutError when nothing arrives for `stall_seconds`, and aiohttp's ClientPayloadError
    or an OSError when the connection ends early.
    """
    head = response.content.read_nowait()
    connection = response.connection
    if connection is None or connection.transport is None:
        # It has ended, or broken, while the head was on its way: the stream knows which.
        if head:
            yield head
        async for piece in response.content.iter_any():
            yield piece
        return
    # Before anything is passed on: a reader that takes its time would leave the rest to the former.
    intake = Intake(connection.transport, connection.protocol, size - len(head))
    if head:
        yield head
    while piece := await intake.receive(stall_seconds):
        yield piece


class Intake(asyncio.BufferedProtocol):
    """Receives exactly `size` bytes from a transport that was `former`'s until now."""

    def __init__(
        self, transport: asyncio.BaseTransport, former: asyncio.BaseProtocol | None, size: int
    ) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._former = former
        self._left = size
        self._buffer = memoryview(bytearray(min(PIECE_BYTES, size)))
        self._filled = 0
        self._full: deque[bytes] = deque()
        self._paused = False
        self._end: Exception | None = None
        self._arrived = 0
        self._waiting: asyncio.Future[None] | None = None
        self._transport.set_protocol(self)
        if not self._transport.is_reading():
            self._transport.resume_reading()

    async def receive(self, stall_seconds: float) -> bytes:
        """The next piece; b"" after the last."""
        loop = asyncio.get_running_loop()
        arrived, deadline = self._arrived, loop.time() + stall_seconds
        while not self._full:
            if self._end is not None:
                raise self._end
            if not self._left:
                return b""
            self._waiting = loop.create_future()
            try:
                async with asyncio.timeout(min(PATIENCE_SECONDS, stall_seconds)):
                    await self._waiting
            except TimeoutError:
                if self._filled:
                    self._pass_on()
                elif self._arrived == arrived and loop.time() >= deadline:
                    raise
            finally:
                self._waiting = None
        piece = self._full.popleft()
        if self._paused and self._left and self._end is None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    # -- what the transport calls -------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled : self._filled + self._left]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._arrived += nbytes
        self._left -= nbytes
        if self._filled == len(self._buffer) or not self._left:
            self._pass_on()
            if not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def eof_received(self) -> None:
        self._broken(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(exc)
        if self._former is not None:
            self._former.connection_lost(exc)

    # -----------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        self._full.append(bytes(self._buffer[: self._filled]))
        self._filled = 0
        self._wake()

    def _broken(self, exc: Exception | None) -> None:
        if self._left and self._end is None:
            self._end = exc or aiohttp.ClientPayloadError("the connection ended too early")
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
