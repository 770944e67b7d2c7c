"""What an upload survives, and what it says when it does not, against the strict double.

The oracle is the double: bytes and checksums are what arrived there, and every scripted fault must
have happened. Waiting costs no time (`LeapClock`), except where a stall has to be real.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nvr_backup.errors import Blocked, StartOver, Suspect, Transient, Unfit
from nvr_backup.stores.gcs import GcsSettings, open_store
from nvr_backup.stores.gcs.retry import ATTEMPTS_LIMIT, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from tests.stores.gcs_rig import (
    BIG,
    BODY,
    BUCKET,
    CHUNK,
    KEY,
    META,
    SMALL,
    STEPS,
    Carried,
    LeapClock,
    carry,
    clip_bytes,
    fails,
    kinds,
    opened,
    stored_data,
    survives,
)
from tests.support.gcs_double import (
    CREATOR,
    QUANTUM,
    Backwards,
    Claim,
    Corrupt,
    Garbled,
    GcsDouble,
    Misreport,
    Partial,
    Reset,
    Slow,
    Stall,
    Status,
    What,
    Where,
    rate_limited,
)

# -- plain ---------------------------------------------------------------------------------------

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * 1024 * 1024 + 12345]


@pytest.mark.parametrize("size", SIZES)
async def test_sizes(size: int) -> None:
    data = clip_bytes(size)
    async with GcsDouble() as gcs, opened(gcs) as (store, _):
        got = await carry(store, data, pieces=(1, 70_001, 300_007, 13))
        assert stored_data(gcs) == data
        assert (got.key, got.size, dict(got.metadata)) == (KEY, size, META)
        expected = ["single"] if size <= CHUNK else ["initiate", *["chunk"] * ((size - 1) // CHUNK)]
        assert kinds(gcs) == (expected if size <= CHUNK else [*expected, "last"])
        creating = [seen for seen in gcs.requests if seen.where in ("single", "initiate")]
        assert [seen.parameter("ifGenerationMatch") for seen in creating] == ["0"]


async def test_hash_goes_with_the_last_request_only() -> None:
    async with GcsDouble() as gcs:
        await survives(gcs, BIG)
        hashed = [seen.where for seen in gcs.requests if "x-goog-hash" in seen.headers]
        assert hashed == ["last"]


async def test_chunks_of_odd_size_still_go_out_in_multiples_of_the_quantum() -> None:
    async with GcsDouble() as gcs, opened(gcs, chunk_size=1000) as (store, _):
        await carry(store, BIG, chunk_size=300_000)
        assert stored_data(gcs) == BIG
        assert all(seen.body_bytes % QUANTUM == 0 for seen in gcs.seen("chunk"))


# -- unclear answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("where", STEPS)
async def test_status_is_retried(where: Where, code: int, commit: bool) -> None:
    async with GcsDouble() as gcs:
        # What was carried out is not sent a second time, so it can only fail once.
        times = 1 if commit and where != "initiate" else 2
        gcs.faults.add(where, Status(code, commit=commit, reason="scripted"), times=times)
        await survives(gcs, BODY[where])


@pytest.mark.parametrize(
    "what",
    [
        Status(503, plain=True),
        rate_limited(),
        Status(403, reason="userRateLimitExceeded"),
        Status(503, early=True),
        Reset("before"),
        Reset("after"),
        Garbled(b"", commit=True),
        Garbled(b"", commit=False),
        Garbled(b"[]", commit=True),
        Garbled(truncate=True),
        Garbled(b'{"kind": "storage#object"}', commit=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", STEPS)
async def test_no_usable_answer(where: Where, what: What) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, what)
        await survives(gcs, BODY[where])
        if where in ("chunk", "last"):
            after = gcs.seen(where)[0].number
            assert gcs.requests[after].where == "query", "asked before anything was sent again"


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("at", ["before", "after"])
async def test_three_resets_in_a_row(where: Where, at: Any) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Reset(at), times=1 if at == "after" and where != "initiate" else 3)
        await survives(gcs, BODY[where])


@pytest.mark.parametrize("keeps", ["aligned", "all", "none"])
@pytest.mark.parametrize("after", [0, 1, 65_536, QUANTUM, QUANTUM + 1, CHUNK - 1])
@pytest.mark.parametrize("where", ["chunk", "last"])
async def test_cut_within_a_chunk(where: Where, after: int, keeps: Any) -> None:
    async with GcsDouble() as gcs:
        gcs.uploads.cut_keeps = keeps
        gcs.faults.add(where, Reset(after_bytes=after))
        await survives(gcs, clip_bytes(3 * CHUNK))


@pytest.mark.parametrize("after", [0, 1, 300, 50_000])
async def test_cut_within_a_single_request(after: int) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("single", Reset(after_bytes=after), times=3)
        await survives(gcs, SMALL)


async def test_query_itself_fails() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("chunk", Reset("after"), nth=2)
        gcs.faults.add("query", Status(503))
        gcs.faults.add("query", Reset("after"), nth=2)
        gcs.faults.add("query", Garbled(b"", commit=False), nth=3)
        await survives(gcs, BIG)
        assert len(gcs.seen("query")) == 4
        assert len(gcs.seen("chunk")) == 3, "what the store held was not sent again"


PARTS = [0, 1, 1000, QUANTUM, QUANTUM + 5, CHUNK - 1]


@pytest.mark.parametrize(
    ("where", "keep"),
    [*(("chunk", keep) for keep in PARTS), *(("last", keep) for keep in [*PARTS, CHUNK, None])],
)
async def test_partial_commit(where: Where, keep: int | None) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Partial(keep))
        await survives(gcs, clip_bytes(3 * CHUNK))


async def test_partial_commit_is_no_reason_to_wait() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("chunk", Partial(QUANTUM), times=2)
        clock = await survives(gcs, BIG)
        assert clock.waits == []


@pytest.mark.parametrize("where", ["chunk", "last", "single", "initiate", "query"])
async def test_stall(where: Where) -> None:
    """The server reads nothing more, or never answers: the limit is real time here."""
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Stall("before"))
        if where == "query":
            gcs.faults.add("chunk", Reset("after"))
        await survives(gcs, BODY.get(where, BIG), stall_seconds=0.2)


async def test_stall_while_the_body_is_written() -> None:
    data = clip_bytes(24 * 1024 * 1024)
    async with GcsDouble(receive_buffer=4096) as gcs:
        gcs.faults.add("chunk", Stall(after_bytes=1000))
        async with opened(gcs, stall_seconds=0.3) as (store, _):
            await carry(store, data, chunk_size=16 * 1024 * 1024)
        assert stored_data(gcs) == data
        assert not gcs.faults.unused()


async def test_slow_is_not_stalled() -> None:
    """The whole request takes several times the stall limit, but never stands still."""
    data = clip_bytes(6 * CHUNK)
    async with GcsDouble(receive_buffer=4096) as gcs:
        gcs.faults.add("last", Slow(piece=128 * 1024, pause_seconds=0.08))
        async with opened(gcs, stall_seconds=1.0, chunk_size=4096) as (store, _):
            await carry(store, data, chunk_size=6 * CHUNK)
        assert stored_data(gcs) == data
        assert not gcs.faults.unused()
        assert "query" not in kinds(gcs)


# -- the end of patience -------------------------------------------------------------------------


@pytest.mark.parametrize("where", [*STEPS, "query"])
async def test_endless_503_is_transient_and_bounded(where: Where) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Status(503), times=None)
        if where == "query":
            gcs.faults.add("chunk", Status(503))
        async with opened(gcs) as (store, clock):
            with pytest.raises(Transient) as caught:
                await carry(store, BODY.get(where, BIG))
        assert type(caught.value) is Transient
        assert "503" in str(caught.value)
        assert len(gcs.requests) < 3 * ATTEMPTS_LIMIT
        assert clock.elapsed <= 120
        for number, pause in enumerate(clock.waits):
            cap = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number)
            assert 0 <= pause <= cap
        assert len(set(clock.waits)) == len(clock.waits), "jittered"


async def test_progress_renews_patience() -> None:
    """Many more failures than patience allows in a row, with progress in between."""
    data = clip_bytes(12 * QUANTUM)
    async with GcsDouble() as gcs:
        gcs.uploads.cut_keeps = "all"
        for number in range(1, 3 * ATTEMPTS_LIMIT, 1):
            gcs.faults.add("last", Reset(after_bytes=50_000), nth=number)
        async with opened(gcs, chunk_size=1000) as (store, clock):
            await carry(store, data, chunk_size=12 * QUANTUM)
        assert stored_data(gcs) == data
        assert not gcs.faults.unused()
        assert max(clock.waits) <= FIRST_PAUSE_SECONDS


async def test_no_server_at_all_is_blocked() -> None:
    async with GcsDouble() as gcs:
        url = gcs.url
    clock = LeapClock()
    plain = GcsSettings("offsite", BUCKET, endpoint=url)
    async with open_store(plain, clock) as store:
        for data in (SMALL, BIG):
            with pytest.raises(Blocked, match="cannot be reached"):
                await carry(store, data)
        with pytest.raises(Blocked, match="cannot be reached"):
            await store.probe()


@pytest.mark.parametrize("where", ["chunk", "single"])
async def test_a_clip_that_kills_the_connection_does_not_block_the_store(where: Where) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Reset(after_bytes=1000), times=None)
        gcs.uploads.cut_keeps = "none"
        await fails(gcs, BODY[where], Transient)


async def test_silence_to_everything_is_blocked() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("any", Reset("before"), times=None)
        await fails(gcs, SMALL, Blocked)
        await fails(gcs, BIG, Blocked)


@pytest.mark.parametrize("wish", ["7", "Fri, 02 Jan 2026 00:00:07 GMT"])
async def test_retry_after_is_honoured(wish: str) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("chunk", Status(503, retry_after=wish))
        clock = await survives(gcs, BIG)
        assert clock.waits == [7.0]


async def test_retry_after_beyond_our_patience_is_handed_on() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("single", Status(429, retry_after="3600"))
        error = await fails(gcs, SMALL, Transient)
        assert error.retry_after == 3600
        assert len(gcs.requests) == 1


# -- lost sessions, lost bytes -------------------------------------------------------------------


@pytest.mark.parametrize("code", [404, 410, 499])
@pytest.mark.parametrize("where", ["chunk", "last", "query"])
async def test_lost_session_starts_over(where: Where, code: int) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Status(code, lose_session=True, reason="scripted"))
        if where == "query":
            gcs.faults.add("chunk", Status(503))
        await fails(gcs, BIG, StartOver)
        assert gcs.objects[BUCKET] == {}
        await survives(gcs, BIG)


async def test_session_forgotten_after_the_object_was_made() -> None:
    """The last answer is lost and the session with it: looking under the key settles it."""
    async with GcsDouble() as gcs:
        gcs.faults.add("last", Reset("after"))
        gcs.faults.add("query", Status(410))
        await survives(gcs, BIG)
        assert len(gcs.seen("initiate")) == 1


@pytest.mark.parametrize("where", ["chunk", "last"])
async def test_store_that_forgets_bytes_it_confirmed(where: Where) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, Backwards(to=QUANTUM), nth=1 if where == "last" else 2)
        await fails(gcs, BIG, StartOver)
        assert gcs.objects[BUCKET] == {}


async def test_store_that_claims_more_than_was_sent() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("chunk", Claim(CHUNK + 1))
        await fails(gcs, BIG, StartOver)


# -- refusals ------------------------------------------------------------------------------------


async def test_bytes_changed_on_the_way_start_over() -> None:
    for where in ("chunk", "last", "single"):
        async with GcsDouble() as gcs:
            gcs.faults.add(where, Corrupt(at=1500))
            await fails(gcs, BODY[where], StartOver)
            assert gcs.objects[BUCKET] == {}


async def test_integrity_error_in_the_guise_of_412() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("single", Status(412, message="crc32c mismatch"))
        await fails(gcs, SMALL, StartOver)


@pytest.mark.parametrize("wrong", [Misreport(crc32c=1), Misreport(size=1)])
@pytest.mark.parametrize("where", ["last", "single"])
async def test_wrong_object_is_removed(where: Where, wrong: Misreport) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, wrong)
        await fails(gcs, BODY[where], StartOver)
        assert gcs.objects[BUCKET] == {}
        assert gcs.seen("delete")[0].parameter("generation")


async def test_wrong_object_that_may_not_be_removed() -> None:
    async with GcsDouble(anonymous_permissions=CREATOR) as gcs:
        gcs.faults.add("single", Misreport(crc32c=1))
        await fails(gcs, SMALL, StartOver)


async def test_session_that_ends_too_early() -> None:
    """A chunk answered with an object is never taken for an acknowledgement."""
    resource = (
        b'{"name": "%s", "size": "1", "generation": "7", "crc32c": "AAAAAA=="}' % KEY.encode()
    )
    async with GcsDouble() as gcs:
        gcs.faults.add("chunk", Garbled(resource, commit=False))
        await fails(gcs, BIG, StartOver)
        assert gcs.seen("delete")[0].parameter("generation") == "7"


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (Status(400, message="No."), Suspect, "No."),
        (Status(413, message="Too much."), Unfit, "Too much."),
        (Status(400, reason="required", message="userProject"), Blocked, "userProject"),
        (Status(403, message="x does not have storage.objects.create access"), Blocked, "create"),
        (Status(403, reason="accountDisabled", message="Billing"), Blocked, "Billing"),
        (Status(405, plain=True), Blocked, "405"),
        (Status(412, reason="orgPolicyConstraintFailed", message="policy"), Blocked, "policy"),
    ],
    ids=lambda value: str(getattr(value, "code", "")) or None,
)
async def test_permanent_refusal(where: Where, status: Status, kind: Any, says: str) -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add(where, status)
        error = await fails(gcs, BODY[where], kind)
        assert says in str(error)
        assert len(gcs.seen(where)) == 1, "not tried again"


async def test_no_bucket_is_blocked() -> None:
    async with GcsDouble() as gcs:
        for data in (SMALL, BIG):
            assert "bucket" in str(await fails(gcs, data, Blocked, bucket="elsewhere"))


async def test_missing_permission_is_named() -> None:
    async with GcsDouble(anonymous_permissions=frozenset({"storage.objects.get"})) as gcs:
        error = await fails(gcs, SMALL, Blocked)
        assert "storage.objects.create" in error.hint


async def test_session_on_another_host_is_refused() -> None:
    async with GcsDouble() as other, GcsDouble() as gcs:
        async with opened(gcs) as (store, _):
            log = Carried()
            await carry(store, BIG, log=log)
            state = replace(
                log.states[1], session=log.states[1].session.replace(gcs.url, other.url)
            )
            with pytest.raises(StartOver):
                await carry(store, BIG, resume=state)
        assert not other.requests
