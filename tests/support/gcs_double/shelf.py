"""The buckets of the storage double, and reading from them: metadata, bytes, listings, deletion."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import re
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.support.gcs_double.answers import (
    HangUp,
    condition_not_met,
    invalid,
    json_answer,
    no_bucket,
    no_object,
    refuse,
    select_fields,
)
from tests.support.gcs_double.auth import PERMISSIONS, Caller
from tests.support.gcs_double.exchange import Exchange
from tests.support.gcs_double.faults import EmptyPage, Misreport, Reset, Slow, Stall
from tests.support.gcs_double.held import Bytes, Held, Keep, Wanted, crc32c_text
from tests.support.gcs_double.parsing import integer

MOST_RESULTS = 1000
_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PIECE = 64 * 1024
_LISTING = {"prefix", "pageToken", "maxResults", "fields", "startOffset", "endOffset"} | {
    "alt",
    "delimiter",
    "prettyPrint",
    "projection",
}


class Shelf:
    """Buckets and their objects. `page_size` caps every page of a listing."""

    def __init__(self, buckets: tuple[str, ...], *, keep: Keep, page_size: int) -> None:
        self.objects: dict[str, dict[str, Held]] = {name: {} for name in buckets}
        self.bucket_fields: dict[str, Any] = {}
        self.keep: Keep = keep
        self.page_size = page_size
        self._generations = itertools.count(time.time_ns() // 1000)

    def bucket(self, name: str) -> dict[str, Held]:
        if name not in self.objects:
            raise no_bucket()
        return self.objects[name]

    def put(self, wanted: Wanted, content: Bytes) -> Held:
        """Create or replace an object; the caller has checked everything."""
        held = Held(
            bucket=wanted.bucket,
            name=wanted.name,
            generation=next(self._generations),
            content=content,
            content_type=wanted.content_type,
            metadata=wanted.metadata,
        )
        self.bucket(wanted.bucket)[wanted.name] = held
        return held

    def find(self, bucket: str, name: str, query: Mapping[str, str]) -> Held:
        """The object a request names; 404, or 412 where its precondition does not hold."""
        held = self.bucket(bucket).get(name)
        if held is None or query.get("generation", str(held.generation)) != str(held.generation):
            raise no_object(bucket, name)
        if query.get("ifGenerationMatch", str(held.generation)) != str(held.generation):
            raise condition_not_met()
        return held

    def describe(self, exchange: Exchange, held: Held, query: Mapping[str, str]) -> web.Response:
        """The object's resource, or what a Misreport makes of it."""
        resource = held.resource(exchange.base_url)
        what = exchange.what
        if isinstance(what, Misreport):
            wrong = {"crc32c": what.crc32c, "size": what.size, "generation": what.generation}
            texts = {
                name: crc32c_text(value) if name == "crc32c" else str(value)  # type: ignore[arg-type]
                for name, value in wrong.items()
                if value is not None
            }
            resource.update(texts)
            if what.stored:
                held.reported.update(texts)
            exchange.hit()
        fields = query.get("fields")
        return json_answer(select_fields(resource, fields) if fields else resource)

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> web.Response:
        self.find(bucket, name, query)
        del self.bucket(bucket)[name]
        return web.Response(status=204)

    def bucket_resource(self, name: str, query: Mapping[str, str]) -> web.Response:
        self.bucket(name)
        resource = {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "location": "EUROPE-WEST3",
            "locationType": "region",
            "storageClass": "STANDARD",
            "metageneration": "1",
        } | self.bucket_fields
        fields = query.get("fields")
        return json_answer(select_fields(resource, fields) if fields else resource)

    def permissions(self, bucket: str, asked: list[str], caller: Caller) -> web.Response:
        """testIamPermissions: which of those asked for the caller has; needs no permission."""
        self.bucket(bucket)
        if not asked:
            raise refuse(400, "Required", reason="required", location=("parameter", "permissions"))
        if unknown := set(asked) - PERMISSIONS:
            raise invalid(f"Permission {sorted(unknown)[0]} is not valid for this resource.")
        content: dict[str, Any] = {"kind": "storage#testIamPermissionsResponse"}
        if granted := [permission for permission in asked if caller.may(permission)]:
            content["permissions"] = granted
        return json_answer(content)

    def list(self, exchange: Exchange, bucket: str, query: Mapping[str, str]) -> web.Response:
        """One page, ordered by the names' UTF-8 bytes."""
        if unknown := set(query) - _LISTING:
            raise invalid(f"This double does not know the listing parameters {sorted(unknown)}")
        after = _from_token(query["pageToken"]) if query.get("pageToken") else b""
        most = min(
            integer(query.get("maxResults") or str(MOST_RESULTS)), self.page_size, MOST_RESULTS
        )
        if most < 1:
            raise invalid("Invalid value for maxResults")
        low, high = query.get("startOffset", "").encode(), query.get("endOffset", "").encode()
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = sorted(
            {
                encoded
                for name in self.bucket(bucket)
                if name.startswith(prefix)
                and name.encode() >= low
                and (not high or name.encode() < high)
                and (encoded := _folded(name, prefix, delimiter).encode()) > after
            }
        )
        content: dict[str, Any] = {"kind": "storage#objects"}
        page = names[:most]
        if isinstance(exchange.what, EmptyPage):
            exchange.hit()
            page = []
            content["nextPageToken"] = _to_token(after)
        elif len(names) > most:
            content["nextPageToken"] = _to_token(page[-1])
        held = self.bucket(bucket)
        shown = [n.decode() for n in page]
        if items := [name for name in shown if not _is_folded(name, prefix, delimiter)]:
            content["items"] = [held[name].resource(exchange.base_url) for name in items]
        if folded := [name for name in shown if _is_folded(name, prefix, delimiter)]:
            content["prefixes"] = folded
        fields = query.get("fields")
        return json_answer(select_fields(content, fields) if fields else content)

    async def media(self, exchange: Exchange, held: Held) -> web.StreamResponse:
        """alt=media, whole or one range."""
        if held.content.pieces is None:
            raise refuse(400, "This double keeps digests only.")
        first, last, status = 0, held.size - 1, 200
        span = _byte_range(exchange.request.headers.get("Range", ""), held.size)
        if span is not None:
            (first, last), status = span, 206
        headers = {
            "Content-Type": held.content_type,
            "Content-Length": str(last - first + 1),
            "X-Goog-Hash": f"crc32c={held.resource('')['crc32c']}",
            "X-Goog-Generation": str(held.generation),
            "X-Goog-Stored-Content-Length": str(held.size),
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{held.size}"
        answer = web.StreamResponse(status=status, headers=headers)
        await answer.prepare(exchange.request)
        await self._send(exchange, answer, memoryview(held.data)[first : last + 1])
        return answer

    async def _send(self, exchange: Exchange, answer: web.StreamResponse, data: memoryview) -> None:
        what, sent = exchange.what, 0
        limit = what.after_bytes if isinstance(what, Reset | Stall) else None
        step = what.piece if isinstance(what, Slow) else _PIECE
        try:
            while sent < len(data):
                if isinstance(what, Slow):
                    if sent == 0:
                        exchange.hit()
                    await asyncio.sleep(what.pause_seconds)
                end = sent + step if limit is None else min(sent + step, limit)
                piece = bytes(data[sent:end])
                if piece:
                    await answer.write(piece)
                sent += len(piece)
                if limit is not None and sent >= min(limit, len(data)):
                    await exchange.break_off()
            if limit is not None:
                await exchange.break_off()
            await answer.write_eof()
        except ConnectionError as err:
            raise HangUp from err


def _folded(name: str, prefix: str, delimiter: str) -> str:
    """The name, or with a delimiter what of it belongs into `prefixes`."""
    head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
    return f"{prefix}{head}{found}" if found else name


def _is_folded(name: str, prefix: str, delimiter: str) -> bool:
    return bool(delimiter) and delimiter in name[len(prefix) :]


def _to_token(name: bytes) -> str:
    return base64.urlsafe_b64encode(b"after:" + name).decode()


def _from_token(token: str) -> bytes:
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as err:
        raise invalid("Invalid argument: pageToken") from err
    if not text.startswith(b"after:"):
        raise invalid("Invalid argument: pageToken")
    return text.removeprefix(b"after:")


def _byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a range; None for what is no range and therefore ignored."""
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        begin, end = max(0, size - int(last)), size - 1
    else:
        begin, end = int(first), min(int(last) if last else size - 1, size - 1)
    if begin >= size or begin > end:
        raise refuse(
            416,
            "Request range not satisfiable",
            reason="requestedRangeNotSatisfiable",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return begin, end
