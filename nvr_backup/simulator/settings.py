"""What a simulated NVR is made of: cameras, their styles, and how the server behaves.

Values only, no behaviour. A style names how a real plugin hands out its clips; the table `STYLES`
is the one of the project's notes on the wire protocol. It must never hold anything of a real
installation: the defaults here are public by nature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Literal

Body = Literal["file", "stream", "buffer"]
"""How a plugin sends a clip's body: `sendFile`, `sendStream` or `send(Buffer)`."""

Content = Literal["sample", "synthetic", "webm", "ts"]
"""What the bytes are: the playable sample, MP4 boxes around filler, or another container."""

Filters = Literal["overlap", "within", "start", "none"]
"""What of a listing's window a plugin honours."""

Href = Literal["none", "relative", "absolute", "other_origin", "nvr"]
Media = Literal[
    "file", "local_uri", "nvr_uri", "url", "other_origin", "buffer", "request", "ffmpeg"
]
Ids = Literal["path", "plain", "json", "name"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a plugin hands out clips.

    `href` is what `resources.video.href` holds, `media` what `getVideoClip` returns, `body` how
    the bytes are sent, `ids` the shape of clip ids ("json" and "name" change as a clip grows).
    With `forgetful` the plugin knows only clips that it listed since its start.
    """

    href: Href
    media: Media
    body: Body
    ids: Ids
    video_id: bool = True
    forgetful: bool = False
    plugin_id: str = "@simulated/cameras"


NVR_PLUGIN: Final = "@scrypted/nvr"

STYLES: Final = MappingProxyType(
    {
        # getVideoClip only
        "file": Style("none", "file", "file", "path"),
        "local_uri": Style("none", "local_uri", "file", "plain"),
        "url": Style("none", "url", "file", "plain"),
        "external_url": Style("none", "other_origin", "file", "plain"),
        "buffer": Style("none", "buffer", "buffer", "plain"),
        "request": Style("none", "request", "buffer", "plain"),
        "ffmpeg": Style("none", "ffmpeg", "buffer", "plain"),
        # resources.video.href
        "href": Style("relative", "local_uri", "file", "plain"),
        "stream": Style("relative", "local_uri", "stream", "plain"),
        "href_absolute": Style("absolute", "local_uri", "file", "plain"),
        "href_external": Style(
            "other_origin", "other_origin", "file", "plain", video_id=False, forgetful=True
        ),
        # as known of the NVR plugin
        "nvr": Style("nvr", "nvr_uri", "file", "json", plugin_id=NVR_PLUGIN),
        "nvr_local": Style("none", "nvr_uri", "file", "name", plugin_id=NVR_PLUGIN),
    }
)


@dataclass(frozen=True, slots=True)
class SimCamera:
    """One simulated camera. What is None comes from its style or from `SimulatorSettings`.

    `filters`: "overlap" lists what touches the window, "within" drops straddling clips, "start"
    lists what started in it, "none" ignores the window (then `count` is ignored as well).
    `max_listed` cuts every listing to so many clips, oldest first. `awkward_names` gives files
    names the server's own file host answers with 404 (only for style "file").
    """

    name: str
    style: str = "file"
    body: Body | None = None
    content: Content | None = None
    native_id: str | None = None
    room: str = "Outside"
    type: str = "Camera"
    filters: Filters = "overlap"
    has_duration: bool = True
    max_listed: int | None = None
    clips: int | None = None
    clip_seconds: float | None = None
    clip_size: int | None = None
    classes: tuple[str, ...] = ("motion",)
    awkward_names: bool = False

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"no style {self.style!r}; there are {', '.join(STYLES)}")


DEMO_CAMERAS: Final = (
    SimCamera("Porch", style="file", type="Doorbell", classes=("person", "motion")),
    SimCamera("Garden", style="nvr", room="Back", classes=("animal", "motion")),
    SimCamera("Garage", style="stream", room="Inside", classes=("vehicle", "motion")),
)


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """The whole simulated NVR.

    `clip_size` is in bytes; None means the playable sample, a number means box-valid filler of
    exactly that size unless a camera says otherwise. `live_every` (seconds) adds a clip to one
    camera after another. `own_origin` is the server's wrong idea of its own address, which it
    puts into local URIs. `digests` says what the served log holds: benchmarks want "none".
    `default_user` is the mode in which everyone is that user without a login; `first_run` is a
    server nobody has set up, where a login creates the administrator.
    """

    cameras: tuple[SimCamera, ...] = DEMO_CAMERAS
    tls: bool = False
    username: str = "backup"
    password: str = field(default="secret", repr=False)
    clip_seconds: float = 10.0
    history: timedelta = timedelta(hours=24)
    clips_per_camera: int = 6
    clip_size: int | None = None
    live_every: float | None = None
    seed: int = 1
    own_origin: str = "https://undefined:10443"
    digests: Literal["all", "crc32c", "none"] = "all"
    first_run: bool = False
    default_user: bool = False
    token_life: timedelta = timedelta(hours=24)
    write_size: int = 256 * 1024
    ping_interval: float = 25.0
    ping_timeout: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.write_size <= 256 * 1024:
            raise ValueError("write_size must be between 1 and 262144 bytes")
