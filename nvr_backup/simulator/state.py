"""What the parts of a simulated NVR share: truth, faults, and the record of what was done.

One value per simulator, handed to every part. It must never outlive its simulator, and nothing
here decides anything.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from nvr_backup.clock import Clock
from nvr_backup.simulator.catalogue import CameraState, Catalogue, SimClip, nvr_name
from nvr_backup.simulator.disk import Disk
from nvr_backup.simulator.faults import Faults
from nvr_backup.simulator.login import Gatekeeper
from nvr_backup.simulator.settings import SimulatorSettings

LONGEST_LOG: Final = 100_000
"""Entries kept of the served log and of the calls."""

MEDIA_HOST: Final = "/endpoint/8"
"""Where the server's own converters publish files and buffers."""

Origin = Literal["nvr", "other"]


@dataclass(frozen=True, slots=True)
class ServedBody:
    """One body of a clip that was sent, or begun to be.

    `offset` is the first byte sent, `sent` how many bytes were handed to the connection, `sha256`
    and `crc32c` are theirs (empty and 0 unless the settings want them). `complete` says that the
    body went to the clip's end unharmed. `authorization` tells whether the request carried an
    Authorization header, `query_token` whether a token was in its URL.
    """

    camera: str
    device_id: str
    native_id: str
    clip_id: str
    path: str
    status: int
    offset: int
    sent: int
    size: int
    complete: bool
    sha256: str
    crc32c: int
    authorization: bool
    query_token: bool
    origin: Origin
    fault: str


@dataclass(frozen=True, slots=True)
class RpcCall:
    """One RPC call as it arrived; `device_id` is empty for the media manager's and the api's."""

    method: str
    device_id: str = ""


@dataclass(slots=True)
class NvrState:
    """Everything the parts of one simulator share."""

    settings: SimulatorSettings
    clock: Clock
    catalogue: Catalogue
    gate: Gatekeeper
    faults: Faults
    disk: Disk
    url: str = ""
    other_url: str = ""
    served: deque[ServedBody] = field(default_factory=lambda: deque(maxlen=LONGEST_LOG))
    calls: deque[RpcCall] = field(default_factory=lambda: deque(maxlen=LONGEST_LOG))
    other_origin_authorizations: int = 0
    unauthorized: int = 0
    # Memory of the server's processes: gone at a restart.
    boot: int = 1
    published: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    remembered: set[str] = field(default_factory=set)
    # Set by the server.
    restart_soon: Callable[[float], None] = lambda _down: None
    drop_links: Callable[[], None] = lambda: None

    def forget(self) -> None:
        """What a restart of the server makes it forget."""
        self.boot += 1
        self.gate.expire_all()
        self.published.clear()
        self.remembered.clear()

    # -- addresses -----------------------------------------------------------------------------

    def plugin_path(self, camera: CameraState, clip: SimClip) -> str:
        """Where the camera's own plugin serves a clip."""
        extension = clip.extension
        plugin = camera.style.plugin_id
        return f"/endpoint/{plugin}/clips/{camera.native_id}/{clip.serial}.{extension}"

    def nvr_path(self, camera: CameraState, clip: SimClip) -> str:
        """Where the NVR's plugin serves a clip; by device id, so it changes with re-adding."""
        return f"/endpoint/{camera.style.plugin_id}/clip/{camera.device_id}/{nvr_name(clip)}"

    def other_origin_url(self, camera: CameraState, clip: SimClip) -> str:
        """A signed URL at another origin; the signature is good until the next restart."""
        path = f"/media/{camera.native_id}/{clip.serial}.{clip.extension}"
        return f"{self.other_url}{path}?signature={self.signature(path)}"

    def signature(self, path: str) -> str:
        """What an address at the other origin must carry now."""
        key = f"{self.settings.seed}/{self.boot}/{path}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def publish(self, camera: CameraState, clip: SimClip, mime_type: str) -> str:
        """Let the media host serve a clip (or JSON in its place); returns the path."""
        name = hashlib.sha256(f"{clip.native_id}/{clip.serial}/{mime_type}".encode()).hexdigest()
        self.published[name] = (camera.native_id, clip.serial, mime_type)
        return name

    def call(self, method: str, device_id: str = "") -> None:
        """Record an RPC call."""
        self.calls.append(RpcCall(method, device_id))
