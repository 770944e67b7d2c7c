"""One HTTP request to the storage server: credentials on, stalls detected, outcome as a value.

Retries nothing and judges nothing (see `retry`, `replies`). It must never send the bearer token
to another server than the endpoint, follow a redirect, or let an exception out whose text holds
an address: a session's URI is a secret.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from gcloud.aio.auth import AioSession
from yarl import URL

from nvr_backup import __version__
from nvr_backup.errors import Blocked
from nvr_backup.stores.gcs.body import PiecesBody
from nvr_backup.stores.gcs.credentials import Bearer
from nvr_backup.stores.gcs.replies import Outcome, Reply, Unanswered
from nvr_backup.stores.gcs.settings import Endpoint, GcsSettings

ANSWER_BYTES_LIMIT: Final = 16 * 1024 * 1024
"""More than a page of a listing can be; object bytes are streamed, not collected."""

CONNECTIONS_LIMIT: Final = 64
UNSENT_BYTES: Final = 512 * 1024
"""What the kernel may hold without having sent it. Unlimited, a slow line would swallow megabytes
at once, and the wait for the answer would look like a stall."""

Query = Mapping[str, str] | Sequence[tuple[str, str]]
FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError)
"""What aiohttp raises when an exchange fails for reasons outside this program."""


def open_session(settings: GcsSettings) -> aiohttp.ClientSession:
    """The connection pool of one store, apart from every source's; no total time limit."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=CONNECTIONS_LIMIT, socket_factory=_SocketFactory(settings.stall_seconds)
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": f"nvr-backup/{__version__}"},
    )


class _SocketFactory:
    """Makes sockets whose unacknowledged bytes fail after the stall limit, in the kernel too."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_ms = max(1, int(stall_seconds * 1000))

    def __call__(self, address: Any) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        for name, value in (
            ("TCP_USER_TIMEOUT", self._stall_ms),
            ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ):
            option = getattr(socket, name, None)  # both are Linux's
            if option is not None:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
        return made


class GcsClient:
    """Requests to one bucket of one endpoint."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        settings: GcsSettings,
        bearer: Bearer | None,
    ) -> None:
        self._session = AioSession(session)
        self._bearer = bearer
        self._stall_seconds = settings.stall_seconds
        self._reading = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_seconds, sock_read=settings.stall_seconds
        )
        self._bucket = settings.bucket
        self.endpoint = endpoint

    def bucket_address(self, tail: str = "", query: Query | None = None) -> str:
        """The bucket itself, or with `tail` something below it."""
        return f"{self.endpoint.root}/storage/v1/b/{_quoted(self._bucket)}{tail}{_query(query)}"

    def object_address(self, name: str, query: Query | None = None) -> str:
        """An object, whatever characters its name has."""
        return self.bucket_address(f"/o/{_quoted(name)}", query)

    def upload_address(self, kind: str) -> str:
        """Where objects are created, and only created: an existing one fails the condition."""
        query = _query({"uploadType": kind, "ifGenerationMatch": "0"})
        return f"{self.endpoint.root}/upload/storage/v1/b/{_quoted(self._bucket)}/o{query}"

    def owns_session(self, address: str) -> bool:
        """Whether a session's address is on this endpoint and, as far as it tells, this bucket."""
        path = urlsplit(address).path if self.endpoint.accepts(address) else ""
        return bool(path) and ("/b/" not in path or f"/b/{_quoted(self._bucket)}/" in path)

    async def send(
        self,
        method: str,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: PiecesBody | bytes | None = None,
    ) -> Outcome:
        """One request, once, and its whole answer.

        The stall limit counts anew whenever bytes leave or arrive. Raises Blocked for unusable
        credentials or a certificate that is not trusted.
        """
        token = await self._token(address)
        if isinstance(token, Unanswered):
            return token
        carried = {**(headers or {}), **_authorization(token)}
        try:
            async with asyncio.timeout(None) as limit:
                reply = await self._exchange(method, address, carried, body, limit)
        except FAILURES as err:
            return self.unanswered(err)
        self._heed(reply.status, token)
        return reply

    async def open(
        self, address: str, *, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse | Outcome:
        """GET bytes: a response still to be read and closed (200, 206), or the outcome instead."""
        token = await self._token(address)
        if isinstance(token, Unanswered):
            return token
        try:
            response: aiohttp.ClientResponse = await self._session.request(
                "GET",
                URL(address, encoded=True),
                headers={**headers, **_authorization(token)},
                auto_raise_for_status=False,
                allow_redirects=False,
                timeout=self._reading,
            )
            if response.status in {200, 206}:
                return response
            async with response:
                reply = await _collect(response, _unwatched)
        except FAILURES as err:
            return self.unanswered(err)
        self._heed(reply.status, token)
        return reply

    def unanswered(self, err: BaseException) -> Unanswered:
        """What a failed exchange comes to; raises Blocked when the certificate is not trusted.

        Neither the error's text nor the error itself goes on: both may hold a session's URI.
        """
        if isinstance(err, aiohttp.ClientConnectorCertificateError):
            raise Blocked(
                f"The certificate of {self.endpoint.host} is not trusted.",
                hint="Check the endpoint, this machine's clock and its CA certificates.",
            ) from None
        sent = not isinstance(err, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return Unanswered(_in_words(err), sent=sent)

    async def _exchange(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str],
        body: PiecesBody | bytes | None,
        limit: asyncio.Timeout,
    ) -> Reply:
        now = asyncio.get_running_loop().time

        def alive() -> None:
            if not limit.expired():
                limit.reschedule(now() + self._stall_seconds)

        alive()
        if isinstance(body, PiecesBody):
            body.progress = alive
        try:
            async with await self._session.request(
                method,
                URL(address, encoded=True),
                headers=headers,
                auto_raise_for_status=False,
                allow_redirects=False,
                data=body,
            ) as response:
                reply = await _collect(response, alive)
                if isinstance(body, PiecesBody) and not body.complete:
                    response.close()  # answered early: the rest of the body must not follow
                return reply
        finally:
            if isinstance(body, PiecesBody):
                body.progress = _unwatched  # its writer may outlive the limit by a moment

    async def _token(self, address: str) -> str | Unanswered:
        if not self.endpoint.accepts(address):
            raise ValueError("a request to another server than the endpoint")
        return "" if self._bearer is None else await self._bearer.get()

    def _heed(self, status: int, token: str) -> None:
        if status == 401 and self._bearer is not None:
            self._bearer.forget(token)


async def _collect(response: aiohttp.ClientResponse, alive: Callable[[], None]) -> Reply:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        alive()
        size += len(piece)
        if size > ANSWER_BYTES_LIMIT:
            response.close()
            raise aiohttp.ClientPayloadError("the answer is longer than any of this protocol")
        pieces.append(piece)
    return Reply(response.status, response.headers, b"".join(pieces))


def _unwatched() -> None:
    """Progress that no limit waits for."""


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _in_words(err: BaseException) -> str:
    if isinstance(err, aiohttp.ClientConnectorError):
        return err.os_error.strerror or "no connection"
    if isinstance(err, TimeoutError):
        return "no sign of life within the stall limit"
    if isinstance(err, OSError) and err.errno:
        return os.strerror(err.errno)
    return type(err).__name__


def _quoted(name: str) -> str:
    """One path segment; dots too where a URL parser would take them for a step."""
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


def _query(query: Query | None) -> str:
    return f"?{urlencode(query)}" if query else ""
