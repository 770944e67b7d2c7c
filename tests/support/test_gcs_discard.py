"""The benchmark endpoint answers like a store and counts right, whatever sizes pieces arrive in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import google_crc32c
import pytest

from tests.support.gcs_double import DiscardingStore, crc32c_text
from tests.support.gcs_double.discard import _Link

DATA = bytes(range(256)) * 2400  # 600 KiB
BASE = "/upload/storage/v1/b/footage/o?uploadType="


@pytest.fixture(params=[False, True], ids=["believing", "checksum"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[DiscardingStore]:
    async with DiscardingStore(checksum=request.param) as store:
        yield store


@pytest.fixture
async def session(store: DiscardingStore) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(store.url) as session:
        yield session


async def test_a_resumable_upload(store: DiscardingStore, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{BASE}resumable", json={"name": "a/b", "metadata": {"k": "v"}}) as r:
        location = r.headers["Location"]
    end = 262144
    headers = {"Content-Range": f"bytes 0-{end - 1}/*"}
    async with session.put(location, data=DATA[:end], headers=headers) as r:
        assert (r.status, r.headers["Range"]) == (308, f"bytes=0-{end - 1}")
    async with session.put(location, headers={"Content-Range": "bytes */*"}) as r:
        assert (r.status, r.headers["Range"]) == (308, f"bytes=0-{end - 1}")
    crc = crc32c_text(google_crc32c.value(DATA))
    headers = {
        "Content-Range": f"bytes {end}-{len(DATA) - 1}/{len(DATA)}",
        "x-goog-hash": f"crc32c={crc}",
    }
    async with session.put(location, data=DATA[end:], headers=headers) as r:
        done = await r.json()
    assert (done["size"], done["crc32c"], done["name"]) == (str(len(DATA)), crc, "a/b")
    async with session.get("/storage/v1/b/footage/o/a%2Fb") as r:
        assert await r.json() == done
    assert len(store.objects) == 1


async def test_the_checksum_is_computed_or_believed(
    store: DiscardingStore, session: aiohttp.ClientSession
) -> None:
    async with session.post(f"{BASE}resumable", json={"name": "a"}) as r:
        location = r.headers["Location"]
    headers = {
        "Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}",
        "x-goog-hash": "crc32c=AAAAAA==",
    }
    async with session.put(location, data=DATA, headers=headers) as r:
        done = await r.json()
    true = crc32c_text(google_crc32c.value(DATA))
    assert done["crc32c"] == (true if store.checksum else "AAAAAA==")


@pytest.mark.parametrize("size", [0, 1, 65000, 65536, 65800, len(DATA)])
@pytest.mark.parametrize("end", [b"\r\n--b--", b"\r\n--b--\r\n"])
async def test_a_multipart_upload(
    store: DiscardingStore, session: aiohttp.ClientSession, size: int, end: bytes
) -> None:
    data = DATA[:size]
    crc = crc32c_text(google_crc32c.value(data))
    part = json.dumps({"name": "m", "crc32c": crc}).encode()
    body = (
        b"--b\r\nContent-Type: application/json\r\n\r\n"
        + part
        + b"\r\n--b\r\nContent-Type: video/mp4\r\n\r\n"
        + data
        + end
    )
    headers = {"Content-Type": "multipart/related; boundary=b"}
    async with session.post(f"{BASE}multipart", data=body, headers=headers) as r:
        done = await r.json()
    assert (done["size"], done["crc32c"]) == (str(size), crc)


class Wire(asyncio.Transport):
    """Takes what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 100, 150, 200, 10_000])
async def test_heads_and_bodies_in_any_pieces(store: DiscardingStore, step: int) -> None:
    """Several requests on one connection, cut anywhere."""
    begin = b'{"name":"p"}'
    requests = (
        b"POST /upload/storage/v1/b/footage/o?uploadType=resumable HTTP/1.1\r\nHost: x\r\n"
        + b"Content-Length: %d\r\n\r\n%s" % (len(begin), begin)
        + b"PUT /upload/storage/v1/b/footage/o?upload_id=discard-1 HTTP/1.1\r\nHost: x\r\n"
        + b"Content-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n0123456789"
        + b"GET /storage/v1/b/footage/o/p HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    wire, link = Wire(), _Link(store)
    link.connection_made(wire)
    for at in range(0, len(requests), step):
        piece = requests[at : at + step]
        link.get_buffer(-1)[: len(piece)] = piece
        link.buffer_updated(len(piece))
    link.connection_lost(None)
    assert wire.written.count(b"HTTP/1.1 200 OK\r\n") == wire.written.count(b"HTTP/1.1") == 3
    held = store.objects["footage", "p"]
    assert held.size == 10
    if store.checksum:
        assert held.crc32c == crc32c_text(google_crc32c.value(b"0123456789"))


async def test_the_delay_is_kept(session: aiohttp.ClientSession, store: DiscardingStore) -> None:
    store.delay_seconds = 0.02
    begun = asyncio.get_running_loop().time()
    async with session.get("/storage/v1/b/footage") as r:
        assert r.status == 200
    assert asyncio.get_running_loop().time() - begun >= 0.019
