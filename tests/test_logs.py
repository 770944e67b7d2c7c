"""Logs: readable or JSON, never a secret, never an exception, cheap when silent."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars
from structlog.typing import FilteringBoundLogger

from nvr_backup import logs
from nvr_backup.errors import ConfigError
from nvr_backup.logs import Form, Troubles, configure
from nvr_backup.redaction import MAX_TEXT, is_secret_name, redacted

log = structlog.get_logger()

NOON = datetime(2024, 5, 1, 12, 0, 0, 123_456, tzinfo=UTC)


class FixedClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return NOON

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def our_handlers() -> list[logging.Handler]:
    root = logging.getLogger()
    return [one for one in root.handlers if type(one).__module__ == logs.__name__]


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in our_handlers():
        root.removeHandler(handler)
    root.setLevel(level)
    for name in ("engineio.client", "engineio.server"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.reset_defaults()


def to(stream: io.StringIO, form: Form = "json", level: logs.Level = "debug", **env: str) -> None:
    configure(level, stream, form, clock=FixedClock(), environ=env)


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line() -> None:
    out = io.StringIO()
    to(out)
    with bound_contextvars(source="home", camera="Küche"):
        log.info("Stored.", size=5, path=Path("/x"), took=timedelta(seconds=1), at=NOON, none=None)
    assert out.getvalue().count("\n") == 1
    assert entries(out) == [
        {
            "time": "2024-05-01T12:00:00.123Z",
            "level": "info",
            "message": "Stored.",
            "source": "home",
            "camera": "Küche",
            "size": 5,
            "path": "/x",
            "took": "0:00:01",
            "at": "2024-05-01T12:00:00.123Z",
            "none": None,
        }
    ]


def test_fields_cannot_hide_the_entrys_own() -> None:
    out = io.StringIO()
    to(out)
    log.warning("Real.", level="x", time="y", message="z", exception="w")
    (entry,) = entries(out)
    assert entry["message"] == "Real."
    assert entry["level"] == "warning"
    assert entry["message_"] == "z"
    assert entry["exception_"] == "w"


def test_a_terminal_gets_readable_lines() -> None:
    out = Terminal()
    to(out, "auto")
    log.warning("Slow.", camera="Porch")
    line = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert line != out.getvalue(), "no colours"
    assert re.match(r"2024-05-01T12:00:00\.123Z \[warning *\] Slow\. +camera=Porch\n$", line)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_unwanted(env: dict[str, str]) -> None:
    out = Terminal()
    configure("debug", out, "auto", environ=env)
    log.error("Broken.", camera="Porch")
    assert "\x1b" not in out.getvalue()
    assert "camera=Porch" in out.getvalue()


def test_an_empty_no_color_means_nothing() -> None:
    out = Terminal()
    to(out, "auto", NO_COLOR="")
    log.error("Broken.")
    assert "\x1b" in out.getvalue()


def test_a_file_gets_json_and_a_forced_console_no_colours() -> None:
    out = io.StringIO()
    to(out, "auto")
    log.info("a")
    assert entries(out)[0]["message"] == "a"
    out = io.StringIO()
    to(out, "console")
    log.info("a", camera="Porch")
    assert "camera=Porch" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(level: logs.Level, heard: list[str]) -> None:
    out = io.StringIO()
    to(out, level="error")
    to(out, level=level)  # a reload may change it in both directions
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert [entry["level"] for entry in entries(out)] == heard


def test_a_silent_entry_looks_at_nothing() -> None:
    class Explosive:
        def __str__(self) -> str:
            raise AssertionError("a filtered entry was rendered")

        __repr__ = __str__

    out = io.StringIO()
    to(out, level="info")
    log.debug("x", value=Explosive())
    assert out.getvalue() == ""


def test_libraries_go_the_same_way() -> None:
    out = io.StringIO()
    to(out)
    library = logging.getLogger("aiohttp.access")
    with bound_contextvars(store="offsite"):
        library.info("not heard")
        library.warning("password=%s for %s", "hunter2", "x")
        try:
            raise OSError("https://u:hunter2@h/")
        except OSError:
            library.exception("failed")
        (ours,) = our_handlers()  # alone: pytest's own raises for a wrong format
        ours.handle(library.makeRecord("x", logging.ERROR, "x", 1, "two %d %d", (1,), None))
    first, second, third = entries(out)
    assert first["level"] == "warning"
    assert first["message"] == "password=[redacted] for x"
    assert (first["logger"], first["store"]) == ("aiohttp.access", "offsite")
    assert abs(datetime.fromisoformat(first["time"]) - datetime.now(UTC)) < timedelta(days=1)
    assert "OSError: https://[redacted]@h/" in second["exception"]
    assert third["message"] == "two %d %d"
    assert "hunter2" not in out.getvalue()


def test_libraries_follow_a_higher_level_and_are_heard_once_after_a_reload() -> None:
    out = io.StringIO()
    to(out)
    to(out)
    logging.getLogger("x").warning("once")
    to(out, level="error")
    logging.getLogger("x").warning("not at all")
    assert [entry["message"] for entry in entries(out)] == ["once"]


def test_engineio_does_not_go_past_us(capsys: pytest.CaptureFixture[str]) -> None:
    engineio = pytest.importorskip("engineio")
    library = logging.getLogger("engineio.client")
    library.handlers.clear()
    out = io.StringIO()
    to(out)
    engineio.AsyncClient()
    assert library.handlers == []
    library.warning("token=hunter2")
    assert entries(out)[0]["message"] == "token=[redacted]"
    assert capsys.readouterr().err == ""


def test_asyncio_complains_through_us() -> None:
    out = io.StringIO()
    to(out)

    async def complain() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": None})

    asyncio.run(complain())
    (entry,) = entries(out)
    assert (entry["logger"], entry["level"]) == ("asyncio", "error")


async def test_context_stays_with_its_own_asyncio_branch() -> None:
    out = io.StringIO()
    to(out)
    barrier = asyncio.Barrier(2)

    async def work(camera: str) -> None:
        with bound_contextvars(camera=camera):
            await barrier.wait()
            log.info("Working.", mine=camera)

    async with asyncio.TaskGroup() as group:
        group.create_task(work("Porch"))
        group.create_task(work("Yard"))
    assert sorted(entry["camera"] for entry in entries(out)) == ["Porch", "Yard"]
    assert all(entry["camera"] == entry["mine"] for entry in entries(out))


# Secrets

HOSTILE = st.characters(min_codepoint=33, max_codepoint=126)
passwords = st.text(HOSTILE, min_size=8, max_size=40).map(lambda text: "S3" + text)
tokens = st.from_regex(r"S3[A-Za-z0-9_~.-]{10,40}", fullmatch=True)
forms = st.sampled_from(["json", "console"])
quick = hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)


def shapes(password: str, token: str) -> list[tuple[str, str]]:
    """(a text as it occurs in the wild, the secret in it)"""
    encoded = quote(password, safe="")
    base64 = re.sub(r"[^\w-]", "", token)
    scrypted = f'{"a1" * 32}#{{"u":"admin","t":1,"d":86400000}}'
    return [
        (json.dumps({"username": "u", "password": password}), json.dumps(password)[1:-1]),
        (repr({"password": password, "x": 1}), repr(password)[1:-1]),
        (json.dumps({"body": json.dumps({"password": token})}), token),
        (f"login with password={password.replace('&', '').replace(chr(34), '')}", ""),
        (f"login with password={token}, then", token),
        (f"password = {json.dumps(password)}", json.dumps(password)[1:-1]),
        (f"cannot open https://user:{encoded}@nvr:10443/x", encoded),
        (f"cannot open https://{encoded}@nvr:10443/x?a=b", encoded),
        (f"cannot open https://user:a/b#{token}@nvr/", token),
        (f"GET /clip.mp4?scryptedToken={encoded}&x=1 failed", encoded),
        (f"PUT /upload?uploadType=resumable&upload_id={token} failed", token),
        (f"https://h/o?X-Goog-Algorithm=A&X-Goog-Signature={token}&X-Goog-Date=1", token),
        (f"https://h/o?x-goog-credential={token}", token),
        (f"session_uri={token}", token),
        (f"Authorization: Bearer {token}", token),
        (f"Authorization: Basic {token}", token),
        (f"{{'Authorization': 'Bearer {token}', 'x': 1}}", token),
        (f"got Bearer {token}", token),
        (f"Bearer {scrypted} refused", "a1" * 32),
        (f"?{scrypted}", "a1" * 32),
        (f"?{quote(scrypted)}", "a1" * 32),
        (f"Set-Cookie: login_user_token=s%3A{token}; Max-Age=1", token),
        (f"Cookie: a=b; c={token}", token),
        (f"ya29.{token}", token),
        (f"eyJhbGciOiJSUzI1NiJ9.{base64}.{base64}", base64),
        (f"-----BEGIN PRIVATE KEY-----\n{token}\n-----END PRIVATE KEY-----", token),
        (f'"-----BEGIN RSA PRIVATE KEY-----\\n{token}', token),
    ]


@quick
@given(passwords, tokens, forms)
def test_no_secret_gets_through(password: str, token: str, form: Form) -> None:
    for text, secret in shapes(password, token):
        wanted = secret or text.partition("password=")[2]
        out = io.StringIO()
        to(out, form)
        log.info(text)
        log.info("x", url=text, deep={"list": [text, {"more": (text,)}]}, error=ValueError(text))
        try:
            try:
                raise OSError(text)
            except OSError as cause:
                raise ConfigError("Refused.", hint=text) from cause
        except ConfigError:
            log.exception("failed")
        logging.getLogger("x").error("%s", text)
        assert wanted not in out.getvalue(), text
        assert json.dumps(wanted)[1:-1] not in out.getvalue(), text
        assert "[redacted]" in out.getvalue()


@quick
@given(passwords, forms)
def test_secrets_by_name(password: str, form: Form) -> None:
    out = io.StringIO()
    to(out, form)
    names = ("password", "token", "scryptedToken", "authorization", "session_uri", "API_KEY")
    for name in names:
        log.info("x", **{name: password}, deep={name: [password]}, also={"a": {name: password}})
    log.info("x", headers={"Authorization": password, "Cookie": password})
    assert password not in out.getvalue()
    assert json.dumps(password)[1:-1] not in out.getvalue()


def test_names_of_secrets() -> None:
    for name in ("password", "Set-Cookie", "uploadId", "privateKey", "x-goog-signature", "PASSWD"):
        assert is_secret_name(name), name
    for name in ("key", "camera", "clip", "store", "source", "tokenizer", "credentials_file", ""):
        assert not is_secret_name(name), name


@pytest.mark.parametrize(
    "text",
    [
        "sources.home.password: is missing; give it as credential",
        "https://192.168.1.20:10443/endpoint/@scrypted/core",
        "Porch/2024/05/01/12-00-00.mp4",
        "size=5 crc32c=abc key=x",
        "mail to a@b.example",
        "sha256:" + "ab" * 32,
    ],
)
def test_harmless_texts_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    ["://a:" * 20_000, "eyJaaaaaaaa-" * 6_000, 'password="' * 8_000, "token=" + "\\" * 65_000],
)
def test_hostile_texts_take_no_time_and_no_room(text: str) -> None:
    # Bounded work is what counts here: a quadratic pattern would take minutes, not milliseconds.
    assert len(redacted(text)) <= MAX_TEXT + 8_000 * 11


def test_tracebacks_show_no_local_variables() -> None:
    for form in ("json", "console"):
        out = Terminal()
        to(out, form)
        innocent = "".join(["hunt", "er2"])
        try:
            raise ValueError(len(innocent))
        except ValueError:
            log.exception("failed")
        text = out.getvalue()
        assert "ValueError" in text
        assert "7" in text
        assert "hunter2" not in text


# Nothing may break, nothing may be faked


def test_names_cannot_steer_the_terminal_or_fake_a_line() -> None:
    nasty = "Porch\x1b]0;owned\x07\r\n2024-05-01T12:00:00.123Z [error] fake\u202e"
    for form in ("json", "console"):
        out = io.StringIO()
        to(out, form)
        log.info(f"Cannot read {nasty}", camera=nasty)
        with contextlib.suppress(ValueError):
            try:
                raise ValueError(nasty)
            except ValueError:
                log.exception("failed")
                raise
        text = out.getvalue()
        assert not set(text) & set("\x1b\x07\r\u202e")
        starts = [line for line in text.splitlines() if line.startswith("2024-05-01")]
        assert len(starts) == (0 if form == "json" else 2)


class Bad:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class BadMapping(dict[str, object]):
    def items(self) -> Any:
        raise KeyError("no items")


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_value_breaks_logging(form: Form) -> None:
    out = io.StringIO()
    to(out, form)
    circle: list[object] = []
    circle.append(circle)
    for value in (
        Bad(),
        BadMapping(a=1),
        circle,
        {1: {(2, 3): Bad()}},
        b"\xff",
        float("nan"),
        float("inf"),
        10**5000,
        "\ud800",
        object(),
        {"x": {1, 2}},
        range(10**9),
        ConfigError("no", hint="yes"),
    ):
        log.info("Value.", value=value, other="kept")
    log.info(Bad())
    log.info("x", exc_info=Bad())
    text = out.getvalue()
    assert text.count("other") == 13
    if form == "json":
        assert len(entries(out)) == 15
        assert "NaN" not in text
        assert "Infinity" not in text


@quick
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.floats()))
def test_any_fields_make_one_json_line(fields: dict[str, Any]) -> None:
    out = io.StringIO()
    to(out)
    fields.pop("event", None)
    log.info("x", **fields)
    assert len(entries(out)) == 1


def test_long_values_are_cut() -> None:
    out = io.StringIO()
    to(out)
    log.info("x", a="y" * 10**6, b=list(range(10**4)))
    assert len(out.getvalue()) < MAX_TEXT + 2000


def test_deep_values_are_cut() -> None:
    """A value may even contain itself."""
    loop: dict[str, object] = {"name": "loop"}
    loop["again"] = loop
    stream = io.StringIO()
    to(stream)
    structlog.get_logger().info("deep", value=loop)
    (entry,) = entries(stream)
    depth, level = 0, entry["value"]
    while isinstance(level, dict):
        depth, level = depth + 1, level["again"]
    assert 1 < depth <= 10


def test_a_reader_that_is_gone_is_no_reason_to_stop() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w", buffering=1)  # noqa: SIM115
    configure("debug", stream, "json")
    for _ in range(100):
        log.error("nobody reads this", filler="x" * 1000)
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    log.error("the stream is closed now")
    logging.getLogger("x").error("here too")


def test_a_stream_that_knows_ascii_only() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    configure("debug", stream, "json", clock=FixedClock())
    log.info("Küche")
    assert json.loads(raw.getvalue())["message"] == "Küche"


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log.info("here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "here"
    assert sys.stderr is not None


# Troubles


class Heard:
    """Writes down what is logged."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, object]]] = []

    @property
    def log(self) -> FilteringBoundLogger:
        """Itself, as far as `Troubles` needs a logger."""
        return cast("FilteringBoundLogger", self)

    def debug(self, event: str, /, **fields: object) -> None:
        self.heard.append(("debug", event, fields))

    def info(self, event: str, /, **fields: object) -> None:
        self.heard.append(("info", event, fields))

    def warning(self, event: str, /, **fields: object) -> None:
        self.heard.append(("warning", event, fields))


