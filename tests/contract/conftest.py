"""The stores that must pass the contract suite: one line each in `STORES`.

A `StoreCase` opens the store as often as a test wants (each time is a restart of the program) and
looks at what it holds without any of the store's own code. Where a *server* is known to break the
contract although our adapter asks it correctly, `deviations` names the test and the reason; such a
test is expected to fail, and to succeed there is an error.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import aiohttp
import google_crc32c
import pytest
from yarl import URL

from nvr_backup.clock import SystemClock
from nvr_backup.model import StoredObject
from nvr_backup.ports import ClipStore
from nvr_backup.stores.directory import DirectorySettings
from nvr_backup.stores.directory import open_store as open_directory
from tests.support.fake_gcs_server import FakeGcsServer, binary, fake_gcs_server
from tests.support.fakes import FakeStore
from tests.support.gcs_double import GcsDouble

CHUNK = 256 * 1024
"""The smallest chunk all stores can take (Google's quantum)."""

BUCKET = "footage"


@dataclass(frozen=True)
class StoreCase:
    """A store under test and a view of it from outside."""

    open: Callable[[], AbstractAsyncContextManager[ClipStore]]
    """A new instance on the same place, as after a restart of the program."""

    visible: Callable[[], Awaitable[dict[str, bytes]]]
    """Every key and its bytes, asked without the store's code."""

    place: Callable[[str, bytes], Awaitable[None]]
    """Put an object there as somebody else would."""

    deviations: Mapping[str, str] = field(default_factory=dict)
    """A test's name, with its parameters or for all of them → why the server cannot pass it."""


# -- a folder ------------------------------------------------------------------------------------


@asynccontextmanager
async def directory(request: pytest.FixtureRequest) -> AsyncIterator[StoreCase]:
    root: Path = request.getfixturevalue("tmp_path") / "footage"
    root.mkdir()
    settings = DirectorySettings(name="nas", path=root, reserve_bytes=0)

    async def visible() -> dict[str, bytes]:
        private = root / ".nvr-backup"
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and private not in path.parents
        }

    async def place(key: str, content: bytes) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    yield StoreCase(lambda: open_directory(settings, SystemClock()), visible, place)


# -- the strict double of Google Cloud Storage ---------------------------------------------------


@asynccontextmanager
async def gcs_double(request: pytest.FixtureRequest) -> AsyncIterator[StoreCase]:
    async with GcsDouble((BUCKET,), page_size=7) as double:

        async def visible() -> dict[str, bytes]:
            return {key: held.data for key, held in double.objects[BUCKET].items()}

        async def place(key: str, content: bytes) -> None:
            double.put(BUCKET, key, content)

        yield StoreCase(lambda: _open_gcs(double.url, BUCKET), visible, place)


def _open_gcs(endpoint: str, bucket: str) -> AbstractAsyncContextManager[ClipStore]:
    from nvr_backup.stores.gcs import GcsSettings, open_store

    settings = GcsSettings(
        name="offsite", bucket=bucket, endpoint=endpoint, chunk_size=CHUNK, retry_seconds=5.0
    )
    return open_store(settings, SystemClock())


# -- the fake of the core's own tests ------------------------------------------------------------


@asynccontextmanager
async def memory(request: pytest.FixtureRequest) -> AsyncIterator[StoreCase]:
    store = FakeStore()

    @asynccontextmanager
    async def opened() -> AsyncIterator[ClipStore]:
        yield store

    async def visible() -> dict[str, bytes]:
        return {key: data for key, (_, data) in store.objects.items()}

    async def place(key: str, content: bytes) -> None:
        crc32c = google_crc32c.value(content)
        store.objects[key] = (StoredObject(key, len(content), crc32c, "1"), content)

    yield StoreCase(opened, visible, place)


# -- somebody else's emulator, as a process ------------------------------------------------------

_BUCKETS = itertools.count(1)


@pytest.fixture(scope="session")
def fake_server() -> Iterator[FakeGcsServer]:
    """One process for all tests, on a loop of its own thread; each test has its own bucket."""
    with (
        ThreadPoolExecutor(1, thread_name_prefix="fake-gcs-server") as thread,
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
    ):
        stack = AsyncExitStack()
        starting = stack.enter_async_context(fake_gcs_server())
        yield thread.submit(runner.run, starting).result()
        thread.submit(runner.run, stack.aclose()).result()
        thread.submit(runner.close).result()


