"""Creating objects: resumable sessions, multipart and media uploads, as strictly as documented.

Facts: cloud.google.com/storage/docs/performing-resumable-uploads and resumable-uploads,
json_api/v1/objects/insert; the answers to offset gaps, to a finished session and to `*/T` with a
wrong T follow what the maintainers of the Java client recorded of the service (S.1 to S.5 of
ITJsonResumableSessionPutTaskTest).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from aiohttp import web

from tests.support.gcs_double.answers import (
    HangUp,
    condition_not_met,
    forbidden,
    invalid,
    plain_answer,
    refuse,
)
from tests.support.gcs_double.auth import Caller
from tests.support.gcs_double.exchange import Exchange
from tests.support.gcs_double.faults import Backwards, Claim, Partial
from tests.support.gcs_double.held import (
    QUANTUM,
    Bytes,
    Held,
    Incoming,
    Session,
    Wanted,
    crc32c_text,
)
from tests.support.gcs_double.parsing import (
    ContentRange,
    goog_hashes,
    integer,
    json_part,
    parse_wanted,
    split_related,
)
from tests.support.gcs_double.shelf import Shelf

MOST_JSON = 256 * 1024
MOST_SINGLE = 512 * 1024 * 1024


class Uploads:
    """The upload endpoint over a shelf of objects."""

    def __init__(self, shelf: Shelf) -> None:
        self.sessions: dict[str, Session] = {}
        self.creator_conflict: Literal[403, 412] = 412
        """What a key without storage.objects.delete gets where ifGenerationMatch=0 does not hold:
        412, or 403 naming that permission (which of them the service sends is not documented)."""
        self.cut_keeps: Literal["aligned", "all", "none"] = "aligned"
        """What is persisted of a chunk whose connection broke: aligned, all or none."""
        self.unaligned: Literal[400, 308] = 400
        """A chunk that is no multiple of 256 KiB: 400, or 308 after keeping the aligned part."""
        self._shelf = shelf

    # -- beginning ---------------------------------------------------------------------------

    async def initiate(
        self, exchange: Exchange, bucket: str, query: Mapping[str, str], caller: Caller
    ) -> web.Response:
        body = await exchange.read_all(MOST_JSON)
        headers = exchange.request.headers
        content = json_part(body, headers.get("Content-Type", "")) if body else {}
        media_type = headers.get("X-Upload-Content-Type")
        wanted = parse_wanted(bucket, query, content, media_type, caller)
        self._allow(wanted)
        length = headers.get("X-Upload-Content-Length")
        session = Session(
            id=secrets.token_urlsafe(64),
            number=len(self.sessions) + 1,
            wanted=wanted,
            content=Bytes.new(self._shelf.keep),
            total=integer(length) if length else None,
        )
        self.sessions[session.id] = session
        exchange.seen.session, exchange.seen.key = session.number, wanted.name
        return web.Response(
            headers={
                "Location": f"{exchange.base_url}/upload/storage/v1/b/{bucket}/o"
                f"?uploadType=resumable&upload_id={session.id}",
                "X-GUploader-UploadID": session.id,
            }
        )

    async def single(
        self, exchange: Exchange, bucket: str, query: Mapping[str, str], caller: Caller
    ) -> web.Response:
        """uploadType=multipart and uploadType=media: everything in one request."""
        media_type = exchange.request.headers.get("Content-Type", "")
        body = await exchange.read_all(MOST_SINGLE)
        if body is None:
            raise refuse(413, "The request is too large for this double.")
        content: dict[str, Any] = {}
        if query["uploadType"] == "multipart":
            content, media_type, body = split_related(body, media_type)
        wanted = parse_wanted(bucket, query, content, media_type or None, caller)
        exchange.seen.key = wanted.name
        self._allow(wanted)
        held = self._create(exchange, wanted, Bytes.of(body, self._shelf.keep))
        return self._resource(exchange, held, query)

    # -- sessions ----------------------------------------------------------------------------

    def session(self, upload_id: str | None) -> Session:
        session = self.sessions.get(upload_id or "")
        if session is None:
            raise refuse(404, "Not Found: the upload session is unknown.", reason="notFound")
        return session

    def cancel(self, session: Session) -> web.Response:
        if session.done is not None:
            raise refuse(404, "Not Found: the upload session is finished.", reason="notFound")
        session.lost = 499
        session.content = Bytes.new(self._shelf.keep)
        return web.Response(status=499, reason="Client Closed Request")

    async def put(
        self, exchange: Exchange, session: Session, sent: ContentRange, query: Mapping[str, str]
    ) -> web.Response:
        """A session PUT of any kind."""
        if session.done is not None:
            await exchange.drop_body()
            return self._resource(exchange, session.done, query)
        self._check_alive(session)
        if sent.is_query:
            await exchange.drop_body()
            return self._incomplete(exchange, session)
        if sent.total is not None:
            if session.total not in (None, sent.total):
                raise invalid("The total size differs from the one stated before.")
            if sent.first is not None or sent.total == session.content.size:
                session.total = sent.total
        if sent.first is not None:
            answer = await self._receive(exchange, session, sent)
            if answer is not None:
                return answer
        if not sent.is_last or session.content.size != session.total:
            return self._incomplete(exchange, session)
        if isinstance(exchange.what, Partial):
            exchange.hit()
            return self._incomplete(exchange, session)
        if isinstance(exchange.what, Backwards):
            return self._incomplete(exchange, session)
        return self._finalise(exchange, session, query)

    def _check_alive(self, session: Session) -> None:
        if session.lost == 499:
            raise refuse(499, "Client Closed Request: the upload was cancelled.", reason="invalid")
        if session.lost is not None:
            raise refuse(session.lost, "The upload session is gone.")

    async def _receive(
        self, exchange: Exchange, session: Session, sent: ContentRange
    ) -> web.Response | None:
        """Persist a request's bytes; an answer, where that ends the matter."""
        first = sent.first or 0
        if first > session.content.size:
            return plain_answer(
                503,
                "Invalid request.  According to the Content-Range header, the upload offset is "
                f"{first} byte(s), which exceeds already uploaded size of "
                f"{session.content.size} byte(s).",
            )
        limit: int | None = None
        if not sent.is_last and sent.last is not None:
            length = sent.last - first + 1
            if length % QUANTUM and (sent.last + 1) % QUANTUM:
                if self.unaligned == 400:
                    raise invalid(
                        f"Invalid request. The number of bytes uploaded ({length}) is required to "
                        "be equal or greater than 262144 and a multiple of it, except for the "
                        "final request."
                    )
                end = (sent.last + 1) // QUANTUM * QUANTUM
                limit = max(0, end - session.content.size)
        if isinstance(exchange.what, Partial) and exchange.what.keep is not None:
            limit = max(0, first + exchange.what.keep - session.content.size)
        incoming = Incoming(session.content, skip=session.content.size - first, limit=limit)
        await self._take(exchange, session, incoming)
        expected = None if sent.last is None else sent.last - first + 1
        if expected is not None and exchange.seen.body_bytes != expected:
            raise invalid("The body is not as long as the Content-Range header says.")
        self._adopt(session, incoming.taken, incoming)
        if sent.whole and sent.total is None:
            session.total = session.content.size
        if isinstance(exchange.what, Partial) and exchange.what.keep is not None:
            exchange.hit()
            return self._incomplete(exchange, session)
        return None

    async def _take(self, exchange: Exchange, session: Session, incoming: Incoming) -> None:
        try:
            while piece := await exchange.read_piece():
                incoming.add(piece)
        except HangUp:
            if self.cut_keeps != "none":
                kept = incoming.taken if self.cut_keeps == "all" else incoming.aligned()
                self._adopt(session, kept, incoming)
            raise

    def _adopt(self, session: Session, taken: Bytes, incoming: Incoming) -> None:
        """Persist, unless another request of the session was quicker or ended it meanwhile."""
        self._check_alive(session)
        if session.done is not None or session.content.size != incoming.base_size:
            raise refuse(503, "Another request of this upload session was quicker.")
        session.content.adopt(taken)

    def _incomplete(self, exchange: Exchange, session: Session) -> web.Response:
        """308 Resume Incomplete, in the disguise that Google's Go clients ask for."""
        if isinstance(exchange.what, Backwards):
            session.content.cut(exchange.what.to)
            exchange.hit()
        size = session.content.size
        if isinstance(exchange.what, Claim):
            size = exchange.what.offset
            exchange.hit()
        headers = {"X-GUploader-UploadID": session.id}
        if size:
            headers["Range"] = f"bytes=0-{size - 1}"
        if exchange.request.headers.get("X-GUploader-No-308", "").lower() in ("yes", "true"):
            return web.Response(headers=headers | {"X-HTTP-Status-Code-Override": "308"})
        return web.Response(status=308, reason="Resume Incomplete", headers=headers)

    def _finalise(
        self, exchange: Exchange, session: Session, query: Mapping[str, str]
    ) -> web.Response:
        try:
            held = self._create(exchange, session.wanted, session.content)
        except Exception:
            session.lost = 410
            raise
        session.done = held
        return self._resource(exchange, held, query)

    # -- rules -------------------------------------------------------------------------------

    def _allow(self, wanted: Wanted) -> None:
        """The preconditions, now; evaluated when an upload begins and again when it ends."""
        existing = self._shelf.bucket(wanted.bucket).get(wanted.name)
        match = wanted.if_generation_match
        if match is not None and match != (existing.generation if existing else 0):
            if existing is not None and not wanted.may_overwrite and self.creator_conflict == 403:
                raise forbidden(wanted.who, "storage.objects.delete")
            raise condition_not_met()
        if existing is not None and not wanted.may_overwrite:
            raise forbidden(wanted.who, "storage.objects.delete")

    def _create(self, exchange: Exchange, wanted: Wanted, content: Bytes) -> Held:
        headers = exchange.request.headers
        self._check_hashes(content, goog_hashes(headers.getall("X-Goog-Hash", [])))
        stated = {"crc32c": wanted.crc32c, "md5": wanted.md5}
        self._check_hashes(content, {k: v for k, v in stated.items() if v is not None})
        self._allow(wanted)
        return self._shelf.put(wanted, content)

    def _check_hashes(self, content: Bytes, stated: Mapping[str, str]) -> None:
        if "crc32c" in stated and stated["crc32c"] != (actual := crc32c_text(content.crc32c)):
            raise invalid(
                f'Provided CRC32C "{stated["crc32c"]}" doesn\'t match calculated CRC32C "{actual}".'
            )
        if "md5" in stated:
            if content.pieces is None:
                raise NotImplementedError("MD5 needs keep='all'")
            digest = hashlib.md5(b"".join(content.pieces), usedforsecurity=False).digest()
            if stated["md5"] != (actual := base64.b64encode(digest).decode()):
                raise invalid(
                    f'Provided MD5 hash "{stated["md5"]}" doesn\'t match calculated MD5 hash '
                    f'"{actual}".'
                )

    def _resource(self, exchange: Exchange, held: Held, query: Mapping[str, str]) -> web.Response:
        return self._shelf.describe(exchange, held, query)
