"""The cameras and clips of a simulated NVR, and the changes tests make to them.

It is the truth that a backup is compared with: what exists, under which id, with which bytes. All
names, ids and times follow from the settings' seed and the clock at construction. It must never
change by being listed or served, but for the fault `growing_clip`.
"""

from __future__ import annotations

import json
import random
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from nvr_backup.clock import Clock
from nvr_backup.model import to_ms
from nvr_backup.simulator.media import ClipContent, check_size, clip_content, file_ending
from nvr_backup.simulator.settings import (
    STYLES,
    Content,
    SimCamera,
    SimulatorSettings,
    Style,
)

FIRST_DEVICE_ID: Final = 31
_NVR_SUFFIX: Final = "-1.mp4"


@dataclass(frozen=True, slots=True, order=True)
class SimClip:
    """One clip as it is now.

    `serial` is its address at its plugin. A clip that grows under its id keeps it; one that gets
    a new id gets a new serial.
    """

    start_ms: int
    serial: int
    duration_ms: int = field(compare=False)
    id: str = field(compare=False)
    native_id: str = field(compare=False)
    kind: Content = field(compare=False)
    size: int | None = field(compare=False)

    @property
    def end_ms(self) -> int:
        """When it ends, in ms since the epoch."""
        return self.start_ms + self.duration_ms

    @property
    def extension(self) -> str:
        """The ending of its file, without the dot."""
        return file_ending(self.kind)

    @property
    def content(self) -> ClipContent:
        """All its bytes. They follow from camera, start, duration and size alone."""
        return _content(
            f"{self.native_id}/{self.start_ms}/{self.duration_ms}/{self.serial}",
            self.kind,
            self.size,
        )


@lru_cache(maxsize=256)
def _content(identity: str, kind: Content, size: int | None) -> ClipContent:
    return clip_content(identity, kind, size)


@dataclass(slots=True)
class CameraState:
    """A camera as it is now, with its clips in order of start."""

    settings: SimCamera
    name: str
    device_id: str
    native_id: str
    clips: list[SimClip] = field(default_factory=list)
    _ids: dict[str, SimClip] = field(default_factory=dict, repr=False)
    _nvr_names: dict[str, SimClip] = field(default_factory=dict, repr=False)

    @property
    def style(self) -> Style:
        """How it hands out clips."""
        return STYLES[self.settings.style]

    @property
    def subjects(self) -> frozenset[str]:
        """The names a fault's camera filter may use."""
        return frozenset((self.name, self.device_id, self.native_id))

    def find(self, clip_id: str) -> SimClip | None:
        """A clip by its id; an NVR also knows the versions it was when it was shorter."""
        return self._ids.get(clip_id)

    def find_nvr_name(self, name: str) -> SimClip | None:
        """The version of a clip that the NVR's path calls `<start>-<duration>-1.mp4`."""
        return self._nvr_names.get(name)

    def know(self, clip: SimClip) -> None:
        """The clip can be fetched from now on."""
        self._ids[clip.id] = clip
        self._nvr_names[nvr_name(clip)] = clip

    def unknow(self, clip: SimClip) -> None:
        """The clip can no longer be fetched."""
        if self._ids.get(clip.id) is clip:
            del self._ids[clip.id]
        if self._nvr_names.get(nvr_name(clip)) is clip:
            del self._nvr_names[nvr_name(clip)]


Change = Callable[[str, CameraState, str], None]
"""Told of every change: what ("added", "removed", "renamed", "clip"), the camera, its device id."""


