"""One HTTP request to the storage server: credentials on, stalls detected, outcome as a value.

Retries nothing and judges nothing (see `retry`, `replies`). It must never send the bearer token
to another server than the endpoint, follow a redirect, or let an exception out whose text holds
an address: a session's URI is a secret.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from gcloud.aio.storage import Storage
from yarl import URL

from nvr_backup import __version__
from nvr_backup.errors import Blocked
from nvr_backup.ports import Allow
from nvr_backup.stores.gcs.body import PiecesBody
from nvr_backup.stores.gcs.credentials import Bearer, NoToken
from nvr_backup.stores.gcs.replies import Outcome, Reply, Unanswered, raised
from nvr_backup.stores.gcs.settings import Endpoint, GcsSettings

ANSWER_BYTES_LIMIT: Final = 16 * 1024 * 1024
"""More than a page of a listing can be; object bytes are streamed, not collected."""

CONNECTIONS_LIMIT: Final = 64
UNSENT_BYTES: Final = 512 * 1024
"""What the kernel may hold without having sent it. Unlimited, a slow line would swallow megabytes
at once, and the wait for the answer would look like a stall."""

EARLY: Final = 0.01
"""A silence may count as a stall by this part of the limit too early."""

NO_NAMES: Final = frozenset({"", ".", ".."})
"""No objects have these names. In gcloud-aio's URLs ".." would mean, and delete, the bucket."""

Query = Mapping[str, str] | Sequence[tuple[str, str]]
Call = Callable[..., Awaitable[object]]
FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError, NoToken)
"""What is raised when an exchange fails for reasons outside this program."""


def open_session(settings: GcsSettings) -> aiohttp.ClientSession:
    """The connection pool of one store, apart from every source's; no total time limit.

    What gcloud-aio leaves to aiohttp is limited here: redirects and the size of answers.
    """
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=CONNECTIONS_LIMIT, socket_factory=partial(_socket, settings.stall_seconds)
        ),
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=settings.stall_seconds,
            sock_connect=settings.connect_seconds,
            sock_read=settings.stall_seconds,
        ),
        response_class=_Answer,
        trace_configs=[tracing],
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": f"nvr-backup/{__version__}"},
    )


class _Answer(aiohttp.ClientResponse):
    """An answer that nobody collects without bound."""

    async def read(self) -> bytes:
        if self._body is None:
            pieces, size = [], 0
            try:
                async for piece in self.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > ANSWER_BYTES_LIMIT:
                        raise aiohttp.ClientPayloadError("longer than any of this protocol")
            except BaseException:
                self.close()
                raise
            self._body = b"".join(pieces)
        return await super().read()


async def _refuse_redirect(
    session: object, context: object, params: aiohttp.TraceRequestRedirectParams
) -> None:
    """aiohttp is about to follow: nothing here asks another address than the one it means."""
    answer = params.response
    raise aiohttp.ClientResponseError(
        answer.request_info, (), status=answer.status, headers=answer.headers
    )


def _socket(stall_seconds: float, address: Any) -> socket.socket:
    """A socket whose unacknowledged bytes fail after the stall limit, in the kernel too."""
    made = socket.socket(*address[:3])
    limits = {
        "TCP_USER_TIMEOUT": max(1, int(stall_seconds * 1000)),
        "TCP_NOTSENT_LOWAT": UNSENT_BYTES,
    }
    for name, value in limits.items():
        option = getattr(socket, name, None)  # both are Linux's
        if option is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


