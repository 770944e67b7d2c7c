"""A storage endpoint for benchmarks: counts what it receives, drops it, costs next to no CPU.

Not strict and not a test double: it believes every client and keeps only names and sizes, so that
a measurement on a small machine measures the client. The checksum in its answers is the one the
client stated (`x-goog-hash`, or the JSON part of a multipart upload), unless `checksum` makes it
compute the true one. Bodies are received into one fixed buffer per connection and never parsed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import google_crc32c

from tests.support.gcs_double.answers import Refused
from tests.support.gcs_double.held import crc32c_text
from tests.support.gcs_double.parsing import ContentRange, split_related

BUFFER_BYTES = 256 * 1024
MOST_HEAD = 64 * 1024
TAIL_BYTES = 256
RECEIVE_BUFFER = 1024 * 1024


@dataclass(slots=True)
class Dropped:
    """An object that was received and not kept, or an upload on its way."""

    name: str
    bucket: str
    content_type: str
    metadata: dict[str, str]
    size: int = 0
    crc: int = 0
    crc32c: str | None = None
    generation: int = 0

    def resource(self) -> dict[str, Any]:
        resource: dict[str, Any] = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(self.size),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "metadata": self.metadata,
        }
        if self.crc32c is not None:
            resource["crc32c"] = self.crc32c
        return resource


class DiscardingStore:
    """`async with DiscardingStore() as store:` serves at `store.url` until the block ends."""

    def __init__(
        self,
        *,
        checksum: bool = False,
        delay_seconds: float = 0.0,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.checksum = checksum
        self.delay_seconds = delay_seconds
        self.objects: dict[tuple[str, str], Dropped] = {}
        self.sessions: dict[str, Dropped] = {}
        self.requests = 0
        self.url = ""
        self._numbers = itertools.count(1)
        self._tls = tls
        self._port = port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.BaseTransport] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Link(self), "127.0.0.1", self._port, ssl=self._tls
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.close()
        await asyncio.sleep(0)

    def attach(self, transport: asyncio.BaseTransport) -> None:
        self._links.add(transport)

    def detach(self, transport: asyncio.BaseTransport) -> None:
        self._links.discard(transport)

    # -- requests; the body of an upload has been counted (and, with `checksum`, hashed) ----------

    def answer(self, request: _Request) -> bytes:
        """The whole answer to a request whose body has arrived."""
        self.requests += 1
        split = urlsplit(request.target)
        query = dict(parse_qsl(split.query))
        parts = [unquote(part) for part in split.path.split("/")[1:]]
        try:
            match request.method, parts:
                case _, ["_double", "objects"]:
                    return _json(200, [each.resource() for each in self.objects.values()])
                case "POST", ["token"]:
                    token = {"access_token": "free", "expires_in": 3600, "token_type": "Bearer"}
                    return _json(200, token)
                case _, ["upload", "storage", "v1", "b", bucket, "o"]:
                    return self._upload(request, bucket, query)
                case "GET", ["storage", "v1", "b", bucket]:
                    return _json(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
                case "GET", ["storage", "v1", "b", _, "o"]:
                    return _json(200, {"kind": "storage#objects"})
                case "GET", ["storage", "v1", "b", _, "iam", "testPermissions"]:
                    asked = [v for k, v in parse_qsl(split.query) if k == "permissions"]
                    return _json(200, {"permissions": asked})
                case _, ["storage", "v1", "b", bucket, "o", name]:
                    return self._object(request.method, bucket, name)
        except Refused as refused:
            return _json(refused.response.status, {"error": {"code": refused.response.status}})
        return _json(404, {"error": {"code": 404, "message": "Not Found"}})

    def _object(self, method: str, bucket: str, name: str) -> bytes:
        held = self.objects.get((bucket, name))
        if held is None:
            return _json(404, {"error": {"code": 404, "message": "No such object"}})
        if method == "DELETE":
            del self.objects[bucket, name]
            return _answer(204, {})
        return _json(200, held.resource())

    def _upload(self, request: _Request, bucket: str, query: Mapping[str, str]) -> bytes:
        if "upload_id" in query:
            return self._put(request, query["upload_id"])
        if query.get("uploadType") == "resumable":
            content = json.loads(bytes(request.head)) if request.head else {}
            upload_id = f"discard-{next(self._numbers)}"
            media_type = request.headers.get("x-upload-content-type")
            self.sessions[upload_id] = self._begin(bucket, query, content, media_type)
            location = (
                f"http{'s' if self._tls else ''}://{request.headers.get('host', '')}"
                f"/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={upload_id}"
            )
            return _answer(200, {"Location": location})
        return self._single(request, bucket, query)

    def _put(self, request: _Request, upload_id: str) -> bytes:
        upload = self.sessions.get(upload_id)
        if upload is None:
            return _json(404, {"error": {"code": 404}})
        if request.method == "DELETE":
            del self.sessions[upload_id]
            return _answer(499, {})
        sent = ContentRange(request.headers.get("content-range"), request.length)
        if sent.first is not None and sent.last is not None and sent.first <= upload.size:
            upload.size = max(upload.size, sent.last + 1)
            upload.crc = request.crc
        if sent.is_last and sent.total == upload.size:
            stated = request.headers.get("x-goog-hash", "")
            upload.crc32c = stated.removeprefix("crc32c=") or None
            return self._store(upload)
        headers = {"Range": f"bytes=0-{upload.size - 1}"} if upload.size else {}
        if request.headers.get("x-guploader-no-308", "").lower() in ("yes", "true"):
            return _answer(200, headers | {"X-HTTP-Status-Code-Override": "308"})
        return _answer(308, headers)

    def _single(self, request: _Request, bucket: str, query: Mapping[str, str]) -> bytes:
        content: dict[str, Any] = {}
        media_type, size = request.headers.get("content-type", ""), request.length
        media: bytes | None = bytes(request.head) if self.checksum else None
        if query.get("uploadType") == "multipart":
            # The head with the tail right behind it is a small multipart body of the same form.
            sample = bytes(request.head + request.tail)
            content, media_type, part = split_related(sample, media_type)
            size = request.length - (len(sample) - len(part))
            media = part if self.checksum else None
        upload = self._begin(bucket, query, content, media_type)
        upload.size = size
        upload.crc32c = content.get("crc32c")
        upload.crc = google_crc32c.value(media) if media is not None else 0
        return self._store(upload)

    def _begin(
        self,
        bucket: str,
        query: Mapping[str, str],
        content: Mapping[str, Any],
        media_type: str | None,
    ) -> Dropped:
        return Dropped(
            name=str(content.get("name", query.get("name", ""))),
            bucket=bucket,
            content_type=str(content.get("contentType", media_type or "")),
            metadata=dict(content.get("metadata", {})),
        )

    def _store(self, upload: Dropped) -> bytes:
        upload.generation = next(self._numbers)
        if self.checksum:
            upload.crc32c = crc32c_text(upload.crc)
        self.objects[upload.bucket, upload.name] = upload
        return _json(200, upload.resource())

    def crc_before(self, request: _Request) -> int:
        """The checksum at the start of a session PUT's body."""
        query = dict(parse_qsl(urlsplit(request.target).query))
        upload = self.sessions.get(query.get("upload_id", ""))
        return 0 if upload is None else upload.crc


