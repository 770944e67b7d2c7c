"""Bodies over HTTP as the three kinds of plugins send them, and every way in which they break."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

import aiohttp
import google_crc32c
import pytest

from nvr_backup.simulator import SimCamera, SimClip, Simulator, SimulatorSettings
from nvr_backup.simulator.bodies import ERROR_PAGE
from tests.simulator.client import LIMIT, http_session
from tests.support.clock import VirtualClock

SIZE = 1_000_003
CAMERAS = (
    SimCamera("File", style="href", clips=1),
    SimCamera("Stream", style="stream", clips=1),
    SimCamera("Buffer", style="href", body="buffer", clips=1),
)


class Reader:
    """GETs with the user's token, and what arrived until the end or the error."""

    def __init__(self, nvr: Simulator, http: aiohttp.ClientSession) -> None:
        self.nvr = nvr
        self.http = http

    def clip(self, camera: str) -> SimClip:
        return self.nvr.catalogue.clips(camera)[0]

    def get(
        self, camera: str, method: str = "GET", **headers: str
    ) -> aiohttp.client._RequestContextManager:
        state = self.nvr.catalogue.camera(camera)
        url = self.nvr.url + self.nvr.state.plugin_path(state, self.clip(camera))
        headers["Authorization"] = f"Bearer {self.nvr.gate.user_token}"
        return self.http.request(
            method, url, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    async def read(self, camera: str) -> tuple[aiohttp.ClientResponse, bytes, Exception | None]:
        got = bytearray()
        async with self.get(camera) as response:
            try:
                async for piece in response.content.iter_any():
                    got += piece
            except aiohttp.ClientError as err:
                return response, bytes(got), err
        return response, bytes(got), None


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    settings = SimulatorSettings(cameras=CAMERAS, clip_size=SIZE)
    async with Simulator(settings) as nvr, http_session() as http:
        yield Reader(nvr, http)


async def test_send_file(reader: Reader) -> None:
    truth = reader.clip("File").content.read()
    response, body, error = await reader.read("File")
    assert (response.status, error, body) == (200, None, truth)
    assert response.headers["Content-Length"] == str(SIZE)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["ETag"].startswith('W/"')
    assert response.headers["Last-Modified"].endswith(" GMT")
    assert response.content_type == "video/mp4"


async def test_send_stream_is_chunked_and_ignores_range(reader: Reader) -> None:
    async with reader.get("Stream", Range="bytes=1000-") as response:
        assert response.status == 200
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in response.headers
        assert "ETag" not in response.headers
        assert "Accept-Ranges" not in response.headers
        assert await response.read() == reader.clip("Stream").content.read()


async def test_send_buffer_has_a_length_and_ignores_range(reader: Reader) -> None:
    async with reader.get("Buffer", Range="bytes=1000-") as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == str(SIZE)
        assert response.headers["ETag"].startswith('W/"')
        assert "Accept-Ranges" not in response.headers
        assert await response.read() == reader.clip("Buffer").content.read()


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=10-19", 10, 20),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=1000-99999999", 1000, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
    ],
)
async def test_ranges(reader: Reader, asked: str, start: int, stop: int) -> None:
    async with reader.get("File", Range=asked) as response:
        body = await response.read()
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert response.headers["Content-Length"] == str(stop - start)
        assert body == reader.clip("File").content.read(start, stop)
    (served,) = reader.nvr.served
    assert (served.offset, served.sent, served.status) == (start, stop - start, 206)
    assert served.complete == (stop == SIZE)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=20-10", "bytes=9999999999-"])
async def test_out_of_range_is_416(reader: Reader, asked: str) -> None:
    async with reader.get("File", Range=asked) as response:
        assert (response.status, await response.read()) == (416, b"")
        assert response.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("asked", ["bytes=-", "lines=1-2", "bytes=0-1,5-6", "bytes=a-b"])
async def test_a_range_that_is_none_gets_everything(reader: Reader, asked: str) -> None:
    async with reader.get("File", Range=asked) as response:
        assert response.status == 200
        assert len(await response.read()) == SIZE


async def test_if_range(reader: Reader) -> None:
    async with reader.get("File", "HEAD") as head:
        assert head.headers["Content-Length"] == str(SIZE)
        etag, modified = head.headers["ETag"], head.headers["Last-Modified"]
    for condition, status in ((etag, 206), (modified, 206), ('W/"other"', 200)):
        async with reader.get("File", Range="bytes=5-", If_Range=condition) as response:
            assert response.status == status
            await response.read()


