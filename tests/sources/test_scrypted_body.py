"""A body over HTTP: ranges, redirects, odd answers, and transfers that break off."""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from nvr_backup.errors import Blocked, NvrBackupError, Suspect, Transient
from nvr_backup.simulator import SimCamera
from nvr_backup.sources.scrypted import ScryptedSettings
from nvr_backup.sources.scrypted.body import LARGEST_PIECE, Bodies, HttpBody, NotServed
from nvr_backup.sources.scrypted.login import Login
from nvr_backup.sources.scrypted.media import Location, location
from nvr_backup.sources.scrypted.tls import READ_BUFFER, foreign_session, own_session
from tests.sources.kit import Handler, HandMade, bench, content, first_piece, hand_made, received
from tests.support.clock import VirtualClock

BODY = bytes(range(256)) * 20


def with_login(handler: Handler) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/login" and request.method == "GET":
            return web.json_response({"error": "Not logged in.", "hasLogin": True})
        if request.path == "/login":
            return web.json_response({"authorization": "Bearer abc", "expiration": 86_400_000})
        return await handler(request)

    return answer


async def get(
    server: HandMade, path: str = "/endpoint/x", offset: int = 0, **fields: Any
) -> tuple[bytes, int | None, int]:
    """Bytes, size and offset of a body from the server."""
    settings = ScryptedSettings("home", server.url, "backup", "secret", **fields)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(own_session(settings))
        foreign = await stack.enter_async_context(foreign_session())
        bodies = Bodies(settings, Login(settings, own, VirtualClock()), own, foreign)
        body = await bodies.open(stack, location(path, settings.origin), offset)
        return await received(body), body.size, body.offset


def fixed(status: int = 200, body: bytes = BODY, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=named)

    return with_login(handler)


async def test_a_request_declines_compression_and_shows_the_token() -> None:
    async with hand_made(fixed()) as server:
        assert await get(server) == (BODY, len(BODY), 0)
        asked = server.requests[-1]
    assert asked.headers["Accept-Encoding"] == "identity"
    assert asked.headers["Authorization"] == "Bearer abc"
    assert "Range" not in asked.headers and "Cookie" not in asked.headers


# -- ranges --------------------------------------------------------------------------------------


async def test_a_granted_range() -> None:
    rest = fixed(206, BODY[100:], Content_Range=f"bytes 100-{len(BODY) - 1}/{len(BODY)}")
    async with hand_made(rest) as server:
        assert await get(server, offset=100) == (BODY[100:], len(BODY), 100)
        assert server.requests[-1].headers["Range"] == "bytes=100-"


async def test_a_granted_range_of_unknown_total() -> None:
    async with hand_made(fixed(206, BODY[100:], Content_Range="bytes 100-5119/*")) as server:
        assert await get(server, offset=100) == (BODY[100:], None, 100)


async def test_a_range_that_is_ignored() -> None:
    async with hand_made(fixed()) as server:
        assert await get(server, offset=100) == (BODY, len(BODY), 0)


@pytest.mark.parametrize(
    "status, content_range",
    [
        (206, None),
        (206, "bytes 0-5119/5120"),
        (206, "bytes 101-5119/5120"),
        (206, "bytes 100-5119/5119"),
        (206, "bytes 100-99/5120"),
        (206, "nonsense"),
        (206, "bytes 100-5119/" + "9" * 5000),
        (416, "bytes */50"),
        (416, None),
    ],
)
async def test_a_range_that_makes_no_sense_is_not_trusted(
    status: int, content_range: str | None
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            return web.Response(body=BODY)
        headers = {} if content_range is None else {"Content-Range": content_range}
        return web.Response(status=status, body=b"wrong", headers=headers)

    async with hand_made(with_login(handler)) as server:
        assert await get(server, offset=100) == (BODY, len(BODY), 0)


async def test_a_part_nobody_asked_for_is_suspect() -> None:
    async with hand_made(fixed(206, Content_Range="bytes 0-5119/5120")) as server:
        with pytest.raises(Suspect, match="HTTP 206"):
            await get(server)


# -- statuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, Suspect),
        (403, Suspect),
        (204, Suspect),
        (304, Suspect),
        (404, NotServed),
        (410, NotServed),
        (408, Transient),
        (429, Transient),
        (500, Transient),
        (503, Transient),
        (401, Blocked),
    ],
)
async def test_what_a_status_means(status: int, kind: type[Exception]) -> None:
    async with hand_made(fixed(status, b"")) as server:
        with pytest.raises(kind) as caught:
            await get(server)
    assert type(caught.value) is kind
    assert str(status) in str(caught.value) or status == 401


