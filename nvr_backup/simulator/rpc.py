"""The RPC side of a simulated NVR: what a client's link can call, and what it gets.

Built on the SDK's own peer, so the wire is the real one. One `Link` per engine.io session. Every
call looks for armed faults first. It must never answer anything a real server would not, except
where a fault says so.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, Final

from scrypted_sdk import rpc

from nvr_backup.model import to_ms
from nvr_backup.simulator.catalogue import CameraState, SimClip
from nvr_backup.simulator.listing import (
    device_state,
    distort,
    listed,
    system_state,
    wire_clip,
)
from nvr_backup.simulator.state import MEDIA_HOST, NvrState

LOCAL_URI: Final = "text/x-local-uri"
FILE_SCHEME: Final = "x-scrypted/x-scrypted-scheme-file"
URL_SCHEME: Final = "x-scrypted/x-scrypted-scheme-"
REQUEST: Final = "x-scrypted/x-scrypted-request-media-object"
FFMPEG_INPUT: Final = "x-scrypted/x-ffmpeg-input"

LARGEST_BUFFER: Final = 512 * 1024 * 1024
"""A clip larger than so many bytes is not turned into a Buffer: the simulator is no benchmark."""


class Remote:
    """An object whose methods a client may call by name, with properties it gets to see."""

    def __init__(
        self, methods: dict[str, Callable[..., Any]], properties: dict[str, Any] | None = None
    ) -> None:
        for name, method in methods.items():
            setattr(self, name, method)
        if properties is not None:
            setattr(self, rpc.RpcPeer.PROPERTY_PROXY_PROPERTIES, properties)


class MediaObject(Remote):
    """A media object as a plugin made it, with what our own converters need of it."""

    def __init__(
        self,
        mime_type: str,
        data: Callable[[], Any],
        camera: CameraState,
        clip: SimClip,
    ) -> None:
        self.mime = mime_type
        self.data = data
        self.camera = camera
        self.clip = clip
        super().__init__({"getData": data}, {"mimeType": mime_type, "sourceId": camera.device_id})


class RemoteError(Exception):
    """What a plugin throws; the client gets its text."""


class Link:
    """One client's session: its peer, what it was given, and whether it is still true to it."""

    def __init__(
        self,
        state: NvrState,
        *,
        write: Callable[[Any], None],
        drop: Callable[[], None],
        swallow: Callable[[], None],
    ) -> None:
        self._state = state
        self._write = write
        self._drop = drop
        self._swallow = swallow
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._buffers: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._remote: Any = None
        self._listeners: dict[int, tuple[str, Any]] = {}
        self.black_holed = False
        self.closed = False
        self._peer = rpc.RpcPeer(self._send)
        self._peer.peerName = "client"
        # Buffers travel as binary packets ahead of the message that refers to them.
        self._peer.nameDeserializerMap["Buffer"] = _Buffers()
        for kind in (bytes, bytearray, memoryview):
            self._peer.constructorSerializerMap[kind] = "Buffer"

    # -- the wire ------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask the client for its remote and tell it the state of the system."""
        self._spawn(_swallow(self._introduce()))

    def receive(self, data: Any) -> None:
        """A packet from the client."""
        if self.closed or self.black_holed:
            return
        if isinstance(data, bytes):
            self._buffers.append(data)
            return
        if not isinstance(data, dict):
            return
        buffers, self._buffers = self._buffers, []
        on = data.get("method") or ""
        if data.get("type") == "apply":
            if self._state.faults.take("drop_link", on=on):
                self._drop()
                return
            if self._state.faults.take("black_hole", on=on):
                self.black_holed = True
                self._swallow()
                return
        self._spawn(self._peer.handleMessage(data, {"buffers": buffers}))

    def close(self) -> None:
        """The link is gone."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for future in self._peer.pendingResults.values() if not self._peer.killed else ():
            future.cancel()
        if not self._peer.killed:
            self._peer.pendingResults.clear()
            self._peer.kill()

    def _send(self, message: Any, _reject: Any = None, context: Any = None) -> None:
        if self.closed or self.black_holed:
            return
        # A proxy's finalizer may call this from any thread that collects garbage.
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._send, message, None, context)
            return
        for buffer in (context or {}).get("buffers", ()):
            self._write(bytes(buffer))
        self._write(message)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work, name="simulator rpc")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _introduce(self) -> None:
        get_remote = await self._peer.getParam("getRemote")
        api = Remote(
            {
                "getMediaManager": self._get_media_manager,
                "getDeviceById": self._get_device_by_id,
                "listenDevice": self._listen_device,
                "getComponent": lambda _name: None,
            }
        )
        self._remote = await get_remote(api, None, {"serverVersion": "0.144.2"})
        if self._state.faults.take("silent_link"):
            return
        await self._remote.setSystemState(system_state(self._state.catalogue.cameras))

    # -- changes -------------------------------------------------------------------------------

    def tell(self, what: str, camera: CameraState, device_id: str) -> None:
        """A change of the catalogue, as far as clients are told of it."""
        if self.closed or self.black_holed or self._remote is None:
            return
        if what == "clip":
            for listened, callback in list(self._listeners.values()):
                if listened == device_id:
                    self._spawn(_swallow(callback(self._details("VideoClips"), None)))
            return
        state = None if what == "removed" else device_state(camera)
        self._spawn(_swallow(self._remote.updateDeviceState(device_id, state)))

    def _details(self, interface: str) -> dict[str, Any]:
        return {
            "eventId": None,
            "eventTime": to_ms(self._state.clock.now()),
            "eventInterface": interface,
        }

    def _listen_device(self, device_id: str, options: Any, callback: Any) -> Remote:
        self._state.call("listenDevice", device_id)
        interface = options if isinstance(options, str) else (options or {}).get("event")
        key = len(self._listeners)
        if interface in (None, "VideoClips"):
            self._listeners[key] = (device_id, callback)
        return Remote({"removeListener": lambda: self._listeners.pop(key, None) and None})

    # -- the api -------------------------------------------------------------------------------

    def _get_media_manager(self) -> Remote:
        self._state.call("getMediaManager")
        return Remote(
            {
                "convertMediaObject": self._convert,
                "convertMediaObjectToBuffer": self._convert_to_buffer,
                "convertMediaObjectToLocalUrl": self._convert_to_url,
                "convertMediaObjectToInsecureLocalUrl": self._convert_to_url,
            }
        )

    def _get_device_by_id(self, device_id: str) -> Remote | None:
        self._state.call("getDeviceById", str(device_id))
        if device_id not in system_state(self._state.catalogue.cameras):
            return None
        return Remote(
            {
                "getVideoClips": lambda options=None: self._get_video_clips(device_id, options),
                "getVideoClip": lambda clip_id: self._get_video_clip(device_id, clip_id),
                "getVideoClipThumbnail": lambda _id: None,
                "removeVideoClips": lambda *_ids: self._state.call("removeVideoClips", device_id),
            },
            {"id": device_id},
        )

    def _camera(self, device_id: str, method: str) -> CameraState:
        self._state.call(method, device_id)
        camera = self._state.catalogue.device(device_id)
        if camera is None:
            raise RemoteError(f"target undefined does not have method {method}")
        if self._state.faults.take("plugin_dead", subjects=camera.subjects):
            raise RemoteError(f"RpcPeer has been killed (apply) {method}")
        return camera

    async def _get_video_clips(self, device_id: str, options: Any) -> Any:
        camera = self._camera(device_id, "getVideoClips")
        faults, subjects = self._state.faults, camera.subjects
        if faults.take("hang_listing", subjects=subjects):
            await faults.wait_release()
        if slow := faults.take("slow_listing", subjects=subjects):
            await self._state.clock.sleep(slow.get("seconds", 5.0))
        if failed := faults.take("listing_error", subjects=subjects):
            raise RemoteError(failed.get("message", "the recorder's database is locked"))
        if faults.take("empty_listing", subjects=subjects):
            return []
        options = options if isinstance(options, dict) else {}
        if camera.clips and (grow := faults.take("growing_clip", subjects=subjects)):
            latest = camera.clips[-1]
            self._state.catalogue.grow_clip(latest, seconds=grow.get("seconds", 5.0))
        outside = faults.take("listing_outside", subjects=subjects)
        start = options.get("startTime") or 0
        end = options.get("endTime") or float("inf")
        clips = camera.clips if outside else listed(camera, start, end, options.get("count"))
        if camera.style.forgetful:
            self._state.remembered.update(f"{camera.native_id}/{clip.id}" for clip in clips)
        wire = [wire_clip(self._state, camera, clip) for clip in clips]
        return distort(faults, subjects, wire, seed=self._state.settings.seed)

    async def _get_video_clip(self, device_id: str, clip_id: Any) -> MediaObject:
        camera = self._camera(device_id, "getVideoClip")
        faults = self._state.faults
        subjects = camera.subjects | {str(clip_id)}
        if faults.take("hang_clip", subjects=subjects):
            await faults.wait_release()
        if failed := faults.take("clip_error", subjects=subjects):
            raise RemoteError(failed.get("message", "the recorder could not open the clip"))
        clip = camera.find(str(clip_id))
        known = f"{camera.native_id}/{clip_id}" in self._state.remembered
        if clip is None or (camera.style.forgetful and not known):
            raise RemoteError(f"clip not found: {clip_id}")
        return self._media(camera, clip)

    # -- media ---------------------------------------------------------------------------------

    def _media(self, camera: CameraState, clip: SimClip) -> MediaObject:
        state = self._state
        content_type = clip.content.content_type

        def media(mime_type: str, data: Callable[[], Any]) -> MediaObject:
            return MediaObject(mime_type, data, camera, clip)

        def by_url(url: str) -> MediaObject:
            return media(URL_SCHEME + url.partition(":")[0], lambda: url)

        whole = media(content_type, lambda: _small(clip))
        made = {
            "file": lambda: media(FILE_SCHEME, lambda: f"file:{clip.id}"),
            "local_uri": lambda: media(LOCAL_URI, lambda: state.plugin_path(camera, clip)),
            "nvr_uri": lambda: media(LOCAL_URI, lambda: state.nvr_path(camera, clip)),
            "url": lambda: by_url(state.url + state.plugin_path(camera, clip)),
            "other_origin": lambda: by_url(state.other_origin_url(camera, clip)),
            "ffmpeg": lambda: media(FFMPEG_INPUT, lambda: ffmpeg_input(state, camera, clip)),
            # A media object whose data is a function that makes the media object.
            "request": lambda: media(REQUEST, lambda: lambda: whole),
            "buffer": lambda: whole,
        }
        return made[camera.style.media]()

    def _own(self, media: Any, method: str) -> MediaObject:
        self._state.call(method)
        if not isinstance(media, MediaObject):
            raise RemoteError("the media object is not one of this server's")
        camera, clip = media.camera, media.clip
        subjects = camera.subjects | {clip.id}
        if failed := self._state.faults.take("convert_error", subjects=subjects):
            raise RemoteError(failed.get("message", "no converter found"))
        return media

    def _convert(self, media: Any, to_mime_type: str) -> Any:
        own = self._own(media, "convertMediaObject")
        if to_mime_type == own.mime:
            return own.data()
        if to_mime_type != LOCAL_URI:
            raise RemoteError(f"no converter found from {own.mime} to {to_mime_type}")
        origin = self._state.settings.own_origin
        if own.mime == FILE_SCHEME:
            # The file host's URL: no login needed, but blanks and non-ASCII names give a 404.
            awkward = own.camera.settings.awkward_names
            name = self._state.publish(own.camera, own.clip, "gone" if awkward else "file")
            return f"{origin}{MEDIA_HOST}/public/{name}.{own.clip.extension}"
        kind = "json" if own.mime == FFMPEG_INPUT else "buffer"
        return f"{origin}{MEDIA_HOST}/{self._state.publish(own.camera, own.clip, kind)}"

    def _convert_to_buffer(self, media: Any, _to_mime_type: str) -> bytes:
        own = self._own(media, "convertMediaObjectToBuffer")
        if own.camera.style.media == "nvr_uri":
            raise RemoteError("not supported")
        return _small(own.clip)

    def _convert_to_url(self, media: Any, _to_mime_type: str) -> str:
        own = self._own(media, "convertMediaObjectToLocalUrl")
        name = self._state.publish(own.camera, own.clip, "buffer")
        return f"{self._state.settings.own_origin}{MEDIA_HOST}/{name}"


class _Buffers(rpc.RpcSerializer):  # type: ignore[misc]  # the SDK is untyped
    def serialize(self, value: Any, context: dict[str, Any]) -> int:
        buffers: list[Any] = context.setdefault("buffers", [])
        buffers.append(value)
        return len(buffers) - 1

    def deserialize(self, value: int, context: dict[str, Any]) -> bytes:
        found: bytes = context["buffers"][value]
        return found


def _small(clip: SimClip) -> bytes:
    if clip.content.size > LARGEST_BUFFER:
        raise RemoteError("Array buffer allocation failed")
    return clip.content.read()


def ffmpeg_input(state: NvrState, camera: CameraState, clip: SimClip) -> bytes:
    """A recipe for FFmpeg as JSON: what such a plugin serves in place of a video."""
    url = state.url + state.plugin_path(camera, clip)
    return json.dumps({"url": url, "inputArguments": ["-i", url]}).encode()


async def _swallow(call: Any) -> None:
    """Wait for a call whose failure is nobody's business: the client is free to be gone."""
    try:
        await call
    except rpc.RPCResultError:
        return
