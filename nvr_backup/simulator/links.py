"""The engine.io side of a simulated NVR: sessions come, break, go silent, and end with the server.

One `Links` per life of the server: a restart makes a new one. It must never leave a task behind
when it is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import engineio
from aiohttp import web

from nvr_backup.simulator.catalogue import CameraState
from nvr_backup.simulator.rpc import Link
from nvr_backup.simulator.settings import NVR_PLUGIN, STYLES
from nvr_backup.simulator.state import NvrState

PLUGINS: Final = frozenset(
    {"@scrypted/core", NVR_PLUGIN, *(style.plugin_id for style in STYLES.values())}
)
MAX_PAYLOAD: Final = 20_000_000
"""Bytes of an engine.io packet the server accepts."""
REQUESTS_OF_A_LINK: Final = 4
"""The latest requests of a link, to find its connections when it is to break."""


class Links:
    """Every RPC link of one life of the server."""

    def __init__(self, state: NvrState) -> None:
        self._state = state
        self._eio = self._engine()
        self._eio_tasks: set[asyncio.Future[Any]] = set()
        self._links: dict[str, Link] = {}
        self._link_requests: dict[str, deque[web.Request]] = {}

    def __len__(self) -> int:
        return len(self._links)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """A request of engine.io's; whoever calls has looked at its login."""
        if request.match_info["plugin"] not in PLUGINS:
            return web.Response(status=404)
        sid = request.query.get("sid")
        if sid is None and (refused := self._state.faults.take("refuse_link")):
            return web.Response(status=refused.get("status", 503))
        if sid in self._links:
            self._link_requests[sid].append(request)
        response: web.StreamResponse = await self._eio.handle_request(request)
        return response

    def tell(self, what: str, camera: CameraState, device_id: str) -> None:
        """A change of the catalogue goes to every client, as far as they are told of it."""
        for link in list(self._links.values()):
            link.tell(what, camera, device_id)

    def drop_all(self) -> None:
        """Reset every link's connections."""
        for sid in list(self._links):
            self._drop(sid)

    async def close(self) -> None:
        """The server has died: nothing of its sessions goes on."""
        for sid in list(self._links):
            self._forget_link(sid)
        for task in list(self._eio_tasks):
            task.cancel()
        await asyncio.gather(*self._eio_tasks, return_exceptions=True)

    def _engine(self) -> Any:
        eio = engineio.AsyncServer(
            async_mode="aiohttp",
            ping_interval=self._state.settings.ping_interval,
            ping_timeout=self._state.settings.ping_timeout,
            max_http_buffer_size=MAX_PAYLOAD,
            cors_allowed_origins=[],
            monitor_clients=False,
            async_handlers=False,
            logger=False,
        )
        # Its own way of starting tasks would leave sleeping ones behind.
        eio.start_background_task = self._start_engine_task
        eio.on("connect", self._on_connect)
        eio.on("message", self._on_message)
        eio.on("disconnect", self._on_disconnect)
        return eio

    def _start_engine_task(self, target: Any, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(target(*args, **kwargs))
        self._eio_tasks.add(task)
        task.add_done_callback(self._eio_tasks.discard)
        return task

    def _on_connect(self, sid: str, environ: Any) -> None:
        outgoing: asyncio.Queue[Any] = asyncio.Queue()

        async def send() -> None:
            while True:
                await self._eio.send(sid, await outgoing.get())

        link = Link(
            self._state,
            write=outgoing.put_nowait,
            drop=lambda: self._drop(sid),
            swallow=lambda: self._swallow(sid),
        )
        self._links[sid] = link
        self._link_requests[sid] = deque([environ["aiohttp.request"]], maxlen=REQUESTS_OF_A_LINK)
        self._start_engine_task(send)
        link.start()

    def _on_message(self, sid: str, data: Any) -> None:
        if link := self._links.get(sid):
            link.receive(data)

    def _on_disconnect(self, sid: str, _reason: str) -> None:
        self._forget_link(sid)

    def _swallow(self, sid: str) -> None:
        """From now on not even a ping gets out."""

        async def nothing(_packet: Any) -> None:
            return None

        if socket := self._eio.sockets.get(sid):
            socket.send = nothing

    def _drop(self, sid: str) -> None:
        requests = self._link_requests.get(sid, ())
        self._forget_link(sid)
        self._eio.sockets.pop(sid, None)
        for request in requests:
            if request.transport is not None:
                request.transport.abort()

    def _forget_link(self, sid: str) -> None:
        self._link_requests.pop(sid, None)
        if link := self._links.pop(sid, None):
            link.close()
