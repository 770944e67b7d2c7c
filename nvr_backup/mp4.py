"""The content check: is this stream of bytes a whole video, as far as its outermost boxes can tell?

An error page, an empty body or a clip that was cut off must never become a stored clip. This module
walks the outermost structure of MP4/QuickTime (ISO 14496-12), Matroska/WebM (RFC 8794, RFC 9559)
and MPEG transport streams (ISO 13818-1, and its 192-byte variant) while the bytes pass by. It reads
box headers and skips payloads without looking at them, so memory is constant and the cost is per
piece, not per byte. It must never hold payload, judge what is inside a box, or let its verdict
depend on how the bytes were cut into pieces.

What it cannot see: a fragmented MP4 that lost whole fragments at its end (every fragment is
complete in itself); bytes missing from a last box that runs "to the end of the file" (size 0); a
transport stream that lost whole packets; damage within a payload. The source's own size is for
those, where it states one.

Zeros after a complete file are accepted (recorders that reserve their files in advance leave
them); anything else behind the last box is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from nvr_backup.errors import StartOver, Suspect


@dataclass(frozen=True, slots=True)
class Container:
    """A file format for video: its name, its file name extension (with dot) and media type."""

    name: str
    extension: str
    content_type: str


MP4: Final = Container("MP4", ".mp4", "video/mp4")
QUICKTIME: Final = Container("QuickTime", ".mov", "video/quicktime")
MATROSKA: Final = Container("Matroska", ".mkv", "video/x-matroska")
WEBM: Final = Container("WebM", ".webm", "video/webm")
MPEG_TS: Final = Container("MPEG-TS", ".ts", "video/mp2t")
M2TS: Final = Container("M2TS", ".m2ts", "video/mp2t")

_CONTAINERS: Final = {c.name: c for c in (MP4, QUICKTIME, MATROSKA, WEBM, MPEG_TS, M2TS)}
_ISO: Final = (MP4, QUICKTIME)
_PACKET: Final = {MPEG_TS: 188, M2TS: 192}

STATE_VERSION: Final = 1
_PLAIN_FIELDS: Final = ("_offset", "_skip", "_want", "_box", "_box_start", "_box_size", "_padding")
"""The inspector's fields that a state holds just as they are."""
_ENDLESS: Final = 1 << 63
"""Stands for the rest of the body where a box says that it runs to the end."""

_MP4_FIRST: Final = frozenset({b"ftyp", b"styp", b"moof", b"sidx"})
_QUICKTIME_FIRST: Final = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_PRINTABLE: Final = frozenset(range(0x20, 0x7F)) | {0xA9}
"""Bytes of a box type; 0xA9 is the © of QuickTime's own types."""

_EBML_MAGIC: Final = b"\x1a\x45\xdf\xa3"
_LONGEST_EBML_HEADER: Final = 512
_DOC_TYPES: Final = {b"matroska": MATROSKA, b"webm": WEBM}
_ELEMENTS: Final = {
    _EBML_MAGIC: "EBML",
    b"\x18\x53\x80\x67": "Segment",
    b"\x16\x54\xae\x6b": "Tracks",
    b"\x1f\x43\xb6\x75": "Cluster",
    b"\x42\x82": "DocType",
}

_SYNC: Final = 0x47
_SYNC_STRIDE: Final = 256
"""A transport stream's sync byte is looked at once in so many packets, at positions counted from
byte 0, so that the verdict does not depend on the pieces."""

_FIRST_LOOK: Final = 12
"""Bytes that tell MP4, QuickTime and Matroska: a box's size and type, and the brand."""
_SECOND_LOOK: Final = 2 * 192 + 8
"""Bytes that hold three packet headers of a transport stream; also the most a text is judged by."""

_AGAIN: Final = "The source may be restarting or still writing this clip; it is tried again."
_WRONG: Final = "The source sent something else than the clip; look at its own log. It is retried."


@dataclass(frozen=True, slots=True)
class _Box:
    """A header that was read: `size` counts header and payload; None runs to the end."""

    kind: str
    header: int
    size: int | None


