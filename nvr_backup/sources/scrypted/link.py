"""One RPC link to Scrypted, used once: handshake, the live mirror, limited calls, its end.

The SDK's serialisation is used; its read loop, its remote object and its printing are not: the SDK
runs every message in a task nobody holds, prints late answers to stdout, and offers the server
every attribute of a Python object. A link must never leave a call waiting after it is lost, and
never let the server call anything but the few methods named here.
"""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import Any, Final, Self

import aiohttp
from scrypted_sdk import rpc, rpc_reader

from nvr_backup.clock import Clock
from nvr_backup.errors import Transient
from nvr_backup.sources.scrypted.settings import ScryptedSettings
from nvr_backup.sources.scrypted.tls import own_session
from nvr_backup.sources.scrypted.transport import GuardedTransport

HEARTBEAT_DEVICE: Final = "nvr-backup-heartbeat"
"""Asking for an unknown device is the cheapest call known to be answered (with None)."""

IDLE_SECONDS: Final = 300.0
"""A link nobody used for so long is closed: the server pushes every change of every device."""

MIRRORED: Final = frozenset({"name", "interfaces", "pluginId", "nativeId"})
MOST_DEVICES: Final = 20_000
MOST_BUFFERS: Final = 16
LONGEST_TEXT: Final = 300

Device = dict[str, Any]
State = dict[str, Device]

_UNREADABLE = (rpc.RPCResultError, LookupError, TypeError, ValueError, AttributeError)


class RemoteError(Exception):
    """The server answered a call with an error; `str()` is its own text, safe to show."""


class Mirror:
    """The remote object the server feeds: the devices' state, as far as anyone here reads it."""

    calls: Final = frozenset(
        {"setSystemState", "updateDeviceState", "notify", "ioEvent", "setNativeId"}
    )

    def __init__(self) -> None:
        self.devices: State = {}
        # The SDK's name for "expects no answer"; a plain attribute would be mangled.
        self.__dict__["__proxy_oneway_methods"] = sorted(self.calls)

    def apply(self, method: str, args: list[Any]) -> bool:
        """Take over what the server says; True when it was the whole state. Garbage is ignored."""
        match method, args:
            case "setSystemState", [dict(state), *_]:
                devices: State = {}
                for id_, properties in state.items():
                    if isinstance(properties, dict) and len(devices) < MOST_DEVICES:
                        devices[id_] = _kept(properties)
                self.devices = devices
                return True
            case "updateDeviceState", [str(id_), dict(properties), *_] if properties:
                if id_ in self.devices or len(self.devices) < MOST_DEVICES:
                    self.devices[id_] = _kept(properties)
            case "updateDeviceState", [str(id_), *_]:
                self.devices.pop(id_, None)
            case "notify", [str(id_), {"property": str(name), **details}, value, *_]:
                if name in MIRRORED and not details.get("mixinId") and id_ in self.devices:
                    self.devices[id_][name] = value
            case _:
                pass
        return False


def _kept(properties: dict[str, Any]) -> Device:
    return {name: properties[name] for name in MIRRORED if name in properties}