@asynccontextmanager
async def fake_gcs(request: pytest.FixtureRequest) -> AsyncIterator[StoreCase]:
    server: FakeGcsServer = request.getfixturevalue("fake_server")
    bucket = f"footage-{next(_BUCKETS)}"
    objects = f"{server.url}/storage/v1/b/{bucket}/o"
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{server.url}/storage/v1/b", json={"name": bucket}) as answer:
            answer.raise_for_status()

        async def visible() -> dict[str, bytes]:
            async with session.get(objects) as answer:
                names = [item["name"] for item in (await answer.json()).get("items", [])]
            found = {}
            for name in names:
                path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"
                url = URL(server.url + path, encoded=True)
                async with session.get(url) as answer:
                    answer.raise_for_status()
                    found[name] = await answer.read()
            return found

        async def place(key: str, content: bytes) -> None:
            url = f"{server.url}/upload/storage/v1/b/{bucket}/o"
            query = {"uploadType": "media", "name": key}
            async with session.post(url, params=query, data=content) as answer:
                answer.raise_for_status()

        yield StoreCase(
            lambda: _open_gcs(server.url, bucket), visible, place, FAKE_GCS_SERVER_DEVIATIONS
        )


_OVERWRITES = "it ignores ifGenerationMatch=0 on resumable uploads"
_QUERY_FINISHES = "a status query (bytes */*) on an open session finalises what it holds so far"

FAKE_GCS_SERVER_DEVIATIONS = {
    "test_an_existing_object_is_never_replaced[chunked]": _OVERWRITES,
    "test_an_own_object_is_never_replaced[chunked]": _OVERWRITES,
    "test_of_two_uploads_to_one_key_the_first_to_finish_wins[chunked]": _OVERWRITES,
    "test_of_simultaneous_uploads_to_one_key_one_wins[chunked]": _OVERWRITES,
    "test_another_generation_does_not_give_way[chunked]": _OVERWRITES,
    "test_a_replacement_that_breaks_leaves_the_old_and_goes_on[chunked]": _QUERY_FINISHES,
    "test_goes_on_after_a_restart": _QUERY_FINISHES,
    "test_what_is_confirmed_need_not_come_again": _QUERY_FINISHES,
    "test_metadata_and_type_come_back[chunked]": (
        "the type of a resumable upload is that of its last PUT, not the one it was opened with"
    ),
    "test_deleting_only_in_its_generation": "it deletes whatever generation is asked for",
}
"""Each seen on the wire with fake-gcs-server 1.54.0; the strict double passes all of them. Wrong
checksums are no deviation: it accepts them, but the adapter removes such an object by itself."""


# -- the list ------------------------------------------------------------------------------------


class Opening(Protocol):
    """What a line of `STORES` names."""

    def __call__(
        self, request: pytest.FixtureRequest, /
    ) -> AbstractAsyncContextManager[StoreCase]: ...


STORES: dict[str, Opening] = {
    "memory": memory,
    "directory": directory,
    "gcs-double": gcs_double,
    "fake-gcs-server": fake_gcs,
}


@pytest.fixture(params=list(STORES))
async def case(request: pytest.FixtureRequest) -> AsyncIterator[StoreCase]:
    """A fresh, empty place of each kind."""
    if request.param == "fake-gcs-server" and binary() is None:
        pytest.skip("the fake-gcs-server binary is not installed")
    async with STORES[request.param](request) as opened:
        for name, reason in opened.deviations.items():
            if name in (_plain_name(request), _plain_name(request).partition("[")[0]):
                request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
        yield opened


def _plain_name(request: pytest.FixtureRequest) -> str:
    """The test's name and parameters without the store's: `test_sizes[chunk-1]`."""
    name: str = request.node.name
    return name.replace(f"{request.param}-", "", 1).replace(f"[{request.param}]", "")


@pytest.fixture
async def store(case: StoreCase) -> AsyncIterator[ClipStore]:
    """The store of `case`, open."""
    async with case.open() as opened:
        yield opened