class GcsClient:
    """Requests to one bucket of one endpoint, all through one `Storage` of gcloud-aio.

    Its `delete`, `download_metadata` and `list_objects` are called as they are. Uploads, streamed
    reads and what it has no call for are requests of our own through its session.
    """

    def __init__(
        self,
        storage: Storage,
        endpoint: Endpoint,
        settings: GcsSettings,
        *,
        allow: Allow | None = None,
    ) -> None:
        self._storage = storage
        self._bearer: Bearer = storage.token
        # gcloud-aio would limit a whole exchange to 10 s.
        self._timeout: aiohttp.ClientTimeout = storage.session.session.timeout
        self._stall_seconds = settings.stall_seconds
        self._allow = allow
        self._bucket = _quoted(settings.bucket)
        self.endpoint = endpoint

    def bucket_address(self, tail: str = "", query: Query | None = None) -> str:
        """The bucket itself, or with `tail` something below it."""
        return f"{self.endpoint.root}/storage/v1/b/{self._bucket}{tail}{_query(query)}"

    def object_address(self, name: str, query: Query | None = None) -> str:
        """An object, whatever characters its name has."""
        return self.bucket_address(f"/o/{_quoted(name)}", query)

    def upload_address(self, kind: str, replaces: str) -> str:
        """Where objects are created, if none but generation `replaces` is there ("0": none)."""
        root = f"{self.endpoint.root}/upload/storage/v1/b/{self._bucket}/o"
        return f"{root}?{urlencode({'uploadType': kind, 'ifGenerationMatch': replaces})}"

    def owns_session(self, address: str) -> bool:
        """Whether a session's address is on this endpoint and, as far as it tells, this bucket."""
        path = urlsplit(address).path if self.endpoint.accepts(address) else ""
        return bool(path) and ("/b/" not in path or f"/b/{self._bucket}/" in path)

    async def describe(self, name: str) -> Outcome:
        """Ask for an object's resource."""
        return await self._called(self._storage.download_metadata, name)

    async def delete(self, name: str, query: Mapping[str, str]) -> Outcome:
        """Delete an object, if it meets the conditions in `query`."""
        return await self._called(self._storage.delete, name, params=query)

    async def page(self, query: Mapping[str, str]) -> Outcome:
        """Ask for one page of a listing."""
        return await self._called(self._storage.list_objects, params=query)

    async def send(
        self,
        method: str,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: PiecesBody | bytes | None = None,
    ) -> Outcome:
        """One request, once, and its whole answer.

        The stall limit counts anew whenever bytes leave or arrive; it stands still while `allow`
        holds bytes back. Raises Blocked for unusable
        credentials or a certificate that is not trusted.
        """
        try:
            async with await self._request(method, address, headers or {}, body) as response:
                reply = Reply(response.status, response.headers, await response.read())
                if isinstance(body, PiecesBody) and not body.complete:
                    response.close()  # answered early: the rest of the body must not follow
                return reply
        except FAILURES as err:
            return self.failed(err)

    async def open(
        self, address: str, *, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse | Outcome:
        """GET bytes: a response still to be read and closed (200, 206), or the outcome instead."""
        try:
            response = await self._request("GET", address, headers)
            if response.status in {200, 206}:
                return response
            async with response:
                return Reply(response.status, response.headers, await response.read())
        except FAILURES as err:
            return self.failed(err)

    def failed(self, err: BaseException) -> Outcome:
        """What a failed exchange comes to; raises Blocked when the certificate is not trusted.

        Neither the error's text nor the error itself goes on: both may hold a session's URI.
        """
        if isinstance(err, NoToken):
            return err.outcome
        if isinstance(err, aiohttp.ClientResponseError):
            self._heed(err.status, err.request_info)
            return raised(err)
        if isinstance(err, aiohttp.ClientConnectorCertificateError):
            raise Blocked(
                f"The certificate of {self.endpoint.host} is not trusted.",
                hint="Check the endpoint, this machine's clock and its CA certificates.",
            ) from None
        sent = not isinstance(err, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return Unanswered(_in_words(err), sent=sent)

    async def _called(self, call: Call, *names: str, **options: Any) -> Outcome:
        """What a call of gcloud-aio comes to: it raises what `send` returns."""
        if NO_NAMES.intersection(names):
            return Reply(404)
        try:
            said = await call(self._bucket, *names, timeout=self._timeout, **options)
        except FAILURES as err:
            return self.failed(err)
        except (ValueError, RecursionError):  # its text would be the body
            said = None
        return Reply(200, parsed=said)

    async def _request(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str],
        body: PiecesBody | bytes | None = None,
    ) -> aiohttp.ClientResponse:
        """The beginning of the answer; until then progress is watched, from then on `sock_read`."""
        if not self.endpoint.accepts(address):
            raise ValueError("a request to another server than the endpoint")
        if self.endpoint.authenticated:
            headers = {**headers, "Authorization": f"Bearer {await self._bearer.get()}"}
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self._stall_seconds) as limit:

                def alive() -> None:
                    until, set_to = now() + self._stall_seconds, limit.when()
                    # A timer for every piece would cost more than it tells.
                    early = set_to is None or until - set_to > EARLY * self._stall_seconds
                    if early and not limit.expired():
                        limit.reschedule(until)

                def held_back() -> None:
                    if not limit.expired():
                        limit.reschedule(None)

                if isinstance(body, PiecesBody):
                    body.progress, body.waiting, body.allow = alive, held_back, self._allow
                response: aiohttp.ClientResponse = await self._storage.session.request(
                    method,
                    URL(address, encoded=True),
                    headers=headers,
                    data=body,
                    auto_raise_for_status=False,
                    allow_redirects=False,
                    timeout=self._timeout,
                )
        finally:
            if isinstance(body, PiecesBody):
                # Its writer may outlive the limit by a moment.
                body.progress = body.waiting = _unwatched
        self._heed(response.status, response.request_info)
        return response

    def _heed(self, status: int, request: aiohttp.RequestInfo) -> None:
        if status == 401:
            self._bearer.forget(request.headers.get("Authorization", ""))


def _unwatched() -> None:
    """Progress that no limit waits for."""


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