async def test_the_served_log_has_what_was_sent(reader: Reader) -> None:
    truth = reader.clip("File").content.read()
    await reader.read("File")
    (served,) = reader.nvr.served
    camera = reader.nvr.catalogue.camera("File")
    assert (served.camera, served.device_id, served.native_id) == (
        "File",
        camera.device_id,
        "file",
    )
    assert served.clip_id == reader.clip("File").id
    assert (served.status, served.offset, served.sent, served.size) == (200, 0, SIZE, SIZE)
    assert served.sha256 == hashlib.sha256(truth).hexdigest()
    assert served.crc32c == google_crc32c.value(truth)
    assert served.complete
    assert (served.authorization, served.query_token, served.origin) == (True, False, "nvr")
    (entry,) = [e for e in reader.nvr.oracle() if e.camera == "File"]
    assert (entry.size, entry.sha256, entry.crc32c) == (SIZE, served.sha256, served.crc32c)


async def test_digests_can_be_off() -> None:
    settings = SimulatorSettings(cameras=CAMERAS, clip_size=SIZE, digests="none")
    async with Simulator(settings) as nvr, http_session() as http:
        await Reader(nvr, http).read("File")
        (served,) = nvr.served
        assert (served.sent, served.sha256, served.crc32c, served.complete) == (SIZE, "", 0, True)
        assert {(e.size, e.sha256) for e in nvr.oracle(digests=False)} == {(SIZE, "")}


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [("unauthorized", 401), ("not_found", 404), ("server_error", 500), ("plugin_dead", 500)],
)
async def test_refusals(reader: Reader, fault: str, status: int) -> None:
    reader.nvr.faults.arm(fault, camera="File")
    response, body, _ = await reader.read("File")
    assert (response.status, body) == (status, b"")
    assert reader.nvr.faults.happened(fault) == 1
    assert (await reader.read("File"))[0].status == 200


async def test_server_error_with_a_wish(reader: Reader) -> None:
    reader.nvr.faults.arm("server_error", status=503, retry_after=7)
    async with reader.get("File") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "7")


async def test_html_page_and_empty_body_are_200(reader: Reader) -> None:
    reader.nvr.faults.arm("html_page")
    response, body, _ = await reader.read("File")
    assert (response.status, response.content_type, body) == (200, "text/html", ERROR_PAGE)
    reader.nvr.faults.arm("empty_body")
    response, body, error = await reader.read("File")
    assert (response.status, body, error) == (200, b"", None)
    assert [served.complete for served in reader.nvr.served] == [False, False]
    assert not reader.nvr.faults.unexercised()


@pytest.mark.parametrize("camera", ["File", "Stream", "Buffer"])
async def test_cut_body(reader: Reader, camera: str) -> None:
    reader.nvr.faults.arm("cut_body", at_bytes=300_000)
    _, body, error = await reader.read(camera)
    assert error is not None
    assert len(body) <= 300_000
    assert reader.clip(camera).content.read().startswith(body)
    (served,) = reader.nvr.served
    assert (served.complete, served.fault, served.sent) == (False, "cut_body", 300_000)


@pytest.mark.parametrize("camera", ["File", "Stream"])
async def test_early_end_is_clean(reader: Reader, camera: str) -> None:
    reader.nvr.faults.arm("early_end", at_bytes=5000)
    response, body, error = await reader.read(camera)
    assert (response.status, error) == (200, None)
    assert "Content-Length" not in response.headers
    assert body == reader.clip(camera).content.read(0, 5000)
    (served,) = reader.nvr.served
    assert (served.complete, served.fault, served.sent) == (False, "early_end", 5000)


async def test_length_too_large(reader: Reader) -> None:
    reader.nvr.faults.arm("length_too_large", by=17)
    response, body, error = await reader.read("File")
    assert response.headers["Content-Length"] == str(SIZE + 17)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert body == reader.clip("File").content.read()


