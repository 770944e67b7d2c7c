"""Which clip becomes which file of a restored folder.

    Front Door/2026-03-01_17-20-05Z.mp4             a folder for each camera, names in UTC
    Front Door/2026-03-01_17-20-05Z_1a2b3c4d.mp4    another clip of the same second
    Front Door 5e6f7a8b/…                           another camera of the same name

Pure. The same clips always get the same names, and sorting names sorts clips by their start. It
must never give two clips the same name, whatever a file system thinks of upper and lower case.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from nvr_backup.footage import Holding
from nvr_backup.keys import safe_name
from nvr_backup.metadata import kept_id
from nvr_backup.model import Camera

LONGEST_FOLDER: Final = 120
"""Bytes of a camera's folder name; a joined file's name has more beside it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A clip, and the folder and file that it becomes."""

    holding: Holding
    folder: str
    file: str

    @property
    def path(self) -> str:
        """The file below the folder that is restored into."""
        return f"{self.folder}/{self.file}"

    @property
    def size(self) -> int:
        """Bytes, as far as is known before they came."""
        return self.holding.places[0].size


def plain_name(start: datetime) -> str:
    """A clip's file name without extension: in UTC, so that names sort as clips began, always."""
    moment = start.astimezone(UTC)
    return f"{moment.year:04d}-{moment:%m-%d_%H-%M-%S}Z"


def lay_out(holdings: Sequence[Holding]) -> list[Target]:
    """Every clip with its file, in the order of the clips."""
    folders = _folders(holdings)
    by_name: dict[tuple[str, str], list[tuple[int, Holding]]] = defaultdict(list)
    for at, one in enumerate(holdings):
        name = plain_name(one.clip.start) + _extension(one.places[0].key)
        by_name[folders[_camera(one.clip.camera)], name].append((at, one))
    found: dict[int, Target] = {}
    for (folder, name), alike in by_name.items():
        alike.sort(key=lambda pair: _rank(pair[1]))
        for number, (at, one) in enumerate(alike):
            stem, dot, extension = name.rpartition(".")
            mark = f"_{_digest(*_identity(one))}" if number else ""
            found[at] = Target(one, folder, f"{stem}{mark}{dot}{extension}")
    return [found[at] for at in range(len(holdings))]


def _folders(holdings: Sequence[Holding]) -> dict[tuple[str, ...], str]:
    """A folder for each camera: its latest name; where two share one, with a mark of their own."""
    latest: dict[tuple[str, ...], Camera] = {}
    for one in holdings:  # ordered by start
        latest[_camera(one.clip.camera)] = one.clip.camera
    labels = {
        key: safe_name(camera.name, limit=LONGEST_FOLDER) or f"camera {_digest(*key)}"
        for key, camera in latest.items()
    }
    sharing: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for key, label in labels.items():
        if latest[key].id:  # one that only keys tell of joins the camera of its name
            sharing[label.casefold()].append(key)
    for alike in sharing.values():
        if len(alike) > 1:
            labels.update({key: f"{labels[key]} {_digest(*key)}" for key in alike})
    spelled: dict[str, str] = {}  # a folder has one spelling, also where case does not count
    return {key: spelled.setdefault(label.casefold(), label) for key, label in labels.items()}


def _extension(key: str) -> str:
    found = re.search(r"\.[a-z0-9]{1,7}\Z", key)
    return found[0] if found else ".mp4"


def _camera(camera: Camera) -> tuple[str, ...]:
    if camera.id:
        return (camera.source, kept_id(camera.id))
    return (camera.name.casefold(),)


def _rank(one: Holding) -> tuple[float, tuple[str, ...]]:
    """The longest of several versions has the plain name."""
    clip = one.clip
    length = 0.0 if clip.end is None else (clip.end - clip.start).total_seconds()
    return (-length, _identity(one))


def _identity(one: Holding) -> tuple[str, ...]:
    """What no other clip has, wherever it was found."""
    clip = one.clip
    end = "" if clip.end is None else clip.end.isoformat()
    camera = (clip.camera.source, kept_id(clip.camera.id) or clip.camera.name)
    return (*camera, kept_id(clip.id), clip.start.isoformat(), end)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()[:8]
