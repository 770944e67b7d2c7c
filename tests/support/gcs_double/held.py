"""What the storage double holds: objects, and upload sessions with their persisted bytes.

Bytes are kept as the pieces in which they arrived, or (`digest`) only as size and checksums, so
that clips of many GiB cost no memory. Checksums are computed here, from the bytes received, never
taken from the client.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, Self
from urllib.parse import quote

import google_crc32c

QUANTUM = 256 * 1024
"""Chunks that do not end the object are multiples of this, and so is what Google persists."""

Keep = Literal["all", "digest"]


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Self: ...


def crc32c_text(value: int) -> str:
    """CRC32C as Google writes it: base64 of the big-endian 4 bytes."""
    return base64.b64encode(struct.pack(">I", value)).decode()


@dataclass(slots=True)
class Bytes:
    """Received bytes: their number, checksums and, unless only digests are kept, the pieces."""

    pieces: list[bytes] | None
    size: int = 0
    crc32c: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def new(cls, keep: Keep) -> Bytes:
        return cls([] if keep == "all" else None)

    @classmethod
    def of(cls, data: bytes, keep: Keep) -> Bytes:
        new = cls.new(keep)
        new.add(data)
        return new

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.crc32c = google_crc32c.extend(self.crc32c, piece)
        self.sha256.update(piece)
        if self.pieces is not None:
            self.pieces.append(piece)

    def branch(self) -> Bytes:
        """A continuation that can be thrown away: same checksums so far, no pieces of its own."""
        pieces: list[bytes] | None = None if self.pieces is None else []
        return Bytes(pieces, self.size, self.crc32c, self.sha256.copy())

    def adopt(self, branch: Bytes) -> None:
        """Make a continuation of exactly these bytes part of them."""
        self.size, self.crc32c, self.sha256 = branch.size, branch.crc32c, branch.sha256
        if self.pieces is not None and branch.pieces is not None:
            self.pieces.extend(branch.pieces)

    def cut(self, size: int) -> None:
        """Forget what is beyond `size` (only where the bytes are kept, or for 0)."""
        if size >= self.size:
            return
        if self.pieces is None and size:
            raise ValueError("digests cannot be cut: use keep='all'")
        data = b"".join(self.pieces or [])[:size]
        fresh = Bytes.of(data, "digest" if self.pieces is None else "all")
        self.pieces, self.size = fresh.pieces, fresh.size
        self.crc32c, self.sha256 = fresh.crc32c, fresh.sha256


class Incoming:
    """The bytes of one request on top of what a session has; remembers the last 256 KiB mark.

    `skip` bytes are already persisted and ignored; after `limit` bytes nothing more is taken.
    """

    def __init__(self, base: Bytes, *, skip: int = 0, limit: int | None = None) -> None:
        self.base_size = base.size
        self.taken = base.branch()
        self._mark = base.branch()
        self._mark_pieces = 0
        self._skip = skip
        self._limit = limit

    def add(self, piece: bytes) -> None:
        if self._skip:
            dropped = min(self._skip, len(piece))
            self._skip -= dropped
            piece = piece[dropped:]
        if self._limit is not None:
            piece = piece[: self._limit]
            self._limit -= len(piece)
        while piece:
            room = QUANTUM - self.taken.size % QUANTUM
            part, piece = piece[:room], piece[room:]
            self.taken.add(part)
            if len(part) == room:
                self._set_mark()

    def _set_mark(self) -> None:
        self._mark.size, self._mark.crc32c = self.taken.size, self.taken.crc32c
        self._mark.sha256 = self.taken.sha256.copy()
        self._mark_pieces = len(self.taken.pieces or ())

    def aligned(self) -> Bytes:
        """The bytes up to the last multiple of 256 KiB (at least those of the session)."""
        if self.taken.pieces is not None:
            self._mark.pieces = self.taken.pieces[: self._mark_pieces]
        return self._mark


@dataclass(slots=True)
class Held:
    """An object in a bucket."""

    bucket: str
    name: str
    generation: int
    content: Bytes
    content_type: str
    metadata: dict[str, str]
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    reported: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.content.size

    @property
    def crc32c(self) -> int:
        """Computed from the bytes that arrived."""
        return self.content.crc32c

    @property
    def sha256(self) -> str:
        """Hex; computed from the bytes that arrived."""
        return str(self.content.sha256.hexdigest())

    @property
    def data(self) -> bytes:
        if self.content.pieces is None:
            raise ValueError("this double keeps digests only: compare sha256")
        return b"".join(self.content.pieces)

    def harm(self, at: int) -> None:
        """Another byte `at` this place, while size, checksum and generation are told as before."""
        told = crc32c_text(self.crc32c)
        data = bytearray(self.data)
        data[at] ^= 0xFF
        self.content = Bytes.of(bytes(data), "all")
        self.reported.setdefault("crc32c", told)

    def resource(self, base_url: str) -> dict[str, Any]:
        """The object as the JSON API describes it."""
        when = self.created.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        link = f"/b/{self.bucket}/o/{quote(self.name, safe='')}"
        resource: dict[str, Any] = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": f"{base_url}/storage/v1{link}",
            "mediaLink": f"{base_url}/download/storage/v1{link}"
            f"?generation={self.generation}&alt=media",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(self.size),
            "crc32c": crc32c_text(self.crc32c),
            "etag": base64.b64encode(str(self.generation).encode()).decode(),
            "timeCreated": when,
            "updated": when,
            "timeStorageClassUpdated": when,
        }
        if self.metadata:
            resource["metadata"] = dict(self.metadata)
        resource.update(self.reported)
        return resource


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for when it creates an object."""

    bucket: str
    name: str
    content_type: str
    metadata: dict[str, str]
    if_generation_match: int | None = None
    crc32c: str | None = None
    md5: str | None = None
    may_overwrite: bool = True
    who: str = "anonymous"


@dataclass(slots=True)
class Session:
    """A resumable upload. `lost` is the status a dead session answers with."""

    id: str = field(repr=False)
    number: int
    wanted: Wanted
    content: Bytes
    total: int | None = None
    done: Held | None = None
    lost: int | None = None