@dataclass(slots=True)
class _Request:
    method: str
    target: str
    headers: dict[str, str]
    length: int
    left: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    head_limit: int = 0
    crc: int = 0


class _Link(asyncio.BufferedProtocol):
    """A connection: request heads are parsed, bodies only counted."""

    def __init__(self, store: DiscardingStore) -> None:
        self._store = store
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._text = bytearray()
        self._request: _Request | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._store.attach(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._store.detach(self._transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        request = self._request
        if request is not None and not request.head_limit and nbytes < request.left:
            if self._store.checksum:
                request.crc = google_crc32c.extend(request.crc, bytes(self._buffer[:nbytes]))
            request.left -= nbytes
            return
        self._feed(self._buffer[:nbytes])

    def _feed(self, data: memoryview) -> None:
        while data:
            if self._request is None:
                data = self._parse_head(data)
                if self._request is None:
                    return
            else:
                data = self._body(self._request, data)
            if self._request.left == 0:
                self._finish(self._request)

    def _body(self, request: _Request, data: memoryview) -> memoryview:
        piece, rest = data[: request.left], data[request.left :]
        request.left -= len(piece)
        room = request.head_limit - len(request.head)
        if request.head_limit:
            request.head += piece[:room]
            if len(piece) > room:
                request.tail += piece[max(room, len(piece) - TAIL_BYTES) :]
                del request.tail[:-TAIL_BYTES]
        elif self._store.checksum:
            request.crc = google_crc32c.extend(request.crc, bytes(piece))
        return rest

    def _parse_head(self, data: memoryview) -> memoryview:
        before = len(self._text)
        self._text += data
        end = self._text.find(b"\r\n\r\n")
        if end < 0:
            if len(self._text) > MOST_HEAD and self._transport is not None:
                self._transport.abort()
            return data[:0]
        lines = self._text[:end].decode("latin-1").split("\r\n")
        self._text.clear()
        method, target, _ = lines[0].split(" ", 2)
        headers = {
            k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:])
        }
        length = int(headers.get("content-length", 0))
        self._request = request = _Request(method, target, headers, length, length)
        if "transfer-encoding" in headers and self._transport is not None:
            self._transport.abort()  # a benchmark's bodies have a length
        if method == "POST":
            request.head_limit = max(length, 1) if self._store.checksum else MOST_HEAD
        elif self._store.checksum:
            request.crc = self._store.crc_before(request)
        if headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return data[end + 4 - before :]

    def _finish(self, request: _Request) -> None:
        self._request = None
        answer = self._store.answer(request)
        if self._store.delay_seconds:
            loop = asyncio.get_running_loop()
            loop.call_later(self._store.delay_seconds, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


def _json(status: int, content: object) -> bytes:
    body = json.dumps(content).encode()
    return _answer(status, {"Content-Type": "application/json; charset=UTF-8"}, body)


def _answer(status: int, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Status'}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if status != 204:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
