"""From what a plugin lists to clips: pure, and distrustful of every field.

Plugins honour a window as they like, and mixins merge several sources, so everything is filtered,
deduplicated and ordered here. A clip with unusable fields is left out and counted; nothing that
could be a clip of the window may be dropped because it looks unusual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from nvr_backup.model import Camera, Clip, Window, from_ms
from nvr_backup.sources.scrypted.devices import is_text

LONGEST_QUERY: Final = timedelta(hours=6)
"""What is asked for in one call: 20,000 clips a day are then some 2 MB."""

MARGIN: Final = timedelta(minutes=30)
"""Asked for on both sides: some plugins list only clips that lie, or start, inside the window."""

LONGEST_CLIP: Final = timedelta(days=30)
LONGEST_ID: Final = 4096
LONGEST_URL: Final = 16_384
MOST_CLASSES: Final = 64
LATEST_MS: Final = 253_402_300_799_000
"""The end of the year 9999."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A listed clip with what fetches it: `fetch_id`, and `href` where the plugin gives one.

    An href may be signed, so it stays out of the repr and is never kept for longer than minutes.
    """

    clip: Clip
    fetch_id: str | int
    href: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """What one call listed: usable entries, oldest first, and how many were left out."""

    entries: tuple[Entry, ...]
    left_out: int


_Identity = tuple[str, datetime]


def _identity(clip: Clip) -> _Identity:
    return clip.id, clip.start


def read(raw: Sequence[Any], camera: Camera) -> Listing:
    """Every usable entry of an answer, each once, oldest start first.

    Only id and start together say that two entries are one clip: the sources a mixin merges may
    number their clips alike.
    """
    found: dict[_Identity, Entry] = {}
    left_out = 0
    for item in raw:
        entry = _entry(item, camera)
        if entry is None:
            left_out += 1
            continue
        known = found.get(_identity(entry.clip))
        if known is None or _known_until(known.clip) < _known_until(entry.clip):
            found[_identity(entry.clip)] = entry
    ordered = sorted(found.values(), key=lambda entry: entry.clip.start)
    return Listing(tuple(ordered), left_out)


def _entry(item: Any, camera: Camera) -> Entry | None:
    if not isinstance(item, dict):
        return None
    id_ = _id(item.get("id"))
    start_ms = _whole(item.get("startTime"))
    if id_ is None or start_ms is None or not 0 <= start_ms <= LATEST_MS:
        return None
    start = from_ms(start_ms)
    clip = Clip(camera, str(id_), start, _end(start, item.get("duration")), _classes(item))
    fetch_id = _id(item.get("videoId"))
    return Entry(clip, id_ if fetch_id is None else fetch_id, _href(item))


def _id(value: Any) -> str | int | None:
    """An id as the plugin gave it; a number is one, too."""
    if isinstance(value, str) and 0 < len(value) <= LONGEST_ID:
        return value if is_text(value) else None
    return value if type(value) is int and abs(value) < 1 << 63 else None


def _whole(value: Any) -> int | None:
    """A wire number as an int; None for anything else, NaN and infinities included."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, float) and math.isfinite(value) else None


def _end(start: datetime, duration: Any) -> datetime | None:
    """None when the plugin does not say, or says what no clip can be (0 is a clip just begun)."""
    duration_ms = _whole(duration)
    if duration_ms is None or not 0 < duration_ms <= LONGEST_CLIP // timedelta(milliseconds=1):
        return None
    try:
        return start + timedelta(milliseconds=duration_ms)
    except OverflowError:
        return None


def _classes(item: dict[str, Any]) -> tuple[str, ...]:
    value = item.get("detectionClasses")
    if not isinstance(value, list):
        return ()
    texts = (c for c in value[:MOST_CLASSES] if isinstance(c, str) and c and is_text(c))
    return tuple(text[:LONGEST_ID] for text in texts)


def _href(item: dict[str, Any]) -> str | None:
    value: Any = item
    for name in ("resources", "video", "href"):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_URL else None


def _known_until(clip: Clip) -> datetime:
    return clip.start if clip.end is None else clip.end


def touches(clip: Clip, window: Window) -> bool:
    """Whether the clip's stretch touches the window; without an end, its start must lie in it."""
    if not clip.start < window.end:
        return False
    return clip.start >= window.start or (clip.end is not None and clip.end > window.start)


def parts(window: Window) -> Iterator[Window]:
    """The window in parts that can be asked for, margins included, within LONGEST_QUERY."""
    return window.split(LONGEST_QUERY - 2 * MARGIN)


def with_margin(window: Window) -> Window:
    """The stretch to ask a plugin for, so that straddling clips are listed by all of them."""
    return Window(
        max(window.start, from_ms(0) + MARGIN) - MARGIN,
        min(window.end, from_ms(LATEST_MS) - MARGIN) + MARGIN,
    )


class Seam:
    """Joins the parts of one listing: a clip across their border comes once.

    A clip that grows may come back under another id with the same start; the first one stands.
    What is remembered is only what reaches a border, so memory does not grow with the listing.
    """

    def __init__(self) -> None:
        self._carried: list[Clip] = []

    def take(self, part: Window, listing: Listing) -> list[Entry]:
        """The entries of this part that no earlier part had."""
        touching = [entry for entry in listing.entries if touches(entry.clip, part)]
        now = {_identity(entry.clip) for entry in touching}
        carried = {_identity(clip) for clip in self._carried}
        renamed = {clip.start for clip in self._carried if _identity(clip) not in now}
        border = part.end - MARGIN
        candidates = [entry.clip for entry in touching] + self._carried
        self._carried = [c for c in candidates if c.end is None or c.end > border]
        return [
            entry
            for entry in touching
            if _identity(entry.clip) not in carried
            and not (entry.clip.start < part.start and entry.clip.start in renamed)
        ]


def match(clip: Clip, entries: Sequence[Entry]) -> Entry | None:
    """The entry that is `clip` now: by id and start, else by id, else the longest of its start.

    An id may change while a clip grows; a later end is still the same clip.
    """
    by_id = [entry for entry in entries if entry.clip.id == clip.id]
    by_start = [entry for entry in entries if entry.clip.start == clip.start]
    both = [entry for entry in by_id if entry.clip.start == clip.start]
    found = both or by_id or by_start
    return max(found, key=lambda entry: _known_until(entry.clip)) if found else None
