"""Existing objects, crashes and resuming, giving up: uploads that meet their own or others' past.

The oracle is the strict double, as in `test_gcs_upload`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nvr_backup.chunks import Chunk
from nvr_backup.errors import KeyTaken, StartOver, Suspect
from tests.stores.gcs_rig import (
    BIG,
    BODY,
    BUCKET,
    CHUNK,
    KEY,
    META,
    SMALL,
    Carried,
    carry,
    chunks_of,
    clip_bytes,
    fails,
    kinds,
    opened,
    stored_data,
    survives,
)
from tests.support.gcs_double import (
    CREATOR,
    PERMISSIONS,
    QUANTUM,
    Backwards,
    Delay,
    GcsDouble,
    Partial,
    Reset,
    Stall,
    Status,
    What,
    Where,
)

# -- existing objects ----------------------------------------------------------------------------

OTHER = b"something else entirely"


@pytest.mark.parametrize("conflict", [412, 403])
@pytest.mark.parametrize("permissions", [PERMISSIONS, CREATOR])
@pytest.mark.parametrize("data", [SMALL, BIG], ids=["single", "session"])
async def test_existing_object_is_left_alone(
    data: bytes, permissions: frozenset[str], conflict: Any
) -> None:
    async with GcsDouble(anonymous_permissions=permissions) as gcs:
        gcs.uploads.creator_conflict = conflict
        before = gcs.put(BUCKET, KEY, OTHER)
        error = await fails(gcs, data, KeyTaken)
        assert error.maybe_ours is False
        assert gcs.objects[BUCKET][KEY] is before
        assert len(gcs.requests) == 1, "found out before the clip was sent"


@pytest.mark.parametrize("permissions", [PERMISSIONS, CREATOR])
@pytest.mark.parametrize("data", [SMALL, BIG], ids=["single", "session"])
async def test_identical_object_of_somebody_else(data: bytes, permissions: frozenset[str]) -> None:
    async with GcsDouble(anonymous_permissions=permissions) as gcs:
        before = gcs.put(BUCKET, KEY, data, metadata=META)
        error = await fails(gcs, data, KeyTaken)
        assert error.maybe_ours is False
        assert gcs.objects[BUCKET][KEY] is before


async def test_object_that_appears_while_we_send() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        async with store.put(KEY, content_type="v", metadata=META, record=log.record) as upload:
            *early, last = chunks_of(BIG)
            for chunk in early:
                await upload.send(chunk)
            gcs.put(BUCKET, KEY, OTHER)
            with pytest.raises(KeyTaken) as caught:
                await upload.finish(last)
        assert caught.value.maybe_ours is False
        assert stored_data(gcs) == OTHER
        assert len(gcs.seen("query")) == 0, "a terminal answer is not asked about"


async def test_lost_single_answer_without_permission_to_look() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        gcs.faults.add("single", Reset("after"))
        error = await fails(gcs, SMALL, KeyTaken)
        assert error.maybe_ours is True
        assert stored_data(gcs) == SMALL


async def test_lost_session_answer_needs_no_permission_to_look() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        gcs.faults.add("last", Reset("after"))
        await survives(gcs, BIG)
        assert len(gcs.seen("last")) == 1


async def test_an_attempt_that_was_surely_refused_is_not_ambiguous() -> None:
    """429, then somebody else's object: a conflict, whatever we may look at."""
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        fault = gcs.faults.add("single", Status(429))

        async def meddle() -> None:
            await fault.reached()
            gcs.put(BUCKET, KEY, OTHER)

        async with asyncio.TaskGroup() as group:
            group.create_task(meddle())
            error = await fails(gcs, SMALL, KeyTaken)
        assert error.maybe_ours is False


async def test_same_bytes_with_other_metadata_are_not_ours() -> None:
    async with GcsDouble() as gcs:
        fault = gcs.faults.add("single", Reset("before"))

        async def meddle() -> None:
            await fault.reached()
            gcs.put(BUCKET, KEY, SMALL, metadata={"camera": "another"})

        async with asyncio.TaskGroup() as group:
            group.create_task(meddle())
            error = await fails(gcs, SMALL, KeyTaken)
        assert error.maybe_ours is False


# -- crashes and resuming ------------------------------------------------------------------------


