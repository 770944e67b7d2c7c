"""An object whose bytes rot while its description stays right gives way to the clip, or stays.

That is what an object store's bit rot looks like from outside: size, CRC32C and metadata are those
of the clip, and the bytes are not. Only its generation tells it from the clip stored anew.
"""

from __future__ import annotations

import pytest

from nvr_backup.errors import KeyTaken, Transient
from tests.stores.gcs_rig import BIG, BUCKET, KEY, META, SMALL, Carried, carry, opened
from tests.support.gcs_double import (
    CREATOR,
    PERMISSIONS,
    GcsDouble,
    Reset,
    Status,
    What,
)

_DATA = pytest.mark.parametrize("data", [SMALL, BIG], ids=["single", "session"])


def rotten(gcs: GcsDouble, data: bytes) -> str:
    """The generation of an object that is the clip by all that the store says of it."""
    return str(gcs.put(BUCKET, KEY, data, metadata=META).generation)


@_DATA
@pytest.mark.parametrize("what", [Status(503), Reset("before"), Reset("after")])
async def test_the_rotten_object_is_not_taken_for_the_answer_that_was_lost(
    data: bytes, what: What
) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        old = rotten(gcs, data)
        gcs.faults.add("single" if data is SMALL else "last", what)
        stored = await carry(store, data, replaces=old)
        assert not gcs.faults.unused()
        assert stored.generation == str(gcs.objects[BUCKET][KEY].generation) != old


@_DATA
async def test_nor_after_a_crash_before_the_last_request(data: bytes) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        old = rotten(gcs, data)
        log = Carried()
        gcs.faults.add("single" if data is SMALL else "last", Status(503), times=100)
        with pytest.raises(Transient):
            await carry(store, data, replaces=old, log=log)
        gcs.faults.clear()
        last = log.states[-1]
        assert last.total == len(data)
        stored = await carry(store, data, replaces=old, resume=last)
        assert stored.generation == str(gcs.objects[BUCKET][KEY].generation) != old


@_DATA
async def test_without_the_permission_to_delete_it_stays_and_the_key_is_taken(data: bytes) -> None:
    permissions = PERMISSIONS - {"storage.objects.delete"}
    async with GcsDouble(anonymous_permissions=permissions) as gcs, opened(gcs) as (store, _):
        old = rotten(gcs, data)
        with pytest.raises(KeyTaken) as caught:
            await carry(store, data, replaces=old)
        assert caught.value.maybe_ours is False
        assert str(gcs.objects[BUCKET][KEY].generation) == old


@_DATA
async def test_with_a_key_that_only_creates_a_lost_answer_leaves_a_doubt(data: bytes) -> None:
    permissions = CREATOR | {"storage.objects.delete"}
    async with GcsDouble(anonymous_permissions=permissions) as gcs, opened(gcs) as (store, _):
        old = rotten(gcs, data)
        gcs.faults.add("single" if data is SMALL else "last", Reset("after"))
        try:
            stored = await carry(store, data, replaces=old)
        except KeyTaken as err:
            assert err.maybe_ours
        else:
            assert stored.generation != old
        assert str(gcs.objects[BUCKET][KEY].generation) != old