class Link:
    """A link; `reconnect.Reconnect` makes and replaces it."""

    def __init__(self, settings: ScryptedSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._mirror = Mirror()
        self._api: Any = None
        self._media: Any = None
        self._buffers: list[bytes] = []
        self._calls = 0
        self._last_used = clock.monotonic()
        self._lost_reason: str | None = None
        self._over = asyncio.Event()
        self._ready = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._peer = rpc.RpcPeer(self._send)
        self._peer.nameDeserializerMap["Buffer"] = rpc_reader.SidebandBufferSerializer()
        self._params = MappingProxyType({"getRemote": self._get_remote, "print": _print_nothing})
        self._transport = GuardedTransport(
            own_session(settings),
            received=self._received,
            lost=self._end,
            connect_seconds=settings.connect_seconds,
        )

    # -- life ---------------------------------------------------------------------------------

    async def start(self, authorization: str) -> Self:
        """Connect and wait for the server's state. Raises one of CONNECT_FAILURES; then aclose."""
        limit = self._settings.connect_seconds
        async with asyncio.timeout(limit):
            await self._transport.connect(self._settings.origin, authorization)
        self._running = asyncio.create_task(self._run(), name=f"link {self._settings.name}")
        async with asyncio.timeout(limit):
            await self._ready.wait()
        if self._lost_reason is not None:
            raise aiohttp.ServerDisconnectedError(self._lost_reason)
        return self

    @property
    def alive(self) -> bool:
        """Whether calls can be made, as far as anyone knows."""
        return self._lost_reason is None

    @property
    def devices(self) -> State:
        """The live mirror: device id → properties, each `{"value": …}` or unset."""
        return self._mirror.devices

    async def aclose(self) -> None:
        """End the link and release everything; calls in flight fail."""
        self._end("closed")
        if self._running is None:
            await self._transport.close()
        else:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                name = self._settings.name
                tasks = (
                    group.create_task(self._transport.pump(), name=f"link {name}: sending"),
                    group.create_task(self._watch(), name=f"link {name}: heartbeat"),
                )
                await self._over.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._end("closed")
            await self._transport.close()

    def _end(self, reason: str) -> None:
        """The link is over: whoever waits for an answer learns it now."""
        if self._lost_reason is not None:
            return
        self._lost_reason = reason
        self._forget_done()  # kill() breaks off half-way at a cancelled call
        self._peer.kill(reason)
        self._ready.set()
        self._over.set()

    async def _watch(self) -> None:
        """Prove regularly that the link is alive (engine.io itself notices only after 145 s)."""
        while True:
            await self._clock.sleep(self._settings.heartbeat_seconds)
            if not self._calls and self._clock.monotonic() - self._last_used >= IDLE_SECONDS:
                self._end("idle")
                return
            try:
                await self.beat()
            except Transient as err:
                self._end(err.message)
            except RemoteError:
                pass  # an error is an answer, too

    # -- calls --------------------------------------------------------------------------------

    async def beat(self) -> None:
        """One round trip to the server. Raises Transient when there is none in time."""
        limit = self._settings.heartbeat_limit_seconds
        await self._round_trip(self._api, "getDeviceById", (HEARTBEAT_DEVICE,), limit)

    async def device(self, device_id: str) -> Any:
        """The raw proxy of a device, or None. (The SDK's DeviceProxy breaks when cancelled.)"""
        found = await self.ask(self._api, "getDeviceById", device_id)
        return found if isinstance(found, rpc.RpcProxy) else None

    async def convert(self, media: Any, mime_type: str) -> Any:
        """The server's conversion of a media object."""
        if self._media is None:
            found = await self.ask(self._api, "getMediaManager")
            if not isinstance(found, rpc.RpcProxy):
                raise RemoteError("there is no media manager")
            self._media = found
        return await self.call(
            self._media,
            "convertMediaObject",
            media,
            mime_type,
            limit=self._settings.listing_seconds,
        )

    async def ask(self, target: Any, method: str, *args: Any) -> Any:
        """`call` with the usual limit."""
        return await self.call(target, method, *args, limit=self._settings.rpc_seconds)

    async def call(self, target: Any, method: str, *args: Any, limit: float) -> Any:
        """Call a method of a proxy, within `limit` seconds.

        Raises Transient when the link is lost or the answer late, RemoteError when the server
        answers with an error.
        """
        self._calls += 1
        try:
            return await self._round_trip(target, method, args, limit)
        finally:
            self._calls -= 1
            self._last_used = self._clock.monotonic()

    async def _round_trip(
        self, target: Any, method: str, args: tuple[Any, ...], limit: float
    ) -> Any:
        if self._lost_reason is not None:
            raise self._loss()
        try:
            async with asyncio.timeout(limit):
                answer = await target.__apply__(method, list(args))
        except TimeoutError as err:
            raise Transient(
                f"{self._settings.origin} did not answer {method} within {limit:g} s."
            ) from err
        except rpc.RPCResultError as err:
            if self._lost_reason is not None:
                raise self._loss() from err
            raise RemoteError(safe_text(err.message)) from err
        finally:
            self._forget_done()
        if isinstance(answer, asyncio.Future):  # the SDK's way to say that the peer was killed
            answer.cancel()
            raise self._loss()
        return answer

    def _loss(self) -> Transient:
        return Transient(f"The link to {self._settings.origin} was lost ({self._lost_reason}).")

    def _forget_done(self) -> None:
        """Drop calls that nobody waits for any more: the SDK would keep them for ever."""
        pending = self._peer.pendingResults
        if pending:
            for id_ in [id_ for id_, future in pending.items() if future.done()]:
                del pending[id_]

    # -- messages -----------------------------------------------------------------------------

    def _send(self, message: dict[str, Any], _reject: Any = None, _context: Any = None) -> None:
        if message["type"] == "finalize":
            self._transport.send_from_anywhere(message)
        else:
            self._transport.send(message)

    def _received(self, data: Any) -> None:
        if self._lost_reason is not None:
            return
        if isinstance(data, bytes):
            self._buffers.append(data)
            if len(self._buffers) > MOST_BUFFERS:
                self._end("the server sent buffers without a message")
            return
        context = {"buffers": self._buffers}
        self._buffers = []
        if isinstance(data, dict):
            try:
                self._take(data, context)
            except _UNREADABLE:
                self._end("the server sent a message that is none")

    def _take(self, message: dict[str, Any], context: dict[str, Any]) -> None:
        match message.get("type"):
            case "result":
                self._take_result(message, context)
            case "param":
                answer = self._peer.serialize(self._params.get(message["param"]), {})
                self._send({"type": "result", "id": message["id"], "result": answer})
            case "apply":
                self._take_call(message, context)
            case _:
                pass  # "finalize": what we lend lives as long as the link

    def _take_result(self, message: dict[str, Any], context: dict[str, Any]) -> None:
        future: asyncio.Future[Any] | None = self._peer.pendingResults.pop(message["id"], None)
        if future is None or future.done():
            return  # late: the caller has given up
        try:
            value = self._peer.deserialize(message.get("result"), context)
        except _UNREADABLE:
            value = rpc.RPCResultError(None, "an answer that cannot be read")
            future.set_exception(value)
            return
        if isinstance(value, rpc.RPCResultError):
            future.set_exception(value)
        elif message.get("throw"):
            future.set_exception(rpc.RPCResultError(None, str(value)))
        else:
            future.set_result(value)

    def _take_call(self, message: dict[str, Any], context: dict[str, Any]) -> None:
        target = self._peer.localProxyMap.get(message["proxyId"])
        method = message.get("method")
        args = [self._peer.deserialize(arg, context) for arg in message.get("args") or []]
        result: dict[str, Any] = {"type": "result", "id": message.get("id")}
        if target is self._mirror and method in Mirror.calls:
            if self._mirror.apply(method, args) and self._api is not None:
                self._ready.set()
        elif target == self._get_remote and method is None:
            result["result"] = self._peer.serialize(self._get_remote(*args), {})
        elif target is not _print_nothing:
            result["throw"] = True
            result["result"] = self._peer.serializeError(LookupError("not offered here"))
        if not message.get("oneway"):
            self._send(result)

    def _get_remote(self, api: Any, *_about_the_host: Any) -> Mirror:
        if not isinstance(api, rpc.RpcProxy):
            raise TypeError("getRemote without an api")
        self._api = api
        return self._mirror


def _print_nothing(*_values: Any) -> None:
    """What the server may call instead of print."""


def safe_text(text: Any) -> str:
    """What the server said, bounded and without control characters."""
    return "".join(c for c in str(text)[:LONGEST_TEXT] if c.isprintable())
