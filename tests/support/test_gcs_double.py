"""The storage double refuses what Google's documentation says the service refuses, breaks links as
scripted, and never keeps a byte more or less than it says. Raw HTTP; no code of nvr_backup."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import google_crc32c
import pytest
from yarl import URL

from tests.support.gcs_double import (
    CREATOR,
    PERMISSIONS,
    QUANTUM,
    Backwards,
    Claim,
    Corrupt,
    Delay,
    EmptyPage,
    Garbled,
    GcsDouble,
    Misreport,
    Partial,
    Reset,
    Slow,
    Stall,
    Status,
    What,
    Where,
    rate_limited,
)

BUCKET = "footage"
KEY = "Haustür/2026/01/02/03-04-05.mp4"
DATA = bytes(range(256)) * 3600 + b"the odd end"  # between 3 and 4 × 256 KiB
SIZE = len(DATA)
LOST = (aiohttp.ClientError, ConnectionError)


def crc_text(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return str(self.json["error"]["errors"][0]["reason"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def held(self) -> int:
        """Bytes that a 308 confirms."""
        assert self.status == 308
        if "Range" not in self.headers:
            return 0
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        assert first == "0"
        return int(last) + 1


class Client:
    """Bare requests, a connection each, no redirects, no retries."""

    def __init__(self, gcs: GcsDouble, session: aiohttp.ClientSession) -> None:
        self.gcs = gcs
        self.session = session
        self.token: str | None = None

    async def ask(
        self, method: str, path: str, data: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        url = path if path.startswith("http") else self.gcs.url + path
        sent = {"Connection": "close", **(headers or {})}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        async with self.session.request(
            method, URL(url, encoded=True), data=data, headers=sent, allow_redirects=False
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def initiate(self, key: str = KEY, *, query: str = "", **fields: Any) -> Answer:
        return await self.ask(
            "POST",
            f"/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable{query}",
            json.dumps({"name": key, "contentType": "video/mp4", **fields}),
            {"Content-Type": "application/json"},
        )

    async def begin(self, key: str = KEY, *, query: str = "", **fields: Any) -> str:
        answer = await self.initiate(key, query=query, **fields)
        assert answer.status == 200, answer.body
        return str(answer.headers["Location"])

    async def put(
        self, session: str, content_range: str | None, data: Any = b"", **headers: str
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_range is not None:
            sent["Content-Range"] = f"bytes {content_range}"
        return await self.ask("PUT", session, data, sent)

    async def chunk(self, session: str, first: int, end: int, total: str = "*") -> Answer:
        return await self.put(session, f"{first}-{end - 1}/{total}", DATA[first:end])

    async def last(self, session: str, first: int, **headers: str) -> Answer:
        return await self.put(session, f"{first}-{SIZE - 1}/{SIZE}", DATA[first:], **headers)

    async def query(self, session: str) -> Answer:
        return await self.put(session, "*/*")

    async def multipart(
        self, key: str = KEY, data: bytes = DATA, *, query: str = "", **fields: Any
    ) -> Answer:
        part = json.dumps({"name": key, "contentType": "video/mp4", **fields}).encode()
        body = (
            b"--limit\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            + part
            + b"\r\n--limit\r\nContent-Type: video/mp4\r\n\r\n"
            + data
            + b"\r\n--limit--\r\n"
        )
        return await self.ask(
            "POST",
            f"/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart{query}",
            body,
            {"Content-Type": "multipart/related; boundary=limit"},
        )

    async def get(self, key: str = KEY, query: str = "", **headers: str) -> Answer:
        path = f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}{query}"
        return await self.ask("GET", path, headers=headers)

    async def delete(self, key: str = KEY, query: str = "") -> Answer:
        return await self.ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}{query}")

    async def list(self, query: str = "") -> Answer:
        return await self.ask("GET", f"/storage/v1/b/{BUCKET}/o{query}")

    def stored(self, key: str = KEY) -> bytes | None:
        held = self.gcs.objects[BUCKET].get(key)
        return None if held is None else held.data


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        # As aiohttp's own test tool does: otherwise it silently sends a PUT or GET a second time
        # after a reset, and the test would see the second answer.
        session._retry_connection = False
        yield session


@pytest.fixture
async def gcs() -> AsyncIterator[GcsDouble]:
    async with GcsDouble((BUCKET,)) as double:
        yield double
        assert not double.faults.unused()


@pytest.fixture
def client(gcs: GcsDouble, session: aiohttp.ClientSession) -> Client:
    return Client(gcs, session)


# -- the resumable protocol ------------------------------------------------------------------------


async def test_a_whole_resumable_upload(client: Client) -> None:
    session = await client.begin(metadata={"camera": "Haustür"}, query="&ifGenerationMatch=0")
    assert (await client.query(session)).held == 0
    assert (await client.chunk(session, 0, 2 * QUANTUM)).held == 2 * QUANTUM
    assert client.stored() is None, "nothing is visible before the end"
    done = await client.last(session, 2 * QUANTUM, x_goog_hash=f"crc32c={crc_text(DATA)}")
    assert done.status == 200
    assert done.json["size"] == str(SIZE)
    assert done.json["crc32c"] == crc_text(DATA)
    assert done.json["metadata"] == {"camera": "Haustür"}
    assert done.json["contentType"] == "video/mp4"
    held = client.gcs.objects[BUCKET][KEY]
    assert (held.data, held.crc32c) == (DATA, google_crc32c.value(DATA))
    assert held.sha256 == hashlib.sha256(DATA).hexdigest()
    assert done.json["generation"] == str(held.generation)
    again = await client.query(session)
    assert (again.status, again.json) == (200, done.json)
    late = await client.chunk(session, 0, QUANTUM)
    assert (late.status, late.json) == (200, done.json), "S.1: a finished session says so"
    assert client.stored() == DATA


async def test_an_end_without_bytes_finishes_what_is_held(client: Client) -> None:
    session = await client.begin()
    await client.chunk(session, 0, QUANTUM)
    for wrong in (QUANTUM - 1, QUANTUM + 1, 2 * QUANTUM):  # S.2, S.3
        assert (await client.put(session, f"*/{wrong}")).held == QUANTUM
    assert (await client.put(session, f"*/{QUANTUM}")).status == 200
    assert client.stored() == DATA[:QUANTUM]


async def test_an_empty_object(client: Client) -> None:
    session = await client.begin()
    assert (await client.query(session)).held == 0, "a query does not finish an empty upload"
    assert client.stored() is None
    done = await client.put(session, "*/0", x_goog_hash="crc32c=AAAAAA==")
    assert (done.status, done.json["size"], client.stored()) == (200, "0", b"")


async def test_one_put_without_content_range_is_the_whole_object(client: Client) -> None:
    assert (await client.put(await client.begin("a"), None, DATA)).status == 200

    async def streamed() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        yield DATA[1000:]

    assert (await client.put(await client.begin("b"), None, streamed())).status == 200
    assert client.stored("a") == client.stored("b") == DATA


@pytest.mark.parametrize("length", [1, QUANTUM - 1, QUANTUM + 1, 2 * QUANTUM - 1])
async def test_a_chunk_must_be_a_multiple_of_256_kib(client: Client, length: int) -> None:
    session = await client.begin()
    answer = await client.chunk(session, 0, length)
    assert (answer.status, answer.reason) == (400, "invalid")
    answer = await client.put(session, f"0-{length - 1}/{SIZE}", DATA[:length])
    assert answer.status == 400, "also with a known total"
    assert (await client.query(session)).held == 0


async def test_unaligned_chunks_may_be_kept_in_part(client: Client) -> None:
    client.gcs.uploads.unaligned = 308
    session = await client.begin()
    assert (await client.chunk(session, 0, QUANTUM + 7)).held == QUANTUM
    assert (await client.last(session, QUANTUM)).status == 200
    assert client.stored() == DATA


async def test_a_gap_is_refused_and_an_overlap_ignored(client: Client) -> None:
    session = await client.begin()
    await client.chunk(session, 0, QUANTUM)
    gap = await client.chunk(session, 2 * QUANTUM, 3 * QUANTUM)
    assert (gap.status, gap.headers["Content-Type"]) == (503, "text/plain; charset=utf-8")
    assert b"exceeds already uploaded size of 262144" in gap.body
    assert (await client.query(session)).held == QUANTUM
    other = bytes(2 * QUANTUM)
    assert (await client.put(session, f"0-{2 * QUANTUM - 1}/*", other)).held == 2 * QUANTUM
    assert (await client.chunk(session, 0, QUANTUM)).held == 2 * QUANTUM
    await client.last(session, 2 * QUANTUM)
    assert client.stored() == DATA[:QUANTUM] + other[QUANTUM:] + DATA[2 * QUANTUM :]


@pytest.mark.parametrize(
    ("content_range", "body"),
    [
        ("0-262143", 262144),
        ("0-262143/100", 262144),
        ("5-4/*", 0),
        ("0-262143/262143", 262144),
        ("0-524287/*", 262144),
        ("0-262143/*", 524288),
        ("*/*", 10),
        ("*/262144", 262144),
        ("a-b/c", 10),
    ],
)
async def test_a_content_range_that_does_not_fit(
    client: Client, content_range: str, body: int
) -> None:
    session = await client.begin()
    assert (await client.put(session, content_range, DATA[:body])).status == 400
    assert (await client.query(session)).held == 0


async def test_a_streamed_body_shorter_than_its_range(client: Client) -> None:
    async def streamed() -> AsyncIterator[bytes]:
        yield DATA[: QUANTUM - 5]

    session = await client.begin()
    assert (await client.put(session, f"0-{QUANTUM - 1}/*", streamed())).status == 400
    assert (await client.query(session)).held == 0


async def test_the_total_may_not_change(client: Client) -> None:
    session = await client.begin()
    assert (await client.chunk(session, 0, QUANTUM, str(SIZE))).held == QUANTUM
    assert (await client.chunk(session, QUANTUM, 2 * QUANTUM, str(SIZE + 1))).status == 400


@pytest.mark.parametrize("where", ["header", "metadata", "md5 header", "md5 metadata"])
async def test_a_wrong_checksum_creates_nothing(client: Client, where: str) -> None:
    wrong = crc_text(DATA + b"x")
    wrong_md5 = base64.b64encode(hashlib.md5(b"x").digest()).decode()
    fields = {"metadata": {"crc32c": wrong}, "md5 metadata": {"md5Hash": wrong_md5}}
    headers = {
        "header": {"x_goog_hash": f"crc32c={wrong}"},
        "md5 header": {"x_goog_hash": f"crc32c={crc_text(DATA)},md5={wrong_md5}"},
    }
    session = await client.begin(**fields.get(where, {}))
    answer = await client.last(session, 0, **headers.get(where, {}))
    assert answer.status == 400
    assert ("MD5" if "md5" in where else "crc32c") in answer.message.replace("CRC32C", "crc32c")
    assert client.stored() is None
    assert (await client.query(session)).status == 410


async def test_right_checksums_of_both_kinds(client: Client) -> None:
    md5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    session = await client.begin(crc32c=crc_text(DATA), md5Hash=md5)
    answer = await client.last(session, 0, x_goog_hash=f"crc32c={crc_text(DATA)},md5={md5}")
    assert (answer.status, client.stored()) == (200, DATA)


async def test_the_precondition_counts_at_the_beginning_and_at_the_end(client: Client) -> None:
    session = await client.begin(query="&ifGenerationMatch=0")
    client.gcs.put(BUCKET, KEY, b"theirs")
    late = await client.last(session, 0)
    assert (late.status, late.reason) == (412, "conditionNotMet")
    early = await client.initiate(query="&ifGenerationMatch=0")
    assert (early.status, early.reason) == (412, "conditionNotMet")
    single = await client.multipart(query="&ifGenerationMatch=0")
    assert single.status == 412
    assert client.stored() == b"theirs"
    generation = client.gcs.objects[BUCKET][KEY].generation
    replaced = await client.multipart(query=f"&ifGenerationMatch={generation}")
    assert (replaced.status, client.stored()) == (200, DATA)
    assert int(replaced.json["generation"]) > generation


async def test_without_a_precondition_an_object_is_replaced(client: Client) -> None:
    client.gcs.put(BUCKET, KEY, b"theirs")
    assert (await client.last(await client.begin(), 0)).status == 200
    assert client.stored() == DATA


async def test_a_cancelled_session(client: Client) -> None:
    session = await client.begin()
    await client.chunk(session, 0, QUANTUM)
    assert (await client.ask("DELETE", session)).status == 499
    assert (await client.query(session)).status == 499
    assert (await client.last(session, 0)).status == 499
    assert client.stored() is None


async def test_unknown_and_lost_sessions(client: Client) -> None:
    session = await client.begin()
    unknown = await client.query(session[:-1] + ("A" if session[-1] != "A" else "B"))
    assert (unknown.status, unknown.reason) == (404, "notFound")
    assert client.gcs.lose_sessions() == 1
    assert (await client.query(session)).status == 410
    assert (await client.last(session, 0)).status == 410


async def test_308_in_disguise_for_go_clients(client: Client) -> None:
    session = await client.begin()
    end = f"0-{QUANTUM - 1}/*"
    answer = await client.put(session, end, DATA[:QUANTUM], X_GUploader_No_308="yes")
    assert (answer.status, answer.headers["X-HTTP-Status-Code-Override"]) == (200, "308")
    assert answer.headers["Range"] == f"bytes=0-{QUANTUM - 1}"


async def test_the_session_names_the_host_the_client_used(client: Client) -> None:
    answer = await client.ask(
        "POST",
        f"/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name=a",
        headers={"Host": "proxy.example:81"},
    )
    assert answer.headers["Location"].startswith("http://proxy.example:81/upload/storage/v1/b/")


# -- single requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"\r\n--limi", DATA])
async def test_a_multipart_upload(client: Client, data: bytes) -> None:
    answer = await client.multipart(data=data, crc32c=crc_text(data), metadata={"a": "b"})
    assert (answer.status, client.stored()) == (200, data)
    assert (answer.json["crc32c"], answer.json["metadata"]) == (crc_text(data), {"a": "b"})


async def test_a_multipart_upload_with_a_wrong_checksum(client: Client) -> None:
    answer = await client.multipart(crc32c=crc_text(b"x"))
    assert (answer.status, client.stored()) == (400, None)
    assert "CRC32C" in answer.message


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--"),
        ("multipart/related", b"--b\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--"),
        ("multipart/related; boundary=c", b"--b\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--"),
        (
            "multipart/related; boundary=b",
            b'--b\r\nContent-Type: application/json\r\n\r\n{"name":"a"}\r\n--b\r\n\r\nx',
        ),
        (
            "multipart/related; boundary=b",
            b'--b\r\nContent-Type: application/json\r\n\r\n{"name":"a"}\r\n--b--',
        ),
        (
            "multipart/related; boundary=b",
            b'--b\r\nContent-Type: text/plain\r\n\r\n{"name":"a"}\r\n--b\r\n\r\nx\r\n--b--',
        ),
        (
            "multipart/related; boundary=b",
            b'--b\r\nContent-Type: application/json\r\n\r\n{"name":"a"}\r\n'
            + 2 * b"--b\r\n\r\nx\r\n"
            + b"--b--",
        ),
    ],
)
async def test_a_malformed_multipart_body(client: Client, content_type: str, body: bytes) -> None:
    path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart"
    assert (await client.ask("POST", path, body, {"Content-Type": content_type})).status == 400
    assert client.gcs.objects[BUCKET] == {}


async def test_a_media_upload(client: Client) -> None:
    path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(KEY, safe='')}"
    answer = await client.ask("POST", path, DATA, {"Content-Type": "video/mp4"})
    assert (answer.status, client.stored()) == (200, DATA)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": 5},
        {"name": ".."},
        {"name": "a\nb"},
        {"name": "ü" * 513},
        {"metadata": {"n": 5}},
        {"metadata": {"n": "x" * 8192}},
        {"crc32c": "AAAA"},
        {"crc32c": 5},
        {"crc32c": "!!!!!!=="},
        {"bucket": "another"},
        {"crc32": "AAAAAA=="},
    ],
)
async def test_metadata_that_is_not_allowed(client: Client, fields: dict[str, Any]) -> None:
    name = fields.pop("name", KEY)
    assert (await client.initiate(name, **fields)).status == 400
    assert (await client.multipart(name, **fields)).status == 400


async def test_a_name_of_1024_bytes(client: Client) -> None:
    assert (await client.initiate("ü" * 512)).status == 200


async def test_metadata_must_be_declared_as_json(client: Client) -> None:
    path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable"
    answer = await client.ask("POST", path, b'{"name":"a"}', {"Content-Type": "text/plain"})
    assert answer.status == 400


@pytest.mark.parametrize("query", ["", "?uploadType=", "?uploadType=chunked"])
async def test_an_upload_of_no_known_type(client: Client, query: str) -> None:
    assert (await client.ask("POST", f"/upload/storage/v1/b/{BUCKET}/o{query}")).status == 400


async def test_a_bucket_that_does_not_exist(client: Client) -> None:
    for method, path in [
        ("POST", "/upload/storage/v1/b/other/o?uploadType=resumable&name=a"),
        ("GET", "/storage/v1/b/other"),
        ("GET", "/storage/v1/b/other/o"),
        ("GET", "/storage/v1/b/other/o/a"),
        ("DELETE", "/storage/v1/b/other/o/a"),
        ("GET", "/storage/v1/b/other/iam/testPermissions?permissions=storage.objects.get"),
    ]:
        answer = await client.ask(method, path)
        assert (answer.status, answer.reason) == (404, "notFound"), path
        assert answer.message == "The specified bucket does not exist."


# -- reading ---------------------------------------------------------------------------------------


async def test_metadata_and_bytes(client: Client) -> None:
    held = client.gcs.put(BUCKET, KEY, DATA, metadata={"a": "b"})
    got = await client.get()
    assert (got.json["name"], got.json["metadata"]) == (KEY, {"a": "b"})
    assert (await client.get(query="?fields=size,generation")).json == {
        "size": str(SIZE),
        "generation": str(held.generation),
    }
    assert (await client.get(query="?alt=media")).body == DATA
    part = await client.get(query="?alt=media", Range="bytes=10-19")
    assert (part.status, part.body) == (206, DATA[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{SIZE}"
    assert (await client.get(query="?alt=media", Range="bytes=900000-")).body == DATA[900000:]
    assert (await client.get(query="?alt=media", Range="bytes=-7")).body == DATA[-7:]
    assert (await client.get(query="?alt=media", Range=f"bytes={SIZE}-")).status == 416
    assert (await client.get("missing")).reason == "notFound"
    assert (await client.get(query="?ifGenerationMatch=1")).status == 412
    assert (await client.get(query="?generation=1")).status == 404


async def test_a_key_with_bare_slashes_is_another_path(client: Client) -> None:
    client.gcs.put(BUCKET, "a/b", DATA)
    assert (await client.ask("GET", f"/storage/v1/b/{BUCKET}/o/a/b")).status == 404
    assert (await client.get("a/b")).status == 200


async def test_a_listing_by_pages(session: aiohttp.ClientSession) -> None:
    names = sorted((f"ü/{n}" for n in range(7)), key=str.encode)
    async with GcsDouble((BUCKET,), page_size=3) as gcs:
        client = Client(gcs, session)
        for name in [*reversed(names), "a", "üb"]:
            gcs.put(BUCKET, name, b"x")
        listed: list[str] = []
        query = f"?prefix={quote('ü/', safe='')}"
        page = await client.list(query)
        sizes = [len(page.json["items"])]
        listed += [item["name"] for item in page.json["items"]]
        while token := page.json.get("nextPageToken"):
            page = await client.list(f"{query}&pageToken={quote(token)}")
            sizes.append(len(page.json["items"]))
            listed += [item["name"] for item in page.json["items"]]
        assert (listed, sizes) == (names, [3, 3, 1])
        assert len((await client.list("?maxResults=2")).json["items"]) == 2
        exactly = await client.list("?prefix=a&maxResults=1")
        assert "nextPageToken" not in exactly.json, "a full page that is the last has no token"
        assert "items" not in (await client.list("?prefix=none")).json
        only = await client.list("?fields=items(name,size)&maxResults=1")
        assert only.json == {"items": [{"name": "a", "size": "1"}]}, "no token: none was asked for"
        only = await client.list("?fields=nextPageToken,items/name&maxResults=1")
        assert set(only.json) == {"items", "nextPageToken"}
        assert (await client.list("?pageToken=nonsense")).status == 400


async def test_an_empty_page_is_not_the_end(client: Client) -> None:
    client.gcs.put(BUCKET, "a", b"x")
    client.gcs.faults.add("list", EmptyPage())
    first = await client.list()
    assert "items" not in first.json
    second = await client.list(f"?pageToken={quote(first.json['nextPageToken'])}")
    assert [item["name"] for item in second.json["items"]] == ["a"]


async def test_deletion(client: Client) -> None:
    held = client.gcs.put(BUCKET, KEY, DATA)
    assert (await client.delete(query="?ifGenerationMatch=1")).status == 412
    assert client.stored() == DATA
    assert (await client.delete(query=f"?ifGenerationMatch={held.generation}")).status == 204
    assert client.stored() is None
    gone = await client.delete()
    assert (gone.status, gone.reason) == (404, "notFound")


async def test_the_bucket_and_permissions(session: aiohttp.ClientSession) -> None:
    allowed = CREATOR | {"storage.buckets.get"}
    async with GcsDouble((BUCKET,), anonymous_permissions=allowed) as gcs:
        client = Client(gcs, session)
        assert (await client.ask("GET", f"/storage/v1/b/{BUCKET}")).json["name"] == BUCKET
        path = f"/storage/v1/b/{BUCKET}/iam/testPermissions"
        both = "?permissions=storage.objects.create&permissions=storage.objects.delete"
        answer = await client.ask("GET", path + both)
        assert answer.json["permissions"] == ["storage.objects.create"]
        none = await client.ask("GET", path + "?permissions=storage.objects.list")
        assert (none.status, none.json.get("permissions")) == (200, None)
        assert (await client.ask("GET", path)).status == 400
        assert (await client.ask("GET", path + "?permissions=storage.objects.eat")).status == 400


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 403, 404, 408, 410, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("where", ["initiate", "chunk", "last", "query"])
async def test_a_status_instead_of_the_work(client: Client, where: Where, code: int) -> None:
    fault = client.gcs.faults.add(where, Status(code, retry_after="7"))

    async def walk() -> list[Answer]:
        answers = [await client.initiate()]
        if answers[0].status == 200:
            session = answers[0].headers["Location"]
            answers.append(await client.chunk(session, 0, QUANTUM))
            answers.append(await client.query(session))
            if answers[1].status == 308:
                answers.append(await client.last(session, QUANTUM))
        return answers

    answers = await walk()
    failed = [a for a in answers if a.status == code]
    assert len(failed) == fault.happened == 1
    assert failed[0].headers["Retry-After"] == "7"
    assert failed[0].json["error"]["code"] == code
    assert client.stored() is None or where == "query"


async def test_rate_limits_are_told_from_permissions(client: Client) -> None:
    client.gcs.faults.add("any", rate_limited(), times=2)
    assert [(a.status, a.reason) for a in [await client.list(), await client.get()]] == [
        (403, "rateLimitExceeded")
    ] * 2
    assert (await client.list()).status == 200


async def test_nth_times_and_key(client: Client) -> None:
    client.gcs.put(BUCKET, "a", b"x")
    client.gcs.put(BUCKET, "b", b"x")
    client.gcs.faults.add("get", Status(503), nth=2, times=2, key="a")
    seen = [(await client.get(k)).status for k in ["a", "b", "a", "b", "a", "a"]]
    assert seen == [200, 200, 503, 200, 503, 200]


async def test_faults_for_the_same_request_follow_each_other(client: Client) -> None:
    client.gcs.faults.add("list", Status(500))
    client.gcs.faults.add("list", Status(503))
    assert [(await client.list()).status for _ in range(3)] == [500, 503, 200]


async def test_faults_not_reached_are_named(session: aiohttp.ClientSession) -> None:
    async with GcsDouble((BUCKET,)) as gcs:
        client = Client(gcs, session)
        never = gcs.faults.add("delete", Status(503), times=None)
        twice = gcs.faults.add("list", Status(503), times=2)
        await client.list()
        assert gcs.faults.unused() == [never, twice]
        await client.list()
        assert gcs.faults.unused() == [never]
        await client.delete()
        assert gcs.faults.unused() == []


def test_keys_of_faults_must_be_known_in_time() -> None:
    with pytest.raises(ValueError, match="not known yet"):
        GcsDouble().faults.add("initiate", Status(503), key="a")


@pytest.mark.parametrize(
    ("where", "what"),
    [("get", Partial()), ("initiate", Claim(1)), ("list", Corrupt()), ("chunk", EmptyPage())],
)
def test_faults_that_cannot_happen_there(where: Where, what: What) -> None:
    with pytest.raises(ValueError, match="cannot happen"):
        GcsDouble().faults.add(where, what)


async def test_a_reset_before_and_after_the_work(client: Client) -> None:
    for at, held in (("before", 0), ("after", QUANTUM)):
        session = await client.begin()
        client.gcs.faults.add("chunk", Reset(at))  # type: ignore[arg-type]
        with pytest.raises(LOST):
            await client.chunk(session, 0, QUANTUM)
        assert (await client.query(session)).held == held
    client.gcs.faults.add("last", Reset("after"))
    with pytest.raises(LOST):
        await client.last(session, 0)
    assert client.stored() == DATA
    assert (await client.query(session)).json["size"] == str(SIZE)


@pytest.mark.parametrize(
    ("keeps", "held"), [("aligned", 2 * QUANTUM), ("all", 2 * QUANTUM + 100), ("none", 0)]
)
async def test_a_reset_in_the_middle_of_a_chunk(client: Client, keeps: Any, held: int) -> None:
    client.gcs.uploads.cut_keeps = keeps
    session = await client.begin()
    client.gcs.faults.add("last", Reset(after_bytes=2 * QUANTUM + 100))
    with pytest.raises(LOST):
        await client.last(session, 0)
    assert client.gcs.requests[-1].body_bytes == 2 * QUANTUM + 100
    assert (await client.query(session)).held == held
    assert (await client.last(session, held)).status == 200
    assert client.stored() == DATA


async def test_a_client_that_hangs_up_in_the_middle_of_a_chunk(client: Client) -> None:
    session = await client.begin()
    arrived = QUANTUM + 1000
    sent = asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        yield DATA[:arrived]
        sent.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(client.put(session, f"0-{SIZE - 1}/{SIZE}", broken()))
    await sent.wait()
    while client.gcs.requests[-1].body_bytes < arrived:
        await asyncio.sleep(0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    while (held := (await client.query(session)).held) == 0:
        await asyncio.sleep(0)
    assert held == QUANTUM
    assert (await client.last(session, held)).status == 200
    assert client.stored() == DATA


async def test_a_status_although_the_work_was_done(client: Client) -> None:
    client.gcs.faults.add("last", Status(503, commit=True))
    session = await client.begin()
    assert (await client.last(session, 0)).status == 503
    assert client.stored() == DATA
    assert (await client.query(session)).status == 200


async def test_a_session_lost_on_the_way(client: Client) -> None:
    client.gcs.faults.add("chunk", Status(410, lose_session=True))
    session = await client.begin()
    assert (await client.chunk(session, 0, QUANTUM)).status == 410
    assert (await client.query(session)).status == 410


async def test_an_answer_before_the_body_was_read(client: Client) -> None:
    client.gcs.faults.add("last", Status(503, early=True))
    session = await client.begin()
    assert (await client.last(session, 0)).status == 503
    assert client.gcs.requests[-1].body_bytes == 0


async def test_two_hundred_with_nonsense(client: Client) -> None:
    client.gcs.faults.add("single", Garbled(commit=True))
    client.gcs.faults.add("single", Garbled(b'{"kind": "stor', commit=False))
    client.gcs.faults.add("single", Garbled(truncate=True))
    answers = [await client.multipart(key) for key in ("a", "b", "c")]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [a.body[:8] for a in answers] == [b"", b'{"kind":', b'{\n  "kin']
    for answer in answers:
        with pytest.raises(ValueError, match=r"."):
            _ = answer.json
    assert sorted(client.gcs.objects[BUCKET]) == ["a", "c"]


@pytest.mark.parametrize("keep", [0, 1, QUANTUM, QUANTUM + 17])
async def test_part_of_a_chunk_is_kept(client: Client, keep: int) -> None:
    client.gcs.faults.add("chunk", Partial(keep))
    session = await client.begin()
    assert (await client.chunk(session, 0, 2 * QUANTUM)).held == keep
    # The rest of that chunk is not a multiple of 256 KiB, but ends at one.
    assert (await client.chunk(session, keep, 2 * QUANTUM)).held == 2 * QUANTUM
    assert (await client.last(session, 2 * QUANTUM)).status == 200
    assert client.stored() == DATA


async def test_the_last_chunk_is_kept_but_not_finalised(client: Client) -> None:
    client.gcs.faults.add("last", Partial())
    session = await client.begin()
    assert (await client.last(session, 0)).held == SIZE
    assert client.stored() is None
    assert (await client.query(session)).held == SIZE
    done = await client.put(session, f"*/{SIZE}", x_goog_hash=f"crc32c={crc_text(DATA)}")
    assert (done.status, client.stored()) == (200, DATA)


async def test_part_of_the_last_chunk_is_kept(client: Client) -> None:
    client.gcs.faults.add("last", Partial(1000))
    session = await client.begin()
    await client.chunk(session, 0, QUANTUM)
    assert (await client.last(session, QUANTUM)).held == QUANTUM + 1000
    assert (await client.last(session, QUANTUM + 1000)).status == 200
    assert client.stored() == DATA


async def test_going_backwards_really_loses_bytes(client: Client) -> None:
    client.gcs.faults.add("chunk", Backwards(QUANTUM), nth=2)
    client.gcs.faults.add("query", Backwards(0))
    session = await client.begin()
    await client.chunk(session, 0, 2 * QUANTUM)
    assert (await client.chunk(session, 2 * QUANTUM, 3 * QUANTUM)).held == QUANTUM
    assert (await client.query(session)).held == 0
    assert (await client.chunk(session, QUANTUM, 2 * QUANTUM)).status == 503
    assert (await client.last(session, 0)).status == 200
    assert client.stored() == DATA


async def test_a_claim_is_a_lie(client: Client) -> None:
    client.gcs.faults.add("chunk", Claim(3 * QUANTUM))
    session = await client.begin()
    assert (await client.chunk(session, 0, QUANTUM)).held == 3 * QUANTUM
    assert (await client.query(session)).held == QUANTUM


async def test_wrong_reports(client: Client) -> None:
    client.gcs.faults.add("last", Misreport(crc32c=1, size=5))
    session = await client.begin()
    answer = await client.last(session, 0)
    assert (answer.json["crc32c"], answer.json["size"]) == ("AAAAAQ==", "5")
    assert (await client.get()).json["size"] == str(SIZE)
    client.gcs.faults.add("single", Misreport(crc32c=2, stored=True))
    await client.multipart("b")
    assert (await client.get("b")).json["crc32c"] == "AAAAAg=="
    assert client.stored("b") == DATA


async def test_corruption_is_found_by_the_checksum_only(client: Client) -> None:
    client.gcs.faults.add("last", Corrupt(300_000), times=2)
    answer = await client.last(await client.begin(), 0, x_goog_hash=f"crc32c={crc_text(DATA)}")
    assert (answer.status, client.stored()) == (400, None)
    answer = await client.last(await client.begin(), 0)
    stored = client.stored() or b""
    assert [i for i in range(SIZE) if stored[i] != DATA[i]] == [300_000]
    assert answer.json["crc32c"] == crc_text(stored)


@pytest.mark.parametrize("at", ["before", "after"])
async def test_a_stall_ends_when_it_is_released(client: Client, at: Any) -> None:
    fault = client.gcs.faults.add("last", Stall(at))
    session = await client.begin()
    sending = asyncio.create_task(client.last(session, 0))
    await fault.reached()
    assert not sending.done()
    assert client.stored() == (None if at == "before" else DATA)
    client.gcs.faults.release()
    with pytest.raises(LOST):
        await sending


async def test_a_stalled_reader_stops_the_sender(client: Client) -> None:
    """The double's buffers are small enough that a sender notices: it cannot push 64 MiB."""
    fault = client.gcs.faults.add("last", Stall(after_bytes=1000))
    session = await client.begin()
    pushed = 0
    size = 64 * 1024 * 1024
    grew = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pushed
        for _ in range(size // 65536):
            yield bytes(65536)
            pushed += 65536
            grew.set()

    sending = asyncio.create_task(client.put(session, f"0-{size - 1}/{size}", endless()))
    await fault.reached()
    try:
        while True:
            grew.clear()
            async with asyncio.timeout(0.2):
                await grew.wait()
    except TimeoutError:
        pass
    assert not sending.done()
    assert pushed < 16 * 1024 * 1024
    client.gcs.faults.release()
    with pytest.raises(LOST):
        await sending
    assert (await client.query(session)).held == 0


async def test_closing_the_double_ends_stalls(session: aiohttp.ClientSession) -> None:
    async with GcsDouble((BUCKET,)) as gcs:
        client = Client(gcs, session)
        fault = gcs.faults.add("list", Stall())
        asking = asyncio.create_task(client.list())
        await fault.reached()
    with pytest.raises(LOST):
        await asking


@pytest.mark.parametrize("what", [Slow(400_000, 0.0), Delay(0.0)])
async def test_slow_is_still_right(client: Client, what: What) -> None:
    client.gcs.faults.add("last", what)
    client.gcs.faults.add("media", what)
    assert (await client.last(await client.begin(), 0)).status == 200
    assert client.stored() == DATA
    assert (await client.get(query="?alt=media")).body == DATA


async def test_an_answer_cut_off(client: Client) -> None:
    client.gcs.put(BUCKET, KEY, DATA)
    client.gcs.faults.add("media", Reset(after_bytes=100_000))
    path = f"{client.gcs.url}/storage/v1/b/{BUCKET}/o/{quote(KEY, safe='')}?alt=media"
    received = b""
    with pytest.raises(LOST):
        async with client.session.get(URL(path, encoded=True)) as answer:
            async for piece in answer.content.iter_any():
                received += piece
    assert DATA.startswith(received)
    assert len(received) <= 100_000


async def test_closing_the_double_does_not_wait_for_its_clients(
    session: aiohttp.ClientSession,
) -> None:
    async def halting() -> AsyncIterator[bytes]:
        yield DATA
        await asyncio.Event().wait()

    async with GcsDouble((BUCKET,)) as gcs:
        client = Client(gcs, session)
        upload = await client.begin()
        sending = asyncio.create_task(client.put(upload, f"0-{8 * QUANTUM - 1}/*", halting()))
        while not gcs.seen("chunk"):
            await asyncio.sleep(0)
    with pytest.raises(LOST):
        await sending


async def test_what_the_double_cannot_judge_fails_the_test(session: aiohttp.ClientSession) -> None:
    md5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    with pytest.raises(ExceptionGroup, match="double itself"):
        async with GcsDouble((BUCKET,), keep="digest") as gcs:
            client = Client(gcs, session)
            answer = await client.last(await client.begin(md5Hash=md5), 0)
            assert answer.status == 500


# -- authorisation ---------------------------------------------------------------------------------


def make_assertion(key_file: Path, **changes: Any) -> str:
    """A JWT as Google's page describes it, signed by hand."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    info = json.loads(key_file.read_text())
    now = int(time.time())
    header = {"alg": "RS256", "typ": "JWT", "kid": info["private_key_id"]}
    claims = {
        "iss": info["client_email"],
        "scope": "https://www.googleapis.com/auth/devstorage.read_write",
        "aud": info["token_uri"],
        "iat": now,
        "exp": now + 3600,
        **changes,
    }
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, claims)
    ]
    key = serialization.load_pem_private_key(info["private_key"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    signature = key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
    return ".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=").decode()])


async def fetch_token(client: Client, assertion: str) -> Answer:
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    return await client.ask("POST", client.gcs.token_uri, form)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
async def guarded(
    session: aiohttp.ClientSession,
) -> AsyncIterator[tuple[Client, Time]]:
    clock = Time()
    async with GcsDouble(
        (BUCKET,), auth=True, token_life_seconds=600, now=lambda: clock.now
    ) as double:
        yield Client(double, session), clock


async def test_tokens(guarded: tuple[Client, Time], tmp_path: Path) -> None:
    client, clock = guarded
    key_file = tmp_path / "key.json"
    client.gcs.write_service_account(key_file)
    assert key_file.stat().st_mode & 0o777 == 0o600
    anonymous = await client.initiate()
    assert (anonymous.status, anonymous.reason) == (401, "required")
    granted = await fetch_token(client, make_assertion(key_file))
    assert (granted.status, granted.json["expires_in"]) == (200, 600)
    assert granted.json["token_type"] == "Bearer"
    client.token = granted.json["access_token"]
    session = await client.begin()
    assert (await client.chunk(session, 0, QUANTUM)).held == QUANTUM
    clock.now += 599
    assert (await client.list()).status == 200
    clock.now += 1
    expired = await client.list()
    assert (expired.status, expired.reason) == (401, "authError")
    assert (await client.query(session)).status == 401, "a token that is sent must be valid"
    client.token = None
    assert (await client.query(session)).held == QUANTUM, "the session's URI is enough"
    client.token = (await fetch_token(client, make_assertion(key_file))).json["access_token"]
    assert (await client.last(session, QUANTUM)).status == 200
    assert client.gcs.expire_tokens() == 2
    assert (await client.list()).status == 401
    assert client.gcs.authority.issued == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"aud": "https://oauth2.example.com/token"}, "invalid_grant"),
        ({"exp": 1}, "invalid_grant"),
        ({"iat": time.time() + 900, "exp": time.time() + 4000}, "invalid_grant"),
        ({"exp": time.time() + 9000}, "invalid_grant"),
        ({"iss": "somebody@else"}, "invalid_grant"),
        ({"scope": ""}, "invalid_scope"),
    ],
)
async def test_assertions_that_are_refused(
    guarded: tuple[Client, Time], tmp_path: Path, changes: dict[str, Any], error: str
) -> None:
    client, _ = guarded
    client.gcs.write_service_account(tmp_path / "key.json")
    answer = await fetch_token(client, make_assertion(tmp_path / "key.json", **changes))
    assert (answer.status, answer.json["error"]) == (400, error)


async def test_a_forged_signature(guarded: tuple[Client, Time], tmp_path: Path) -> None:
    client, _ = guarded
    client.gcs.write_service_account(tmp_path / "a.json", name="a")
    client.gcs.write_service_account(tmp_path / "b.json", name="b")
    mine = json.loads((tmp_path / "a.json").read_text())
    theirs = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(mine | {"private_key": theirs["private_key"]}))
    answer = await fetch_token(client, make_assertion(tmp_path / "c.json"))
    assert (answer.status, answer.json["error_description"]) == (400, "Invalid JWT Signature.")
    assert (await fetch_token(client, "a.b.c")).status == 400


async def test_permissions_and_scopes(guarded: tuple[Client, Time], tmp_path: Path) -> None:
    client, _ = guarded
    account = client.gcs.write_service_account(tmp_path / "key.json", permissions=CREATOR)
    granted = await fetch_token(client, make_assertion(tmp_path / "key.json"))
    client.token = granted.json["access_token"]
    assert (await client.multipart()).status == 200
    for answer, permission in [
        (await client.get(), "storage.objects.get"),
        (await client.get(query="?alt=media"), "storage.objects.get"),
        (await client.list(), "storage.objects.list"),
        (await client.delete(), "storage.objects.delete"),
        (await client.ask("GET", f"/storage/v1/b/{BUCKET}"), "storage.buckets.get"),
    ]:
        assert (answer.status, answer.reason) == (403, "forbidden")
        assert answer.message.startswith(f"{account.email} does not have {permission} access")
    plain = await client.multipart()
    assert (plain.status, "storage.objects.delete" in plain.message) == (403, True)
    assert (await client.initiate(query="&ifGenerationMatch=0")).status == 412
    client.gcs.uploads.creator_conflict = 403
    conflict = await client.initiate(query="&ifGenerationMatch=0")
    assert (conflict.status, "storage.objects.delete" in conflict.message) == (403, True)
    account.permissions = PERMISSIONS - CREATOR
    assert "storage.objects.create" in (await client.initiate("b")).message
    scope = "https://www.googleapis.com/auth/devstorage.read_only"
    granted = await fetch_token(client, make_assertion(tmp_path / "key.json", scope=scope))
    client.token = granted.json["access_token"]
    assert (await client.list()).status == 200
    refused = await client.delete()
    assert (refused.status, refused.reason) == (403, "insufficientPermissions")


async def test_faults_of_the_token_endpoint(guarded: tuple[Client, Time], tmp_path: Path) -> None:
    client, _ = guarded
    client.gcs.write_service_account(tmp_path / "key.json")
    client.gcs.faults.add("token", Status(503))
    client.gcs.faults.add("token", Reset())
    assert (await fetch_token(client, make_assertion(tmp_path / "key.json"))).status == 503
    with pytest.raises(LOST):
        await fetch_token(client, make_assertion(tmp_path / "key.json"))
    assert (await fetch_token(client, make_assertion(tmp_path / "key.json"))).status == 200
    assert not client.gcs.faults.unused()


# -- the journal, digests, the process -------------------------------------------------------------


async def test_the_journal_keeps_no_secrets(guarded: tuple[Client, Time], tmp_path: Path) -> None:
    client, _ = guarded
    client.gcs.write_service_account(tmp_path / "key.json")
    granted = await fetch_token(client, make_assertion(tmp_path / "key.json"))
    client.token = granted.json["access_token"]
    session = await client.begin(query="&ifGenerationMatch=0")
    await client.chunk(session, 0, QUANTUM)
    await client.last(session, QUANTUM)
    text = repr(client.gcs.requests)
    assert str(client.token) not in text
    assert session.partition("upload_id=")[2] not in text
    token, first, chunk, last = client.gcs.requests
    assert (token.where, token.status) == ("token", 200)
    assert (first.where, first.key, first.session) == ("initiate", KEY, 1)
    assert first.parameter("ifGenerationMatch") == "0"
    assert first.headers["authorization"] == "Bearer ***"
    assert (chunk.where, chunk.status, chunk.body_bytes) == ("chunk", 308, QUANTUM)
    assert chunk.answer == {"Range": f"bytes=0-{QUANTUM - 1}"}
    assert (last.where, last.status, last.key) == ("last", 200, KEY)
    assert last.headers["content-range"] == f"bytes {QUANTUM}-{SIZE - 1}/{SIZE}"
    assert client.gcs.seen("chunk") == [chunk]


async def test_digests_only(session: aiohttp.ClientSession) -> None:
    async with GcsDouble((BUCKET,), keep="digest") as gcs:
        client = Client(gcs, session)
        gcs.faults.add("chunk", Partial(1000))
        gcs.faults.add("last", Reset(after_bytes=QUANTUM))
        upload = await client.begin()
        assert (await client.chunk(upload, 0, QUANTUM)).held == 1000
        with pytest.raises(LOST):
            await client.last(upload, 1000)
        assert (await client.query(upload)).held == QUANTUM
        done = await client.last(upload, QUANTUM, x_goog_hash=f"crc32c={crc_text(DATA)}")
        assert done.status == 200
        held = gcs.objects[BUCKET][KEY]
        assert (held.size, held.sha256) == (SIZE, hashlib.sha256(DATA).hexdigest())
        with pytest.raises(ValueError, match="digests only"):
            _ = held.data
        assert not gcs.faults.unused()


async def test_two_requests_of_one_session_at_once(client: Client) -> None:
    """A request that was thought dead must not add its bytes a second time."""
    session = await client.begin()
    go_on = asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        await go_on.wait()
        yield DATA[1000:QUANTUM]

    old = asyncio.create_task(client.put(session, f"0-{QUANTUM - 1}/*", halting()))
    while client.gcs.requests[-1].body_bytes < 1000:
        await asyncio.sleep(0)
    assert (await client.chunk(session, 0, 2 * QUANTUM)).held == 2 * QUANTUM
    go_on.set()
    assert (await old).status == 503
    assert (await client.last(session, 2 * QUANTUM)).status == 200
    assert client.stored() == DATA
    held = client.gcs.objects[BUCKET][KEY]
    assert held.sha256 == hashlib.sha256(DATA).hexdigest()
    assert held.crc32c == google_crc32c.value(DATA)


@pytest.mark.process
async def test_the_double_as_a_process(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.gcs_double", "--bucket", BUCKET),
        *("--auth", "--service-account", str(tmp_path / "key.json")),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        gcs = GcsDouble((BUCKET,))
        gcs._url = url  # a client of that process, not of this object
        client = Client(gcs, session)
        granted = await fetch_token(client, make_assertion(tmp_path / "key.json"))
        client.token = granted.json["access_token"]
        fault = {"where": "last", "what": "Status", "with": {"code": 503}, "times": 1}
        added = await client.ask("POST", "/_double/faults", json.dumps(fault))
        assert (added.status, added.json["used_up"]) == (200, False)
        upload = await client.begin()
        assert (await client.last(upload, 0)).status == 503
        assert (await client.last(upload, 0)).status == 200
        assert (await client.ask("GET", "/_double/faults")).json[0]["used_up"] is True
        (held,) = (await client.ask("GET", "/_double/objects")).json
        assert (held["name"], held["sha256"]) == (KEY, hashlib.sha256(DATA).hexdigest())
        journal = (await client.ask("GET", "/_double/journal")).json
        assert [entry["where"] for entry in journal] == ["token", "initiate", "last", "last"]
        assert (await client.ask("POST", "/_double/expire-tokens")).json == {"tokens": 1}
        assert (await client.list()).status == 401
        assert (await client.ask("POST", "/_double/nothing")).status == 400
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
