"""The proxy passes bytes on unchanged, counts them, and breaks links exactly where it was told."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator

import pytest

from tests.support.proxy import Direction, How, TcpProxy

DATA = bytes(range(256)) * 4096  # 1 MiB


class Echo:
    """Sends everything back; remembers how much arrived and how each connection ended."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.ends: list[str] = []
        self.ended = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received.append(0)
        number = len(self.received) - 1
        end = "eof"
        try:
            while piece := await reader.read(65536):
                self.received[number] += len(piece)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            end = "reset"
        self.ends.append(end)
        self.ended.set()
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    async with server:
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", echo.port) as proxy:
        yield proxy
        assert not proxy.unused()


async def talk(proxy: TcpProxy, data: bytes) -> bytes:
    """Send everything, read everything until the end; raises what the connection raises."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.url_port)
    received = b""

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(send())
            while piece := await reader.read(65536):
                received += piece
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)
    return received


async def test_bytes_pass_unchanged_and_counted(proxy: TcpProxy) -> None:
    assert hashlib.sha256(await talk(proxy, DATA)).digest() == hashlib.sha256(DATA).digest()
    assert (proxy.up_bytes, proxy.down_bytes) == (len(DATA), len(DATA))
    assert await talk(proxy, b"again") == b"again"
    assert [link.up_bytes for link in proxy.links] == [len(DATA), 5]


@pytest.mark.parametrize("after_bytes", [0, 1, 65536, 100_001])
async def test_a_reset_after_so_many_bytes_up(
    proxy: TcpProxy, echo: Echo, after_bytes: int
) -> None:
    proxy.cut("reset", after_bytes=after_bytes, connection=2)
    assert await talk(proxy, b"first") == b"first"
    echo.ended.clear()
    with pytest.raises(ConnectionError):
        await talk(proxy, DATA)
    await echo.ended.wait()
    assert echo.received[1:] == [after_bytes]
    assert proxy.links[1].up_bytes == after_bytes
    assert await talk(proxy, b"third") == b"third"


async def test_a_reset_after_so_many_bytes_down(proxy: TcpProxy) -> None:
    proxy.cut("reset", after_bytes=1000, direction="down")
    with pytest.raises(ConnectionError):
        await talk(proxy, DATA)
    assert proxy.links[0].down_bytes == 1000


async def test_what_passed_before_a_reset_arrives(proxy: TcpProxy) -> None:
    """A reset throws away what the kernel still holds: the proxy lets a slow reader have it."""
    proxy.cut("reset", after_bytes=len(DATA), direction="down")
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", proxy.url_port))
        reader, writer = await asyncio.open_connection(sock=small.dup(), limit=4096)
        writer.write(DATA)
        received = 0
        with pytest.raises(ConnectionResetError):
            while piece := await reader.read(4096):
                received += len(piece)
        writer.transport.abort()
        await asyncio.sleep(0)
    assert received == len(DATA)


async def test_an_orderly_end_in_the_middle(proxy: TcpProxy) -> None:
    proxy.cut("close", after_bytes=3, direction="down")
    assert await talk(proxy, b"hello") == b"hel"


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_stall_stops_both_directions(
    proxy: TcpProxy, echo: Echo, direction: Direction
) -> None:
    entry = proxy.cut("stall", after_bytes=10, direction=direction)
    talking = asyncio.create_task(talk(proxy, DATA))
    await entry.reached()
    passed = proxy.up_bytes
    for _ in range(200):
        await asyncio.sleep(0)
    assert not talking.done()
    assert proxy.up_bytes - passed <= 65536, "at most the piece that was on its way"
    assert getattr(proxy.links[0], f"{direction}_bytes") == 10
    proxy.release()
    with pytest.raises(ConnectionError):
        await talking


async def test_refusing_and_accepting_again(proxy: TcpProxy) -> None:
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await talk(proxy, b"x")
    await proxy.accept()
    assert await talk(proxy, b"x") == b"x"


async def test_dropping_open_links(proxy: TcpProxy, echo: Echo) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.url_port)
    writer.write(b"x")
    assert await reader.read(1) == b"x"
    proxy.drop_all()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    await echo.ended.wait()
    assert echo.ends == ["reset"]
    writer.transport.abort()
    await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_every_connection_so_many_times(proxy: TcpProxy, how: How) -> None:
    proxy.cut(how, after_bytes=1, direction="down", times=2)
    ends = []
    for _ in range(3):
        try:
            ends.append(await talk(proxy, b"abc"))
        except ConnectionError:
            ends.append(b"reset")
    assert ends == [b"a" if how == "close" else b"reset"] * 2 + [b"abc"]


REQUEST = b"GET /clip HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("after_bytes", [-len(REQUEST), -1, 0, 1, 5])
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_a_break_so_many_bytes_behind_a_mark(echo: Echo, after_bytes: int, step: int) -> None:
    """Wherever the pieces end: the mark is found, and what may pass arrives."""
    before = b"x" * 10
    async with TcpProxy("127.0.0.1", echo.port) as proxy:
        entry = proxy.cut_behind("reset", REQUEST, after_bytes=after_bytes)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.url_port)
        data = before + REQUEST + b"body body"
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            for _ in range(3):
                await asyncio.sleep(0)
        await entry.reached()
        await echo.ended.wait()
        # Pieces that were only the beginning of a mark have passed when it turns out to be one.
        wanted = len(before) + len(REQUEST) + after_bytes
        assert echo.received[0] >= wanted
        if after_bytes >= 0 or step == 1000:
            assert echo.received[0] == wanted
        assert not proxy.unused()
        writer.transport.abort()
        await asyncio.sleep(0)
        del reader


async def test_a_mark_upwards_and_one_downwards(echo: Echo) -> None:
    async with TcpProxy("127.0.0.1", echo.port) as proxy:
        entry = proxy.cut_behind(
            "close", b"second", ("down", b"sec"), after_bytes=2, direction="down"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.url_port)
        writer.write(b"first ")
        assert await reader.readexactly(6) == b"first "
        writer.write(b"second")
        assert await reader.read() == b"secon"
        assert entry.happened == 1
        writer.close()


async def test_a_marked_break_happens_once_and_can_be_taken_back(proxy: TcpProxy) -> None:
    proxy.cut_behind("reset", b"mark")
    with pytest.raises(ConnectionError):
        await talk(proxy, b"a mark and more")
    assert await talk(proxy, b"a mark and more") == b"a mark and more"
    proxy.cut_behind("reset", b"mark")
    assert len(proxy.unused()) == 1
    proxy.forget()
    assert await talk(proxy, b"a mark and more") == b"a mark and more"


async def test_breaks_not_reached_are_named(echo: Echo) -> None:
    async with TcpProxy("127.0.0.1", echo.port) as proxy:
        entry = proxy.cut(after_bytes=100)
        assert await talk(proxy, b"short") == b"short"
        assert proxy.unused() == [entry]


async def test_a_target_that_is_not_there(echo: Echo) -> None:
    async with TcpProxy("127.0.0.1", 1) as proxy:
        with pytest.raises(ConnectionError):
            await talk(proxy, b"x")
