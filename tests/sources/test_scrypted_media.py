"""Where a clip's bytes are: addresses as plugins give them, and who may see the token."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from yarl import URL

from nvr_backup.errors import NvrBackupError, Suspect, Unfit
from nvr_backup.simulator import STYLES, SimCamera
from nvr_backup.sources.scrypted import media
from tests.sources.kit import bench, content

NVR = URL("https://nvr.local:10443")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/endpoint/@a/b/clip/1.mp4?x=%2F&y=a+b", f"{NVR}/endpoint/@a/b/clip/1.mp4?x=%2F&y=a+b"),
        ("https://nvr.local:10443/media/x", f"{NVR}/media/x"),
        ("https://NVR.local:10443/endpoint/x", f"{NVR}/endpoint/x"),
        ("https://undefined:10443/endpoint/x?y", f"{NVR}/endpoint/x?y"),
        ("https://user:pw@nvr.local:10443/media/x", f"{NVR}/media/x"),
        ("/endpoint/a b/ü.mp4", f"{NVR}/endpoint/a%20b/%C3%BC.mp4"),
        ("/endpoint/x#fragment", f"{NVR}/endpoint/x"),
        (b"/endpoint/x", f"{NVR}/endpoint/x"),
    ],
)
def test_what_is_the_nvrs_own(text: Any, expected: str) -> None:
    found = media.location(text, NVR)
    assert (str(found.url), found.own) == (expected, True)


@pytest.mark.parametrize(
    "text",
    [
        "https://cloud.example/clip.mp4?X-Sig=a%2Bb%2F&c=d+e",
        "http://nvr.local:10443/clip",
        "https://nvr.local/clip",
        "https://nvr.local:10443@evil.example/clip",
        "//evil.example/clip",
    ],
)
def test_what_is_another_host(text: str) -> None:
    found = media.location(text, NVR)
    assert found.own is False
    assert found.url.origin() != NVR
    if text.startswith("https://cloud"):
        assert str(found.url) == text


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "file:/recordings/1.mp4",
        "ftp://nvr.local/x",
        "data:video/mp4;base64,AAAA",
        "rtsp://camera/stream",
        "http://",
        "https://nvr.local:99999/x",
        "https://nvr.local:10443.evil.example/clip",
        "",
        None,
        5,
        {},
        "/" + "x" * 20_000,
    ],
)
def test_what_is_never_fetched(text: Any) -> None:
    with pytest.raises(Suspect):
        media.location(text, NVR)
    with pytest.raises(Suspect):
        media.rewritten(text, NVR)


def test_a_line_break_cannot_get_into_a_request() -> None:
    found = media.location("/endpoint/x\r\nAuthorization: y", NVR)
    assert "\r" not in str(found.url) and "\n" not in str(found.url)


@pytest.mark.parametrize("host", ["https://undefined:10443", "http://10.0.0.1", "//evil.example"])
def test_a_converted_url_keeps_only_path_and_query(host: str) -> None:
    found = media.rewritten(f"{host}/endpoint/8/public/ab%20c.mp4?q=%2F", NVR)
    assert (str(found.url), found.own) == (f"{NVR}/endpoint/8/public/ab%20c.mp4?q=%2F", True)


def test_a_location_does_not_show_its_url() -> None:
    assert "secret" not in repr(media.location("https://cloud.example/x?sig=secret", NVR))


def test_a_redirect_elsewhere_is_not_the_nvrs_even_if_it_looks_like_an_endpoint() -> None:
    base = URL("https://nvr.local:10443/endpoint/a/b.mp4")
    elsewhere = media.location("https://evil.example/endpoint/x", NVR, base=base)
    assert elsewhere.own is False and elsewhere.url.host == "evil.example"
    assert media.location("c.mp4", NVR, base=base).url == NVR / "endpoint/a/c.mp4"


class Rpc:
    """Answers as told, and remembers what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, ...]] = []

    async def ask(self, _target: Any, method: str, *_args: Any) -> Any:
        self.asked.append((method,))
        return self.answer

    async def convert(self, _media: Any, mime_type: str) -> Any:
        self.asked.append(("convert", mime_type))
        return self.answer


class Media:
    def __init__(self, mime_type: Any) -> None:
        self.mimeType = mime_type


class Turns:
    taken = 0

    async def __aenter__(self) -> None:
        self.taken += 1

    async def __aexit__(self, *_error: Any) -> None:
        self.taken -= 1


async def asked(mime_type: Any, answer: Any = "/endpoint/x") -> tuple[list[tuple[str, ...]], int]:
    rpc, turns = Rpc(answer), Turns()
    async with AsyncExitStack() as stack:
        await media.locate(rpc, Media(mime_type), NVR, turns=turns, stack=stack)
        taken = turns.taken
    assert turns.taken == 0
    return rpc.asked, taken