async def raw(reader: Reader, camera: str) -> tuple[str, bytes]:
    """The head and all bytes after it, until the server closes: no HTTP library in between."""
    state = reader.nvr.catalogue.camera(camera)
    path = reader.nvr.state.plugin_path(state, reader.clip(camera))
    host, port = reader.nvr.url.removeprefix("http://").split(":")
    incoming, outgoing = await asyncio.open_connection(host, int(port))
    token = reader.nvr.gate.user_token
    outgoing.write(f"GET {path}?scryptedToken={token} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(LIMIT):
        head, _, body = (await incoming.read(-1)).partition(b"\r\n\r\n")
    outgoing.close()
    await outgoing.wait_closed()
    return head.decode(), body


@pytest.mark.parametrize(("by", "declared"), [(17, SIZE - 17), (10 * SIZE, 1)])
async def test_length_too_small(reader: Reader, by: int, declared: int) -> None:
    """More bytes come than were announced."""
    reader.nvr.faults.arm("length_too_small", by=by)
    head, body = await raw(reader, "File")
    assert f"Content-Length: {declared}\r\n" in head
    assert body == reader.clip("File").content.read()
    assert reader.nvr.faults.happened("length_too_small") == 1
    assert reader.nvr.served[0].sent == SIZE


async def test_stall_and_release(reader: Reader) -> None:
    reader.nvr.faults.arm("stall_body", at_bytes=1000)
    async with reader.get("Stream") as response:
        assert len(await response.content.readexactly(1000)) == 1000
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.content.readany()
        reader.nvr.faults.release()
        rest = await response.content.read()
    assert len(rest) == SIZE - 1000
    assert reader.nvr.served[0].complete


async def test_a_client_that_leaves_a_stall_is_logged_as_incomplete(reader: Reader) -> None:
    reader.nvr.faults.arm("stall_body", at_bytes=1000)
    async with reader.get("Stream") as response:
        await response.content.readexactly(1000)
        response.close()
    async with asyncio.timeout(LIMIT):
        while not reader.nvr.served:
            await asyncio.sleep(0)
    assert (reader.nvr.served[0].complete, reader.nvr.served[0].sent) == (False, 1000)


async def test_hang_http(reader: Reader) -> None:
    reader.nvr.faults.arm("hang_http")
    waiting = asyncio.create_task(reader.read("File"))
    async with asyncio.timeout(LIMIT):
        await reader.nvr.faults.wait_happened("hang_http")
    assert not waiting.done()
    reader.nvr.faults.release()
    assert (await waiting)[0].status == 504


async def test_wrong_bytes_is_one_byte(reader: Reader) -> None:
    reader.nvr.faults.arm("wrong_bytes", at_bytes=5000)
    _, body, error = await reader.read("File")
    truth = reader.clip("File").content.read()
    assert error is None
    assert [i for i, (a, b) in enumerate(zip(body, truth, strict=True)) if a != b] == [5000]
    (served,) = reader.nvr.served
    assert served.sha256 == hashlib.sha256(body).hexdigest()
    assert not served.complete


async def test_slow_body_takes_the_clocks_time() -> None:
    clock = VirtualClock()
    settings = SimulatorSettings(cameras=CAMERAS, clip_size=SIZE)
    async with Simulator(settings, clock=clock) as nvr, http_session() as http:
        nvr.faults.arm("slow_body", seconds=3)
        waiting = asyncio.create_task(Reader(nvr, http).read("File"))
        async with asyncio.timeout(LIMIT):
            while not waiting.done():
                await asyncio.sleep(0)
                if clock.sleepers:
                    await clock.advance(3)
        assert clock.waits.count(3) >= SIZE // settings.write_size
        assert (await waiting)[1] == Reader(nvr, http).clip("File").content.read()


async def test_restart_in_body(reader: Reader) -> None:
    reader.nvr.faults.arm("restart_in_body", at_bytes=1000)
    _, body, error = await reader.read("File")
    assert error is not None
    assert len(body) <= 1000
    async with asyncio.timeout(LIMIT):
        while not reader.nvr.restarts:
            await asyncio.sleep(0)
    assert (await reader.read("File"))[1] == reader.clip("File").content.read()


async def test_a_fault_beyond_the_end_still_strikes(reader: Reader) -> None:
    """What is recorded as happened must have been seen by the client."""
    for fault in ("cut_body", "early_end"):
        reader.nvr.faults.arm(fault, at_bytes=10 * SIZE)
        _, body, error = await reader.read("File")
        assert error is not None or len(body) == SIZE - 1
        assert not reader.nvr.served[-1].complete


async def test_faults_in_a_part_count_from_its_begin(reader: Reader) -> None:
    reader.nvr.faults.arm("wrong_bytes", at_bytes=10)
    async with reader.get("File", Range="bytes=5000-") as response:
        body = await response.read()
    truth = reader.clip("File").content.read(5000)
    assert [i for i, (a, b) in enumerate(zip(body, truth, strict=True)) if a != b] == [10]


async def test_a_filter_by_clip(reader: Reader) -> None:
    reader.nvr.faults.arm("not_found", clip=reader.clip("Stream").id)
    assert (await reader.read("File"))[0].status == 200
    assert (await reader.read("Stream"))[0].status == 404


async def test_tls_with_its_own_certificate() -> None:
    settings = SimulatorSettings(cameras=CAMERAS, clip_size=SIZE, tls=True)
    async with Simulator(settings) as nvr:
        pin = aiohttp.Fingerprint(bytes.fromhex(nvr.fingerprint))
        connector = aiohttp.TCPConnector(ssl=pin)
        async with aiohttp.ClientSession(connector=connector) as http:
            assert nvr.url.startswith("https://")
            _, body, error = await Reader(nvr, http).read("File")
            assert (error, body) == (None, nvr.catalogue.clips("File")[0].content.read())
            nvr.faults.arm("cut_body")
            assert (await Reader(nvr, http).read("File"))[2] is not None
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await Reader(nvr, http).read("File")


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    settings = SimulatorSettings(cameras=CAMERAS, clip_size=SIZE)
    async with Simulator(settings) as nvr, http_session() as http:
        nvr.faults.arm("stall_body")
        waiting = asyncio.create_task(Reader(nvr, http).read("File"))
        async with asyncio.timeout(LIMIT):
            await nvr.faults.wait_happened("stall_body")
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    assert asyncio.all_tasks() == before
