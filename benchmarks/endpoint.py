"""The storage endpoint of the benchmarks, as a process: `python -m benchmarks.endpoint`.

It answers like the discarding store of the tests (`tests.support.gcs_double`) and drops every body;
besides bodies with a length it takes chunked ones, which rclone sends. The first line printed is
its URL, and `/_double/objects` lists what arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Final, cast

from tests.support.gcs_double.discard import MOST_HEAD, TAIL_BYTES, DiscardingStore, _Request

BUFFER_BYTES: Final = 256 * 1024
HEAD_STEP: Final = 4096
LINE_STEP: Final = 16


class Link(asyncio.BufferedProtocol):
    """A connection: lines of heads and of chunk sizes are parsed, bodies only counted."""

    def __init__(self, store: DiscardingStore) -> None:
        self._store = store
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._text = bytearray()
        self._request: _Request | None = None
        self._chunked = False
        self._last = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._store.attach(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._store.detach(self._transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        request = self._request
        if request is not None and not request.head_limit and nbytes < request.left:
            request.left -= nbytes
            return
        data = self._buffer[:nbytes]
        while data:
            request = self._request
            if request is None:
                data = self._head(data)
            elif request.left:
                data = _count(request, data)
            else:
                data = self._chunk(request, data)
            request = self._request
            if request is not None and not request.left and not self._chunked:
                self._finish(request)

    def _until(self, end: bytes, data: memoryview, step: int) -> tuple[str | None, memoryview]:
        """The text before `end`, once it is there, and the rest of the data.

        So many bytes are looked at in one `step`: what follows a chunk's size is not text.
        """
        before = len(self._text)
        self._text += data[:step]
        at = self._text.find(end)
        if at < 0:
            return None, data[step:]
        text = self._text[:at].decode("latin-1")
        self._text.clear()
        return text, data[at + len(end) - before :]

    def _head(self, data: memoryview) -> memoryview:
        text, rest = self._until(b"\r\n\r\n", data, HEAD_STEP)
        if text is None:
            return rest
        first, *lines = text.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        limit = MOST_HEAD if method == "POST" else 0
        self._request = _Request(method, target, headers, length, length, head_limit=limit)
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return rest

    def _chunk(self, request: _Request, data: memoryview) -> memoryview:
        """A line between two chunks: a size, or the empty line that ends a chunk or the body."""
        text, rest = self._until(b"\r\n", data, LINE_STEP)
        if text is None:
            return rest
        if text:
            size = int(text.partition(";")[0], 16)
            request.left = size
            request.length += size
            self._last = size == 0
        elif self._last:
            self._chunked = False
        return rest

    def _finish(self, request: _Request) -> None:
        self._request = None
        answer = self._store.answer(request)
        if self._store.delay_seconds:
            loop = asyncio.get_running_loop()
            loop.call_later(self._store.delay_seconds, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


def _count(request: _Request, data: memoryview) -> memoryview:
    """Take what belongs to the body (or chunk); of a POST its first and last bytes are kept."""
    piece, rest = data[: request.left], data[request.left :]
    request.left -= len(piece)
    if request.head_limit:
        room = request.head_limit - len(request.head)
        request.head += piece[:room]
        if len(piece) > room:
            request.tail += piece[max(room, len(piece) - TAIL_BYTES) :]
            del request.tail[:-TAIL_BYTES]
    return rest


async def _serve(delay_seconds: float) -> None:
    store = DiscardingStore(delay_seconds=delay_seconds)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    served = await loop.create_server(lambda: Link(store), "127.0.0.1", 0)
    try:
        store.url = f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}"
        print(store.url, flush=True)
        await ended.wait()
    finally:
        served.close()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before every answer")
    told = parser.parse_args()
    try:
        import uvloop  # noqa: PLC0415 - absent on some systems
    except ImportError:
        asyncio.run(_serve(told.delay_ms / 1000))
    else:
        uvloop.run(_serve(told.delay_ms / 1000))


if __name__ == "__main__":
    main()