class ClipInspector:
    """Walks a clip's bytes in order; implements `chunks.Inspector`.

    `state` is what an earlier inspector's `state()` returned ("" for the clip's beginning); the new
    one continues exactly there. Raises StartOver for a state that another version wrote. After a
    Suspect the inspector is of no further use. `state()` stays under 2 KB.
    """

    def __init__(self, state: str = "") -> None:
        self._container: Container | None = None
        self._offset = 0  # bytes fed so far
        self._skip = 0  # bytes until the next header
        self._head = b""  # what has been gathered of the header we are in
        self._want = _FIRST_LOOK  # bytes of it that are needed to go on
        self._box = ""  # the box we are in, for messages
        self._box_start = 0
        self._box_size: int | None = 0
        self._seen: set[str] = set()  # which of the boxes that matter have begun
        self._padding = False
        if state:
            self._restore(state)

    @property
    def container(self) -> Container | None:
        """The file format, None until enough bytes were seen.

        Needs 12 bytes of an MP4 or QuickTime file, the EBML header (about 40 bytes) of Matroska and
        392 bytes of a transport stream. Never None once `finish` has returned.
        """
        return self._container

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes; raises Suspect as soon as they cannot be a whole video's."""
        length = len(piece)
        if length <= self._skip:  # nearly every piece of a long clip is all payload
            self._skip -= length
            self._offset += length
            return
        at = 0
        while at < length and not self._padding:
            if self._skip:
                step = min(self._skip, length - at)
                self._skip -= step
            else:
                step = min(self._want - len(self._head), length - at)
                self._head += piece[at : at + step]
            self._offset += step
            at += step
            if len(self._head) >= self._want:
                self._look()
        if at < length:
            self._expect_zeros(piece[at:])

    def state(self) -> str:
        """What `ClipInspector(state)` needs to continue after the bytes fed so far: short JSON."""
        name = self._container.name if self._container else ""
        rest = [getattr(self, field) for field in _PLAIN_FIELDS]
        whole = [STATE_VERSION, name, self._head.hex(), sorted(self._seen), *rest]
        return json.dumps(whole, separators=(",", ":"))

    def finish(self) -> None:
        """The bytes have ended; raises Suspect unless they were a whole video."""
        container = self._container
        if container is None:
            raise self._unknown()
        if container in _PACKET:
            self._finish_packets(_PACKET[container])
            return
        if self._skip and self._box_size is not None:
            also = self._missing()
            raise Suspect(
                f"{container.name} cut off: '{self._box}' at byte {self._box_start} has"
                f" {self._box_size} bytes, but the clip ends after {self._offset}"
                f"{f' ({also})' if also else ''}.",
                hint=_AGAIN,
            )
        if self._head.strip(b"\0"):
            raise Suspect(
                f"{container.name} cut off: the clip ends after {self._offset} bytes, within the"
                f" header of the box at byte {self._offset - len(self._head)}.",
                hint=_AGAIN,
            )
        if missing := self._missing():
            raise Suspect(
                f"{container.name} incomplete: the clip ends after {self._offset} bytes,"
                f" but {missing}.",
                hint=_AGAIN,
            )

    def _look(self) -> None:
        """The wanted bytes are there: tell the format, or enter the box whose header they are."""
        container = self._container
        if container is None:
            found = self._tell()
            if isinstance(found, int):
                self._want = found
                return
            self._container = found
            head, self._head, self._offset = self._head, b"", 0
            self._want = _first_want(found)
            self.feed(head)  # walk from byte 0, now that the format is known
            return
        at = self._offset - len(self._head)
        if container in _PACKET:
            box = _packets(self._head, at, _PACKET[container])
        elif not self._head.strip(b"\0"):
            self._begin_padding(at)
            return
        else:
            read = (_iso_box if container in _ISO else _ebml_element)(self._head, at)
            if isinstance(read, int):
                self._want = read
                return
            box = read
        self._enter(box, at)

    def _enter(self, box: _Box, at: int) -> None:
        size, kind = box.size, box.kind
        if kind in {"moov", "moof", "mdat", "imda", "Segment", "Tracks", "Cluster"}:
            self._seen.add("mdat" if kind == "imda" else kind)
        if kind in {"mdat", "imda"}:
            self._seen.discard("moof")  # the fragment that began has its data
        if kind == "Segment" and size is not None:
            self._seen |= {"Tracks", "Cluster"}  # judged as a whole, by its size
        if size is None and kind in {"Segment", "Cluster"}:
            size = box.header  # written live: walk what is inside
        elif size is None and (missing := self._missing()):
            raise Suspect(
                f"The recording was never finished: '{kind}' at byte {at} runs to the end of the"
                f" clip, but {missing}.",
                hint=_AGAIN,
            )
        if size is not None and size < box.header:
            raise Suspect(f"Damaged: '{kind}' at byte {at} claims {size} bytes.", hint=_AGAIN)
        self._box, self._box_start, self._box_size = kind, at, size
        self._skip = (_ENDLESS if size is None else size) - box.header
        self._head = b""
        if self._container is not None:
            self._want = _first_want(self._container)

    def _missing(self) -> str:
        """What a complete file of this format still lacks, or ""."""
        if self._container in _ISO:
            if "moov" not in self._seen:
                return "moov is missing"
            if "mdat" not in self._seen:
                return "there is no media data (mdat)"
            return "its last fragment has no media data (mdat)" if "moof" in self._seen else ""
        for element in ("Segment", "Tracks", "Cluster"):
            if element not in self._seen:
                return f"{element} is missing"
        return ""

    def _begin_padding(self, at: int) -> None:
        if missing := self._missing():
            raise Suspect(f"Damaged: only zeros at byte {at}, but {missing}.", hint=_AGAIN)
        self._padding = True
        self._head = b""

    def _expect_zeros(self, piece: bytes) -> None:
        rest = piece.lstrip(b"\0")
        if rest:
            at = self._offset + len(piece) - len(rest)
            raise Suspect(f"Damaged: more data at byte {at}, behind zeros.", hint=_AGAIN)
        self._offset += len(piece)

    def _finish_packets(self, packet: int) -> None:
        if excess := self._offset % packet:
            raise Suspect(
                f"Transport stream cut off: the clip ends after {self._offset} bytes, {excess}"
                f" bytes into a packet of {packet}.",
                hint=_AGAIN,
            )

    def _tell(self) -> Container | int:
        """The format by the first bytes, or how many are needed to tell; Suspect if it is none."""
        head = self._head
        kind = head[4:8]
        if kind in _MP4_FIRST:
            return QUICKTIME if kind == b"ftyp" and head[8:12] == b"qt  " else MP4
        if kind in _QUICKTIME_FIRST:
            return QUICKTIME
        if head.startswith(_EBML_MAGIC):
            return _ebml_doc_type(head)
        if len(head) < _SECOND_LOOK:
            return _SECOND_LOOK
        for container, packet in _PACKET.items():
            if all(_is_packet(head[i * packet + packet - 188 :]) for i in range(3)):
                return container
        raise self._unknown()

    def _unknown(self) -> Suspect:
        """Why these first bytes (all there are, or enough to tell) begin no video."""
        head = self._head
        if not head:
            return Suspect("The clip is empty: not a single byte came.", hint=_AGAIN)
        if head[4:8] in _MP4_FIRST | _QUICKTIME_FIRST or head.startswith(_EBML_MAGIC):
            return Suspect(f"The clip is cut off after {len(head)} bytes.", hint=_AGAIN)
        return Suspect(f"Not a video, but {_describe(head)}.", hint=_WRONG)

    def _restore(self, state: str) -> None:
        try:
            version, name, head, seen, *rest = json.loads(state)
            for field, value in zip(_PLAIN_FIELDS, rest, strict=True):
                setattr(self, field, value)
            self._container = _CONTAINERS[name] if name else None
            self._head = bytes.fromhex(head)
            self._seen = set(seen)
        except (ValueError, TypeError, KeyError) as err:
            raise StartOver("The state of the content check cannot be read.") from err
        if version != STATE_VERSION:
            raise StartOver(f"The state of the content check has version {version}.")


