"""Clip bodies over HTTP: sent as real plugins send them, or broken as a test has armed it.

Three ways: "file" (Content-Length, Range, weak ETag, Last-Modified), "stream" (chunked, Range
ignored) and "buffer" (Content-Length, Range ignored, weak ETag). Whatever is sent goes to the
served log with the digests of the bytes really handed to the connection. It must never hold a
whole clip in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

import google_crc32c
from aiohttp import hdrs, web

from nvr_backup.model import from_ms
from nvr_backup.simulator.catalogue import CameraState, SimClip
from nvr_backup.simulator.faults import Armed
from nvr_backup.simulator.media import ClipContent
from nvr_backup.simulator.settings import Body
from nvr_backup.simulator.state import NvrState, Origin, ServedBody

_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)\s*$")
ERROR_PAGE: Final = (
    b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head>"
    b"<body><h1>Bad Gateway</h1><p>The recorder is starting.</p></body></html>\n"
)
_BEFORE: Final = ("unauthorized", "not_found", "plugin_dead", "server_error", "hang_http")
_WHOLE: Final = ("html_page", "empty_body")
_SHAPED: Final = ("length_too_large", "length_too_small", "early_end")
_MIDWAY: Final = ("stall_body", "cut_body", "wrong_bytes", "restart_in_body", "drop_link_in_body")


@dataclass(slots=True)
class Sending:
    """One response on its way: what it is, what of it is sent, its running digests."""

    request: web.Request
    state: NvrState
    camera: CameraState
    clip: SimClip
    origin: Origin
    content: ClipContent
    status: int = 200
    start: int = 0
    stop: int = 0
    sent: int = 0
    complete: bool = False
    fault: str = ""
    _sha: Any = field(default_factory=hashlib.sha256)
    _crc: int = 0

    def count(self, piece: bytes | memoryview) -> None:
        """Some bytes were handed to the connection."""
        self.sent += len(piece)
        wanted = self.state.settings.digests
        if wanted != "none":
            self._crc = google_crc32c.extend(self._crc, bytes(piece))
        if wanted == "all":
            self._sha.update(piece)

    def record(self) -> None:
        """Into the served log."""
        hashed = self.state.settings.digests == "all"
        self.state.served.append(
            ServedBody(
                camera=self.camera.name,
                device_id=self.camera.device_id,
                native_id=self.camera.native_id,
                clip_id=self.clip.id,
                path=self.request.path,
                status=self.status,
                offset=self.start,
                sent=self.sent,
                size=self.content.size,
                complete=self.complete,
                sha256=self._sha.hexdigest() if hashed else "",
                crc32c=self._crc,
                authorization=hdrs.AUTHORIZATION in self.request.headers,
                query_token="scryptedToken" in self.request.query,
                origin=self.origin,
                fault=self.fault,
            )
        )


async def serve_clip(
    request: web.Request,
    state: NvrState,
    camera: CameraState,
    clip: SimClip,
    *,
    body: Body | None = None,
    origin: Origin = "nvr",
) -> web.StreamResponse:
    """Answer a GET or HEAD for a clip; `body` overrides the camera's way."""
    way = body or camera.settings.body or camera.style.body
    sending = Sending(request, state, camera, clip, origin, clip.content)
    subjects = camera.subjects | {clip.id}
    if refused := state.faults.take(*_BEFORE, subjects=subjects):
        return await _refuse(sending, refused)
    if replaced := state.faults.take(*_WHOLE, subjects=subjects):
        return _replace(sending, replaced)
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: sending.content.content_type}
    if way != "stream":
        headers[hdrs.ETAG] = _etag(clip)
    sending.stop = sending.content.size
    if way == "file":
        headers[hdrs.ACCEPT_RANGES] = "bytes"
        headers[hdrs.LAST_MODIFIED] = _last_modified(clip)
        headers[hdrs.CACHE_CONTROL] = "public, max-age=0"
        if not _grant_range(sending, headers):
            return web.Response(status=416, headers=headers)
    shaped = state.faults.take(*_SHAPED, subjects=subjects)
    response = web.StreamResponse(status=sending.status, headers=headers)
    length = sending.stop - sending.start
    if shaped is not None:
        sending.fault = shaped.name
    if way == "stream" or (shaped and shaped.name == "early_end"):
        response.enable_chunked_encoding()
    else:
        response.content_length = length + _excess(sending, shaped)
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    midway = state.faults.take(*_MIDWAY, subjects=subjects)
    slow = state.faults.take("slow_body", subjects=subjects)
    try:
        await _send(sending, response, shaped, midway, slow)
    finally:
        sending.record()
    return response


def small_body(payload: bytes, content_type: str) -> web.Response:
    """A whole small body that is no clip, the way `send(Buffer)` does it."""
    etag = f'W/"{len(payload):x}-{hashlib.sha256(payload).hexdigest()[:27]}"'
    headers = {hdrs.CONTENT_TYPE: content_type, hdrs.ETAG: etag}
    return web.Response(body=payload, headers=headers)


# -- headers -----------------------------------------------------------------------------------


