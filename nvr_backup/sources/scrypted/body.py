"""A clip's bytes over HTTP: one GET, its answer judged, its pieces passed on as they come.

This is the hot path: whatever is done per piece costs every GiB. It must never hold more than a
piece, show a token to another host, follow a redirect blindly, or give up a body for convenience
(an aborted `sendStream` leaks a file descriptor in the plugin).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from nvr_backup.errors import Blocked, NvrBackupError, Suspect, Transient
from nvr_backup.sources.scrypted.intake import WORTHWHILE_BYTES, taken_over
from nvr_backup.sources.scrypted.login import Login
from nvr_backup.sources.scrypted.media import Location, location
from nvr_backup.sources.scrypted.settings import ScryptedSettings
from nvr_backup.sources.scrypted.tls import UnexpectedRedirect, connection_failure

LARGEST_PIECE: Final = 1 << 20
MOST_REDIRECTS: Final = 5
LONGEST_RETRY_SECONDS: Final = 3600.0
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
GONE: Final = frozenset({404, 410})
STALE: Final = frozenset({401, 403})
"""From another host: a signature that is over. (401 from the NVR itself is a token that is.)"""
LATER: Final = frozenset({408, 425, 429})

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class NotServed(Exception):
    """There is no body under this address (any more): HTTP 404 or 410, or an outdated signature."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpBody:
    """`ports.ClipBody` of an HTTP answer."""

    response: aiohttp.ClientResponse
    size: int | None
    offset: int
    stall_seconds: float

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        coming = self.response.content_length or 0
        try:
            if coming >= WORTHWHILE_BYTES:
                received = taken_over(self.response, coming, self.stall_seconds)
            else:
                received = _portions(self.response.content)
            async for piece in received:
                if len(piece) <= LARGEST_PIECE:
                    yield piece
                else:
                    for at in range(0, len(piece), LARGEST_PIECE):
                        yield piece[at : at + LARGEST_PIECE]
        except TimeoutError as err:
            raise Transient(
                f"The NVR sent nothing of the clip for {self.stall_seconds:g} s."
            ) from err
        except (aiohttp.ClientError, OSError) as err:
            raise Transient(f"The clip's transfer broke off ({type(err).__name__}).") from err


