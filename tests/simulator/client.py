"""A client of the simulated NVR made of the SDK and plain HTTP, for the simulator's own tests.

It does what the official clients do and nothing of what this project's source does, so that the
two cannot agree on a mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from scrypted_sdk import EioRpcTransport, connect_scrypted_client

from nvr_backup.simulator import SimCamera, Simulator, SimulatorSettings

LOCAL_URI = "text/x-local-uri"
LIMIT = 30
"""Seconds after which something that should happen has failed."""


def one_camera(style: str = "href", clips: int = 1, **settings: Any) -> SimulatorSettings:
    """An NVR with a single camera called Porch."""
    return SimulatorSettings(cameras=(SimCamera("Porch", style=style, clips=clips),), **settings)


@dataclass
class Client:
    """A login, an RPC link and an HTTP session."""

    nvr: Simulator
    sdk: Any
    transport: Any
    http: aiohttp.ClientSession
    token: str
    lost: asyncio.Event

    async def device(self, camera: str = "porch") -> Any:
        """The raw proxy of a camera."""
        return await self.sdk.api.getDeviceById(self.nvr.catalogue.camera(camera).device_id)

    async def list(self, camera: str = "porch", /, **options: int) -> Any:
        """A listing as it comes."""
        return await (await self.device(camera)).getVideoClips(options)

    def here(self, url: str) -> str:
        """A URL of the server's own, at the address where the server really is."""
        own = self.nvr.settings.own_origin
        if url.startswith(own):
            url = url[len(own) :]
        return url if url.startswith("http") else self.nvr.url + url

    async def get(self, url: str, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        """GET with the Bearer token; the response and its whole body."""
        headers = {"Authorization": self.token, **headers}
        async with self.http.get(self.here(url), headers=headers) as response:
            return response, await response.read()

    async def local_url(self, camera: str, clip_id: str) -> str:
        """The URL that the official UI would use for a clip without an href."""
        media = await (await self.device(camera)).getVideoClip(clip_id)
        return str(await self.sdk.mediaManager.convertMediaObject(media, LOCAL_URI))


async def login(nvr: Simulator, http: aiohttp.ClientSession) -> str:
    """A Bearer token, with its scheme."""
    body = {"username": nvr.settings.username, "password": nvr.settings.password}
    async with http.post(f"{nvr.url}/login", json=body) as response:
        return str((await response.json())["authorization"])


def http_session() -> aiohttp.ClientSession:
    """A session that takes any certificate and keeps no cookies; a hang fails the test."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=LIMIT),
    )


@asynccontextmanager
async def connected(nvr: Simulator) -> AsyncIterator[Client]:
    """A client of a running simulator."""
    loop = asyncio.get_running_loop()
    transport = EioRpcTransport(loop)
    transport.eio.handle_sigint = False
    transport.eio.websocket_extra_options = {"max_msg_size": 0}
    lost = asyncio.Event()
    transport.eio.on("disconnect", lambda _reason: lost.set())
    _, sdk = await connect_scrypted_client(
        loop, nvr.url, nvr.settings.username, nvr.settings.password, transport=transport
    )
    try:
        async with http_session() as http:
            yield Client(nvr, sdk, transport, http, await login(nvr, http), lost)
    finally:
        await transport.close()


@asynccontextmanager
async def simulated(
    settings: SimulatorSettings, **options: Any
) -> AsyncIterator[tuple[Simulator, Client]]:
    """A simulator and a client of it."""
    async with Simulator(settings, **options) as nvr, connected(nvr) as client:
        yield nvr, client