@pytest.mark.parametrize(
    "mime_type",
    [
        "text/x-local-uri",
        "text/x-uri",
        "x-scrypted/x-scrypted-scheme-http",
        "x-scrypted/x-scrypted-scheme-https",
        "TEXT/x-local-uri; charset=utf-8",
    ],
)
async def test_an_address_is_taken_as_it_is(mime_type: str) -> None:
    assert await asked(mime_type) == ([("getData",)], 0)


@pytest.mark.parametrize("mime_type", ["x-scrypted/x-scrypted-scheme-file", "video/mp4"])
async def test_what_was_converted_is_at_the_nvr_whatever_host_and_path_it_names(
    mime_type: str,
) -> None:
    rpc = Rpc("http://undefined:1/elsewhere/x")
    async with AsyncExitStack() as stack:
        found = await media.locate(rpc, Media(mime_type), NVR, turns=Turns(), stack=stack)
    assert (found.url, found.own) == (NVR / "elsewhere/x", True)


async def test_a_file_is_converted_once_and_costs_the_server_nothing() -> None:
    conversion = [("convert", "text/x-local-uri")]
    assert await asked("x-scrypted/x-scrypted-scheme-file") == (conversion, 0)


@pytest.mark.parametrize(
    "mime_type", ["video/mp4", "x-scrypted/x-scrypted-request-media-object", "video/webm"]
)
async def test_what_fills_the_servers_ram_waits_for_its_turn(mime_type: str) -> None:
    assert await asked(mime_type) == ([("convert", "text/x-local-uri")], 1)


@pytest.mark.parametrize("mime_type", [*sorted(media.RECIPES), "x-scrypted/x-scrypted-scheme-rtsp"])
async def test_what_is_no_file_is_refused_by_name(mime_type: str) -> None:
    with pytest.raises(Unfit, match=mime_type):
        await asked(mime_type)


@pytest.mark.parametrize("mime_type", [None, 5, object(), "a\nb", "x" * 300])
async def test_what_is_no_media_object_is_suspect(mime_type: Any) -> None:
    with pytest.raises(Suspect):
        await asked(mime_type)


@pytest.mark.parametrize("tls", [False, True])
async def test_every_style_yields_its_true_bytes_and_the_token_stays_at_home(tls: bool) -> None:
    cameras = tuple(SimCamera(style, style=style, clips=1) for style in STYLES)
    async with bench(*cameras, nvr={"tls": tls}, tls="insecure") as b:
        for camera in await b.source.cameras():
            clip, truth = await b.one(camera.name)
            if camera.name == "ffmpeg":
                with pytest.raises(Unfit, match="x-ffmpeg-input"):
                    await content(b.source, clip)
                continue
            assert await content(b.source, clip) == truth
        abroad = [s for s in b.nvr.served if s.origin == "other"]
        assert {s.camera for s in abroad} == {"href_external", "external_url"}
        assert not any(s.authorization or s.query_token for s in abroad)
        assert b.nvr.state.other_origin_authorizations == 0
        # Nothing came through the link, and nothing was loaded into the server's RAM needlessly.
        assert b.called("convertMediaObjectToBuffer") == 0
        assert b.called("convertMediaObjectToLocalUrl") == 0
        assert b.called("convertMediaObject") == 3  # file, buffer, request


async def test_only_one_clip_at_a_time_is_in_the_servers_ram() -> None:
    async with bench(SimCamera("Porch", style="buffer", clips=3)) as b:
        first, second, _ = await b.clips()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(b.source.open(first))
            waiting = stack.enter_async_context(b.source.open(second))
            task = asyncio.create_task(waiting)
            while b.called("getVideoClip") < 2:
                await asyncio.sleep(0)
            await b.clock.settle()
            assert b.called("convertMediaObject") == 1
            task.cancel()
            await asyncio.wait([task])
        assert await content(b.source, second)


async def test_a_file_with_an_awkward_name_is_suspect_and_the_cause_is_named() -> None:
    async with bench(SimCamera("Porch", style="file", awkward_names=True)) as b:
        clip, _ = await b.one()
        with pytest.raises(Suspect, match="blanks or non-ASCII"):
            await content(b.source, clip)


async def test_a_conversion_that_fails_is_suspect() -> None:
    async with bench(SimCamera("Porch", style="file")) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm("convert_error", times=2)
        with pytest.raises(NvrBackupError) as caught:
            await content(b.source, clip)
        assert type(caught.value) is Suspect
        assert not b.nvr.faults.unexercised()
        assert await content(b.source, clip) == truth