async def recorded(gcs: GcsDouble, data: bytes) -> Carried:
    """All the states that a whole upload records; the object is removed again."""
    log = Carried()
    async with opened(gcs) as (store, _):
        await carry(store, data, log=log)
        await store.delete(KEY)
    return log


async def test_states_recorded() -> None:
    async with GcsDouble() as gcs:
        states = (await recorded(gcs, BIG)).states
        assert [(s.offset, s.inspection, s.total) for s in states] == [
            (0, "", None),
            (CHUNK, f"at {CHUNK}", None),
            (2 * CHUNK, f"at {2 * CHUNK}", None),
            (3 * CHUNK, f"at {3 * CHUNK}", None),
            (3 * CHUNK, f"at {3 * CHUNK}", len(BIG)),
        ]
        ends = [chunk.after.crc32c for chunk in chunks_of(BIG)]
        assert [s.crc32c for s in states] == [0, *ends[:3], ends[2]]
        assert states[-1].total_crc32c == ends[3]
        assert {s.key for s in states} == {KEY}
        single = (await recorded(gcs, SMALL)).states
        assert [(s.session, s.offset, s.total) for s in single] == [("", 0, len(SMALL))]


class Crash(Exception):
    """The process ends here."""


@pytest.mark.parametrize("crash_at", range(5))
async def test_crash_right_after_each_record(crash_at: int) -> None:
    """`record` returned, nothing after it happened; the next process has only the state."""
    log = Carried()

    async def record(state: Any) -> None:
        await log.record(state)
        if len(log.states) == crash_at + 1:
            raise Crash

    async with GcsDouble() as gcs:
        async with opened(gcs) as (store, _):
            with pytest.raises(Crash):
                async with store.put(
                    KEY, content_type="video/mp4", metadata=META, record=record
                ) as upload:
                    *early, last = chunks_of(BIG)
                    for chunk in early:
                        await upload.send(chunk)
                    await upload.finish(last)
        assert gcs.objects[BUCKET] == {}
        async with opened(gcs) as (store, _):
            await carry(store, BIG, resume=log.states[-1])
        assert stored_data(gcs) == BIG
        assert len(gcs.seen("initiate")) == 1
        assert gcs.sessions[0].done is not None


async def test_resume_where_the_store_holds_more_than_was_recorded() -> None:
    """The acknowledgement came, the record did not: the prefix is hashed again, not sent again."""
    async with GcsDouble() as gcs:
        states = (await recorded(gcs, BIG)).states
        log = Carried()
        async with opened(gcs) as (store, _):
            async with store.put(KEY, content_type="v", metadata=META, record=log.record) as upload:
                for chunk in chunks_of(BIG)[:2]:
                    await upload.send(chunk)
            chunks_before = len(gcs.seen("chunk"))
            behind = replace(log.states[0], offset=0)
            again = Carried()
            await carry(store, BIG, resume=behind, log=again)
        assert stored_data(gcs) == BIG
        assert len(gcs.seen("chunk")) - chunks_before == 1
        assert [s.offset for s in again.states] == [CHUNK, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK]
        assert states[1].crc32c == again.states[0].crc32c


async def test_resume_within_a_chunk() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        async with store.put(KEY, content_type="v", metadata=META, record=log.record) as upload:
            gcs.faults.add("chunk", Partial(QUANTUM))
            gcs.faults.add("chunk", Status(400, message="No."), nth=2)
            with pytest.raises(Suspect):
                await upload.send(chunks_of(BIG)[0])
        async with store.put(
            KEY, content_type="v", metadata=META, record=log.record, resume=log.states[-1]
        ) as upload:
            assert upload.confirmed == QUANTUM
            *early, last = chunks_of(BIG)
            for chunk in early:
                await upload.send(chunk)
            await upload.finish(last)
        assert stored_data(gcs) == BIG


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["single", "session"])
async def test_crash_between_finishing_and_learning_of_it(data: bytes) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        made = await carry(store, data, log=log)
        async with store.put(
            KEY, content_type="video/mp4", metadata=META, record=log.record, resume=log.states[-1]
        ) as upload:
            assert upload.stored is not None
            assert upload.stored.generation == made.generation
            assert upload.stored.crc32c == log.states[-1].total_crc32c
        posts = [seen for seen in gcs.requests if seen.where in ("single", "initiate")]
        assert len(posts) == 1


