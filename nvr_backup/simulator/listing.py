"""Cameras and clips as plugins show them on the wire, and how listings go wrong.

It must never change the catalogue: a distortion is of the copy that goes to the client.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from nvr_backup.simulator.catalogue import CameraState, SimClip
from nvr_backup.simulator.faults import Faults
from nvr_backup.simulator.settings import NVR_PLUGIN
from nvr_backup.simulator.state import NvrState


def listed(camera: CameraState, start_ms: float, end_ms: float, count: int | None) -> list[SimClip]:
    """What the camera's plugin lists for a window, by the filters it honours."""
    clips: Sequence[SimClip] = camera.clips
    match camera.settings.filters:
        case "overlap":
            found = [c for c in clips if c.start_ms < end_ms and c.end_ms > start_ms]
        case "within":
            found = [c for c in clips if c.start_ms >= start_ms and c.end_ms <= end_ms]
        case "start":
            first = bisect_left(clips, start_ms, key=lambda c: c.start_ms)
            last = bisect_left(clips, end_ms, key=lambda c: c.start_ms)
            found = list(clips[first:last])
        case _:
            return list(clips)[: camera.settings.max_listed]
    if count is not None:
        found = found[: max(count, 0)]
    return found[: camera.settings.max_listed]


def system_state(cameras: Sequence[CameraState]) -> dict[str, Any]:
    """The whole system state as a client gets it: the cameras, and devices that are none."""
    state: dict[str, Any] = {
        # A plugin's own device, and devices with unset properties in both shapes seen.
        "1": {
            "name": {"value": "Scrypted Core"},
            "type": {"value": "Builtin"},
            "interfaces": {"value": ["ScryptedPlugin", "DeviceProvider"]},
            "pluginId": {"value": "@scrypted/core"},
            "nativeId": {},
        },
        "2": {
            "name": {"value": "Simulated Cameras"},
            "type": {"value": "DeviceProvider"},
            "interfaces": {"value": ["ScryptedPlugin", "DeviceProvider"]},
            "pluginId": {"value": "@simulated/cameras"},
        },
        "8": {"name": {"value": "Media Core"}, "interfaces": {}, "nativeId": {"value": "media"}},
        "9": {
            "name": {"value": "Doorbell without clips"},
            "type": {"value": "Doorbell"},
            "interfaces": {"value": ["Camera", "VideoCamera", "OnOff"]},
            "providerId": {"value": "2"},
            "pluginId": {"value": "@simulated/cameras"},
            "nativeId": {"value": "no-clips"},
        },
        "10": {"name": {}, "type": {}},
    }
    state.update((camera.device_id, device_state(camera)) for camera in cameras)
    return state


def device_state(camera: CameraState) -> dict[str, Any]:
    """One camera's part of the system state."""
    # The NVR plugin is a mixin: a camera keeps the plugin that brought it.
    mixins = ["2"] if camera.style.plugin_id == NVR_PLUGIN else None
    state: dict[str, Any] = {
        "name": {"value": camera.name},
        "room": {"value": camera.settings.room},
        "type": {"value": camera.settings.type},
        "interfaces": {"value": ["Camera", "VideoCamera", "MotionSensor", "VideoClips"]},
        "providerId": {"value": "2"},
        "pluginId": {"value": "@simulated/cameras"},
        "nativeId": {"value": camera.native_id},
    }
    if mixins is not None:
        state["mixins"] = {"value": mixins}
    return state


def wire_clip(state: NvrState, camera: CameraState, clip: SimClip) -> dict[str, Any]:
    """One clip as a plain dict, with the fields the camera's plugin fills."""
    wire: dict[str, Any] = {"id": clip.id, "startTime": clip.start_ms}
    if camera.settings.has_duration:
        wire["duration"] = clip.duration_ms
    wire["event"] = camera.settings.classes[0] if camera.settings.classes else "motion"
    wire["detectionClasses"] = list(camera.settings.classes)
    wire["thumbnailId"] = clip.id
    if camera.style.video_id:
        wire["videoId"] = clip.id
    match camera.style.href:
        case "relative":
            href = state.plugin_path(camera, clip)
        case "absolute":
            href = state.settings.own_origin + state.plugin_path(camera, clip)
        case "nvr":
            href = state.nvr_path(camera, clip)
        case "other_origin":
            href = state.other_origin_url(camera, clip)
        case _:
            return wire
    wire["resources"] = {"video": {"href": href}}
    return wire


def distort(
    faults: Faults, subjects: frozenset[str], clips: list[dict[str, Any]], *, seed: int
) -> Any:
    """The listing after every armed distortion."""

    def struck(name: str) -> bool:
        return faults.take(name, subjects=subjects) is not None

    if other := faults.take("listing_not_a_list", subjects=subjects):
        return other.get("value", None)
    if short := faults.take("listing_short", subjects=subjects):
        clips = clips[: short.get("keep", 1)]
    if struck("listing_no_duration"):
        clips = [{k: v for k, v in clip.items() if k != "duration"} for clip in clips]
    if struck("listing_duplicates"):
        clips = [clip for clip in clips for _ in range(2)]
    mixed: list[Any] = list(clips)
    if struck("listing_missing_fields"):
        mixed[1:1] = _missing(clips)
    if struck("listing_garbage"):
        mixed[1:1] = _garbage(clips)
    if struck("listing_unsorted"):
        random.Random(seed).shuffle(mixed)  # noqa: S311 - reproducible, not secret
    return mixed


def _missing(clips: list[dict[str, Any]]) -> list[Any]:
    start = clips[0]["startTime"] if clips else 0
    return [{}, {"id": "no-start"}, {"startTime": start, "duration": 1000}, {"id": None}]


def _garbage(clips: list[dict[str, Any]]) -> list[Any]:
    start = clips[0]["startTime"] if clips else 0
    return [
        None,
        "not a clip",
        17,
        [],
        {"id": "text-start", "startTime": "yesterday", "duration": 1000},
        {"id": "bool-start", "startTime": True, "duration": 1000},
        {"id": "null-start", "startTime": None, "duration": 1000},
        {"id": "dict-start", "startTime": {}, "duration": 1000},
        {"id": "negative-start", "startTime": -(10**15), "duration": 1000},
        {"id": "year-60000", "startTime": 1_831_000_000_000_000, "duration": 1000},
        {"id": "huge-start", "startTime": 1e300, "duration": 1000},
        {"id": "", "startTime": start, "duration": 1000},
        {"id": ["list"], "startTime": start, "duration": 1000},
        {"id": "negative-duration", "startTime": start, "duration": -5000, "resources": None},
        {"id": "text-duration", "startTime": start, "duration": "long", "resources": "none"},
        {"id": "huge-duration", "startTime": start, "duration": 1e300, "detectionClasses": 5},
    ]
