"""The words an object carries about its clip: enough to know it again without a checkpoint.

Keys and values are text of bounded length (Google Cloud Storage allows 8 KiB for all of an
object's custom metadata). Secrets and addresses never belong here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from nvr_backup.model import Camera, Clip

LONGEST_VALUE: Final = 1024
"""Bytes of UTF-8 in one value; a longer clip id is replaced by its SHA-256."""

_HASHED: Final = "sha256:"

IDENTITY: Final = ("source", "camera-id", "clip-id", "start", "end")
"""The fields that make two objects the same clip; the camera's name may have changed since."""


def describe(clip: Clip) -> dict[str, str]:
    """The metadata of a clip's object; times in ISO 8601, UTC, with milliseconds."""
    return {
        "source": clip.camera.source,
        "camera-id": _bounded(clip.camera.id),
        "camera-name": _bounded(clip.camera.name),
        "clip-id": _bounded(clip.id),
        "start": _time(clip.start),
        "end": _time(clip.end) if clip.end is not None else "",
        "classes": _bounded(json.dumps(clip.classes, ensure_ascii=False)),
    }


def names_same_clip(metadata: Mapping[str, str], clip: Clip) -> bool:
    """Whether an object with this metadata was made from this very version of the clip."""
    ours = describe(clip)
    return all(metadata.get(field) == ours[field] for field in IDENTITY)


def clip_of(metadata: Mapping[str, str]) -> Clip | None:
    """The clip that an object with this metadata was made from; None when it does not say.

    An id that was too long to be kept is its SHA-256 here too: such a clip id still serves, because
    a clip is known again by its start and end; a camera without its id is nobody's.
    """
    try:
        source, camera_id = metadata["source"], metadata["camera-id"]
        if not source or not camera_id or camera_id.startswith(_HASHED):
            return None
        return Clip(
            Camera(source, camera_id, metadata["camera-name"]),
            metadata["clip-id"],
            _moment(metadata["start"]),
            _moment(metadata["end"]) if metadata["end"] else None,
            _classes(metadata.get("classes", "")),
        )
    except (KeyError, ValueError, OverflowError):
        return None


def _classes(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()  # none, or too many to be kept
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _moment(text: str) -> datetime:
    """ValueError for anything but a time in UTC."""
    return datetime.fromisoformat(text)


def kept_id(text: str) -> str:
    """An id as an object's metadata has it."""
    return _bounded(text)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bounded(text: str) -> str:
    # Lone surrogates can come out of JSON and cannot be encoded: they are replaced.
    data = text.encode("utf-8", "replace")
    if len(data) <= LONGEST_VALUE:
        return data.decode("utf-8")
    return f"{_HASHED}{hashlib.sha256(data).hexdigest()}"