async def test_crash_after_a_single_request_that_never_arrived() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = await recorded(gcs, SMALL)
        await carry(store, SMALL, resume=log.states[-1])
        assert stored_data(gcs) == SMALL


async def test_crash_after_a_single_request_without_permission_to_look() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs, opened(gcs) as (store, _):
        log = Carried()
        await carry(store, SMALL, log=log)
        with pytest.raises(KeyTaken) as caught:
            await carry(store, SMALL, resume=log.states[-1])
        assert caught.value.maybe_ours is True


async def test_crash_after_a_single_request_and_a_stranger_was_quicker() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = await recorded(gcs, SMALL)
        gcs.put(BUCKET, KEY, OTHER)
        with pytest.raises(KeyTaken) as caught:
            await carry(store, SMALL, resume=log.states[-1])
        assert caught.value.maybe_ours is False
        assert stored_data(gcs) == OTHER


async def test_resume_of_a_session_that_made_a_wrong_object() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        await carry(store, BIG, log=log)
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=replace(log.states[-1], total_crc32c=1))
        assert gcs.objects[BUCKET] == {}


@pytest.mark.parametrize("code", [404, 410])
async def test_resume_of_a_lost_session(code: int) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        async with store.put(KEY, content_type="v", metadata=META, record=log.record) as upload:
            await upload.send(chunks_of(BIG)[0])
        gcs.lose_sessions(code)
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=log.states[-1])


async def test_resume_of_a_session_that_went_backwards() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        async with store.put(KEY, content_type="v", metadata=META, record=log.record) as upload:
            await upload.send(chunks_of(BIG)[0])
        gcs.faults.add("query", Backwards(to=QUANTUM))
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=log.states[-1])
        assert not gcs.faults.unused()


async def test_old_session_is_not_even_asked() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, clock):
        log = Carried()
        async with store.put(KEY, content_type="v", metadata=META, record=log.record) as upload:
            await upload.send(chunks_of(BIG)[0])
        before = len(gcs.requests)
        clock.wall += timedelta(days=6, seconds=1)
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=log.states[-1])
        assert len(gcs.requests) == before
        clock.wall -= timedelta(days=30)  # the clock was wrong when it was recorded: just ask
        await carry(store, BIG, resume=log.states[-1])
        assert stored_data(gcs) == BIG


async def test_old_session_whose_object_was_finished() -> None:
    """The machine was off for weeks after the last request: the object is found all the same."""
    async with GcsDouble() as gcs, opened(gcs) as (store, clock):
        log = Carried()
        made = await carry(store, BIG, log=log)
        clock.wall += timedelta(days=30)
        assert await carry(store, BIG, resume=log.states[-1]) == made
        assert kinds(gcs)[-1] == "get"
        await store.delete(KEY)
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=log.states[-1])


async def test_lost_answer_and_lost_session_leave_a_doubt_that_is_told() -> None:
    """We may not look; that the key is taken shows when another upload is opened."""
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        gcs.faults.add("last", Reset("after"))
        gcs.faults.add("query", Status(410))
        error = await fails(gcs, BIG, KeyTaken)
        assert error.maybe_ours is True
        assert stored_data(gcs) == BIG
        assert len(gcs.sessions) == 1


async def test_lost_session_that_made_nothing_leaves_no_doubt() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        gcs.faults.add("last", Reset("before"))
        gcs.faults.add("query", Status(410, lose_session=True))
        await fails(gcs, BIG, StartOver)
        assert kinds(gcs)[-4:] == ["query", "get", "initiate", "cancel"]
        assert gcs.objects[BUCKET] == {}
        await survives(gcs, BIG)


async def test_old_session_whose_object_was_finished_without_permission_to_look() -> None:
    async with (
        GcsDouble(anonymous_permissions=CREATOR) as gcs,
        opened(gcs) as (store, clock),
    ):
        log = Carried()
        await carry(store, BIG, log=log)
        clock.wall += timedelta(days=30)
        with pytest.raises(KeyTaken) as caught:
            await carry(store, BIG, resume=log.states[-1])
        assert caught.value.maybe_ours is True
        del gcs.objects[BUCKET][KEY]
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=log.states[-1])
        assert kinds(gcs)[-1] == "cancel"


