"""Who is trusted: verification by default, a pinned certificate, or anyone if so configured."""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp
import pytest

from nvr_backup.errors import Blocked
from nvr_backup.sources.scrypted import ScryptedSettings, tls
from tests.sources.kit import bench, content, source
from tests.support.clock import VirtualClock

OTHER = "sha256:" + "ab" * 32


async def test_a_self_signed_certificate_is_refused_and_the_remedies_are_named() -> None:
    async with bench(nvr={"tls": True}) as b:
        with pytest.raises(Blocked, match="cannot be verified") as caught:
            await b.source.cameras()
        text = str(caught.value)
        assert f'tls_fingerprint = "sha256:{b.nvr.fingerprint}"' in text
        assert 'tls = "insecure"' in text
        assert b.nvr.served == () and b.nvr.links == 0


async def test_insecure_accepts_it() -> None:
    async with bench(nvr={"tls": True}, tls="insecure") as b:
        clip, truth = await b.one()
        assert await content(b.source, clip) == truth


@pytest.mark.parametrize("policy", ["verify", "insecure"])
async def test_the_pinned_certificate_is_accepted_for_link_and_bodies(policy: Any) -> None:
    async with bench(nvr={"tls": True}) as b:
        pinned = f"SHA256:{b.nvr.fingerprint.upper()}"
        settings = ScryptedSettings(
            "home",
            b.nvr.url,
            "backup",
            "secret",
            tls=policy,
            tls_fingerprint=pinned,
        )
        async with source(settings, b.clock) as opened:
            camera = (await opened.cameras())[0]
            clip = [c async for c in opened.clips(camera, b.window())][-1]
            assert await content(opened, clip) == b.nvr.catalogue.clips("Porch")[-1].content.read()


@pytest.mark.parametrize("policy", ["verify", "insecure"])
async def test_another_certificate_than_the_pinned_one_gets_nothing(policy: str) -> None:
    async with bench(nvr={"tls": True}, tls=policy, tls_fingerprint=OTHER) as b:
        with pytest.raises(Blocked) as caught:
            await b.source.cameras()
        assert OTHER in str(caught.value)
        assert f"sha256:{b.nvr.fingerprint}" in str(caught.value)
        assert b.nvr.links == 0


async def test_https_to_a_port_of_http_says_so() -> None:
    async with bench() as b:
        settings = ScryptedSettings("home", b.nvr.url.replace("http:", "https:"))
        async with source(settings, VirtualClock()) as opened:
            with pytest.raises(Blocked, match="does not speak TLS"):
                await opened.cameras()


async def test_http_to_a_port_of_https_is_blocked() -> None:
    async with bench(nvr={"tls": True}) as b:
        settings = ScryptedSettings("home", b.nvr.url.replace("https:", "http:"))
        async with source(settings, VirtualClock()) as opened:
            with pytest.raises(Blocked):
                await opened.cameras()


async def test_no_context_is_built_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nvr={"tls": True}, tls="insecure") as b:

        def refuse(*_: object, **__: object) -> ssl.SSLContext:
            raise AssertionError("an SSL context is being built")

        monkeypatch.setattr(ssl, "create_default_context", refuse)
        assert len(await b.source.cameras()) == 1
        b.nvr.drop_links()
        clip, truth = await b.one()
        assert await content(b.source, clip) == truth


async def test_sessions_resolve_by_the_system_and_keep_no_cookies() -> None:
    settings = ScryptedSettings("home", "https://nvr.local")
    for session in (tls.own_session(settings), tls.foreign_session()):
        async with session:
            assert isinstance(session.connector, aiohttp.TCPConnector)
            assert isinstance(session.connector._resolver, aiohttp.ThreadedResolver)
            assert isinstance(session.cookie_jar, aiohttp.DummyCookieJar)
            assert session.trust_env is False
