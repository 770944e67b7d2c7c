"""A TCP proxy that breaks links on purpose: between the program and the NVR, or and the store.

It knows nothing of HTTP or TLS. Faults are scripted by the number of bytes that went by in one
direction, counted from the beginning of a connection (by its number) or from bytes that were seen
to go by (marks), so that a test can cut a link at any byte without sleeping.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Direction = Literal["up", "down"]
"""`up`: from the client to the server behind the proxy."""

How = Literal["reset", "close", "stall"]
"""TCP reset; orderly end (FIN) on both sides; nothing moves any more in either direction."""

_PIECE = 64 * 1024
_FLUSH_ROUNDS = 500
_FLUSH_SECONDS = 0.002


@dataclass(slots=True)
class Break:
    """Break a link after `after_bytes` in `direction`.

    `connection` numbers the accepted connections from 1; None means every one, `times` times.
    """

    how: How
    after_bytes: int
    direction: Direction = "up"
    connection: int | None = None
    times: int | None = 1
    taken: int = 0
    happened: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def hit(self) -> None:
        self.happened += 1
        self._reached.set()

    async def reached(self) -> None:
        """Wait until it happened for the first time."""
        await self._reached.wait()


@dataclass(slots=True)
class MarkedBreak:
    """Break whichever link shows all `marks`, one after the other, `after_bytes` later.

    A mark is a direction and bytes that go by in it. Counting begins behind the last one, in
    `direction`; a negative number breaks the link before the mark's own last bytes have passed.
    With 0 it breaks when the next byte arrives, which then does not pass.
    """

    how: How
    marks: tuple[tuple[Direction, bytes], ...]
    after_bytes: int
    direction: Direction
    taken: bool = False
    happened: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def hit(self) -> None:
        self.happened += 1
        self._reached.set()

    async def reached(self) -> None:
        """Wait until it happened."""
        await self._reached.wait()


@dataclass(slots=True)
class _Trail:
    """How far one link has come along a marked break."""

    entry: MarkedBreak
    found: int = 0
    passed: int = 0
    tail: bytes = b""

    def room(self, direction: Direction, piece: bytes) -> int | None:
        """How many bytes of `piece` may pass before the link breaks; None: all of them."""
        at = 0
        marks = self.entry.marks
        while self.found < len(marks) and marks[self.found][0] == direction:
            mark = marks[self.found][1]
            seen = self.tail + piece[at:]
            place = seen.find(mark)
            if place < 0:
                self.tail = seen[max(0, len(seen) - len(mark) + 1) :]
                return None
            at += place + len(mark) - len(self.tail)
            self.found, self.tail = self.found + 1, b""
        if self.found < len(marks) or direction != self.entry.direction:
            return None
        left = self.entry.after_bytes - self.passed
        if at + left > len(piece) or (at == len(piece) and left == 0):
            self.passed += len(piece) - at
            return None
        return max(0, at + left)


@dataclass(slots=True)
class Link:
    """One accepted connection and the bytes it passed on, per direction."""

    number: int
    up_bytes: int = 0
    down_bytes: int = 0
    open: bool = True
    stalled: bool = False
    _breaks: dict[Direction, Break] = field(default_factory=dict, repr=False)
    _trails: list[_Trail] = field(default_factory=list, repr=False)

    def passed(self, direction: Direction) -> int:
        return self.up_bytes if direction == "up" else self.down_bytes

    def count(self, direction: Direction, number: int) -> None:
        if direction == "up":
            self.up_bytes += number
        else:
            self.down_bytes += number


class TcpProxy:
    """`async with TcpProxy(host, port) as proxy:` connect to 127.0.0.1:`proxy.url_port`."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.links: list[Link] = []
        self._breaks: list[Break] = []
        self._marked: list[MarkedBreak] = []
        self._release = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._place: socket.socket | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        # A socket that is bound but does not listen keeps the port ours, and refuses, while the
        # listening one is closed (see `refuse`).
        self._place = _bound(0)
        self._port = self._place.getsockname()[1]
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.refuse()
        self.drop_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close their sockets in the loop's next round
        if self._place is not None:
            self._place.close()

    @property
    def url_port(self) -> int:
        return self._port

    def url(self, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self._port}"

    @property
    def up_bytes(self) -> int:
        """Bytes passed on to the server, all links together."""
        return sum(link.up_bytes for link in self.links)

    @property
    def down_bytes(self) -> int:
        return sum(link.down_bytes for link in self.links)

    def cut(
        self,
        how: How = "reset",
        *,
        after_bytes: int,
        direction: Direction = "up",
        connection: int | None = None,
        times: int | None = 1,
    ) -> Break:
        """Script a break; at most one per direction of a link, for links accepted from now on."""
        entry = Break(how, after_bytes, direction, connection, times)
        self._breaks.append(entry)
        return entry

    def cut_behind(
        self,
        how: How,
        *marks: bytes | tuple[Direction, bytes],
        after_bytes: int = 0,
        direction: Direction = "up",
    ) -> MarkedBreak:
        """Script one break of the first link, open or to come, that shows these marks.

        Bytes alone are a mark of what goes up.
        """
        wanted: tuple[tuple[Direction, bytes], ...] = tuple(
            mark if isinstance(mark, tuple) else ("up", mark) for mark in marks
        )
        entry = MarkedBreak(how, wanted, after_bytes, direction)
        self._marked.append(entry)
        for link in filter(lambda link: link.open, self.links):
            link._trails.append(_Trail(entry))
        return entry

    def forget(self) -> None:
        """Take back every break that has not happened."""
        self._breaks.clear()
        self._marked.clear()
        for link in self.links:
            link._breaks.clear()
            link._trails.clear()

    def unused(self) -> list[Break | MarkedBreak]:
        """Breaks that did not happen as often as scripted."""
        unused: list[Break | MarkedBreak] = [m for m in self._marked if not m.happened]
        return unused + [
            b for b in self._breaks if b.happened < (1 if b.times is None else b.times)
        ]

    async def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED); open ones go on."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()

    async def accept(self) -> None:
        """Accept connections (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self._port))

    def release(self) -> None:
        """End every stall so far with a reset."""
        release, self._release = self._release, asyncio.Event()
        release.set()

    def drop_all(self) -> None:
        """Reset every open link now."""
        for task in self._tasks:
            task.cancel()

    # -- one link ------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        link = Link(len(self.links) + 1)
        self.links.append(link)
        self._assign(link)
        writers = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection(self.target_host, self.target_port)
            writers.append(up_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, "up", reader, up_writer, writers))
                both.create_task(self._pump(link, "down", up_reader, writer, writers))
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            # Whatever ended one side ends the other in the same way: by a reset.
            for each in writers:
                _reset(each)
        finally:
            link.open = False
            for each in writers:
                each.close()

    def _assign(self, link: Link) -> None:
        link._trails = [_Trail(entry) for entry in self._marked if not entry.taken]
        for entry in self._breaks:
            open_ = entry.times is None or entry.taken < entry.times
            mine = entry.connection in (None, link.number)
            if open_ and mine and entry.direction not in link._breaks:
                entry.taken += 1
                link._breaks[entry.direction] = entry

    async def _pump(
        self,
        link: Link,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        writers: list[asyncio.StreamWriter],
    ) -> None:
        while True:
            entry = link._breaks.get(direction)
            if entry is not None and link.passed(direction) >= entry.after_bytes:
                await self._break(link, entry, writers)
                return
            piece = await reader.read(_PIECE)
            if not piece:
                break
            if link.stalled:
                await self._release.wait()
                raise ConnectionAbortedError("released from a stall")
            if entry is not None:
                piece = piece[: entry.after_bytes - link.passed(direction)]
            marked, room = _nearest(link, direction, piece)
            piece = piece[:room]
            writer.write(piece)
            await writer.drain()
            link.count(direction, len(piece))
            if marked is not None:
                await self._break(link, marked, writers)
                return
        if writer.can_write_eof():
            writer.write_eof()

    async def _break(
        self, link: Link, entry: Break | MarkedBreak, writers: list[asyncio.StreamWriter]
    ) -> None:
        for writer in writers:
            await _flushed(writer)
        link.stalled = entry.how == "stall"
        entry.hit()
        if link.stalled:
            await self._release.wait()
        if entry.how == "close":
            for writer in writers:
                writer.close()
        raise ConnectionAbortedError("broken on purpose")


def _nearest(
    link: Link, direction: Direction, piece: bytes
) -> tuple[MarkedBreak | None, int | None]:
    """The first marked break that falls into `piece`, and how much of it passes before."""
    nearest: tuple[MarkedBreak | None, int | None] = (None, None)
    for trail in link._trails:
        if trail.entry.taken:
            continue
        room = trail.room(direction, piece)
        if room is not None and (nearest[1] is None or room < nearest[1]):
            nearest = (trail.entry, room)
    if nearest[0] is not None:
        nearest[0].taken = True
    return nearest


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _reset(writer: asyncio.StreamWriter) -> None:
    if writer.transport.is_closing():
        return
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _flushed(writer: asyncio.StreamWriter) -> None:
    """Let the kernel deliver what was written: a reset discards what it still holds."""
    connection = writer.get_extra_info("socket")
    if connection is None or writer.transport.is_closing():
        return
    for _ in range(_FLUSH_ROUNDS):
        waiting = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        if struct.unpack("i", waiting)[0] == 0:
            return
        await asyncio.sleep(_FLUSH_SECONDS)
