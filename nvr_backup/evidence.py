"""A manifest of restored footage: what each file is, where it came from, how it was proven.

Two files: JSON with everything, and the checksums alone as `sha256sum -c` reads them. It must never
name a secret, and never list a file whose bytes were not added up in this very run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from nvr_backup import __version__
from nvr_backup.model import Window
from nvr_backup.restore import Missing, Restored

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """`stores` says what each store is (`gs://bucket/prefix`, a path); `missing` as JSON."""

    made: datetime
    window: Window
    stores: Mapping[str, str]
    restored: Sequence[Restored]
    missing: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The files' name without extension, a new one for each second."""
        return f"manifest-{self.made.astimezone(UTC):%Y%m%dT%H%M%SZ}"

    def pieces(self) -> Iterator[bytes]:
        """The JSON file, a line for each clip."""
        head = {
            "format": FORMAT,
            "made_by": f"nvr-backup {__version__}",
            "made": time(self.made),
            "from": time(self.window.start),
            "to": time(self.window.end),
            "stores": dict(self.stores),
        }
        yield json.dumps(head, indent=1).removesuffix("\n}").encode() + b',\n "clips": ['
        yield from _lines(_entry(one) for one in self._in_order())
        yield b'],\n "missing": ['
        yield from _lines(dict(one) for one in self.missing)
        yield b"]\n}\n"

    def checksums(self) -> Iterator[bytes]:
        """Lines for `sha256sum -c`, to be run in the folder."""
        for one in self._in_order():
            yield f"{one.sha256}  {one.target.path}\n".encode()

    def _in_order(self) -> list[Restored]:
        return sorted(self.restored, key=lambda one: one.target.path)


def missing_entry(one: Missing) -> dict[str, Any]:
    """A clip that could not be restored."""
    clip, place = one.target.holding.clip, one.target.holding.places[0]
    return {
        "source": clip.camera.source,
        "camera": clip.camera.name,
        "start": time(clip.start),
        "store": place.store,
        "key": place.key,
        "file": one.target.path,
        "damaged": one.damaged,
        "reason": one.reason,
        "hint": one.hint,
    }


def time(moment: datetime | None) -> str | None:
    """UTC, milliseconds, `Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _entry(one: Restored) -> dict[str, Any]:
    clip, place = one.target.holding.clip, one.place
    return {
        "file": one.target.path,
        "size": one.size,
        "sha256": one.sha256,
        "crc32c": f"{one.crc32c:08x}",
        "checked_against": place.witness if one.checked else None,
        "source": clip.camera.source,
        "camera": clip.camera.name,
        "camera_id": clip.camera.id or None,
        "clip": clip.id or None,
        "start": time(clip.start),
        "end": time(clip.end),
        "classes": list(clip.classes),
        "store": place.store,
        "key": place.key,
        "generation": place.generation,
    }


def _lines(entries: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    between = b"\n  "
    for entry in entries:
        yield between + json.dumps(entry).encode()
        between = b",\n  "