def _first_want(container: Container) -> int:
    """Bytes of a header that must be there before anything of it can be told."""
    if container in _ISO:
        return 8
    return 5 if container == M2TS else 1


def _iso_box(head: bytes, at: int) -> _Box | int:
    """The box whose header begins at byte `at` of the clip, or the bytes needed to tell."""
    kind = head[4:8]
    if not _PRINTABLE.issuperset(kind):
        raise Suspect(f"Damaged: no box at byte {at}, but {head[:8].hex(' ')}.", hint=_AGAIN)
    size = int.from_bytes(head[:4])
    if size == 1:
        if len(head) < 16:
            return 16
        return _Box(kind.decode("latin-1"), 16, int.from_bytes(head[8:16]))
    return _Box(kind.decode("latin-1"), 8, size or None)


def _ebml_element(head: bytes, at: int) -> _Box | int:
    """The element whose header begins at byte `at` of the clip, or the bytes needed to tell."""
    id_length = 9 - head[0].bit_length()
    if id_length > 4:
        raise Suspect(f"Damaged: no element at byte {at}, but {head[:1].hex()}.", hint=_AGAIN)
    if len(head) <= id_length:
        return id_length + 1
    size_length = 9 - head[id_length].bit_length()
    if size_length > 8:
        raise Suspect(f"Damaged: the element at byte {at} has no size.", hint=_AGAIN)
    length = id_length + size_length
    if len(head) < length:
        return length
    kind = _ELEMENTS.get(head[:id_length], head[:id_length].hex())
    unknown = (1 << 7 * size_length) - 1
    size = int.from_bytes(head[id_length:length]) & unknown
    if size < unknown:
        return _Box(kind, length, length + size)
    if kind not in {"Segment", "Cluster"}:
        raise Suspect(f"Damaged: '{kind}' at byte {at} has no known size.", hint=_AGAIN)
    return _Box(kind, length, None)