@pytest.mark.parametrize(
    "text, seconds",
    [("7", 7.0), ("999999", 3600.0), ("-1", None), ("soon", None), ("٣", None), ("9" * 400, None)],
)
async def test_the_servers_wish_for_a_pause(text: str, seconds: float | None) -> None:
    async with hand_made(fixed(503, b"", Retry_After=text)) as server:
        with pytest.raises(Transient) as caught:
            await get(server)
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_outdated_signature_at_another_host_is_not_our_login(status: int) -> None:
    async with hand_made(fixed(status, b"")) as other, hand_made(fixed()) as server:
        with pytest.raises(NotServed):
            await get(server, other.url + "/x?sig=old")
        assert server.requests == []


async def test_one_new_login_for_a_token_that_is_over() -> None:
    refused = 0

    async def handler(_request: web.Request) -> web.StreamResponse:
        nonlocal refused
        refused += 1
        return web.Response(status=401) if refused == 1 else web.Response(body=BODY)

    async with hand_made(with_login(handler)) as server:
        assert (await get(server))[0] == BODY
        assert server.paths("POST") == ["/login", "/login"]


# -- other hosts and redirects -------------------------------------------------------------------


def redirecting(to: str, status: int = 302) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/endpoint/x":
            return web.Response(status=status, headers={"Location": to})
        return web.Response(body=BODY)

    return with_login(handler)


async def test_another_host_gets_no_token() -> None:
    async with hand_made(fixed()) as other, hand_made(fixed()) as server:
        assert (await get(server, other.url + "/clip?sig=a%2Bb"))[0] == BODY
        assert "Authorization" not in other.requests[0].headers
        assert other.requests[0].raw_path == "/clip?sig=a%2Bb"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_takes_no_token_along(status: int) -> None:
    async with (
        hand_made(fixed()) as other,
        hand_made(redirecting(other.url + "/endpoint/y", status)) as server,
    ):
        assert (await get(server, offset=0))[0] == BODY
        assert server.requests[-1].headers["Authorization"] == "Bearer abc"
        assert "Authorization" not in other.requests[0].headers


@pytest.mark.parametrize("to", ["/endpoint/y", "y"])
async def test_a_redirect_at_home_keeps_the_token_and_the_range(to: str) -> None:
    async with hand_made(redirecting(to)) as server:
        assert (await get(server, offset=5))[0] == BODY
        last = server.requests[-1]
    assert last.path == "/endpoint/y"
    assert (last.headers["Authorization"], last.headers["Range"]) == ("Bearer abc", "bytes=5-")


@pytest.mark.parametrize("to", ["file:///etc/passwd", "", "ftp://x/y"])
async def test_a_redirect_to_nowhere_is_suspect(to: str) -> None:
    async with hand_made(redirecting(to)) as server:
        with pytest.raises(Suspect):
            await get(server)


async def test_a_redirect_in_circles_ends() -> None:
    async with hand_made(redirecting("/endpoint/x")) as server:
        with pytest.raises(Suspect, match="redirects"):
            await get(server)
        assert len(server.paths()) < 10


async def test_a_session_itself_never_follows_a_redirect() -> None:
    # engine.io's library follows them with all headers; the session must not let it.
    async with hand_made(fixed()) as other, hand_made(redirecting(other.url)) as server:
        settings = ScryptedSettings("home", server.url, "backup", "secret")
        async with own_session(settings) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(server.url + "/endpoint/x", headers={"Authorization": "secret"})
        assert other.requests == []


# -- the bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
async def test_an_encoded_body_is_refused(encoding: str) -> None:
    async with hand_made(fixed(Content_Encoding=encoding)) as server:
        with pytest.raises(Suspect, match="compressed"):
            await get(server)


async def test_identity_is_no_encoding() -> None:
    async with hand_made(fixed(Content_Encoding="identity")) as server:
        assert (await get(server))[0] == BODY


async def test_a_large_piece_is_cut() -> None:
    whole = bytes(range(256)) * (3 * 4096 + 1)
    stream = aiohttp.StreamReader(
        _Protocol(),  # type: ignore[arg-type]
        limit=1 << 30,
        loop=asyncio.get_running_loop(),
    )
    stream.feed_data(whole)
    stream.feed_eof()

    class Response:
        content = stream
        content_length = None

    body = HttpBody(Response(), None, 0, 60)  # type: ignore[arg-type]
    sizes = [len(piece) async for piece in body]
    assert sum(sizes) == len(whole) and max(sizes) == LARGEST_PIECE


