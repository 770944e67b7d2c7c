"""One request to the storage double and its answer: the journal entry, the body under faults."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from tests.support.gcs_double.answers import HangUp
from tests.support.gcs_double.faults import Corrupt, Fault, Faults, Reset, Slow, Stall, What

_INTERESTING = re.compile(
    r"(?i)^(accept-encoding|authorization|content-.*|expect|if-.*|range|transfer-encoding"
    r"|user-agent|x-goog-.*|x-guploader-.*|x-upload-.*)$"
)
_SECRET = re.compile(r"(upload_id=)[^&]+")


@dataclass(slots=True)
class Seen:
    """A request as the journal keeps it. `status` 0: no answer was sent (reset, stall).

    `where` is the kind of request (see `faults.Where`); `session` numbers the upload sessions from
    1 in order of their creation; `fault` names the fault that was taken for it.
    """

    number: int
    where: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    connection: int
    key: str | None = None
    session: int | None = None
    body_bytes: int = 0
    status: int = 0
    answer: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""

    def parameter(self, name: str) -> str | None:
        """A query parameter's value."""
        values = parse_qs(self.query, keep_blank_values=True).get(name)
        return values[0] if values else None


def masked_query(query: str) -> str:
    return _SECRET.sub(r"\1***", query)


def masked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that matter to a test, lower-case names, without secrets."""
    kept = {k.lower(): v for k, v in headers.items() if _INTERESTING.match(k)}
    if "authorization" in kept:
        kept["authorization"] = kept["authorization"].partition(" ")[0] + " ***"
    return kept


class Exchange:
    """A request being served."""

    def __init__(
        self, request: web.BaseRequest, seen: Seen, fault: Fault | None, faults: Faults
    ) -> None:
        self.request = request
        self.seen = seen
        self.fault = fault
        self._faults = faults
        self._read = 0

    @property
    def what(self) -> What | None:
        return None if self.fault is None else self.fault.what

    @property
    def base_url(self) -> str:
        """Where the client believes this server is: answers must name the same host."""
        return f"{self.request.scheme}://{self.request.host}"

    def hit(self) -> None:
        if self.fault is not None:
            self.fault.hit()

    async def read_piece(self) -> bytes:
        """The next bytes of the request's body, b"" at its end; HangUp when the client is gone.

        Carries out the faults that concern the reading of the body.
        """
        what = self.what
        limit = what.after_bytes if isinstance(what, Reset | Stall) else None
        if limit is not None and self._read >= limit:
            await self.break_off()
        if isinstance(what, Slow):
            if self._read == 0:
                self.hit()
            await asyncio.sleep(what.pause_seconds)
        try:
            if isinstance(what, Slow):
                piece = await self.request.content.read(what.piece)
            else:
                piece = await self.request.content.readany()
        except (ConnectionError, aiohttp.ClientError, web.RequestPayloadError) as err:
            raise HangUp from err
        if limit is not None:
            if not piece:
                await self.break_off()
            piece = piece[: limit - self._read]
        if isinstance(what, Corrupt) and 0 <= what.at - self._read < len(piece):
            at = what.at - self._read
            piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            self.hit()
        self._read += len(piece)
        self.seen.body_bytes = self._read
        return piece

    async def read_all(self, most: int) -> bytes | None:
        """The whole body, or None when it is longer than `most` bytes."""
        pieces: list[bytes] = []
        while piece := await self.read_piece():
            pieces.append(piece)
            if self._read > most:
                return None
        return b"".join(pieces)

    async def drop_body(self) -> None:
        while await self.read_piece():
            pass

    async def break_off(self) -> None:
        """Carry out a Reset or Stall: always raises HangUp in the end."""
        self.hit()
        if isinstance(self.what, Stall):
            await self._faults.stalled()
        self.reset()
        raise HangUp

    def reset(self) -> None:
        """Send a TCP reset, as opposed to an orderly end."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            return
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
