"""The guarded engine.io connection: packets in and out, and a loss that is always noticed.

Single use: it connects once and, once lost or closed, stays so. It exists because the SDK's own
transport never tells that its link is gone. It must never print, log, touch the process's signal
handlers, or let a message grow without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import engineio
from yarl import URL

API_PATH: Final = "/endpoint/@scrypted/core/engine.io/api/"
"""`@scrypted/core` is the one plugin that is always there."""

MESSAGE_LIMIT: Final = 64 << 20
"""aiohttp's default (4 MiB) kills the link silently at a listing of 20,000 clips (8 MB)."""

OUTBOX_LIMIT: Final = 10_000
CLOSE_SECONDS: Final = 2.0

CONNECT_FAILURES: Final = (
    aiohttp.ClientError,
    engineio.exceptions.EngineIOError,
    OSError,  # with TimeoutError
    # A handshake that is not engine.io's at all ends in one of these inside the library.
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What `GuardedTransport.connect` raises when there is no connection."""


def _silent() -> logging.Logger:
    """engine.io logs URLs with session ids, and to stderr: it gets a logger that goes nowhere."""
    logger = logging.getLogger("nvr_backup.silent.engineio")
    logger.propagate = False
    logger.disabled = True
    return logger


class _Http:
    """The session as engine.io uses it, with its WebSockets in sight.

    engine.io drops one unclosed when it is cancelled, or refused, between upgrade and probe.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._sockets: list[aiohttp.ClientWebSocketResponse[bool]] = []
        self.get = session.get
        self.post = session.post

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def ws_connect(self, url: str, **options: Any) -> aiohttp.ClientWebSocketResponse[bool]:
        socket: aiohttp.ClientWebSocketResponse[bool]
        socket = await self._session.ws_connect(url, **options)
        self._sockets.append(socket)
        return socket

    async def close(self) -> None:
        """Close everything; what is still open is not given time for a goodbye."""
        for socket in self._sockets:
            with contextlib.suppress(*CONNECT_FAILURES):
                async with asyncio.timeout(0):
                    await socket.close()
        self._sockets.clear()
        await self._session.close()


class GuardedTransport:
    """An engine.io connection in a session of its own (which it closes).

    `received` gets every packet (a dict, or bytes) and `lost` is called, once, with the reason when
    the connection ends in any way but `close`. Both run on the event loop and must not block.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        received: Callable[[Any], None],
        lost: Callable[[str], None],
        connect_seconds: float,
    ) -> None:
        self._http = _Http(session)
        self._lost = lost
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(OUTBOX_LIMIT)
        self._engine = engineio.AsyncClient(
            logger=_silent(),
            request_timeout=connect_seconds,
            http_session=self._http,
            ssl_verify=True,  # the session's connector decides; False would build a context here
            handle_sigint=False,
            websocket_extra_options={"max_msg_size": MESSAGE_LIMIT},
        )
        self._engine.on("message", received)
        self._engine.on("disconnect", self._disconnected)

    async def connect(self, origin: URL, authorization: str) -> None:
        """Connect and upgrade to a WebSocket. Raises one of CONNECT_FAILURES; then `close`."""
        await self._engine.connect(
            str(origin), headers={"Authorization": authorization}, engineio_path=API_PATH
        )
        if self._engine.transport() != "websocket":
            # Polling requests carry no token, so such a link would die at its first message.
            raise engineio.exceptions.ConnectionError("no WebSocket")

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; on the event loop only."""
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self._disconnected("the server takes no messages")

    def send_from_anywhere(self, message: dict[str, Any]) -> None:
        """Queue a message from any thread, even from inside the garbage collector.

        A finalizer may run in the middle of `send` itself, so it must neither lock nor send.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody to tell any more
            self._loop.call_soon_threadsafe(self.send, message)

    async def pump(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._engine.send(await self._outbox.get())

    async def close(self) -> None:
        """Release everything, whatever state the connection is in; bounded in time."""
        self._ended = True
        loops = [
            task for task in (self._engine.read_loop_task, self._engine.write_loop_task) if task
        ]
        try:
            with contextlib.suppress(*CONNECT_FAILURES):
                async with asyncio.timeout(CLOSE_SECONDS):
                    # abort: without it, a half-made connection awaits a loop that never began.
                    await self._engine.disconnect(abort=True)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._http.close()

    def _disconnected(self, reason: str = "") -> None:
        if not self._ended:
            self._ended = True
            self._lost(reason or "the connection ended")