class _Protocol:
    _reading_paused = False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self, **_options: object) -> None:
        pass


async def test_pieces_do_not_pile_up_behind_a_slow_reader() -> None:
    async with bench(SimCamera("Porch", style="stream", clip_size=20_000_000, clips=1)) as b:
        clip, truth = await b.one()
        largest = 0
        got = bytearray()
        async with b.source.open(clip) as body:
            async for piece in body:
                largest = max(largest, len(piece))
                got += piece
                await asyncio.sleep(0)
        assert bytes(got) == truth
        assert largest <= 2 * READ_BUFFER + 256 * 1024


@pytest.mark.parametrize(
    "fault, style",
    [
        ("length_too_large", "href"),
        *itertools.product(
            ["cut_body", "restart_in_body", "stall_body", "hang_http"], ["href", "stream"]
        ),
    ],
)
async def test_a_transfer_that_breaks_off_is_transient(fault: str, style: str) -> None:
    camera = SimCamera("Porch", style=style, clip_size=500_000, clips=2)
    async with bench(camera, stall_seconds=0.3) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm(fault)
        with pytest.raises(Transient) as caught:
            await content(b.source, clip)
        assert type(caught.value) is Transient
        stalled = "sent nothing|did not begin"
        words = stalled if fault in ("stall_body", "hang_http") else "broke off"
        assert re.search(words, str(caught.value))
        assert not b.nvr.faults.unexercised()
        b.nvr.faults.release()
        await b.clock.advance(1)
        assert await content(b.source, clip) == truth


async def test_what_http_cannot_tell_is_left_to_the_content_check() -> None:
    async with bench(SimCamera("Porch", style="stream", clip_size=50_000)) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm("early_end", at_bytes=1000)
        assert await content(b.source, clip) == truth[:1000]
        b.nvr.faults.arm("html_page")
        assert (await content(b.source, clip)).startswith(b"<!DOCTYPE")
        b.nvr.faults.arm("empty_body")
        assert await content(b.source, clip) == b""
        assert not b.nvr.faults.unexercised()


async def test_a_body_that_is_left_alone_is_let_go() -> None:
    async with bench(SimCamera("Porch", style="stream", clip_size=50_000_000, clips=1)) as b:
        clip, _ = await b.one()
        async with b.source.open(clip) as body:
            await first_piece(body)
        while not b.nvr.served:
            await asyncio.sleep(0)
        assert b.nvr.served[0].sent < 50_000_000
        async with b.source.open(clip) as body:
            assert await first_piece(body)


async def test_a_whole_body_leaves_its_connection_for_the_next() -> None:
    async with bench(SimCamera("Porch", style="href", clips=2)) as b:
        for clip in await b.clips():
            await content(b.source, clip)
        connector = b.source._bodies._own.connector
        assert connector is not None and len(connector._conns) == 1


# -- hosts that cannot be reached ----------------------------------------------------------------


async def opened(url: str, own: bool) -> NvrBackupError:
    settings = ScryptedSettings("home", "http://127.0.0.1:1", "backup", "secret")
    async with hand_made(fixed()) as server, AsyncExitStack() as stack:
        login = Login(ScryptedSettings("home", server.url, "b", "s"), None, VirtualClock())  # type: ignore[arg-type]
        session = await stack.enter_async_context(own_session(settings))
        login._session = session
        foreign = await stack.enter_async_context(foreign_session())
        bodies = Bodies(settings, login, session, foreign)
        with pytest.raises(NvrBackupError) as caught:
            await bodies.open(stack, Location(URL(url), own), 0)
        return caught.value


async def test_an_nvr_that_cannot_be_reached_blocks_and_another_host_does_not() -> None:
    assert type(await opened("http://127.0.0.1:1/endpoint/x", own=True)) is Blocked
    error = await opened("http://127.0.0.1:1/clip?sig=secret", own=False)
    assert type(error) is Transient
    assert "127.0.0.1" in str(error) and "secret" not in str(error)


async def test_a_host_name_that_does_not_exist() -> None:
    settings = ScryptedSettings("home", "http://nvr.invalid", "backup", "secret")
    async with own_session(settings) as session:
        with pytest.raises(Blocked, match=r"nvr\.invalid"):
            await Login(settings, session, VirtualClock()).token()
