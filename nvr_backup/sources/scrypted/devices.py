"""Which of the NVR's devices are cameras, and which device a camera is at this moment.

Pure functions on the live mirror of the system's state, which comes from the server and may hold
anything. They must never let a rename or a re-added device change a camera's identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from nvr_backup.model import Camera
from nvr_backup.sources.scrypted.settings import ScryptedSettings

CLIPS_INTERFACE: Final = "VideoClips"
LONGEST_NAME: Final = 500

State = Mapping[str, Mapping[str, Any]]


def _value(device: Mapping[str, Any], name: str) -> Any:
    """A property's value; unset properties are absent or `{}`."""
    held = device.get(name)
    return held.get("value") if isinstance(held, dict) else None


def _text(device: Mapping[str, Any], name: str) -> str:
    value = _value(device, name)
    text = value[:LONGEST_NAME] if isinstance(value, str) else ""
    return text if is_text(text) else text.encode("utf-8", "replace").decode()


def is_text(value: str) -> bool:
    """Whether it can be written down at all: lone surrogates, which JSON lets through, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_clips(device: Mapping[str, Any]) -> bool:
    """Whether clips can be asked of a device now (a plugin that starts takes this away)."""
    interfaces = _value(device, "interfaces")
    return isinstance(interfaces, list) and CLIPS_INTERFACE in interfaces


def stable_ids(state: State) -> dict[str, str]:
    """Every device's stable id → its current device id.

    A device removed and added again gets a new device id but keeps plugin id and nativeId, so
    these identify it. Where the server lacks one of them, or two devices share both, the device
    id itself stands in.
    """
    wanted = {id_: _plugin_and_native(device) or id_ for id_, device in state.items()}
    times = Counter(wanted.values())
    return {(want if times[want] == 1 else id_): id_ for id_, want in wanted.items()}


def _plugin_and_native(device: Mapping[str, Any]) -> str:
    plugin, native = _text(device, "pluginId"), _text(device, "nativeId")
    return f"{plugin}:{native}" if plugin and native else ""


def cameras(state: State, settings: ScryptedSettings) -> list[Camera]:
    """The cameras the operator wants, ordered by name and id."""
    found = []
    for stable, device_id in stable_ids(state).items():
        device = state[device_id]
        if not has_clips(device) or not is_text(stable):
            continue
        name = _text(device, "name") or stable
        if _wanted(settings, name, stable, device_id):
            found.append(Camera(settings.name, stable, name))
    return sorted(found, key=lambda camera: (camera.name, camera.id))


def _wanted(settings: ScryptedSettings, *labels: str) -> bool:
    folded = [label.casefold() for label in labels]

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(label, p.casefold()) for label in folded for p in patterns)

    return matches(settings.include) and not matches(settings.exclude)
