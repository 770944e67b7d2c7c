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

from nvr_backup.model import Clip

LONGEST_VALUE: Final = 1024
"""Bytes of UTF-8 in one value; a longer clip id is replaced by its SHA-256."""

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


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bounded(text: str) -> str:
    # Lone surrogates can come out of JSON and cannot be encoded: they are replaced.
    data = text.encode("utf-8", "replace")
    if len(data) <= LONGEST_VALUE:
        return data.decode("utf-8")
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