async def _portions(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # readchunk hands over buffers as they are; readany joins them, which costs a chunked body a
    # quarter of a CPU second per GiB.
    receive = content.readchunk
    while True:
        piece, end_of_chunk = await receive()
        if piece:
            yield piece
        elif not end_of_chunk:
            return


def _end_the_limit_with_the_body(response: aiohttp.ClientResponse) -> None:
    """Once the last byte is here, nothing more is waited for, however slowly it is taken.

    aiohttp 3.14 sets its read limit anew when a reader that had fallen behind catches up, also if
    the body's end was all that was left: seconds later it spoils what has not been read yet.
    """
    connection = response.connection
    protocol = None if connection is None else connection.protocol
    if protocol is None:
        return

    def no_limit() -> None:
        protocol.read_timeout = None  # the next request on this connection sets its own

    response.content.on_eof(no_limit)


class Bodies:
    """Opens bodies; one per source. `own` and `foreign` are sessions made by `tls`."""

    def __init__(
        self,
        settings: ScryptedSettings,
        login: Login,
        own: aiohttp.ClientSession,
        foreign: aiohttp.ClientSession,
    ) -> None:
        self._settings = settings
        self._login = login
        self._own = own
        self._foreign = foreign
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_seconds, sock_read=settings.stall_seconds
        )

    async def open(self, stack: AsyncExitStack, where: Location, offset: int) -> HttpBody:
        """GET `where` from `offset` on; the answer is released with `stack`.

        Raises NotServed, Transient, Suspect (an answer that is no clip) or Blocked.
        """
        response = await self._answer(stack, where, offset)
        if offset and response.status == 206 and (total := _total(response, offset)) is not None:
            return self._body(response, size=None if total < 0 else total, offset=offset)
        if offset and response.status in (206, 416):
            # Not the range we asked for, or the clip has become shorter: all of it, then.
            response = await self._answer(stack, where, 0)
        if response.status != 200:
            raise Suspect(f"The NVR answered with HTTP {response.status} in place of the clip.")
        return self._body(response, size=response.content_length, offset=0)

    def _body(self, response: aiohttp.ClientResponse, *, size: int | None, offset: int) -> HttpBody:
        _end_the_limit_with_the_body(response)
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Suspect(
                "The clip came compressed although that was declined.",
                hint="Is there a proxy in front of the NVR? It must leave videos alone.",
            )
        return HttpBody(response, size, offset, self._settings.stall_seconds)

    async def _answer(
        self, stack: AsyncExitStack, where: Location, offset: int
    ) -> aiohttp.ClientResponse:
        """A 2xx (or 416) answer, after redirects and, once, a new login."""
        renewed = False
        for _ in range(MOST_REDIRECTS + 2):
            token = await self._login.token() if where.own else None
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            if token is not None:
                headers["Authorization"] = token.authorization
            response = await self._get(where, headers)
            stack.callback(response.close)
            status = response.status
            if status in REDIRECTS:
                where = self._redirected(response)
            elif status == 401 and token is not None:
                if renewed:
                    raise Blocked(
                        f"{self._settings.origin} refuses a clip although the login succeeded.",
                        hint="May this user see the camera?",
                    )
                self._login.reject(token)
                renewed = True
            elif status in GONE or (status in STALE and token is None):
                raise NotServed(status)
            elif status in LATER or status >= 500:
                raise Transient(
                    f"The NVR answered with HTTP {status} in place of the clip.",
                    retry_after=_retry_after(response),
                )
            else:
                return response
            response.close()
        raise Suspect(f"The clip's address redirects more than {MOST_REDIRECTS} times.")

    async def _get(self, where: Location, headers: dict[str, str]) -> aiohttp.ClientResponse:
        session = self._own if where.own else self._foreign
        try:
            return await session.get(
                where.url, headers=headers, allow_redirects=False, timeout=self._timeout
            )
        except (aiohttp.ClientError, OSError, ValueError) as err:
            raise await self._failed(where, err) from err

    async def _failed(self, where: Location, err: Exception) -> NvrBackupError:
        unreachable = isinstance(
            err,
            aiohttp.ClientConnectorError
            | aiohttp.ConnectionTimeoutError
            | aiohttp.ServerFingerprintMismatch
            | UnexpectedRedirect,
        )
        if where.own and unreachable:
            return await connection_failure(self._settings, err)
        if isinstance(err, TimeoutError) and not unreachable:
            return Transient(
                f"The NVR did not begin to send the clip within {self._settings.stall_seconds:g} s."
            )
        if where.own:
            return Transient(f"The request for the clip broke off ({type(err).__name__}).")
        return Transient(
            f"The host that keeps the clip for the NVR ({where.url.host}) cannot be reached "
            f"({type(err).__name__}).",
            hint="It must be reachable from here, with a valid certificate if it uses https.",
        )

    def _redirected(self, response: aiohttp.ClientResponse) -> Location:
        target = response.headers.get("Location")
        return location(target, self._settings.origin, base=_without_user(response.url))


def _without_user(url: URL) -> URL:
    return url.with_user(None)


def _total(response: aiohttp.ClientResponse, offset: int) -> int | None:
    """The whole size from a Content-Range that begins at `offset`; -1 unknown, None no match."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != offset or int(found[2]) < offset:
        return None
    if found[3] == "*":
        return -1
    return int(found[3]) if int(found[2]) < int(found[3]) else None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """The server's wish in seconds, bounded; the form with a date is not used by Scrypted."""
    text = response.headers.get("Retry-After", "")
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        return None
    return min(float(text), LONGEST_RETRY_SECONDS)
