"""Every row of the login: what the server says, what we send, and what the operator reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from nvr_backup.errors import Blocked
from nvr_backup.simulator import Simulator, SimulatorSettings
from nvr_backup.sources.scrypted import ScryptedSettings
from nvr_backup.sources.scrypted.login import CredentialsRefused, Login
from nvr_backup.sources.scrypted.tls import own_session
from tests.sources.kit import HandMade, bench, content, hand_made, source
from tests.support.clock import VirtualClock

GOOD = {"authorization": "Bearer abc", "expiration": 86_400_000, "username": "backup"}
NOT_LOGGED_IN = {"error": "Not logged in.", "hasLogin": True}


def answers(get: Any, post: Any = None, status: int = 200) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = get if request.method == "GET" else post
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        return web.json_response(body, status=status)

    return handler


async def log_in(url: str, **fields: str) -> str:
    settings = ScryptedSettings("home", url, **fields)  # type: ignore[arg-type]
    async with own_session(settings) as session:
        return (await Login(settings, session, VirtualClock()).token()).authorization


USER = {"username": "backup", "password": "secret"}


async def test_the_token_opens_clips() -> None:
    async with bench() as b:
        clip, truth = await b.one()
        assert await content(b.source, clip) == truth


async def test_the_users_token_is_accepted_as_password() -> None:
    async with bench() as b:
        token = b.nvr.gate.user_token
        for fields in ({"username": "backup", "password": token}, {"password": token}):
            assert (await log_in(b.nvr.url, **fields)).startswith("Bearer ")


async def test_a_token_that_is_none_is_refused_with_words() -> None:
    async with bench() as b:
        with pytest.raises(CredentialsRefused, match="refused the token"):
            await log_in(b.nvr.url, password="0123456789abcdef")


async def test_without_credentials_where_the_server_logs_everyone_in() -> None:
    async with bench(nvr={"default_user": True}, username="", password="") as b:
        clip, truth = await b.one()
        assert await content(b.source, clip) == truth


async def test_without_credentials_where_it_does_not() -> None:
    async with bench(username="", password="") as b:
        with pytest.raises(Blocked, match="wants a login") as caught:
            await b.source.cameras()
        assert "sources.home.username" in caught.value.hint


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"username": "backup", "password": "wrong"}, "Incorrect password."),
        ({"username": "nobody", "password": "secret"}, "User does not exist."),
    ],
)
async def test_the_reason_of_a_refusal_reaches_the_operator(
    fields: dict[str, Any], reason: str
) -> None:
    async with bench(**fields) as b:
        with pytest.raises(Blocked, match=reason) as caught:
            await b.source.cameras()
        assert fields["password"] not in str(caught.value)


@pytest.mark.parametrize("fields", [USER, {"password": "0123456789abcdef"}])
async def test_no_administrator_is_made_of_our_credentials(fields: dict[str, str]) -> None:
    settings = SimulatorSettings(first_run=True)
    async with Simulator(settings) as nvr:
        with pytest.raises(Blocked, match="no account yet"):
            await log_in(nvr.url, **fields)
        assert nvr.gate.administrators_created == []


@pytest.mark.parametrize("has_login", [None, 1, "true", False, [True]])
async def test_nothing_is_posted_unless_the_server_says_it_has_an_account(has_login: Any) -> None:
    async with hand_made(answers({"error": "?", "hasLogin": has_login}, GOOD)) as server:
        with pytest.raises(Blocked):
            await log_in(server.url, **USER)
        assert server.paths("POST") == []


async def test_the_login_of_a_user_is_one_get_and_one_post() -> None:
    async with hand_made(answers(NOT_LOGGED_IN, GOOD)) as server:
        assert await log_in(server.url + "/", **USER) == "Bearer abc"
        assert [(r.method, r.path) for r in server.requests] == [
            ("GET", "/login"),
            ("POST", "/login"),
        ]
        assert await server.requests[1].json() == USER
        assert all("Authorization" not in r.headers for r in server.requests)


# -- answers that are not Scrypted's -------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"hasLogin": "yes"}',
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"hasLogin": true, "x": "' + b"x" * (2 << 20) + b'"}',
    ],
)
async def test_an_answer_that_makes_no_sense_is_said_to(body: bytes) -> None:
    async with hand_made(answers(body)) as server:
        with pytest.raises(Blocked, match="as Scrypted does"):
            await log_in(server.url, **USER)


@pytest.mark.parametrize(
    "answer",
    [
        {"authorization": None},
        {"authorization": 5},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer a\r\nX: y"},
        {"authorization": "Bearer " + "x" * 10_000},
        {"error": 5, "hasLogin": True},
        {"error": "", "hasLogin": True},
    ],
)
async def test_a_token_that_makes_no_sense_is_not_used(answer: Any) -> None:
    async with hand_made(answers(NOT_LOGGED_IN, answer)) as server:
        with pytest.raises(Blocked, match="as Scrypted does"):
            await log_in(server.url, **USER)


async def test_a_reason_is_shown_without_the_password_and_without_control_characters() -> None:
    error = {"error": "no \x1b[31m secret " + "x" * 9999, "hasLogin": True}
    async with hand_made(answers(NOT_LOGGED_IN, error)) as server:
        with pytest.raises(CredentialsRefused) as caught:
            await log_in(server.url, **USER)
    assert "secret" not in str(caught.value)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("status, words", [(500, "HTTP 500"), (503, "HTTP 503"), (404, "HTTP 404")])
async def test_an_error_status_is_told(status: int, words: str) -> None:
    async with hand_made(answers({}, status=status)) as server:
        with pytest.raises(Blocked, match=words):
            await log_in(server.url, **USER)


async def test_the_password_does_not_follow_a_redirect() -> None:
    async with hand_made(answers(NOT_LOGGED_IN, GOOD)) as other:

        async def redirect(request: web.Request) -> web.StreamResponse:
            if request.method == "GET":
                return web.json_response(NOT_LOGGED_IN)
            raise web.HTTPTemporaryRedirect(other.url + "/login")

        async with hand_made(redirect) as server:
            with pytest.raises(Blocked, match="redirects the login"):
                await log_in(server.url, **USER)
        assert other.requests == []


# -- keeping a token -----------------------------------------------------------------------------


def expiring(life: Any) -> Any:
    return answers(NOT_LOGGED_IN, {**GOOD, "expiration": life})


async def posts_after(server: HandMade, seconds: list[float]) -> list[int]:
    """How many logins there have been after each further wait."""
    clock = VirtualClock()
    settings = ScryptedSettings("home", server.url, "backup", "secret")
    counts = []
    async with own_session(settings) as session:
        login = Login(settings, session, clock)
        for wait in [0.0, *seconds]:
            await clock.advance(wait)
            await login.token()
            counts.append(len(server.paths("POST")))
    return counts


@pytest.mark.parametrize(
    "life, hours, expected",
    [
        (86_400_000, [21, 2], [1, 1, 2]),
        (3_600_000, [0.8, 0.15], [1, 1, 2]),
        (None, [21, 2], [1, 1, 2]),
        (10**400, [21, 2], [1, 1, 2]),
        (-1, [21, 2], [1, 1, 2]),
        (True, [21, 2], [1, 1, 2]),
        ("1", [21, 2], [1, 1, 2]),
    ],
)
async def test_a_login_anew_before_the_token_ends(
    life: Any, hours: list[float], expected: list[int]
) -> None:
    async with hand_made(expiring(life)) as server:
        assert await posts_after(server, [h * 3600 for h in hours]) == expected


async def test_a_life_of_nothing_is_no_storm_of_logins() -> None:
    async with hand_made(expiring(1)) as server:
        assert await posts_after(server, [1.0] * 10) == [1] * 11


async def test_a_rejected_token_is_replaced_once_however_many_reject_it() -> None:
    async with hand_made(answers(NOT_LOGGED_IN, GOOD)) as server:
        settings = ScryptedSettings("home", server.url, "backup", "secret")
        async with own_session(settings) as session:
            login = Login(settings, session, VirtualClock())
            old = await login.token()
            login.reject(old)
            await login.token()
            login.reject(old)
            await asyncio.gather(*(login.token() for _ in range(5)))
        assert len(server.paths("POST")) == 2


async def test_refused_credentials_are_not_hammered() -> None:
    async with hand_made(
        answers(NOT_LOGGED_IN, {"error": "Incorrect password.", "hasLogin": True})
    ) as server:
        clock = VirtualClock()
        settings = ScryptedSettings("home", server.url, "backup", "secret")
        async with source(settings, clock) as opened:
            counts = []
            for wait in [0, 1, 30, 30, 60, 60.5, 3600, 3600, 3600, 3600, 3600]:
                await clock.advance(wait)
                with pytest.raises(Blocked, match="Incorrect password"):
                    await opened.cameras()
                counts.append(len(server.paths("POST")))
    # Pauses of 60, 120, 240, … up to 3600 seconds, whoever asks.
    assert counts == [1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]


async def test_after_the_password_was_put_right_the_pause_is_over_with_the_next_try() -> None:
    good = False

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response(NOT_LOGGED_IN)
        return web.json_response(GOOD if good else {"error": "Incorrect password."})

    async with hand_made(handler) as server:
        clock = VirtualClock()
        settings = ScryptedSettings("home", server.url, "backup", "secret")
        async with own_session(settings) as session:
            login = Login(settings, session, clock)
            with pytest.raises(CredentialsRefused):
                await login.token()
            good = True
            with pytest.raises(CredentialsRefused):
                await login.token()
            await clock.advance(61)
            token = await login.token()
    assert token.authorization == "Bearer abc"
    assert "abc" not in repr(token)


async def test_an_expired_token_is_renewed_within_the_request() -> None:
    async with bench() as b:
        clip, truth = await b.one()
        b.nvr.expire_tokens()
        assert await content(b.source, clip) == truth


async def test_a_refusal_after_a_new_login_blocks_with_words() -> None:
    async with bench() as b:
        clip, _ = await b.one()
        b.nvr.faults.arm("unauthorized", times=2)
        with pytest.raises(Blocked, match="although the login succeeded"):
            await content(b.source, clip)
        assert not b.nvr.faults.unexercised()


@pytest.mark.parametrize("fault", ["login_error", "login_html"])
async def test_a_login_that_fails_for_a_moment_is_tried_again(fault: str) -> None:
    async with bench() as b:
        b.nvr.faults.arm(fault)
        with pytest.raises(Blocked):
            await b.source.cameras()
        await b.clock.advance(1)
        assert len(await b.source.cameras()) == 1
        assert not b.nvr.faults.unexercised()