async def test_session_of_another_bucket_is_not_continued() -> None:
    async with GcsDouble(buckets=(BUCKET, "other")) as gcs:
        log = Carried()
        async with (
            opened(gcs, bucket="other") as (store, _),
            store.put(KEY, content_type="v", metadata=META, record=log.record) as upload,
        ):
            await upload.send(chunks_of(BIG)[0])
        async with opened(gcs) as (store, _):
            with pytest.raises(StartOver):
                await carry(store, BIG, resume=log.states[-1])


# -- giving up, leaving, being cancelled ---------------------------------------------------------


async def test_discard_ends_the_session() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        async with store.put(KEY, content_type="v", metadata=META, record=Carried().record) as up:
            await up.send(chunks_of(BIG)[0])
            await up.discard()
            await up.discard()
        assert kinds(gcs) == ["initiate", "chunk", "cancel"]
        assert gcs.sessions[0].lost == 499
        assert gcs.objects[BUCKET] == {}


@pytest.mark.parametrize("what", [Status(503), Reset("before"), Status(404)])
async def test_discard_never_fails(what: What) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("cancel", what)
        async with store.put(KEY, content_type="v", metadata=META, record=Carried().record) as up:
            await up.send(chunks_of(BIG)[0])
            await up.discard()
        assert not gcs.faults.unused()


async def test_discard_of_nothing_and_of_a_finished_upload_asks_nothing() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        async with store.put(KEY, content_type="v", metadata=META, record=Carried().record) as up:
            await up.discard()
        assert kinds(gcs) == []
        async with store.put(KEY, content_type="v", metadata=META, record=Carried().record) as up:
            (chunk,) = chunks_of(SMALL)
            await up.finish(chunk)
            await up.discard()
        assert stored_data(gcs) == SMALL
        assert kinds(gcs) == ["single"]


async def test_leaving_without_finish_shows_nothing() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        async with store.put(KEY, content_type="v", metadata=META, record=Carried().record) as up:
            await up.send(chunks_of(BIG)[0])
        assert gcs.objects[BUCKET] == {}
        assert gcs.sessions[0].lost is None


@pytest.mark.parametrize("where", ["initiate", "chunk", "last", "single", "query"])
async def test_cancelled_in_the_middle(where: Where) -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        fault = gcs.faults.add(where, Stall("before"))
        if where == "query":
            gcs.faults.add("chunk", Status(503))
        log = Carried()
        data = BODY.get(where, BIG)
        task = asyncio.create_task(carry(store, data, log=log))
        await fault.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gcs.faults.release()
        await carry(store, data, resume=log.states[-1] if log.states else None)
        assert stored_data(gcs) == data


async def test_many_at_once() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        gcs.faults.add("chunk", Status(503), nth=3, times=4)
        gcs.faults.add("last", Reset("after"), nth=2, times=3)
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                data = clip_bytes(2 * CHUNK + number, seed=number)
                group.create_task(carry(store, data, key=f"clip/{number}"))
        assert not gcs.faults.unused()
        for number in range(8):
            assert stored_data(gcs, f"clip/{number}") == clip_bytes(2 * CHUNK + number, number)


async def test_a_gap_is_a_bug_not_a_clip() -> None:
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        async with store.put(KEY, content_type="v", metadata=META, record=Carried().record) as up:
            with pytest.raises(ValueError, match="gap"):
                await up.finish(Chunk(5))
        assert kinds(gcs) == []


async def test_late_answers_are_answers() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("chunk", Delay(0.05))
        gcs.faults.add("last", Delay(0.05))
        clock = await survives(gcs, BIG)
        assert clock.waits == []


@pytest.mark.parametrize("state", [0, 1, 2])
async def test_what_an_older_checkpoint_does_not_know_is_not_removed(state: int) -> None:
    """The upload was finished; then a checkpoint from before that was put back."""
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        log = Carried()
        await carry(store, BIG, log=log)
        generation = gcs.objects[BUCKET][KEY].generation
        assert log.states[state].total is None
        with pytest.raises(StartOver):
            await carry(store, BIG, resume=log.states[state])
        with pytest.raises(KeyTaken):
            await carry(store, BIG)
        assert gcs.objects[BUCKET][KEY].generation == generation
        assert gcs.seen("delete") == []
