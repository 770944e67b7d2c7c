"""The bytes of simulated clips: deterministic, of any size, readable from any offset.

A clip's content is a row of parts, each either literal bytes or a stretch of one endless pattern,
so a clip of many gigabytes costs neither disk nor memory and next to no time. The pattern's
period is a prime number of bytes: chunks swapped, lost or sent twice never happen to look right.
It must never depend on the time or on anything but its arguments.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Final

import google_crc32c

from nvr_backup.simulator.settings import Content

LONGEST_PIECE: Final = 256 * 1024
"""Upper limit of a piece in bytes."""

PERIOD: Final = 262_139
"""Length of the pattern in bytes; prime, so that it never lines up with anyone's chunks."""

SMALLEST_SYNTHETIC: Final = 512
"""A synthetic clip has at least so many bytes."""

_TYPES: Final = {
    "sample": ("video/mp4", "mp4"),
    "synthetic": ("video/mp4", "mp4"),
    "webm": ("video/webm", "webm"),
    "ts": ("video/mp2t", "ts"),
}


@lru_cache(maxsize=1)
def _pattern() -> memoryview:
    once = hashlib.shake_256(b"the pattern of simulated clips").digest(PERIOD)
    return memoryview(once + once + once[: LONGEST_PIECE - PERIOD + 1])


@lru_cache(maxsize=3)
def sample(name: str) -> bytes:
    """A shipped sample by its file ending: mp4, webm or ts."""
    return (resources.files("nvr_backup.simulator") / "data" / f"sample.{name}").read_bytes()


def file_ending(kind: Content) -> str:
    """The usual ending of a file of this kind, without the dot."""
    return _TYPES[kind][1]


@dataclass(frozen=True, slots=True)
class _Filler:
    length: int
    phase: int


@dataclass(frozen=True, slots=True)
class Digest:
    """Size in bytes, SHA-256 (hex) and CRC32C of some bytes."""

    size: int
    sha256: str
    crc32c: int


@dataclass(frozen=True, slots=True)
class ClipContent:
    """All bytes of one clip."""

    parts: tuple[bytes | _Filler, ...]
    size: int
    content_type: str

    def pieces(
        self, start: int = 0, stop: int | None = None, longest: int = LONGEST_PIECE
    ) -> Iterator[memoryview]:
        """The bytes [start, stop) as views of ready-made memory, none longer than `longest`."""
        stop = self.size if stop is None else min(stop, self.size)
        longest = min(longest, LONGEST_PIECE)
        base = 0
        for part in self.parts:
            length = part.length if isinstance(part, _Filler) else len(part)
            at, end = max(start - base, 0), min(stop - base, length)
            while at < end:
                take = min(longest, end - at)
                if isinstance(part, _Filler):
                    phase = (part.phase + at) % PERIOD
                    yield _pattern()[phase : phase + take]
                else:
                    yield memoryview(part)[at : at + take]
                at += take
            base += length

    def digest(self, start: int = 0, stop: int | None = None) -> Digest:
        """Size and checksums of [start, stop); reads every byte."""
        sha, crc, size = hashlib.sha256(), 0, 0
        for piece in self.pieces(start, stop):
            sha.update(piece)
            crc = google_crc32c.extend(crc, bytes(piece))
            size += len(piece)
        return Digest(size, sha.hexdigest(), crc)

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes [start, stop) in one; only for small clips."""
        return b"".join(self.pieces(start, stop))


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def _moov() -> bytes:
    matrix = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    mvhd = struct.pack(">IIIII", 0, 0, 0, 1000, 10_000)
    mvhd += struct.pack(">IHHII", 0x10000, 0x0100, 0, 0, 0) + matrix + bytes(24)
    return _box(b"moov", _box(b"mvhd", mvhd + struct.pack(">I", 1)))


def _content(kind: Content, *parts: bytes | _Filler) -> ClipContent:
    size = sum(p.length if isinstance(p, _Filler) else len(p) for p in parts)
    return ClipContent(tuple(parts), size, _TYPES[kind][0])


def _synthetic(size: int, mark: bytes, phase: int) -> ClipContent:
    brands = struct.pack(">4sI", b"isom", 0x200) + b"isomiso2mp41"
    head = _box(b"ftyp", brands) + _box(b"free", mark)
    tail = _moov()
    filler = size - len(head) - 16 - len(tail)
    head += struct.pack(">I4sQ", 1, b"mdat", 16 + filler)
    return _content("synthetic", head, _Filler(filler, phase), tail)


def _padded_sample(size: int | None, mark: bytes, phase: int) -> ClipContent:
    video = sample("mp4")
    if size is None:
        return _content("sample", video, _box(b"free", mark))
    filler = size - len(video) - 16 - len(mark)
    head = struct.pack(">I4sQ", 1, b"free", 16 + len(mark) + filler) + mark
    return _content("sample", video, head, _Filler(filler, phase))


def _transport_stream(mark: bytes) -> ClipContent:
    stuffing = b"\x47\x1f\xff\x10" + mark
    return _content("ts", sample("ts"), stuffing + b"\xff" * (188 - len(stuffing)))


def check_size(kind: Content, size: int | None) -> None:
    """ValueError when there can be no clip of this kind and size (bytes)."""
    least = {"synthetic": SMALLEST_SYNTHETIC, "sample": len(sample("mp4")) + 80}.get(kind, 0)
    if kind == "synthetic" and size is None:
        size = 0
    if size is not None and size < least:
        raise ValueError(f"a {kind} clip has at least {least} bytes, not {size}")


def clip_content(identity: str, kind: Content, size: int | None = None) -> ClipContent:
    """The content of the clip called `identity`, different for every identity.

    `size` in bytes is exact for "sample" (the rest is a `free` box: it stays playable) and
    "synthetic" (which needs one, ValueError below `SMALLEST_SYNTHETIC`); the others have a fixed
    size of their own.
    """
    check_size(kind, size)
    mark = hashlib.sha256(identity.encode()).hexdigest().encode()
    phase = int(mark[:8], 16) % PERIOD
    if kind == "sample":
        return _padded_sample(size, mark, phase)
    if kind == "webm":  # an EBML Void element
        return _content("webm", sample("webm"), b"\xec" + bytes([0x80 | len(mark)]) + mark)
    if kind == "ts":  # a packet of the null PID
        return _transport_stream(mark)
    return _synthetic(size or 0, mark, phase)
