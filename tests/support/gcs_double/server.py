"""The storage double as a server: which request goes where, faults around it, the journal."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from aiohttp import web

from tests.support.gcs_double import control
from tests.support.gcs_double.answers import (
    HangUp,
    Refused,
    error_answer,
    plain_answer,
    refuse,
)
from tests.support.gcs_double.auth import PERMISSIONS, Account, Authority, Caller, write_key_file
from tests.support.gcs_double.exchange import Exchange, Seen, masked_headers, masked_query
from tests.support.gcs_double.faults import Delay, Faults, Garbled, Reset, Stall, Status
from tests.support.gcs_double.held import Bytes, Held, Keep, Session, Wanted
from tests.support.gcs_double.parsing import ContentRange
from tests.support.gcs_double.shelf import Shelf
from tests.support.gcs_double.uploads import Uploads

MOST_SEEN = 100_000
"""Journal entries kept; older ones are forgotten."""

MOST_FORM = 64 * 1024

SHUTDOWN_SECONDS = 0.5
"""How long requests under way may take to end when the double is closed; then they are cut."""


@dataclass(frozen=True, slots=True)
class _Route:
    where: str
    bucket: str = ""
    key: str | None = None


class GcsDouble:
    """A storage service on 127.0.0.1. See the package's docstring for the use.

    - `objects[bucket][key]`: what is stored (`Held`: data, size, crc32c, sha256, generation,
      metadata, content_type). `put` places an object without any request.
    - `requests`: the journal (`Seen`), oldest first. `faults`: the script.
    - `keep="digest"`: no bytes are kept, only size and checksums, for objects of many GiB.
    - `auth=True`: every storage call needs a token of `write_service_account`'s key. Otherwise
      everybody may do what `anonymous_permissions` says.
    - `page_size`: the most items of a page of a listing. `delay_seconds`: before every answer.
    - `uploads.creator_conflict`, `uploads.cut_keeps`, `uploads.unaligned`: where the service's
      behaviour is not documented, or varies (see `Uploads`).
    - `receive_buffer`: SO_RCVBUF in bytes; small, so that a stalled double really stalls its peer.
    """

    def __init__(
        self,
        buckets: tuple[str, ...] = ("footage",),
        *,
        auth: bool = False,
        keep: Keep = "all",
        page_size: int = 1000,
        delay_seconds: float = 0.0,
        token_life_seconds: float = 3600.0,
        anonymous_permissions: frozenset[str] = PERMISSIONS,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        receive_buffer: int | None = 64 * 1024,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shelf = Shelf(buckets, keep=keep, page_size=page_size)
        self.uploads = Uploads(self.shelf)
        self.authority = Authority(
            required=auth,
            life_seconds=token_life_seconds,
            now=now,
            anonymous_permissions=anonymous_permissions,
        )
        self.faults = Faults()
        self.requests: deque[Seen] = deque(maxlen=MOST_SEEN)
        self.delay_seconds = delay_seconds
        self.errors: list[Exception] = []
        """Bugs of the double itself, or requests it cannot judge; raised when it is closed."""
        self._numbers = itertools.count(1)
        self._connections: dict[int, int] = {}
        self._tls = tls
        self._port = port
        self._receive_buffer = receive_buffer
        self._runner: web.ServerRunner | None = None
        self._url = ""

    # -- life --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        server = web.Server(self._handle, read_bufsize=256 * 1024, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        listener.bind(("127.0.0.1", self._port))
        site = web.SockSite(self._runner, listener, ssl_context=self._tls)
        await site.start()
        self._port = listener.getsockname()[1]
        self._url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.faults.release()
        if self._runner is not None:
            await self._runner.cleanup()
        if self.errors and error is None:
            raise ExceptionGroup("the storage double itself failed", self.errors)

    # -- what tests use ----------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Root of the API: `{url}/storage/v1/…`, `{url}/upload/storage/v1/…`."""
        return self._url

    @property
    def port(self) -> int:
        return self._port

    @property
    def token_uri(self) -> str:
        return f"{self._url}/token"

    @property
    def objects(self) -> dict[str, dict[str, Held]]:
        return self.shelf.objects

    @property
    def sessions(self) -> list[Session]:
        """Upload sessions in order of their creation."""
        return list(self.uploads.sessions.values())

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        content_type: str = "video/mp4",
        metadata: Mapping[str, str] | None = None,
    ) -> Held:
        """Place an object, as somebody else would have; replaces what is there."""
        wanted = Wanted(bucket, key, content_type, dict(metadata or {}))
        return self.shelf.put(wanted, Bytes.of(data, self.shelf.keep))

    def write_service_account(
        self,
        path: Path,
        *,
        permissions: frozenset[str] = PERMISSIONS,
        name: str = "backup",
    ) -> Account:
        """Create a service account with a real RSA key and write its key file (mode 0600).

        `token_uri` in the file is this double's; the returned account's permissions may be
        changed later. The double must be running.
        """
        account, content = self.authority.create(self.token_uri, name=name, permissions=permissions)
        write_key_file(path, content)
        return account

    def expire_tokens(self) -> int:
        """All tokens issued so far are refused with 401 from now on; returns how many."""
        return self.authority.expire_all()

    def lose_sessions(self, status: int = 410) -> int:
        """All unfinished upload sessions are gone, as after a week; returns how many."""
        open_ = [s for s in self.sessions if s.done is None and s.lost is None]
        for session in open_:
            session.lost = status
        return len(open_)

    def seen(self, where: str) -> list[Seen]:
        """The journal's requests of one kind."""
        return [entry for entry in self.requests if entry.where == where]

    # -- serving -----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        split = urlsplit(request.raw_path)
        if split.path.startswith("/_double/"):
            return await control.answer(self, request, split.path)
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        route: _Route | Refused
        try:
            route = self._route(request, split.path, query)
        except Refused as refused:
            route = refused
        except Exception as err:
            self.errors.append(err)
            raise
        seen = Seen(
            number=next(self._numbers),
            where=route.where if isinstance(route, _Route) else "none",
            method=request.method,
            path=split.path,
            query=masked_query(split.query),
            headers=masked_headers(request.headers),
            connection=self._connection(request),
            key=route.key if isinstance(route, _Route) else None,
        )
        self.requests.append(seen)
        fault = self.faults.take(seen.where, seen.key) if isinstance(route, _Route) else None
        seen.fault = "" if fault is None else repr(fault.what)
        exchange = Exchange(request, seen, fault, self.faults)
        try:
            answer = await self._with_faults(exchange, route, query, split.query)
        except HangUp:
            exchange.reset()
            return web.Response(status=500)
        except Exception as err:
            self.errors.append(err)
            raise
        seen.status = answer.status
        seen.answer = {
            k: answer.headers[k] for k in ("Range", "Retry-After") if k in answer.headers
        }
        return answer

    def _connection(self, request: web.BaseRequest) -> int:
        """A number for the client's connection, by its port."""
        peer = request.transport.get_extra_info("peername") if request.transport else None
        port = peer[1] if peer else 0
        return self._connections.setdefault(port, len(self._connections) + 1)

    async def _with_faults(
        self, exchange: Exchange, route: _Route | Refused, query: dict[str, str], raw_query: str
    ) -> web.StreamResponse:
        what = exchange.what
        if isinstance(what, Reset | Stall) and what.at == "before" and what.after_bytes is None:
            await exchange.break_off()
        if isinstance(what, Status | Garbled) and not what.commit:
            if not (isinstance(what, Status) and what.early):
                await exchange.drop_body()
            return self._substitute(exchange, what, query, None)
        try:
            if isinstance(route, Refused):
                raise route
            answer = await self._serve(exchange, route, query, raw_query)
        except Refused as refused:
            return await self._delayed(refused.response)
        if isinstance(what, Reset | Stall):
            await exchange.break_off()
        if isinstance(what, Status | Garbled):
            answer = self._substitute(exchange, what, query, answer)
        if isinstance(what, Delay):
            exchange.hit()
            await asyncio.sleep(what.seconds)
        return await self._delayed(answer)

    async def _delayed(self, answer: web.StreamResponse) -> web.StreamResponse:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        return answer

    def _substitute(
        self,
        exchange: Exchange,
        what: Status | Garbled,
        query: Mapping[str, str],
        true: web.StreamResponse | None,
    ) -> web.Response:
        exchange.hit()
        if isinstance(what, Garbled):
            body = what.body
            if what.truncate and isinstance(true, web.Response) and isinstance(true.body, bytes):
                body = true.body[: len(true.body) // 2]
            return web.Response(body=body, headers={"Content-Type": what.content_type})
        if what.lose_session and query.get("upload_id") in self.uploads.sessions:
            self.uploads.sessions[query["upload_id"]].lost = what.code
        if what.plain:
            text = f"<html><title>Error {what.code}</title>Please try again in 30 seconds.</html>"
            answer = plain_answer(what.code, text, "text/html")
        elif exchange.seen.where == "token":
            answer = web.json_response(
                {"error": what.reason or "internal_failure", "error_description": what.message},
                status=what.code,
            )
        else:
            answer = error_answer(what.code, what.message or "Scripted.", reason=what.reason)
        if what.retry_after is not None:
            answer.headers["Retry-After"] = what.retry_after
        return answer

    def _route(self, request: web.BaseRequest, path: str, query: Mapping[str, str]) -> _Route:
        """What kind of request this is."""
        method, parts = request.method, [unquote(part) for part in path.split("/")[1:]]
        match parts:
            case ["token"] if method == "POST":
                return _Route("token")
            case ["upload", "storage", "v1", "b", bucket, "o"]:
                return self._upload_route(request, bucket, query)
            case ["storage", "v1", "b", bucket] if method == "GET":
                return _Route("bucket", bucket)
            case ["storage", "v1", "b", bucket, "iam", "testPermissions"] if method == "GET":
                return _Route("permissions", bucket)
            case ["storage", "v1", "b", bucket, "o"] if method == "GET":
                return _Route("list", bucket)
            case [*rest, "storage", "v1", "b", bucket, "o", key] if rest in ([], ["download"]):
                if method == "GET":
                    return _Route("media" if query.get("alt") == "media" else "get", bucket, key)
                if method == "DELETE" and not rest:
                    return _Route("delete", bucket, key)
        raise Refused(plain_answer(404, "Not Found"))

    def _upload_route(
        self, request: web.BaseRequest, bucket: str, query: Mapping[str, str]
    ) -> _Route:
        method, upload_id = request.method, query.get("upload_id")
        if upload_id is not None:
            session = self.uploads.sessions.get(upload_id)
            key = None if session is None else session.wanted.name
            if method == "DELETE":
                return _Route("cancel", bucket, key)
            if method == "PUT":
                sent = ContentRange(request.headers.get("Content-Range"), request.content_length)
                where = "query" if sent.is_query else "last" if sent.is_last else "chunk"
                return _Route(where, bucket, key)
        elif method == "POST":
            kind = query.get("uploadType")
            if kind == "resumable":
                return _Route("initiate", bucket, query.get("name"))
            if kind in ("multipart", "media"):
                return _Route("single", bucket, query.get("name"))
            raise refuse(400, "uploadType must be resumable, multipart or media.")
        raise refuse(405, "Method Not Allowed", reason="httpMethodNotAllowed")

    async def _serve(
        self, exchange: Exchange, route: _Route, query: dict[str, str], raw_query: str
    ) -> web.StreamResponse:
        """Carry a request out. Raises Refused."""
        if route.where == "token":
            body = await exchange.read_all(MOST_FORM) or b""
            form = dict(parse_qsl(body.decode("latin-1")))
            return self.authority.grant(form, self.token_uri)
        authorization = exchange.request.headers.get("Authorization")
        if "upload_id" in query:
            return await self._serve_session(exchange, route, query, authorization)
        caller = self.authority.caller(authorization)
        if route.where in ("initiate", "single"):
            self.shelf.bucket(route.bucket)
            caller.require("storage.objects.create")
            if route.where == "initiate":
                return await self.uploads.initiate(exchange, route.bucket, query, caller)
            return await self.uploads.single(exchange, route.bucket, query, caller)
        return await self._read(exchange, route, query, raw_query, caller)

    async def _serve_session(
        self, exchange: Exchange, route: _Route, query: dict[str, str], authorization: str | None
    ) -> web.StreamResponse:
        """The session's URI is authority enough, but a token that is sent must be valid."""
        if authorization is not None:
            self.authority.caller(authorization)
        session = self.uploads.session(query["upload_id"])
        exchange.seen.session = session.number
        if session.wanted.bucket != route.bucket:
            raise refuse(404, "Not Found: the upload session is unknown.", reason="notFound")
        if route.where == "cancel":
            return self.uploads.cancel(session)
        request = exchange.request
        sent = ContentRange(request.headers.get("Content-Range"), request.content_length)
        return await self.uploads.put(exchange, session, sent, query)

    async def _read(
        self,
        exchange: Exchange,
        route: _Route,
        query: dict[str, str],
        raw_query: str,
        caller: Caller,
    ) -> web.StreamResponse:
        shelf, bucket = self.shelf, route.bucket
        shelf.bucket(bucket)
        if route.where == "permissions":
            return shelf.permissions(bucket, parse_qs(raw_query).get("permissions", []), caller)
        if route.where == "bucket":
            caller.require("storage.buckets.get")
            return shelf.bucket_resource(bucket, query)
        if route.where == "list":
            caller.require("storage.objects.list")
            return shelf.list(exchange, bucket, query)
        key = route.key or ""
        if route.where == "delete":
            caller.require("storage.objects.delete")
            return shelf.delete(bucket, key, query)
        caller.require("storage.objects.get")
        held = shelf.find(bucket, key, query)
        if route.where == "media":
            return await shelf.media(exchange, held)
        return shelf.describe(exchange, held, query)