class Catalogue:
    """All cameras and clips.

    Cameras are named in calls by their nativeId, device id or name (the first of that name).
    KeyError when there is no such camera.
    """

    def __init__(self, settings: SimulatorSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random.Random(settings.seed)  # noqa: S311 - reproducible, not secret
        self._next_device = FIRST_DEVICE_ID
        self._next_serial = 1
        self._by_serial: dict[int, SimClip] = {}
        self.cameras: list[CameraState] = []
        self.watchers: list[Change] = []
        for camera in settings.cameras:
            self.add_camera(camera)

    # -- looking ------------------------------------------------------------------------------

    def camera(self, which: str) -> CameraState:
        """A camera by nativeId, device id or name."""
        for attribute in ("native_id", "device_id", "name"):
            for camera in self.cameras:
                if getattr(camera, attribute) == which:
                    return camera
        raise KeyError(which)

    def device(self, device_id: str) -> CameraState | None:
        """The camera that has this device id now."""
        return next((c for c in self.cameras if c.device_id == device_id), None)

    def clips(self, which: str | None = None) -> list[SimClip]:
        """The clips of one camera, or of all."""
        cameras = self.cameras if which is None else [self.camera(which)]
        return [clip for camera in cameras for clip in camera.clips]

    def owned(self) -> Iterator[tuple[CameraState, SimClip]]:
        """Every clip with its camera."""
        for camera in self.cameras:
            for clip in camera.clips:
                yield camera, clip

    def by_serial(self, serial: int) -> SimClip | None:
        """A clip's version by its serial number; None also when it was removed."""
        return self._by_serial.get(serial)

    # -- clips --------------------------------------------------------------------------------

    def add_clip(
        self,
        which: str,
        *,
        start: datetime | None = None,
        seconds: float | None = None,
        size: int | None = None,
        content: Content | None = None,
        clip_id: str | None = None,
    ) -> SimClip:
        """A new clip of a camera; without `start` it ends now. `size` is in bytes."""
        camera = self.camera(which)
        duration_ms = int((self._seconds(camera) if seconds is None else seconds) * 1000)
        now_ms = to_ms(self._clock.now())
        start_ms = now_ms - duration_ms if start is None else to_ms(start)
        size = size if size is not None else self._size(camera)
        kind = content or camera.settings.content or ("sample" if size is None else "synthetic")
        clip = self._make(camera, start_ms, duration_ms, kind=kind, size=size, clip_id=clip_id)
        insort(camera.clips, clip)
        self._tell("clip", camera)
        return clip

    def add_many(self, which: str, count: int, *, within: timedelta = timedelta(days=1)) -> None:
        """`count` clips evenly over the last `within`, the last of them ended by now."""
        camera = self.camera(which)
        size = self._size(camera)
        kind = camera.settings.content or ("sample" if size is None else "synthetic")
        step_ms = within / timedelta(milliseconds=1) / count
        duration_ms = max(1, min(int(self._seconds(camera) * 1000), int(step_ms)))
        begin_ms = to_ms(self._clock.now() - within)
        camera.clips += [
            self._make(camera, begin_ms + int(i * step_ms), duration_ms, kind=kind, size=size)
            for i in range(count)
        ]
        camera.clips.sort()
        self._tell("clip", camera)

    def grow_clip(
        self, clip: SimClip, *, seconds: float | None = None, size: int | None = None
    ) -> SimClip:
        """`clip` has become longer by `seconds` (its usual length); returns the new version.

        Its bytes are others. In the NVR styles its id is another too, and the shorter version
        stays to be had under the old id; elsewhere the id stays and the old bytes are gone.
        """
        camera = self.camera(clip.native_id)
        added_ms = int((self._seconds(camera) if seconds is None else seconds) * 1000)
        new_id = None if camera.style.ids in ("json", "name") else clip.id
        camera.clips.remove(clip)
        if new_id is not None:
            camera.unknow(clip)
        grown = self._make(
            camera,
            clip.start_ms,
            clip.duration_ms + added_ms,
            kind=clip.kind,
            size=clip.size if size is None else size,
            clip_id=new_id,
            serial=None if new_id is None else clip.serial,
        )
        insort(camera.clips, grown)
        self._tell("clip", camera)
        return grown

    def remove_clip(self, clip: SimClip) -> None:
        """The NVR's retention took it."""
        camera = self.camera(clip.native_id)
        camera.clips.remove(clip)
        camera.unknow(clip)
        del self._by_serial[clip.serial]

    # -- cameras ------------------------------------------------------------------------------

    def add_camera(self, camera: SimCamera) -> CameraState:
        """A new camera with its clips of the past."""
        taken = {c.native_id for c in self.cameras}
        slug = "-".join(camera.name.lower().split()) or "camera"
        native_id = camera.native_id or slug
        number = 2
        while native_id in taken:
            if camera.native_id is not None:
                raise ValueError(f"two cameras have the nativeId {native_id}")
            native_id = f"{slug}-{number}"
            number += 1
        state = CameraState(camera, camera.name, self._new_device_id(), native_id)
        self.cameras.append(state)
        self._fill(state)
        self._tell("added", state)
        return state

    def rename(self, which: str, name: str) -> CameraState:
        """The operator renamed it: device id and nativeId stay."""
        camera = self.camera(which)
        camera.name = name
        self._tell("renamed", camera)
        return camera

    def remove(self, which: str) -> CameraState:
        """The camera is gone; keep what is returned to `re_add` it."""
        camera = self.camera(which)
        self.cameras.remove(camera)
        self._tell("removed", camera)
        return camera

    def re_add(self, camera: CameraState) -> CameraState:
        """A removed camera is back with its clips: the same nativeId, a new device id."""
        camera.device_id = self._new_device_id()
        self.cameras.append(camera)
        self._tell("added", camera)
        return camera

    # -- inside -------------------------------------------------------------------------------

    def _tell(self, what: str, camera: CameraState) -> None:
        for watcher in self.watchers:
            watcher(what, camera, camera.device_id)

    def _new_device_id(self) -> str:
        self._next_device += 1
        return str(self._next_device - 1)

    def _seconds(self, camera: CameraState) -> float:
        own = camera.settings.clip_seconds
        return self._settings.clip_seconds if own is None else own

    def _size(self, camera: CameraState) -> int | None:
        own = camera.settings.clip_size
        return self._settings.clip_size if own is None else own

    def _fill(self, camera: CameraState) -> None:
        """Clips over the past, one somewhere in each equal part of it, ended before now."""
        own = camera.settings.clips
        count = self._settings.clips_per_camera if own is None else own
        if not count:
            return
        part = self._settings.history / count
        room = max(part - timedelta(seconds=self._seconds(camera)), timedelta())
        begin = self._clock.now() - self._settings.history
        for i in range(count):
            self.add_clip(
                camera.native_id, start=begin + i * part + room * self._random.random() * 0.99
            )

    def _make(
        self,
        camera: CameraState,
        start_ms: int,
        duration_ms: int,
        *,
        kind: Content,
        size: int | None,
        clip_id: str | None = None,
        serial: int | None = None,
    ) -> SimClip:
        check_size(kind, size)
        if serial is None:
            serial = self._next_serial
            self._next_serial += 1
        clip = SimClip(
            start_ms=start_ms,
            serial=serial,
            duration_ms=duration_ms,
            id=clip_id or _clip_id(camera, start_ms, duration_ms, serial),
            native_id=camera.native_id,
            kind=kind,
            size=size,
        )
        self._by_serial[serial] = clip
        camera.know(clip)
        return clip


def _clip_id(camera: CameraState, start_ms: int, duration_ms: int, serial: int) -> str:
    match camera.style.ids:
        case "json":
            return json.dumps(
                {"startTime": start_ms, "duration": duration_ms}, separators=(",", ":")
            )
        case "name":
            return f"{start_ms}-{duration_ms}{_NVR_SUFFIX}"
        case "path":
            blank = " aufgenommen für " if camera.settings.awkward_names else ""
            return f"/recordings/{camera.native_id}/{blank}{start_ms}-{serial}.mp4"
        case _:
            return f"{camera.native_id}-{start_ms}-{serial}"


def nvr_name(clip: SimClip) -> str:
    """The last part of the path under which the NVR's plugin serves a clip."""
    return f"{clip.start_ms}-{clip.duration_ms}{_NVR_SUFFIX}"
