"""A bucket of Google Cloud Storage as a `ports.ClipStore`.

Everything but creating is optional: a key with the role Storage Object Creator alone is enough.
The prefix of the settings is put before every key here and taken off again; nobody else knows it.
It must never replace an object but the one generation that was found corrupt: the only writes are
`upload`'s, which are create-only otherwise.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from gcloud.aio.storage import Storage

from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked, Transient
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import Allow, Capabilities, ClipStore, Record, Upload
from nvr_backup.stores.gcs.client import GcsClient, open_session
from nvr_backup.stores.gcs.credentials import Bearer, find_credentials, read_credentials
from nvr_backup.stores.gcs.destination import Destination, only_generation
from nvr_backup.stores.gcs.download import download
from nvr_backup.stores.gcs.replies import (
    content,
    is_bucket_missing,
    refusal,
    stored_object,
)
from nvr_backup.stores.gcs.retry import ATTEMPTS_LIMIT, RetryBudget
from nvr_backup.stores.gcs.session import NewObject
from nvr_backup.stores.gcs.settings import GcsSettings, find_endpoint
from nvr_backup.stores.gcs.upload import GcsUpload

CREATE: Final = "storage.objects.create"
GET: Final = "storage.objects.get"
LIST: Final = "storage.objects.list"
DELETE: Final = "storage.objects.delete"

PROBE_ATTEMPTS: Final = 3
"""A probe is repeated by whoever asked for it; it answers soon."""

_NOTHING: Final = "0"
"""The generation of a key without an object (JSON API, `ifGenerationMatch`)."""

PAGE_OBJECTS: Final = 500
EMPTY_PAGES_LIMIT: Final = 100
"""A page may be empty and yet not the last; so many in a row are no listing."""

OBJECTS: Final = "items(name,size,crc32c,generation,contentType,metadata)"
FOLDERS: Final = "prefixes"
"""What is asked of a page besides its token."""


@asynccontextmanager
async def open_store(
    settings: GcsSettings, clock: Clock, *, allow: Allow | None = None
) -> AsyncIterator[ClipStore]:
    """The store for `settings`, its connections closed at the end; `allow` limits what leaves.

    Asks nothing of the network, so it works with the link down. Raises ConfigError for an
    unusable endpoint or credentials file. To gcloud-aio `api_is_dev` means: send no token.
    """
    endpoint = find_endpoint(settings, os.environ)
    async with open_session(settings) as session:
        path = find_credentials(settings, os.environ) if endpoint.authenticated else None
        if path is not None:
            read_credentials(path)
        storage = Storage(
            session=session,
            token=Bearer(path, session, clock),
            api_root=endpoint.root,
            api_is_dev=not endpoint.authenticated,
        )
        yield GcsStore(GcsClient(storage, endpoint, settings, allow=allow), clock, settings)


class GcsStore:
    """One bucket; see `ports.ClipStore` for what its methods promise."""

    def __init__(self, client: GcsClient, clock: Clock, settings: GcsSettings) -> None:
        self._client = client
        self._clock = clock
        self._settings = settings

    async def probe(self) -> Capabilities:
        """What the key may do, by testIamPermissions, which itself needs no permission.

        Where a server does not know that call, the bucket's existence has to do and everything
        is assumed to be allowed. Raises Blocked for whatever keeps objects from being created.
        """
        doing = f"gs://{self._settings.bucket}"
        query = [("permissions", each) for each in (CREATE, GET, LIST, DELETE)]
        permissions = self._client.bucket_address("/iam/testPermissions", query)
        bucket = self._client.bucket_address()
        budget = self._budget(doing, PROBE_ATTEMPTS)
        try:
            reply = await budget.clear(lambda: self._client.send("GET", permissions))
            if reply.status not in {200, 401, 403} or content(reply) is None:
                reply = await budget.clear(lambda: self._client.send("GET", bucket))
                if reply.status == 200 and content(reply) is not None:
                    return Capabilities(stat=True, list=True, read=True, delete=True, resume=True)
        except Transient as err:
            raise Blocked(err.message, hint="It will be tried again by itself.") from err
        answer = content(reply)
        if reply.status != 200 or answer is None:
            refused = refusal(reply, doing=doing)
            if not isinstance(refused, Blocked):  # a 400, which here can only be about the bucket
                refused = Blocked(refused.message, hint="Check the bucket's name.")
            raise refused
        granted = answer.get("permissions")
        if not isinstance(granted, Sequence) or CREATE not in granted:
            raise Blocked(
                f"{doing}: the key may not create objects (no {CREATE}).",
                hint="Grant its account the role Storage Object Creator on the bucket.",
            )
        get = GET in granted
        return Capabilities(
            stat=get, list=LIST in granted, read=get, delete=DELETE in granted, resume=True
        )

    @asynccontextmanager
    async def put(
        self,
        key: str,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        record: Record,
        resume: UploadState | None = None,
        replaces: str | None = None,
    ) -> AsyncIterator[Upload]:
        new = NewObject(
            self._settings.prefix + key, content_type, dict(metadata), replaces or _NOTHING
        )
        state = resume or UploadState("", key, content_type, self._clock.now())
        upload = GcsUpload(
            self._client,
            self._clock,
            Destination(self._client, self._clock, self._settings, new),
            single_limit=self._settings.chunk_size,
            state=state,
            record=record,
        )
        if resume is not None:
            await upload.resume()
        yield upload

    async def stat(self, key: str) -> StoredObject | None:
        doing = self._step(key, "looking it up")
        name = self._settings.prefix + key
        reply = await self._budget(doing).clear(lambda: self._client.describe(name))
        if reply.status == 404 and not is_bucket_missing(reply):
            return None
        found = stored_object(content(reply) or {}, self._settings.prefix)
        if reply.status != 200 or found is None:
            raise refusal(reply, doing=doing)
        return found

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        doing = self._step(prefix, "listing")
        async for page in self._pages(prefix, {"fields": f"nextPageToken,{OBJECTS}"}, doing):
            found = [stored_object(item, self._settings.prefix) for item in _entries(page, "items")]
            if None in found:
                raise Transient(f"{doing}: an entry of the listing makes no sense.")
            for each in found:
                if each is not None:
                    yield each

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        doing = self._step(prefix, "listing folders")
        query = {"fields": f"nextPageToken,{FOLDERS}", "delimiter": "/"}
        async for page in self._pages(prefix, query, doing):
            for name in _entries(page, "prefixes"):
                if not isinstance(name, str):
                    raise Transient(f"{doing}: an entry of the listing makes no sense.")
                yield name.removeprefix(self._settings.prefix)

    def read(
        self, key: str, *, offset: int = 0, generation: str | None = None
    ) -> AsyncIterator[bytes]:
        doing = self._step(key, "reading")
        return download(
            self._client,
            self._settings.prefix + key,
            offset=offset,
            generation=generation or "",
            budget=self._budget(doing),
            doing=doing,
        )

    async def delete(self, key: str, *, generation: str | None = None) -> None:
        doing = self._step(key, "deleting")
        name = self._settings.prefix + key
        exactly = {} if generation is None else only_generation(generation)
        reply = await self._budget(doing).clear(lambda: self._client.delete(name, exactly))
        gone = reply.status in {204, 200, 404, 412} and not is_bucket_missing(reply)
        if not gone:
            raise refusal(reply, doing=doing)

    async def _pages(
        self, prefix: str, what: Mapping[str, str], doing: str
    ) -> AsyncIterator[Mapping[str, Any]]:
        """The pages of a listing; Transient when they make no sense or never end."""
        token, empty_pages = "", 0
        while True:
            query = {
                "prefix": self._settings.prefix + prefix,
                "maxResults": str(PAGE_OBJECTS),
                **what,
                **({"pageToken": token} if token else {}),
            }
            page = await self._page(query, doing)
            yield page
            following = str(page.get("nextPageToken") or "")
            if not following:
                return
            found = page.get("items") or page.get("prefixes")
            empty_pages = 0 if found else empty_pages + 1
            if empty_pages > EMPTY_PAGES_LIMIT or (found and following == token):
                raise Transient(f"{doing}: the listing goes round in circles.")
            token = following

    async def _page(self, query: Mapping[str, str], doing: str) -> Mapping[str, Any]:
        reply = await self._budget(doing).clear(lambda: self._client.page(query))
        if reply.status != 200:
            raise refusal(reply, doing=doing)
        page = content(reply)
        if page is None or not all(
            isinstance(page.get(name, []), list) for name in ("items", "prefixes")
        ):
            raise Transient(f"{doing}: a page of the listing makes no sense.")
        return page

    def _budget(self, doing: str, attempts: int = ATTEMPTS_LIMIT) -> RetryBudget:
        return RetryBudget(
            self._clock,
            seconds=self._settings.retry_seconds,
            doing=doing,
            host=self._client.endpoint.host,
            attempts=attempts,
        )

    def _step(self, key: str, doing: str) -> str:
        return f"gs://{self._settings.bucket}/{self._settings.prefix}{key}: {doing}"


def _entries(page: Mapping[str, Any], name: str) -> Sequence[Any]:
    found: Sequence[Any] = page.get(name, [])
    return found
