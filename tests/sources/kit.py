"""What the tests of the Scrypted source share: a simulated NVR, and servers made by hand.

The oracle is always the other side: the simulator's own bytes and logs, or what a hand-made server
saw. Nothing here sleeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aiohttp import web

from nvr_backup.clock import Clock
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.ports import ClipBody, ClipSource
from nvr_backup.simulator import SimCamera, SimClip, Simulator, SimulatorSettings
from nvr_backup.sources.scrypted import ScryptedSettings, open_source
from nvr_backup.sources.scrypted.source import ScryptedSource
from tests.support.clock import VirtualClock

LIMIT_SECONDS = 30.0
"""Nothing in these tests takes long; a hang must not stop the run."""


@dataclass
class Bench:
    """A simulated NVR, the clock both sides live by, and the source under test."""

    nvr: Simulator
    clock: VirtualClock
    settings: ScryptedSettings
    source: ScryptedSource

    async def camera(self, name: str = "Porch") -> Camera:
        return next(c for c in await self.source.cameras() if c.name == name)

    def window(self, hours: float = 30) -> Window:
        return Window(self.clock.now() - timedelta(hours=hours), self.clock.now())

    async def clips(self, name: str = "Porch", window: Window | None = None) -> list[Clip]:
        return await listed(self.source, await self.camera(name), window or self.window())

    async def one(self, name: str = "Porch") -> tuple[Clip, bytes]:
        """The newest clip of a camera and its true bytes."""
        truth: SimClip = self.nvr.catalogue.clips(name)[-1]
        return (await self.clips(name))[-1], truth.content.read()

    def called(self, method: str) -> int:
        return sum(call.method == method for call in self.nvr.calls)


@asynccontextmanager
async def bench(
    *cameras: SimCamera, nvr: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Bench]:
    """A simulator with `cameras`, and a source on it; `nvr` and `settings` change the two."""
    clock = VirtualClock()
    simulated = SimulatorSettings(cameras=cameras or (SimCamera("Porch", clips=3),), **(nvr or {}))
    async with asyncio.timeout(LIMIT_SECONDS), Simulator(simulated, clock=clock) as simulator:
        fields = {"username": "backup", "password": "secret", **settings}
        made = ScryptedSettings("home", fields.pop("url", simulator.url), **fields)
        async with source(made, clock) as opened:
            yield Bench(simulator, clock, made, opened)


@asynccontextmanager
async def source(settings: ScryptedSettings, clock: Clock) -> AsyncIterator[ScryptedSource]:
    async with open_source(settings, clock) as opened:
        assert isinstance(opened, ScryptedSource)
        yield opened


async def listed(source: ClipSource, camera: Camera, window: Window) -> list[Clip]:
    return [clip async for clip in source.clips(camera, window)]


async def received(body: ClipBody) -> bytes:
    pieces = []
    async for piece in body:
        assert 0 < len(piece) <= 1 << 20
        pieces.append(piece)
    return b"".join(pieces)


async def content(source: ClipSource, clip: Clip, offset: int = 0) -> bytes:
    async with source.open(clip, offset=offset) as body:
        assert body.offset in (0, offset)
        return await received(body)


async def first_piece(body: ClipBody) -> bytes:
    """One piece, then leave the body alone."""
    pieces: Any = body.__aiter__()
    async with aclosing(pieces):
        return bytes(await anext(pieces))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class HandMade:
    """A server that does exactly what a test says, and remembers every request."""

    url: str
    requests: list[web.Request]

    def paths(self, method: str = "GET") -> Sequence[str]:
        return [r.path for r in self.requests if r.method == method]


@asynccontextmanager
async def hand_made(handler: Handler) -> AsyncIterator[HandMade]:
    requests: list[web.Request] = []

    async def remember(request: web.Request) -> web.StreamResponse:
        await request.read()
        requests.append(request)
        return await handler(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", remember)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield HandMade(f"http://127.0.0.1:{port}", requests)
    finally:
        await runner.cleanup()
