"""The adapter against fake-gcs-server: somebody else's idea of the API understands our requests.

It is more forgiving than the service, so nothing here is about refusals; see `test_gcs_upload`.
"""

from __future__ import annotations

import pytest

from nvr_backup.errors import Blocked, KeyTaken, StartOver
from nvr_backup.stores.gcs import GcsSettings, open_store
from tests.stores.gcs_rig import CHUNK, KEY, META, Carried, LeapClock, carry, chunks_of, clip_bytes
from tests.support.fake_gcs_server import binary, fake_gcs_server

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(binary() is None, reason="fake-gcs-server is not installed"),
]


async def test_a_clip_there_and_back() -> None:
    async with fake_gcs_server() as server:
        given = GcsSettings("offsite", server.bucket, endpoint=server.url, prefix="nvr/")
        async with open_store(given, LeapClock()) as store:
            assert (await store.probe()).resume
            for size in (1, CHUNK, 3 * CHUNK + 12345):
                data, key = clip_bytes(size), f"{KEY} ü%?#{size}"
                made = await carry(store, data, key=key)
                assert await store.stat(key) == made
                assert dict(made.metadata) == META
                assert b"".join([piece async for piece in store.read(key)]) == data
                assert b"".join([piece async for piece in store.read(key, offset=1)]) == data[1:]
            found = [each async for each in store.list("")]
            assert [each.size for each in found] == [1, 3 * CHUNK + 12345, CHUNK]
            for each in found:
                await store.delete(each.key, generation=each.generation)
            assert [each async for each in store.list("")] == []
            assert await store.stat(KEY) is None
        elsewhere = GcsSettings("offsite", "elsewhere", endpoint=server.url)
        async with open_store(elsewhere, LeapClock()) as store:
            with pytest.raises(Blocked):
                await store.probe()


async def test_status_query_that_finalises_what_is_there() -> None:
    """This server's own mistake; the wrong object is removed, and the clip begins anew."""
    data = clip_bytes(3 * CHUNK)
    async with fake_gcs_server() as server:
        given = GcsSettings("offsite", server.bucket, endpoint=server.url)
        async with open_store(given, LeapClock()) as store:
            log = Carried()
            async with store.put(
                KEY, content_type="video/mp4", metadata=META, record=log.record
            ) as upload:
                await upload.send(chunks_of(data)[0])
            with pytest.raises(StartOver):
                await carry(store, data, resume=log.states[-1])
            assert await store.stat(KEY) is None
            await carry(store, data)
            assert b"".join([piece async for piece in store.read(KEY)]) == data
            with pytest.raises(KeyTaken):
                await carry(store, b"other")
            assert b"".join([piece async for piece in store.read(KEY)]) == data
