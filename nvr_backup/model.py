"""The values the whole program speaks in: frozen, comparable, with aware UTC times.

Nothing here does I/O. A naive datetime is refused at construction, so no other module has to
wonder which zone a time is in. Milliseconds since the epoch appear only at the edges (wire,
database) through `to_ms` and `from_ms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def to_ms(moment: datetime) -> int:
    """Milliseconds since the epoch (exact, floor)."""
    return (moment - EPOCH) // _MS


def from_ms(ms: int) -> datetime:
    """An aware UTC time from milliseconds since the epoch; OverflowError outside years 1-9999."""
    return EPOCH + ms * _MS


def _require_utc(moment: datetime, what: str) -> None:
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"{what} must be an aware UTC time, not {moment!r}")


def _require_text(text: str, what: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise ValueError(f"{what} is no valid text") from err


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera of a source. `id` survives a rename and, where the source allows, re-adding.

    ValueError for a text that is none (lone surrogates can come out of JSON).
    """

    source: str
    id: str
    name: str

    def __post_init__(self) -> None:
        _require_text(self.id, "Camera.id")
        _require_text(self.name, "Camera.name")


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording as its source lists it: the unit that is backed up.

    `id` is the source's own and opaque (it may be JSON or a path) and may change while the clip
    grows. `end` is None when the source does not say how long the clip is.
    """

    camera: Camera
    id: str
    start: datetime
    end: datetime | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_text(self.id, "Clip.id")
        for name in self.classes:
            _require_text(name, "Clip.classes")
        _require_utc(self.start, "Clip.start")
        if self.end is not None:
            _require_utc(self.end, "Clip.end")
            if self.end < self.start:
                raise ValueError(f"Clip.end {self.end} is before its start {self.start}")


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open stretch of time [start, end)."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        _require_utc(self.start, "Window.start")
        _require_utc(self.end, "Window.end")

    def split(self, longest: timedelta) -> Iterator[Window]:
        """Consecutive windows that cover this one, none longer than `longest`, oldest first."""
        start = self.start
        while start < self.end:
            end = min(start + longest, self.end)
            yield Window(start, end)
            start = end


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as its store describes it. `crc32c` is None where the store keeps none."""

    key: str
    size: int
    crc32c: int | None = None
    generation: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class UploadState:
    """What must survive a crash so that an unfinished upload can go on, or be recognised as done.

    `session` is the store's own handle (a resumable session's URI is a bearer secret: it is never
    logged); it is empty for a clip sent in one request, where the state only says "sent, answer
    unknown". `offset` bytes are confirmed by the store; `crc32c` and `inspection` are the checksum
    and the content check's state after exactly these bytes. `total` and `total_crc32c` are set
    before the finishing request goes out, so that a lost answer can still be verified.
    """

    session: str
    key: str
    content_type: str
    created_at: datetime
    offset: int = 0
    crc32c: int = 0
    inspection: str = ""
    total: int | None = None
    total_crc32c: int | None = None
