"""The wire form of the two ways to create an object: headers, JSON parts, the bodies' frames.

Pure: builds requests, sends none (JSON API: "Resumable uploads", "Multipart upload"). Both ways
are create-only by `ifGenerationMatch=0` in the address (or replace one corrupt generation and no
other) and carry the clip's CRC32C for the server to check.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nvr_backup.chunks import Chunk
from nvr_backup.stores.gcs.body import PiecesBody
from nvr_backup.stores.gcs.replies import crc32c_text

JSON_TYPE: Final = "application/json; charset=UTF-8"
QUANTUM: Final = 256 * 1024
"""Every request of a session but the last carries a multiple of this many bytes."""

QUERY: Final[Mapping[str, str]] = {"Content-Range": "bytes */*"}
"""Headers of the question what a session holds."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the finished object must be: its size in bytes and its CRC32C."""

    total: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class NewObject:
    """The object to be created; `name` is the whole name in the bucket.

    `replaces` is the one generation that may lie there before; "0": nothing may.
    """

    name: str
    content_type: str
    metadata: Mapping[str, str]
    replaces: str = "0"

    def resource(self, **more: str) -> bytes:
        """Its description for the JSON API."""
        fields = {"name": self.name, "contentType": self.content_type}
        return json.dumps({**fields, "metadata": dict(self.metadata), **more}).encode()


def initiation(new: NewObject) -> tuple[dict[str, str], bytes]:
    """Headers and body of the request that opens a session."""
    headers = {"Content-Type": JSON_TYPE, "X-Upload-Content-Type": new.content_type}
    return headers, new.resource()


def part(chunk: Chunk, until: int, ending: Ending | None) -> tuple[dict[str, str], PiecesBody]:
    """Headers and body that send `chunk` up to the offset `until`, the last bytes if `ending`."""
    size = until - chunk.start
    span = f"{chunk.start}-{until - 1}" if size else "*"
    total = "*" if ending is None else str(ending.total)
    headers = {"Content-Range": f"bytes {span}/{total}"}
    if ending is not None:
        headers["X-Goog-Hash"] = f"crc32c={crc32c_text(ending.crc32c)}"
    return headers, PiecesBody(chunk, size)


def single(new: NewObject, chunk: Chunk, ending: Ending) -> tuple[dict[str, str], PiecesBody]:
    """Headers and body of the one request that creates a whole object."""
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\nContent-Type: {JSON_TYPE}\r\n\r\n".encode()
        + new.resource(crc32c=crc32c_text(ending.crc32c))
        + f"\r\n--{boundary}\r\nContent-Type: {new.content_type}\r\n\r\n".encode()
    )
    body = PiecesBody(chunk, ending.total, head=head, tail=f"\r\n--{boundary}--\r\n".encode())
    return {"Content-Type": f"multipart/related; boundary={boundary}"}, body
