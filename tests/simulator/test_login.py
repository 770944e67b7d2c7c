"""Every row of the login table, and the life of each kind of token."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from nvr_backup.simulator import Simulator, SimulatorSettings
from tests.simulator.client import http_session, one_camera
from tests.support.clock import VirtualClock

GOOD = {"username": "backup", "password": "secret"}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with http_session() as session:
        yield session


async def post(http: aiohttp.ClientSession, nvr: Simulator, body: Any) -> dict[str, Any]:
    async with http.post(f"{nvr.url}/login", json=body) as response:
        assert response.status == 200
        answer: dict[str, Any] = await response.json()
        return answer


async def status(http: aiohttp.ClientSession, url: str, **headers: str) -> int:
    async with http.get(url, headers=headers) as response:
        await response.read()
        return response.status


def clip_url(nvr: Simulator) -> str:
    camera = nvr.catalogue.cameras[0]
    return nvr.url + nvr.state.plugin_path(camera, camera.clips[0])


async def test_success_has_the_fields_and_the_cookie(http: aiohttp.ClientSession) -> None:
    async with (
        Simulator(one_camera()) as nvr,
        http.post(f"{nvr.url}/login", json=GOOD) as response,
    ):
        answer = await response.json()
        scheme, token = answer["authorization"].split(" ", 1)
        digest, claims = token.split("#", 1)
        assert scheme == "Bearer"
        assert len(bytes.fromhex(digest)) == 32
        assert json.loads(claims)["u"] == "backup"
        assert json.loads(claims)["d"] == 86_400_000
        assert answer["queryToken"] == {"scryptedToken": token}
        assert answer["username"] == "backup"
        assert answer["expiration"] == 86_400_000
        assert answer["externalAddresses"] == answer["addresses"] == []
        cookie = response.headers["Set-Cookie"]
        assert cookie.startswith("login_user_token=s%3A")
        assert all(part in cookie for part in ("Max-Age=86400", "HttpOnly", "Secure"))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"username": "backup", "password": "wrong"}, "Incorrect password."),
        ({"username": "backup"}, "Incorrect password."),
        ({"username": "other", "password": "secret"}, "User does not exist."),
        ({"username": "", "password": ""}, "User does not exist."),
        ({}, "User does not exist."),
    ],
)
async def test_refusals_are_200(
    http: aiohttp.ClientSession, body: dict[str, str], error: str
) -> None:
    async with Simulator(one_camera()) as nvr:
        assert await post(http, nvr, body) == {"error": error, "hasLogin": True}
        assert nvr.gate.attempts.total() == 1
        assert nvr.gate.attempts["success"] == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff"])
async def test_malformed_body_is_400(http: aiohttp.ClientSession, body: bytes) -> None:
    async with (
        Simulator(one_camera()) as nvr,
        http.post(f"{nvr.url}/login", data=body) as response,
    ):
        assert response.status == 400


async def test_first_run_creates_an_administrator_and_says_so(http: aiohttp.ClientSession) -> None:
    async with Simulator(one_camera(first_run=True)) as nvr:
        async with http.get(f"{nvr.url}/login") as response:
            assert (await response.json())["hasLogin"] is False
        empty = await post(http, nvr, {"username": "", "password": ""})
        assert empty == {"error": "Username and password must not be empty.", "hasLogin": False}
        assert nvr.gate.administrators_created == []

        answer = await post(http, nvr, {"username": "me", "password": "mine"})
        assert answer["username"] == "me"
        assert nvr.gate.administrators_created == ["me"]
        assert (await post(http, nvr, GOOD))["error"] == "User does not exist."
        assert nvr.gate.administrators_created == ["me"]


async def test_get_login(http: aiohttp.ClientSession) -> None:
    async with Simulator(one_camera()) as nvr:
        async with http.get(f"{nvr.url}/login") as response:
            answer = await response.json()
            assert (answer["error"], answer["hasLogin"]) == ("Not logged in.", True)
        bearer = (await post(http, nvr, GOOD))["authorization"]
        async with http.get(f"{nvr.url}/login", headers={"Authorization": bearer}) as response:
            answer = await response.json()
            assert answer["token"] == nvr.gate.user_token
            assert len(bytes.fromhex(answer["token"])) == 16
        assert await status(http, clip_url(nvr), Authorization=answer["authorization"]) == 200
        async with http.get(
            f"{nvr.url}/login", headers={"Authorization": "Bearer nonsense"}
        ) as response:
            assert (response.status, await response.read()) == (401, b"")


async def test_a_clip_by_each_credential(http: aiohttp.ClientSession) -> None:
    async with Simulator(one_camera()) as nvr:
        url = clip_url(nvr)
        async with http.post(f"{nvr.url}/login", json=GOOD) as response:
            answer = await response.json()
            cookie = response.headers["Set-Cookie"].split(";")[0]
        query = quote(answer["queryToken"]["scryptedToken"], safe="")
        basic = aiohttp.encode_basic_auth("backup", "secret")

        assert await status(http, url) == 401
        assert await status(http, url, Authorization=basic) == 401
        assert await status(http, f"{url}?scryptedToken=nonsense") == 401
        assert await status(http, url, Cookie=cookie[:-1]) == 401
        assert nvr.state.unauthorized == 4
        assert await status(http, url, Authorization=answer["authorization"]) == 200
        assert await status(http, f"{url}?scryptedToken={query}") == 200
        assert await status(http, url, Cookie=cookie) == 200
        assert await status(http, url, Authorization=f"Bearer {nvr.gate.user_token}") == 200
        assert await status(http, f"{url}?scryptedToken={nvr.gate.user_token}") == 200
        body = {"username": "backup", "password": nvr.gate.user_token}
        assert "authorization" in await post(http, nvr, body)
        assert [body.query_token for body in nvr.served] == [False, True, False, False, True]
        assert [body.authorization for body in nvr.served] == [True, False, False, True, False]


@pytest.mark.parametrize("kill", ["restart", "expire"])
async def test_what_a_restart_kills(http: aiohttp.ClientSession, kill: str) -> None:
    async with Simulator(one_camera()) as nvr:
        url, address = clip_url(nvr), nvr.url
        async with http.post(f"{nvr.url}/login", json=GOOD) as response:
            bearer = (await response.json())["authorization"]
            cookie = response.headers["Set-Cookie"].split(";")[0]
        if kill == "restart":
            await nvr.restart()
        else:
            nvr.expire_tokens()
        assert nvr.url == address
        assert await status(http, url, Authorization=bearer) == 401
        assert await status(http, f"{nvr.url}/login", Authorization=bearer) == 401
        assert await status(http, url, Cookie=cookie) == 200
        assert await status(http, url, Authorization=f"Bearer {nvr.gate.user_token}") == 200


async def test_tokens_live_a_day_or_as_long_as_asked(http: aiohttp.ClientSession) -> None:
    clock = VirtualClock()
    async with Simulator(one_camera(), clock=clock) as nvr:
        url = clip_url(nvr)
        day = (await post(http, nvr, GOOD))["authorization"]
        week_ms = timedelta(days=7) // timedelta(milliseconds=1)
        answer = await post(http, nvr, GOOD | {"maxAge": week_ms})
        week = answer["authorization"]
        assert answer["expiration"] == week_ms
        too_long = await post(http, nvr, GOOD | {"maxAge": 366 * 86_400_000})
        assert await status(http, url, Authorization=too_long["authorization"]) == 401

        await clock.advance(timedelta(hours=24).total_seconds())
        assert await status(http, url, Authorization=day) == 200
        await clock.advance(0.002)
        assert await status(http, url, Authorization=day) == 401
        assert await status(http, url, Authorization=week) == 200
        await clock.advance(timedelta(days=6).total_seconds())
        assert await status(http, url, Authorization=week) == 401


async def test_default_authentication(http: aiohttp.ClientSession) -> None:
    async with Simulator(one_camera(default_user=True)) as nvr:
        async with http.get(f"{nvr.url}/login") as response:
            answer = await response.json()
        assert answer["username"] == "backup"
        assert await status(http, clip_url(nvr), Authorization=answer["authorization"]) == 200
        assert await status(http, clip_url(nvr)) == 200
        assert await status(http, clip_url(nvr), Authorization="Bearer nonsense") == 401
        refused = await post(http, nvr, {"username": "", "password": ""})
        assert refused["error"] == "User does not exist."


async def test_engine_io_wants_a_login_and_an_existing_plugin(http: aiohttp.ClientSession) -> None:
    async with Simulator(one_camera()) as nvr:
        path = "/engine.io/api/?EIO=4&transport=polling"
        bearer = (await post(http, nvr, GOOD))["authorization"]
        core = f"{nvr.url}/endpoint/@scrypted/core{path}"
        assert await status(http, core) == 401
        unknown = f"{nvr.url}/endpoint/@scrypted/unknown{path}"
        assert await status(http, unknown, Authorization=bearer) == 404
        async with http.get(core, headers={"Authorization": bearer}) as response:
            handshake = json.loads((await response.text()).split("\x1e")[0][1:])
        assert {k: handshake[k] for k in handshake if k != "sid"} == {
            "upgrades": ["websocket"],
            "pingInterval": 25000,
            "pingTimeout": 120000,
            "maxPayload": 20000000,
        }


async def test_login_faults(http: aiohttp.ClientSession) -> None:
    async with Simulator(one_camera()) as nvr:
        nvr.faults.arm("login_error", status=503)
        nvr.faults.arm("login_html")
        async with http.post(f"{nvr.url}/login", json=GOOD) as response:
            assert response.status == 503
        async with http.post(f"{nvr.url}/login", json=GOOD) as response:
            assert (response.status, response.content_type) == (200, "text/html")
        assert "authorization" in await post(http, nvr, GOOD)
        assert not nvr.faults.unexercised()


def test_secrets_are_not_in_a_repr() -> None:
    assert "hunter2" not in repr(SimulatorSettings(password="hunter2"))
