"""The simulated NVR as a server: HTTP, TLS, engine.io, start, restart and stop.

A restart is the hard kind: every connection is reset, the port is closed for a while, tokens and
the plugins' memory are gone, and the port is the same afterwards. It must never listen on
anything but the host it was given, and it must never leave a task behind when it stops.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from nvr_backup.clock import Clock, SystemClock
from nvr_backup.simulator.catalogue import CameraState, Catalogue
from nvr_backup.simulator.control import add_control_routes
from nvr_backup.simulator.disk import Disk
from nvr_backup.simulator.faults import Faults
from nvr_backup.simulator.links import Links
from nvr_backup.simulator.login import Gatekeeper
from nvr_backup.simulator.routes import PLUGIN_ID, Routes
from nvr_backup.simulator.settings import SimulatorSettings
from nvr_backup.simulator.state import NvrState, RpcCall, ServedBody
from nvr_backup.simulator.tls import Certificate

PORT_TRIES: Final = 100
PORT_WAIT_SECONDS: Final = 0.05
"""After a restart the port may be in use for a moment; so often and so long do we wait for it."""


@dataclass(frozen=True, slots=True)
class OracleEntry:
    """A clip as it truly is."""

    camera: str
    device_id: str
    native_id: str
    clip_id: str
    start_ms: int
    end_ms: int
    size: int
    sha256: str
    crc32c: int
    content_type: str


class Simulator:
    """One simulated NVR; `async with` starts and stops it."""

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        *,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.settings = settings or SimulatorSettings()
        self.clock: Clock = clock or SystemClock()
        self.faults = Faults()
        self.gate = Gatekeeper(self.settings, self.clock)
        self.catalogue = Catalogue(self.settings, self.clock)
        self.catalogue.watchers.append(self._tell)
        self.state = NvrState(
            settings=self.settings,
            clock=self.clock,
            catalogue=self.catalogue,
            gate=self.gate,
            faults=self.faults,
            disk=Disk(self.clock, self.faults),
            restart_soon=self.restart_soon,
            drop_links=self.drop_links,
        )
        self.fingerprint = ""
        self.restarts = 0
        self._host = host
        self._port = port
        self._context: ssl.SSLContext | None = None
        self._runner: web.AppRunner | None = None
        self._links = Links(self.state)
        self._routes = Routes(self.state)
        self._work: list[asyncio.Task[None]] = []
        self._restarting = asyncio.Lock()
        self._restart_wanted: asyncio.Queue[float] = asyncio.Queue()
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self.settings.tls:
            certificate = await asyncio.to_thread(Certificate.make)
            self._context, self.fingerprint = certificate.context, certificate.fingerprint
        async with AsyncExitStack() as life:
            cloud = web.Application()
            self._routes.add_other_origin_to(cloud)
            other = await self._listen(cloud, 0, None)
            life.push_async_callback(_stop, other)
            self.state.other_url = f"http://{self._host}:{_port(other)}"
            life.push_async_callback(self._close)
            await self._open()
            tasks = [self._restart_on_demand()]
            if self.settings.live_every is not None:
                tasks.append(self._live())
            for work in tasks:
                task = asyncio.create_task(work, name="simulator")
                self._work.append(task)
                life.push_async_callback(_cancel, task)
            self._life = life.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._life.aclose()

    # -- for tests -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it is; valid also while it is down."""
        return self.state.url

    @property
    def served(self) -> Sequence[ServedBody]:
        """Every clip body that was sent, or begun to be, oldest first."""
        return tuple(self.state.served)

    @property
    def calls(self) -> Sequence[RpcCall]:
        """Every RPC call that arrived, oldest first."""
        return tuple(self.state.calls)

    @property
    def links(self) -> int:
        """How many RPC links are up."""
        return len(self._links)

    def oracle(self, *, digests: bool = True, since_ms: int = 0) -> list[OracleEntry]:
        """Every clip that starts at `since_ms` or later, as it truly is.

        Without `digests` no byte is looked at.
        """
        entries = []
        for camera, clip in self.catalogue.owned():
            if clip.start_ms < since_ms:
                continue
            content = clip.content
            truth = content.digest() if digests else None
            entries.append(
                OracleEntry(
                    camera=camera.name,
                    device_id=camera.device_id,
                    native_id=camera.native_id,
                    clip_id=clip.id,
                    start_ms=clip.start_ms,
                    end_ms=clip.end_ms,
                    size=content.size,
                    sha256=truth.sha256 if truth else "",
                    crc32c=truth.crc32c if truth else 0,
                    content_type=content.content_type,
                )
            )
        return entries

    def expire_tokens(self) -> None:
        """Bearer and query tokens are worthless from now on; links stay up."""
        self.gate.expire_all()

    def drop_links(self) -> None:
        """Reset the connections of every RPC link."""
        self._links.drop_all()

    async def restart(self, down: float = 0.0) -> None:
        """The server dies, is away for `down` seconds of the clock, and starts again."""
        async with self._restarting:
            await self._close()
            self.state.forget()
            if down > 0:
                await self.clock.sleep(down)
            await self._open_again()
            self.restarts += 1

    def restart_soon(self, down: float = 0.0) -> None:
        """Like `restart`, from within an answer: begins when the caller next waits."""
        self._restart_wanted.put_nowait(down)

    # -- life ----------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._links = Links(self.state)
        app = web.Application()
        path = f"/endpoint/{PLUGIN_ID}/engine.io/api/"
        app.router.add_route("*", path, self._routes.guarded(self._links.handle))
        self._routes.add_to(app)
        add_control_routes(app, self)
        self._runner = await self._listen(app, self._port, self._context)
        self._port = _port(self._runner)
        scheme = "https" if self._context else "http"
        self.state.url = f"{scheme}://{self._host}:{self._port}"

    async def _open_again(self) -> None:
        for _ in range(PORT_TRIES):
            try:
                return await self._open()
            except OSError:
                await asyncio.sleep(PORT_WAIT_SECONDS)  # the operating system's time, not ours
        return await self._open()

    async def run(self) -> None:
        """Until cancelled, or until a fault of the simulator itself, which is raised."""
        done, _ = await asyncio.wait(self._work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await _stop(runner)
        await self._links.close()

    async def _listen(
        self, app: web.Application, port: int, context: ssl.SSLContext | None
    ) -> web.AppRunner:
        runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.0, access_log=None
        )
        await runner.setup()
        try:
            await web.TCPSite(
                runner, self._host, port, ssl_context=context, reuse_address=True
            ).start()
        except OSError:
            await runner.cleanup()
            raise
        return runner

    async def _restart_on_demand(self) -> None:
        while True:
            await self.restart(await self._restart_wanted.get())

    async def _live(self) -> None:
        turn = 0
        while True:
            await self.clock.sleep(self.settings.live_every or 0)
            if self.catalogue.cameras:
                camera = self.catalogue.cameras[turn % len(self.catalogue.cameras)]
                self.catalogue.add_clip(camera.native_id)
                turn += 1

    def _tell(self, what: str, camera: CameraState, device_id: str) -> None:
        self._links.tell(what, camera, device_id)


def _port(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])


async def _stop(runner: web.AppRunner) -> None:
    """Stop at once: no goodbye to anyone."""
    for site in list(runner.sites):
        await site.stop()
    if runner.server is not None:
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
    await runner.cleanup()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def serve(
    settings: SimulatorSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    clock: Clock | None = None,
    ready: Callable[[Simulator], None] = lambda _nvr: None,
) -> None:
    """Run a simulated NVR until cancelled; `ready` is called once it listens.

    OSError when the port is taken.
    """
    async with Simulator(settings, clock=clock, host=host, port=port) as nvr:
        ready(nvr)
        await nvr.run()
