"""Everything of the Google Cloud Storage adapter around the upload: probe, keys, listing, reading.

The oracle is the strict double: what it holds, what it was asked, and that its faults happened.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvr_backup.errors import Blocked, NvrBackupError, Transient, Unfit
from nvr_backup.ports import Capabilities
from nvr_backup.stores.gcs import GcsSettings, destination, open_store
from nvr_backup.stores.gcs.store import PROBE_ATTEMPTS
from tests.stores.gcs_rig import (
    BUCKET,
    CHUNK,
    META,
    Carried,
    LeapClock,
    carry,
    chunks_of,
    clip_bytes,
    opened,
)
from tests.support.gcs_double import (
    CREATOR,
    PERMISSIONS,
    EmptyPage,
    Garbled,
    GcsDouble,
    Reset,
    Stall,
    Status,
    What,
)

ODD_KEYS = [
    "Haustür/2026/01/02/03-04-05.mp4",
    "日本/📷 1.mp4",
    "100%/50%25.mp4",
    "what?/a=b&c=d.mp4",
    "no#fragment.mp4",
    "a b+c/d;e,f:g@h$i!'(j)*.mp4",
    'quote"back\\slash.mp4',
    "a//b/./c/../d.mp4",
    "...",
    "%2F%2e",
    "o",
    "https://example.com/x",
]
EVERYTHING = Capabilities(stat=True, list=True, read=True, delete=True, resume=True)
ONLY_CREATE = Capabilities(stat=False, list=False, read=False, delete=False, resume=True)


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "site A/ü%?"])
@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_keys_in_every_operation(key: str, prefix: str) -> None:
    async with GcsDouble() as gcs, opened(gcs, prefix=prefix) as (store, _):
        for data in (clip_bytes(10), clip_bytes(CHUNK + 1)):
            made = await carry(store, data, key=key)
            assert made.key == key
            assert gcs.objects[BUCKET][prefix + key].data == data
            assert await store.stat(key) == made
            assert [found async for found in store.list(key)] == [made]
            assert b"".join([piece async for piece in store.read(key)]) == data
            await store.delete(key, generation=made.generation)
            assert gcs.objects[BUCKET] == {}


async def test_metadata_round_trips() -> None:
    odd = {"camera": "Hof ☂", "Größe": "", "clip-id": '{"a": [1, "é\n"]}', "x" * 60: "y" * 500}
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        for size in (10, CHUNK + 1):
            async with store.put(
                "k", content_type="video/x-matroska", metadata=odd, record=Carried().record
            ) as upload:
                *early, last = chunks_of(clip_bytes(size))
                for chunk in early:
                    await upload.send(chunk)
                made = await upload.finish(last)
            found = await store.stat("k")
            assert found == made
            assert found is not None
            assert dict(found.metadata) == odd == gcs.objects[BUCKET]["k"].metadata
            assert found.content_type == "video/x-matroska"
            await store.delete("k")


# -- probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permissions", "expected"),
    [
        (PERMISSIONS, EVERYTHING),
        (CREATOR, ONLY_CREATE),
        (
            frozenset({"storage.objects.create", "storage.objects.get"}),
            Capabilities(stat=True, list=False, read=True, delete=False, resume=True),
        ),
        (
            frozenset({"storage.objects.create", "storage.objects.list", "storage.objects.delete"}),
            Capabilities(stat=False, list=True, read=False, delete=True, resume=True),
        ),
    ],
)
async def test_probe_tells_what_the_key_may_do(
    permissions: frozenset[str], expected: Capabilities
) -> None:
    async with (
        GcsDouble(anonymous_permissions=permissions) as gcs,
        opened(gcs) as (store, _),
    ):
        assert await store.probe() == expected
        assert gcs.objects[BUCKET] == {}
        assert gcs.sessions == []


async def test_probe_without_the_permission_to_create() -> None:
    async with (
        GcsDouble(anonymous_permissions=PERMISSIONS - CREATOR) as gcs,
        opened(gcs) as (store, _),
    ):
        with pytest.raises(Blocked, match=r"storage\.objects\.create"):
            await store.probe()


@pytest.mark.parametrize("answer", [b"{}", b'{"permissions": 5}', b'{"permissions": null}'])
async def test_probe_that_is_granted_nothing(answer: bytes) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("permissions", Garbled(answer, commit=False))
        with pytest.raises(Blocked, match=r"storage\.objects\.create"):
            await store.probe()


async def test_probe_of_a_name_that_no_bucket_can_have() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("permissions", Status(400, message="Invalid bucket name"))
        gcs.faults.add("bucket", Status(400, message="Invalid bucket name"))
        with pytest.raises(Blocked, match="Invalid bucket name"):
            await store.probe()


@pytest.mark.parametrize("bucket", ["elsewhere", "odd?name/#"])
async def test_probe_without_the_bucket(bucket: str) -> None:
    async with GcsDouble() as gcs, opened(gcs, bucket=bucket) as (store, _):
        with pytest.raises(Blocked, match="no such bucket"):
            await store.probe()


@pytest.mark.parametrize(
    "lacking", [Status(404, plain=True), Status(405, plain=True), Status(400, message="?")]
)
async def test_probe_of_an_emulator_without_test_permissions(lacking: What) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("permissions", lacking)
        assert await store.probe() == EVERYTHING
        assert not gcs.faults.unused()


@pytest.mark.parametrize("what", [Status(503), Reset("before"), Status(403), Status(401)])
async def test_probe_that_gets_no_permission_list_is_blocked_and_soon_over(what: What) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("permissions", what, times=None)
        with pytest.raises(Blocked) as caught:
            await store.probe()
        assert type(caught.value) is Blocked
        assert caught.value.hint
        assert len(gcs.requests) <= 2 * PROBE_ATTEMPTS, "aiohttp repeats a GET once by itself"


async def test_probe_of_something_that_is_no_storage_server() -> None:
    """A captive portal, say: it answers everything with 200 and a page."""
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        portal = Garbled(b"<html>Log in</html>", commit=False, content_type="text/html")
        gcs.faults.add("any", portal, times=2)
        with pytest.raises(Blocked, match="unexpected answer"):
            await store.probe()
        assert not gcs.faults.unused()


async def test_probe_survives_a_hiccup() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("permissions", Status(503))
        assert await store.probe() == EVERYTHING
        assert not gcs.faults.unused()


async def test_entering_needs_no_network() -> None:
    unreachable = GcsSettings("offsite", BUCKET, endpoint="http://127.0.0.1:1")
    async with open_store(unreachable, LeapClock()):
        pass


# -- stat, delete --------------------------------------------------------------------------------


async def test_stat_of_nothing() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        assert await store.stat("nothing") is None


async def test_stat_without_permission_or_bucket() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        async with opened(gcs) as (store, _):
            with pytest.raises(Blocked, match=r"storage\.objects\.get"):
                await store.stat("nothing")
        async with opened(gcs, bucket="elsewhere") as (store, _):
            with pytest.raises(Blocked, match="bucket"):
                await store.stat("nothing")


async def test_delete_only_in_the_generation_given() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        old = gcs.put(BUCKET, "k", b"old").generation
        new = gcs.put(BUCKET, "k", b"new").generation
        assert old != new
        await store.delete("k", generation=str(old))
        assert gcs.objects[BUCKET]["k"].data == b"new"
        await store.delete("k", generation=str(new))
        assert gcs.objects[BUCKET] == {}
        await store.delete("k")


async def test_delete_whose_answer_is_lost() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", b"x")
        gcs.faults.add("delete", Reset("after"))
        await store.delete("k")
        assert gcs.objects[BUCKET] == {}
        assert not gcs.faults.unused()


async def test_delete_without_permission() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", b"x")
        with pytest.raises(Blocked, match=r"storage\.objects\.delete"):
            await store.delete("k")
        assert "k" in gcs.objects[BUCKET]


# -- list ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "site/"])
async def test_listing_over_many_pages(prefix: str) -> None:
    keys = [f"{camera}/{number:02}.mp4" for camera in ("a", "ä", "z") for number in range(7)]
    async with GcsDouble(page_size=3) as gcs, opened(gcs, prefix=prefix) as (store, _):
        for key in reversed(keys):
            gcs.put(BUCKET, prefix + key, key.encode(), metadata=META)
        gcs.put(BUCKET, "elsewhere", b"")
        gcs.faults.add("list", Status(503), nth=2)
        gcs.faults.add("list", EmptyPage(), nth=4)
        gcs.faults.add("list", Reset("after"), nth=5)
        found = [each async for each in store.list("")]
        expected = sorted(keys, key=str.encode)
        listed = [each.key for each in found]
        assert listed == (expected if prefix else sorted([*keys, "elsewhere"], key=str.encode))
        first = gcs.objects[BUCKET][prefix + expected[0]]
        assert (found[0].size, found[0].crc32c, found[0].generation, found[0].content_type) == (
            first.size,
            first.crc32c,
            str(first.generation),
            "video/mp4",
        )
        assert dict(found[0].metadata) == META
        assert [each.key async for each in store.list("z/")] == [k for k in expected if k[0] == "z"]
        assert [each async for each in store.list("nothing")] == []
        assert not gcs.faults.unused()


@pytest.mark.parametrize(
    "broken",
    [
        Garbled(b"", commit=False),
        Garbled(b"{}x", commit=False),
        Garbled(b'{"items": [{"name": "x"}]}', commit=False),
        Garbled(b'{"items": 5}', commit=False),
        Garbled(truncate=True),
    ],
    ids=repr,
)
async def test_part_of_a_listing_never_looks_like_all_of_it(broken: What) -> None:
    async with GcsDouble(page_size=1) as gcs, opened(gcs) as (store, _):
        for key in "abc":
            gcs.put(BUCKET, key, b"")
        gcs.faults.add("list", broken, nth=2)
        with pytest.raises(Transient):
            _ = [each async for each in store.list("")]
        assert not gcs.faults.unused()


@pytest.mark.parametrize(
    ("page", "pages"),
    [
        (b'{"items": [], "nextPageToken": "again"}', 101),
        (b'{"items": [{"name":"a","size":1,"generation":2}], "nextPageToken": "again"}', 2),
    ],
)
async def test_listing_that_never_ends(page: bytes, pages: int) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("list", Garbled(page, commit=False), times=pages)
        with pytest.raises(Transient):
            _ = [each async for each in store.list("")]
        assert not gcs.faults.unused()


async def test_listing_without_permission() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs, opened(gcs) as (store, _):
        with pytest.raises(Blocked, match=r"storage\.objects\.list"):
            _ = [each async for each in store.list("")]


# -- read ----------------------------------------------------------------------------------------

DATA = clip_bytes(700_000)


async def read(store: Any, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in store.read("k", offset=offset)])


@pytest.mark.parametrize("offset", [0, 1, 65_536, 699_999, 700_000, 800_000])
async def test_read_from_an_offset(offset: int) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", DATA)
        assert await read(store, offset) == DATA[offset:]


async def test_read_of_an_empty_object_and_of_none() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", b"")
        assert await read(store) == b""
        await store.delete("k")
        with pytest.raises(Unfit):
            await read(store)


@pytest.mark.parametrize("what", [Reset(after_bytes=200_000), Stall(after_bytes=200_000)])
async def test_read_goes_on_where_it_broke_off(what: What) -> None:
    async with GcsDouble() as gcs, opened(gcs, stall_seconds=0.3) as (store, _):
        gcs.put(BUCKET, "k", DATA)
        gcs.faults.add("media", what, times=2)
        gcs.faults.add("media", Status(503), nth=3)
        assert await read(store, 10) == DATA[10:]
        assert not gcs.faults.unused()


async def test_read_where_ranges_are_not_granted() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", DATA)
        gcs.faults.add("media", Garbled(DATA, commit=False), times=2)
        assert await read(store, 650_000) == DATA[650_000:]
        with pytest.raises(Transient):
            await read(store, 700_001)
        assert not gcs.faults.unused()


async def test_bytes_of_two_objects_never_mix() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", DATA)
        fault = gcs.faults.add("media", Reset(after_bytes=200_000))

        async def meddle() -> None:
            await fault.reached()
            gcs.put(BUCKET, "k", bytes(len(DATA)))

        async with asyncio.TaskGroup() as group:
            group.create_task(meddle())
            with pytest.raises(Unfit):
                await read(store)


@pytest.mark.parametrize(
    ("what", "kind"), [(Status(403), Blocked), (Status(503), Transient), (Status(401), Blocked)]
)
async def test_read_that_is_refused(what: What, kind: type[NvrBackupError]) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", DATA)
        gcs.faults.add("media", what, times=None)
        with pytest.raises(kind):
            await read(store)


async def test_read_left_early_releases_its_connection() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.put(BUCKET, "k", DATA)
        for _turn in range(3):
            pieces = store.read("k")
            assert DATA.startswith(await anext(pieces))
            await pieces.aclose()  # type: ignore[attr-defined]
        assert await read(store) == DATA


# -- bounded courtesy ----------------------------------------------------------------------------


async def test_discard_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "CLEANUP_SECONDS_LIMIT", 0.05)
    async with GcsDouble() as gcs, opened(gcs, stall_seconds=3600.0) as (store, _):
        gcs.faults.add("cancel", Stall("before"))
        async with store.put("k", content_type="v", metadata=META, record=Carried().record) as up:
            await up.send(chunks_of(clip_bytes(CHUNK + 1))[0])
            await up.discard()
        assert not gcs.faults.unused()
