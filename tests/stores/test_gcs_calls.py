"""What gcloud-aio does for us (list, metadata, delete), under the same guards as our own requests.

The oracle is the strict double, and a server that says literally what a test tells it to say.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gcloud.aio.storage import Storage

from nvr_backup.errors import Blocked, NvrBackupError, Transient
from nvr_backup.ports import ClipStore
from nvr_backup.stores.gcs import GcsSettings, client, open_store
from nvr_backup.stores.gcs.credentials import Bearer
from tests.stores.gcs_rig import BUCKET, META, Carried, LeapClock, chunks_of, opened
from tests.support.gcs_double import GcsDouble, Reset, Stall, Status, What, Where

Ask = Callable[[ClipStore], Awaitable[Any]]


async def _listed(store: ClipStore) -> list[str]:
    return [each.key async for each in store.list("")]


CALLS: dict[Where, Ask] = {
    "get": lambda store: store.stat("k"),
    "list": _listed,
    "delete": lambda store: store.delete("k"),
}
each_call = pytest.mark.parametrize("where", list(CALLS))
SECRET = "ya29.SECRET"


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    """The address of a server that does `serve` with each connection; gone without a trace."""
    served: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        served.add(current)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        if served:
            await asyncio.wait(served)


@dataclass
class Parrot:
    """Answers every request with the same bytes and remembers the request lines."""

    answer: bytes
    heard: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heard.append(head.split(b"\r\n")[0].decode())
        writer.write(self.answer)


@asynccontextmanager
async def parrot(answer: bytes) -> AsyncIterator[Parrot]:
    made = Parrot(answer)
    async with listening(made.serve) as made.url:
        yield made


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


async def refused(server: Parrot, where: Where, kind: type[NvrBackupError]) -> str:
    """The call ends with exactly this class of error; what an operator could get to see of it."""
    given = GcsSettings("offsite", BUCKET, endpoint=server.url)
    async with open_store(given, LeapClock()) as store:
        with pytest.raises(kind) as caught:
            await CALLS[where](store)
    assert type(caught.value) is kind
    return "".join(traceback.format_exception(caught.value))


# -- addresses -----------------------------------------------------------------------------------


@each_call
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_no_redirect_is_followed(where: Where, status: str) -> None:
    async with parrot(answer("200 OK", b"{}")) as elsewhere:
        there = f"Location: {elsewhere.url}/?upload_id={SECRET}"
        async with parrot(answer(status, b"", there)) as server:
            shown = await refused(server, where, Blocked)
            assert f"unexpected answer ({status[:3]})" in shown
            assert SECRET not in shown
            assert len(server.heard) == 1
        assert elsewhere.heard == []


@pytest.mark.parametrize("key", [".", ".."])
async def test_a_step_up_is_no_object_and_never_the_bucket(key: str) -> None:
    async with parrot(answer("204 No Content")) as server:
        given = GcsSettings("offsite", BUCKET, endpoint=server.url)
        async with open_store(given, LeapClock()) as store:
            assert await store.stat(key) is None
            await store.delete(key)
        assert server.heard == []


# -- answers -------------------------------------------------------------------------------------


@each_call
async def test_what_is_no_http_is_no_verdict(where: Where) -> None:
    """aiohttp raises the class of an error status, 400, for it."""
    async with parrot(b"SSH-2.0-OpenSSH_9.2\r\n") as server:
        said = "cannot be reached (an answer that is not HTTP)"
        assert said in await refused(server, where, Blocked)
        assert len(server.heard) > 1


@each_call
@pytest.mark.parametrize("status", ["200 OK", "418 Teapot"])
async def test_endless_answer_is_not_collected(
    where: Where, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_BYTES_LIMIT", 100_000)
    async with parrot(answer(status, b"x" * 200_000)) as server:
        assert "ClientPayloadError" in await refused(server, where, Blocked)
        assert len(server.heard) > 1


@each_call
async def test_no_secret_of_the_library_error_is_shown(where: Where) -> None:
    said = f'{{"error": {{"message": "see https://h/x?upload_id={SECRET} {SECRET}"}}}}'
    async with parrot(answer("418 Teapot", said.encode())) as server:
        shown = await refused(server, where, Blocked)
    assert "418" in shown
    assert "see [address] [token]" in shown
    assert "SECRET" not in shown
    assert "ClientResponseError" not in shown


async def test_200_that_is_no_json_is_not_quoted() -> None:
    async with parrot(answer("200 OK", f"<html>{SECRET}".encode())) as server:
        assert SECRET not in await refused(server, "get", Blocked)
        assert SECRET not in await refused(server, "list", Transient)


# -- time ----------------------------------------------------------------------------------------


@each_call
@pytest.mark.parametrize("what", [Stall("before"), Reset("before"), Status(503), Status(401)])
async def test_hiccups_are_outlived(where: Where, what: What) -> None:
    async with GcsDouble() as gcs, opened(gcs, stall_seconds=0.3) as (store, _):
        gcs.put(BUCKET, "k", b"x")
        gcs.faults.add(where, what)
        await CALLS[where](store)
        assert not gcs.faults.unused()


@each_call
async def test_retry_after_is_heard_through_the_library(where: Where) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, clock):
        gcs.put(BUCKET, "k", b"x")
        gcs.faults.add(where, Status(429, retry_after="70"))
        await CALLS[where](store)
        assert clock.waits == [70.0]


async def test_early_answer_that_comes_in_two_halves() -> None:
    """While the answer arrives the body still goes out; its progress concerns no limit any more."""
    sent = 20 * 1024 * 1024
    refusal = answer("418 Teapot", b'{"error": {"message": "enough"}}')

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            writer.write(answer("200 OK", b"{}", f"Location: {url}/session"))
        else:
            writer.write(refusal[:-10])
            for _ in range(sent // 65536):
                await reader.readexactly(65536)
            writer.write(refusal[-10:])
            await reader.read()

    async with listening(serve) as url:
        given = GcsSettings("offsite", BUCKET, endpoint=url)
        async with open_store(given, LeapClock()) as store:
            chunk = chunks_of(bytes(2 * sent), chunk_size=2 * sent)[0]
            record = Carried().record
            async with store.put("k", content_type="v", metadata=META, record=record) as up:
                with pytest.raises(Blocked, match="enough"):
                    await up.send(chunk)


@pytest.mark.parametrize("name", ["download_metadata", "list_objects", "delete"])
async def test_library_gets_our_limits_and_not_its_ten_seconds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[aiohttp.ClientTimeout] = []
    real = getattr(Storage, name)

    def noted(*args: Any, **options: Any) -> Any:
        given.append(options["timeout"])
        return real(*args, **options)

    monkeypatch.setattr(Storage, name, noted)
    async with GcsDouble() as gcs, opened(gcs, stall_seconds=7.0) as (store, _):
        gcs.put(BUCKET, "k", b"x")
        for call in CALLS.values():
            await call(store)
    assert [(each.total, each.sock_read) for each in given] == [(None, 7.0)]


async def test_late_refusal_of_an_old_token_leaves_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    async with GcsDouble(auth=True) as gcs, aiohttp.ClientSession() as plain:
        gcs.write_service_account(file)
        bearer = Bearer(file, plain, LeapClock())
        old = await bearer.get()
        bearer.forget(f"Bearer {old}")
        new = await bearer.get()
        bearer.forget(f"Bearer {old}")
        assert await bearer.get() == new != old
        assert gcs.authority.issued == 2