def _etag(clip: SimClip) -> str:
    return f'W/"{clip.content.size:x}-{clip.end_ms:x}"'


def _last_modified(clip: SimClip) -> str:
    return from_ms(clip.end_ms).strftime("%a, %d %b %Y %H:%M:%S GMT")


def _grant_range(sending: Sending, headers: dict[str, str]) -> bool:
    """Set what of the clip is sent, as `sendFile` does; False when there is nothing to send."""
    wanted = _RANGE.match(sending.request.headers.get(hdrs.RANGE, ""))
    condition = sending.request.headers.get(hdrs.IF_RANGE)
    if wanted is None or condition not in (
        None,
        _etag(sending.clip),
        _last_modified(sending.clip),
    ):
        return True
    first, last = wanted.groups()
    size = sending.content.size
    if not first and not last:
        return True
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if stop <= start:
        headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
        return False
    headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{size}"
    sending.start, sending.stop, sending.status = start, stop, 206
    return True


# -- in place of the body ----------------------------------------------------------------------


async def _refuse(sending: Sending, fault: Armed) -> web.Response:
    headers = {}
    status = {"unauthorized": 401, "not_found": 404, "plugin_dead": 500}.get(fault.name, 0)
    if fault.name == "hang_http":
        await sending.state.faults.wait_release()
        status = 504
    if fault.name == "server_error":
        status = fault.get("status", 500)
        if (retry_after := fault.get("retry_after", None)) is not None:
            headers[hdrs.RETRY_AFTER] = str(retry_after)
    sending.fault, sending.status = fault.name, status
    sending.record()
    return web.Response(status=status, headers=headers)


def _replace(sending: Sending, fault: Armed) -> web.Response:
    payload = ERROR_PAGE if fault.name == "html_page" else b""
    kind = "text/html" if fault.name == "html_page" else sending.content.content_type
    sending.count(payload)
    sending.fault = fault.name
    sending.record()
    return web.Response(body=payload, content_type=kind)


# -- the body ----------------------------------------------------------------------------------


def _excess(sending: Sending, shaped: Armed | None) -> int:
    """By how much the Content-Length lies."""
    if shaped is None or shaped.name == "early_end":
        return 0
    by: int = shaped.get("by", 1000)
    return by if shaped.name == "length_too_large" else -min(by, sending.stop - sending.start - 1)


def _point(sending: Sending, fault: Armed) -> int:
    """Where in the clip a fault strikes: before the last byte, or it would not be seen at all."""
    length = sending.stop - sending.start
    at_bytes: int = fault.get("at_bytes", length // 2)
    return sending.start + max(min(at_bytes, length - 1), 0)


async def _send(
    sending: Sending,
    response: web.StreamResponse,
    shaped: Armed | None,
    midway: Armed | None,
    slow: Armed | None,
) -> None:
    stop = sending.stop
    declared = stop + min(_excess(sending, shaped), 0)
    if shaped is not None and shaped.name == "early_end":
        stop = _point(sending, shaped)
    if midway is not None:
        at = min(_point(sending, midway), stop)
        await _write(sending, response, sending.start, min(at, declared), slow)
        sending.fault = midway.name
        if not await _strike(sending, response, midway):
            return
    await _write(sending, response, sending.start + sending.sent, min(stop, declared), slow)
    transport = sending.request.transport
    if shaped is None or shaped.name == "early_end":
        sending.complete = stop == sending.content.size and sending.fault in (
            "",
            "stall_body",
            "slow_body",
            "drop_link_in_body",
        )
    elif transport is not None and shaped.name == "length_too_large":
        # All that there is has been sent, and the connection ends in order.
        transport.close()
    elif transport is not None:
        # aiohttp stops at the declared length, as it should; the rest goes past it.
        for piece in sending.content.pieces(declared, stop):
            transport.write(piece)
            sending.count(piece)
        transport.close()


async def _write(
    sending: Sending, response: web.StreamResponse, start: int, stop: int, slow: Armed | None
) -> None:
    subjects = sending.camera.subjects | {sending.clip.id}
    for piece in sending.content.pieces(start, stop, sending.state.settings.write_size):
        if slow is not None:
            sending.fault = sending.fault or slow.name
            await sending.state.clock.sleep(slow.get("seconds", 0.1))
        await sending.state.disk.read(subjects)
        await response.write(piece)
        sending.count(piece)


async def _strike(sending: Sending, response: web.StreamResponse, fault: Armed) -> bool:
    """Do what was armed at this point of the body; False when nothing more is to be sent."""
    state, transport = sending.state, sending.request.transport
    match fault.name:
        case "stall_body":
            await state.faults.wait_release()
        case "cut_body":
            if transport is not None:
                transport.abort()
            return False
        case "wrong_bytes":
            at = sending.start + sending.sent
            wrong = bytes(b ^ 0xFF for b in sending.content.read(at, at + 1))
            await response.write(wrong)
            sending.count(wrong)
        case "drop_link_in_body":
            state.drop_links()
        case _:
            state.restart_soon(fault.get("down", 0.0))
            if sending.origin == "nvr":  # another origin lives on
                await asyncio.Event().wait()
    return True