def _ebml_doc_type(head: bytes) -> Container | int:
    """Matroska or WebM by the EBML header at the start of `head`, or the bytes needed to tell."""
    header = _ebml_element(head, 0)
    if isinstance(header, int):
        return header
    if header.size is None or header.size > _LONGEST_EBML_HEADER:
        raise Suspect(f"Damaged: an EBML header of {header.size} bytes.", hint=_AGAIN)
    if len(head) < header.size:
        return header.size
    at = header.header
    while at < header.size:
        child = _ebml_element(head[at : at + 12], at)
        if isinstance(child, int) or child.size is None:
            break
        if child.kind == "DocType":
            value = head[at + child.header : at + child.size].rstrip(b"\0")
            if value in _DOC_TYPES:
                return _DOC_TYPES[value]
        at += child.size
    raise Suspect("Not a video, but an EBML document of another type.", hint=_WRONG)


def _is_packet(head: bytes) -> bool:
    """Whether a transport stream packet begins so: its sync byte, and payload or adaptation."""
    return head[0] == _SYNC and head[3] & 0x30 != 0


def _packets(head: bytes, at: int, packet: int) -> _Box:
    """A stretch of transport stream packets, judged by the sync byte of its first one."""
    if head[-1] != _SYNC:
        raise Suspect(f"Damaged: no sync byte in the packet at byte {at}.", hint=_AGAIN)
    return _Box("packets", len(head), _SYNC_STRIDE * packet)


def _describe(head: bytes) -> str:
    """What a body that is no video looks like. Nothing of it is quoted: it may hold secrets."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, name in (
        (b"<!doctype", "an HTML page"),
        (b"<html", "an HTML page"),
        (b"<", "an XML document"),
        (b"{", "JSON"),
        (b"[", "JSON"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x1f\x8b", "gzip data"),
    ):
        if text.startswith(beginning):
            return name
    if all(byte >= 0x20 or byte in b"\t\r\n" for byte in head):
        return "text"
    return f"data of an unknown kind that begins with {head[:8].hex(' ')}"