def test_first_failure_repeats_recovery() -> None:
    clock, heard = FixedClock(), Heard()
    troubles = Troubles(clock)
    kind = ("stores.offsite", "Blocked")
    assert not troubles.recovered(kind, heard.log, "Works.")
    assert troubles.failed(kind, heard.log, "Refused.", store="offsite", key="a")
    assert kind in troubles
    clock.seconds += 60
    assert not troubles.failed(kind, heard.log, "Refused.", store="offsite")
    assert troubles.failed("other", heard.log, "Lost.")
    clock.seconds += 30.04
    assert not troubles.failed(kind, heard.log, "Refused.", store="offsite")
    assert troubles.recovered(kind, heard.log, "Works.", store="offsite")
    assert kind not in troubles
    assert not troubles.recovered(kind, heard.log, "Works.")
    assert troubles.failed(kind, heard.log, "Refused.")
    assert heard.heard == [
        ("warning", "Refused.", {"store": "offsite", "key": "a"}),
        ("debug", "Refused.", {"failures": 2, "store": "offsite"}),
        ("warning", "Lost.", {}),
        ("debug", "Refused.", {"failures": 3, "store": "offsite"}),
        ("info", "Works.", {"failures": 3, "lasted_seconds": 90.0, "store": "offsite"}),
        ("warning", "Refused.", {}),
    ]


def test_troubles_are_bounded() -> None:
    heard = Heard()
    troubles = Troubles(FixedClock(), limit=3)
    for kind in ("a", "b", "c", "a", "d"):
        troubles.failed(kind, heard.log, kind)
    assert [kind in troubles for kind in "abcd"] == [True, False, True, True]


def test_troubles_speak_through_the_real_logger() -> None:
    out = io.StringIO()
    to(out, level="info")
    troubles = Troubles(FixedClock())
    for _ in range(3):
        troubles.failed("k", log, "Refused.", store="nas")
    troubles.recovered("k", log, "Works again.", store="nas")
    assert [(entry["level"], entry["store"]) for entry in entries(out)] == [
        ("warning", "nas"),
        ("info", "nas"),
    ]
