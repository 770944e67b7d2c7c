"""A large body whose connection is taken over: all of it, nothing beyond, and every way to end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import aiohttp
import pytest

from nvr_backup.simulator.tls import Certificate
from nvr_backup.sources.scrypted.intake import PIECE_BYTES, Intake, taken_over

SIZE = 5 * PIECE_BYTES + 12_345
CONTENT = random.Random(7).randbytes(SIZE)

CERTIFICATE = Certificate.make()
tls: ContextVar[bool] = ContextVar("tls")

Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "tls"])
def line(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test is done over both."""
    token = tls.set(request.param)
    yield
    tls.reset(token)


@asynccontextmanager
async def answer(serve: Serve, stall: float = 60.0) -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of a body that announces SIZE bytes and of which `serve` sends what it likes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            await serve(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    context = CERTIFICATE.context if tls.get() else None
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    scheme = "https" if context else "http"
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{scheme}://127.0.0.1:{port}/", ssl=False) as response,
        ):
            yield taken_over(response, SIZE, stall)
    finally:
        server.close()


async def send(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(content)
    await writer.drain()


async def until_left(writer: asyncio.StreamWriter) -> None:
    """Keep the connection until the other side gives it up."""
    while not writer.transport.is_closing():
        await send(writer, b"")
        await asyncio.sleep(0.01)


async def test_all_of_it_in_large_pieces() -> None:
    async with answer(lambda writer: send(writer, CONTENT)) as pieces:
        received = [piece async for piece in pieces]
    assert b"".join(received) == CONTENT
    assert max(map(len, received)) == PIECE_BYTES


async def test_nothing_beyond_the_announced_length() -> None:
    async with answer(lambda writer: send(writer, CONTENT + b"HTTP/1.1 200 OK\r\n")) as pieces:
        assert b"".join([piece async for piece in pieces]) == CONTENT


@pytest.mark.parametrize("sent", [0, 1, PIECE_BYTES, SIZE - 1])
async def test_an_early_end_is_an_error(sent: int) -> None:
    received = 0
    async with answer(lambda writer: send(writer, CONTENT[:sent])) as pieces:
        with pytest.raises((aiohttp.ClientPayloadError, OSError)):
            async for piece in pieces:
                received += len(piece)
    assert received <= sent


async def test_a_reset_is_an_error() -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        await send(writer, CONTENT[:PIECE_BYTES])
        writer.transport.abort()

    async with answer(reset) as pieces:
        with pytest.raises((aiohttp.ClientError, OSError)):
            async for _ in pieces:
                pass


async def test_silence_is_a_stall_but_what_came_before_is_passed_on() -> None:
    async def fall_silent(writer: asyncio.StreamWriter) -> None:
        await send(writer, CONTENT[:1000])
        await until_left(writer)

    received = b""
    async with answer(fall_silent, stall=0.2) as pieces:
        with pytest.raises(TimeoutError):
            async for piece in pieces:
                received += piece
    assert received == CONTENT[:1000]


async def test_a_slow_line_is_no_stall() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        for at in range(0, 4000, 100):
            await send(writer, CONTENT[at : at + 100])
            await asyncio.sleep(0.06)
        await send(writer, CONTENT[4000:])

    async with answer(drip, stall=2.0) as pieces:
        assert b"".join([piece async for piece in pieces]) == CONTENT


class _Transport(asyncio.Transport):
    """Remembers whether it may read."""

    reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def test_a_slow_reader_pauses_the_connection() -> None:
    transport = _Transport()
    intake = Intake(transport, None, 2 * PIECE_BYTES)
    for left in (PIECE_BYTES, 0):
        assert transport.is_reading()
        assert len(intake.get_buffer(-1)) == PIECE_BYTES
        intake.buffer_updated(PIECE_BYTES)
        assert not transport.is_reading()
        assert len(await intake.receive(60)) == PIECE_BYTES
        assert transport.is_reading() is bool(left)
    assert await intake.receive(60) == b""


async def test_a_body_that_is_given_up_ends_its_connection() -> None:
    ended = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        try:
            await send(writer, CONTENT[: 2 * PIECE_BYTES])
            await until_left(writer)
        finally:
            ended.set()

    async with answer(endless) as pieces:
        await anext(pieces)
    async with asyncio.timeout(60):
        await ended.wait()
