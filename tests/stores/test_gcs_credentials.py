"""Key files, tokens, and which server gets one. The double checks every token it is shown."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.errors import Blocked, ConfigError, Transient
from nvr_backup.stores.gcs import GcsSettings, open_store
from nvr_backup.stores.gcs.credentials import find_credentials, read_credentials
from nvr_backup.stores.gcs.settings import Endpoint, find_endpoint
from tests.stores.gcs_rig import (
    BUCKET,
    CHUNK,
    KEY,
    META,
    Carried,
    LeapClock,
    carry,
    chunks_of,
    clip_bytes,
    opened,
)
from tests.support.gcs_double import Garbled, GcsDouble, Reset, Stall, Status

BIG = clip_bytes(3 * CHUNK + 1)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield


# -- with a real token flow ----------------------------------------------------------------------


async def test_one_token_for_many_uploads(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs:
        gcs.write_service_account(file)
        async with opened(gcs, credentials_file=file) as (store, _):
            async with asyncio.TaskGroup() as group:
                for number in range(5):
                    group.create_task(carry(store, clip_bytes(10 + number), key=str(number)))
            await store.probe()
            assert await store.stat("1") is not None
            assert [each.key async for each in store.list("")] == list("01234")
            assert b"".join([piece async for piece in store.read("4")]) == clip_bytes(14)
            await store.delete("0")
        assert gcs.authority.issued == 1
        assert all(
            seen.headers["authorization"] == "Bearer ***"
            for seen in gcs.requests
            if seen.where != "token"
        )


async def test_token_that_expires_in_the_middle_of_a_clip(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs:
        gcs.write_service_account(file)
        async with opened(gcs, credentials_file=file) as (store, clock):
            async with store.put(
                KEY, content_type="v", metadata=META, record=Carried().record
            ) as up:
                *early, last = chunks_of(BIG)
                for chunk in early:
                    assert gcs.expire_tokens() <= 1
                    await up.send(chunk)
                gcs.expire_tokens()
                await up.finish(last)
            gcs.expire_tokens()
            assert await store.stat(KEY) is not None
        assert gcs.objects[BUCKET][KEY].data == BIG
        assert clock.waits == [], "a fresh token is no reason to wait"
        assert gcs.authority.issued == len(early) + 2


async def test_token_is_replaced_before_it_expires(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True, token_life_seconds=1000) as gcs:
        gcs.write_service_account(file)
        async with opened(gcs, credentials_file=file) as (store, clock):
            await store.stat("x")
            clock.elapsed += 850
            await store.stat("x")
            assert gcs.authority.issued == 1
            clock.elapsed += 100
            await store.stat("x")
        assert gcs.authority.issued == 2
        assert {seen.status for seen in gcs.seen("get")} == {404}


async def test_fresh_token_refused_is_blocked(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs:
        gcs.write_service_account(file)
        gcs.faults.add("single", Status(401), times=None)
        async with opened(gcs, credentials_file=file) as (store, clock):
            with pytest.raises(Blocked, match="401"):
                await carry(store, b"x")
        assert gcs.authority.issued == 2
        assert clock.waits == []


async def test_revoked_key_and_its_replacement_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs:
        account = gcs.write_service_account(file)
        account.enabled = False
        secret = json.loads(file.read_text())["private_key"]
        async with opened(gcs, credentials_file=file) as (store, _):
            with pytest.raises(Blocked, match="invalid_grant") as caught:
                await store.probe()
            assert str(file) in str(caught.value)
            assert secret[40:80] not in "".join(traceback.format_exception(caught.value))
            file.write_text("{")
            with pytest.raises(Blocked, match="not JSON"):
                await store.probe()
            gcs.write_service_account(file, name="second")
            await store.probe()


async def test_token_server_in_trouble(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs:
        gcs.write_service_account(file)
        gcs.faults.add("token", Status(503), times=2)
        gcs.faults.add("token", Reset("after"), nth=3)
        gcs.faults.add("token", Status(429), nth=4)
        async with opened(gcs, credentials_file=file) as (store, _):
            await carry(store, b"x")
            assert not gcs.faults.unused()
        gcs.faults.add("token", Status(500), times=None)
        async with opened(gcs, credentials_file=file, retry_seconds=2.0) as (store, _):
            with pytest.raises(Transient):
                await carry(store, b"y", key="y")
        gcs.faults.clear()
        gcs.faults.add("token", Reset("before"), times=None)
        async with opened(gcs, credentials_file=file, retry_seconds=2.0) as (store, _):
            with pytest.raises(Blocked, match="cannot be reached"):
                await carry(store, b"y", key="y")
        assert "y" not in gcs.objects[BUCKET]


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'"x"', b"<html>", b'{"access_token": "x", "expires_in": "soon"}'],
)
async def test_an_answer_that_holds_no_token_is_no_end_of_the_program(
    tmp_path: Path, body: bytes
) -> None:
    async with GcsDouble(auth=True) as gcs:
        key_file = tmp_path / "gcs.json"
        gcs.write_service_account(key_file)
        gcs.faults.add("token", Garbled(body, commit=False))
        async with opened(gcs, credentials_file=key_file) as (store, _):
            with pytest.raises(Blocked, match=r"Google|no access token"):
                await carry(store, b"x")
            await carry(store, b"x")
        assert not gcs.faults.unused()


async def test_a_cancelled_upload_does_not_take_the_token_from_others(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs:
        gcs.write_service_account(file)
        fault = gcs.faults.add("token", Stall("before"))
        async with opened(gcs, credentials_file=file) as (store, _):
            first = asyncio.create_task(carry(store, b"x", key="x"))
            await fault.reached()
            second = asyncio.create_task(carry(store, b"y", key="y"))
            await asyncio.sleep(0)
            first.cancel()
            assert (await second).size == 1
        assert list(gcs.objects[BUCKET]) == ["y"]
        assert first.cancelled()


async def test_no_token_without_a_key_for_a_named_endpoint() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        await carry(store, b"x")
        assert all("authorization" not in seen.headers for seen in gcs.requests)


async def test_endpoint_that_wants_credentials_and_gets_none() -> None:
    async with GcsDouble(auth=True) as gcs, opened(gcs) as (store, _):
        with pytest.raises(Blocked, match="credentials"):
            await carry(store, b"x")


async def test_emulator_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with GcsDouble() as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url.removeprefix("http://"))
        plain = GcsSettings("offsite", BUCKET)
        async with open_store(plain, LeapClock()) as store:
            await carry(store, b"x")
        assert list(gcs.objects[BUCKET]) == [KEY]


# -- key files -----------------------------------------------------------------------------------

USER = {
    "type": "authorized_user",
    "client_id": "a",
    "client_secret": "SECRET",
    "refresh_token": "r",
}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ('{"type": "service_account", "private_key": "SECRET', "not JSON"),
        ('["SECRET"]', "type"),
        ('{"type": "SECRET"}', "type"),
        ('{"type": "service_account", "client_email": "SECRET"}', "private_key"),
        (
            '{"type": "service_account", "client_email": "a", "private_key": "SECRET"}',
            "private_key",
        ),
        (json.dumps({**USER, "refresh_token": ""}), "refresh_token"),
        (json.dumps({**USER, "token_uri": "http://example.com/SECRET"}), "token_uri"),
        ("[" * 100_000, "not JSON"),
    ],
)
async def test_unusable_key_file(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(text)
    given = GcsSettings("offsite", BUCKET, credentials_file=file)
    with pytest.raises(ConfigError) as caught:
        async with open_store(given, LeapClock()):
            pass
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("make", ["nothing", "folder", "binary"])
async def test_key_file_that_cannot_be_read(tmp_path: Path, make: str) -> None:
    file = tmp_path / "key.json"
    if make == "folder":
        file.mkdir()
    if make == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=str(file)):
        read_credentials(file)


async def test_other_kinds_of_key_file(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(json.dumps({**USER, "token_uri": "http://127.0.0.1:1/token"}))
    assert read_credentials(file)["type"] == "authorized_user"


async def test_malformed_default_credentials_do_not_fall_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "adc.json"
    file.write_text("{")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(ConfigError, match=str(file)):
        async with open_store(GcsSettings("offsite", BUCKET), LeapClock()):
            pass


def test_where_credentials_come_from(tmp_path: Path) -> None:
    given, named, home = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    plain = GcsSettings("offsite", BUCKET)
    environment = {"HOME": str(home)}
    assert find_credentials(plain, environment) is None
    well_known = home / ".config/gcloud/application_default_credentials.json"
    well_known.parent.mkdir(parents=True)
    well_known.write_text("{}")
    assert find_credentials(plain, environment) == well_known
    environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(named)
    assert find_credentials(plain, environment) == named
    assert find_credentials(GcsSettings("x", BUCKET, credentials_file=given), environment) == given


# -- endpoints -----------------------------------------------------------------------------------

KEYFILE = Path("/key.json")


@pytest.mark.parametrize(
    ("endpoint", "file", "environment", "expected"),
    [
        ("", None, {}, Endpoint("https://storage.googleapis.com", True, True)),
        ("", KEYFILE, {}, Endpoint("https://storage.googleapis.com", True, True)),
        (
            "",
            KEYFILE,
            {"STORAGE_EMULATOR_HOST": "http://h:1/"},
            Endpoint("http://h:1", False, False),
        ),
        ("", None, {"STORAGE_EMULATOR_HOST": "h:1"}, Endpoint("http://h:1", False, False)),
        (
            "http://127.0.0.1:9/",
            None,
            {"STORAGE_EMULATOR_HOST": "h:1"},
            Endpoint("http://127.0.0.1:9", False, False),
        ),
        ("http://127.0.0.1:9", KEYFILE, {}, Endpoint("http://127.0.0.1:9", False, True)),
        ("http://[::1]:9", KEYFILE, {}, Endpoint("http://[::1]:9", False, True)),
        ("https://store.lan", None, {}, Endpoint("https://store.lan", False, False)),
        ("https://store.lan/gcs", KEYFILE, {}, Endpoint("https://store.lan/gcs", False, True)),
        (
            "https://storage.europe-west3.rep.googleapis.com",
            None,
            {},
            Endpoint("https://storage.europe-west3.rep.googleapis.com", True, True),
        ),
        (
            "https://storage.googleapis.com.evil.example",
            None,
            {},
            Endpoint("https://storage.googleapis.com.evil.example", False, False),
        ),
    ],
)
def test_which_server(
    endpoint: str, file: Path | None, environment: dict[str, str], expected: Endpoint
) -> None:
    given = GcsSettings("offsite", BUCKET, endpoint=endpoint, credentials_file=file)
    assert find_endpoint(given, environment) == expected


@pytest.mark.parametrize(
    ("endpoint", "file"),
    [
        ("store.lan", None),
        ("ftp://store.lan", None),
        ("https://", None),
        ("https://store.lan:port", None),
        ("https://me:PASSWORD@store.lan", None),
        ("https://store.lan?token=PASSWORD", None),
        ("http://store.lan", KEYFILE),
        ("http://storage.googleapis.com", None),
        ("http://10.0.0.1:9000", KEYFILE),
    ],
)
def test_unusable_endpoint(endpoint: str, file: Path | None) -> None:
    given = GcsSettings("offsite", BUCKET, endpoint=endpoint, credentials_file=file)
    with pytest.raises(ConfigError) as caught:
        find_endpoint(given, {})
    assert "stores.offsite.endpoint" in str(caught.value)
    assert "PASSWORD" not in "".join(traceback.format_exception(caught.value))


OURS: Any = Endpoint("http://127.0.0.1:9", False, True)
GOOGLES: Any = Endpoint("https://storage.googleapis.com", True, True)


@pytest.mark.parametrize(
    ("endpoint", "address", "accepted"),
    [
        (OURS, "http://127.0.0.1:9/upload?x", True),
        (OURS, "http://127.0.0.1:10/upload?x", False),
        (OURS, "https://127.0.0.1:9/upload?x", False),
        (OURS, "http://localhost:9/upload?x", False),
        (OURS, "http://127.0.0.1:9@evil.example/upload", False),
        (OURS, "http://127.0.0.1:nine/", False),
        (OURS, "http://me@127.0.0.1:9/upload?x", False),
        (GOOGLES, "https://me@storage.googleapis.com/upload", False),
        (OURS, "/upload?x", False),
        (OURS, "", False),
        (GOOGLES, "https://storage.googleapis.com/upload", True),
        (GOOGLES, "https://www.googleapis.com/upload", True),
        (GOOGLES, "http://storage.googleapis.com/upload", False),
        (GOOGLES, "https://evilgoogleapis.com/upload", False),
        (GOOGLES, "https://storage.googleapis.com.evil.example/", False),
        (GOOGLES, "https://storage.googleapis.com@evil.example/", False),
        (Endpoint("https://h", False, True), "https://h:443/x", True),
    ],
)
def test_session_address(endpoint: Endpoint, address: str, accepted: bool) -> None:
    assert endpoint.accepts(address) is accepted
