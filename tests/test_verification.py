"""A store held against a real checkpoint, with a fake store that can be spoilt at will."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import google_crc32c
import pytest

from nvr_backup import coverage, findings, healing
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import transaction
from nvr_backup.errors import Blocked, Transient
from nvr_backup.findings import Finding, What
from nvr_backup.keys import candidates
from nvr_backup.model import Clip, StoredObject
from nvr_backup.planner import Addition, Plan, Reach
from nvr_backup.ports import Capabilities
from nvr_backup.rows import Claim, Tally
from nvr_backup.verification import (
    BATCH,
    FAILURES_IN_A_ROW,
    LOOKUPS_AT_ONCE,
    STRAYS_KEPT,
    Outcome,
    Verification,
)
from tests.support.clock import VirtualClock
from tests.support.fakes import EPOCH, PORCH, FakeStore, clip_at

TEMPLATE = "{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4"
NOW = EPOCH + timedelta(days=3)
SIZE = 1000


def keys(_store: str, clip: Clip) -> Iterator[str]:
    return candidates(TEMPLATE, clip)


class Spoilt(FakeStore):
    """A FakeStore whose key may do less, and that can be wrong for a moment."""

    may = Capabilities(stat=True, list=True, read=True, delete=True, resume=True)
    before_stat: Callable[[str], None] | None = None
    garble_once: bool = False
    while_read: Callable[[], Awaitable[None]] | None = None
    unreadable: frozenset[str] = frozenset()
    listing = 0
    after_stat: Callable[[str], None] | None = None
    most_stats = 0
    stats = 0

    async def probe(self) -> Capabilities:
        return self.may

    async def stat(self, key: str) -> StoredObject | None:
        if not self.may.stat:
            raise Blocked("may not look")
        if self.before_stat is not None:
            self.before_stat(key)
        self.stats += 1
        self.most_stats = max(self.most_stats, self.stats)
        await asyncio.sleep(0)
        self.stats -= 1
        found = await super().stat(key)
        if self.after_stat is not None:
            self.after_stat(key)
        return found

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        if not self.may.list:
            raise Blocked("may not list")
        self.listing += 1
        try:
            async for found in super().list(prefix):
                yield found
        finally:
            self.listing -= 1

    async def read(
        self, key: str, *, offset: int = 0, generation: str | None = None
    ) -> AsyncIterator[bytes]:
        if key in self.unreadable:
            raise Blocked(f"{key}: input/output error")
        async for piece in super().read(key, offset=offset, generation=generation):
            if self.while_read is not None:
                await self.while_read()
            yield bytes(len(piece)) if self.garble_once else piece
        self.garble_once = False


@dataclass
class Desk:
    """A checkpoint with stored clips, and the store that holds them."""

    checkpoint: Checkpoint
    clock: VirtualClock
    store: Spoilt

    async def stored(self, *minutes: float, template: str = TEMPLATE) -> list[str]:
        """Clips that begin so many minutes after EPOCH are planned and stored; their keys."""
        clips = [clip_at(minute) for minute in minutes]
        additions = tuple(Addition(clip, frozenset({"nas"})) for clip in clips)
        plan = Plan(additions, (), len(clips), 0, None, None)

        def named(_store: str, clip: Clip) -> Iterator[str]:
            return candidates(template, clip)

        await self.checkpoint.apply(PORCH, plan, keys=named, now=NOW)
        found = []
        while claim := await self.claim():
            data = claim.key.encode() * SIZE
            there = StoredObject(claim.key, len(data), google_crc32c.value(data), "1")
            self.store.objects[claim.key] = (there, data)
            await self.commit(claim.copy, there)
            found.append(claim.key)
        return found

    async def claim(self) -> Claim | None:
        return await self.checkpoint.claim(
            sources={"home"}, stores={"nas"}, cameras=lambda _: True, busy={}, due=NOW
        )

    async def commit(self, copy: int, there: StoredObject, *, later: float = 0) -> None:
        now = NOW + timedelta(seconds=later)
        await self.checkpoint.commit_stored(
            copy, there, verified=True, tally=Tally(0, 0.0), now=now
        )

    async def read_again(self, budget: int | None = None, **options: datetime) -> Outcome:
        verification = self.verification(**options)
        await verification.compare()
        await verification.read_again(budget)
        return verification.outcome

    def spoil(self, key: str, data: bytes, *, generation: str = "2") -> None:
        there = StoredObject(key, len(data), google_crc32c.value(data), generation)
        self.store.objects[key] = (there, data)

    def rot(self, key: str) -> None:
        """The bytes change and the store does not notice."""
        there, data = self.store.objects[key]
        self.store.objects[key] = (there, b"?" + data[1:])

    def verification(self, *, begin: datetime = EPOCH, end: datetime = NOW) -> Verification:
        return Verification(
            "nas",
            self.store,
            TEMPLATE,
            self.checkpoint.database,
            begin=begin,
            end=end,
            clock=self.clock,
            step=lambda _: None,
        )

    async def compare(self, **options: datetime) -> Outcome:
        verification = self.verification(**options)
        await verification.compare()
        return verification.outcome

    async def read_back(self, budget: int | None = None) -> Outcome:
        verification = self.verification()
        await verification.read_back(budget)
        return verification.outcome

    async def known(self) -> list[Finding]:
        return await self.checkpoint.database.run(
            lambda db: findings.known(db, {"nas"}, EPOCH, NOW)
        )

    async def heal(
        self, found: list[Finding] | None = None, *, may_replace: bool = True
    ) -> list[Finding]:
        found = await self.known() if found is None else found

        def work(db: sqlite3.Connection) -> list[Finding]:
            with transaction(db, durable=False):
                stores = {"nas"} if may_replace else set()
                return healing.heal(db, found, keys, may_replace=stores, now=NOW)

        return await self.checkpoint.database.run(work)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    checkpoint = await Checkpoint.open(tmp_path, now=NOW)
    yield Desk(checkpoint, VirtualClock(NOW), Spoilt())
    checkpoint.close()


# -- comparing ------------------------------------------------------------------------------------


async def test_everything_right_is_counted_and_nothing_noted(desk: Desk) -> None:
    await desk.stored(*range(5))
    outcome = await desk.compare()
    assert (outcome.right, outcome.wrong, outcome.stray_count, outcome.limits) == (5, [], 0, [])
    assert await desk.known() == []


async def test_each_difference_has_its_name_and_is_new_once(desk: Desk) -> None:
    gone, size, checksum, _ = await desk.stored(*range(4))
    del desk.store.objects[gone]
    desk.spoil(size, b"x")
    desk.spoil(checksum, bytes(len(checksum) * SIZE))
    outcome = await desk.compare()
    assert {one.key: one.what for one in outcome.wrong} == {
        gone: What.MISSING,
        size: What.SIZE,
        checksum: What.CHECKSUM,
    }
    assert len(outcome.new) == 3
    assert {one.key: one.generation for one in await desk.known()} == {
        gone: None,
        size: "2",
        checksum: "2",
    }
    again = await desk.compare()
    assert (len(again.wrong), again.new) == (3, [])


async def test_an_object_put_back_is_no_finding_any_more(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    kept = desk.store.objects.pop(key)
    assert len((await desk.compare()).wrong) == 1
    desk.store.objects[key] = kept
    assert (await desk.compare()).right == 1
    assert await desk.known() == []


async def test_only_the_stretch_that_was_asked_for(desk: Desk) -> None:
    keys_ = await desk.stored(0, 60, 120)
    desk.store.objects.clear()
    hour = timedelta(hours=1)
    outcome = await desk.compare(begin=EPOCH + hour, end=EPOCH + 2 * hour)
    assert [one.key for one in outcome.wrong] == [keys_[1]]


async def test_unknown_objects_of_another_hour_are_not_named(desk: Desk) -> None:
    for number in (0, 1, 2):
        desk.spoil(f"Porch/2026/01/01/0{number}-30-00.mp4", b"")
    hour = timedelta(hours=1)
    outcome = await desk.compare(begin=EPOCH + hour, end=EPOCH + 2 * hour)
    assert [one.key for one in outcome.strays] == ["Porch/2026/01/01/01-30-00.mp4"]


async def test_however_many_are_gone_all_are_asked_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_ = await desk.stored(*range(5))
    for at_once in (1, 2, 3):
        monkeypatch.setattr(findings, "KEYS_AT_ONCE", at_once)
        outcome = await desk.compare()
        assert (outcome.right, outcome.stray_count) == (5, 0)
    monkeypatch.setattr("nvr_backup.verification.BATCH", 2)
    desk.store.objects.clear()
    assert [one.key for one in (await desk.compare()).wrong] == keys_


async def test_objects_of_another_template_are_looked_up_by_key(desk: Desk) -> None:
    await desk.stored(0, 1, template="{clipId}/{yyyy}.mp4")
    lost = await desk.stored(5, template="{clipId}/{yyyy}.mp4")
    del desk.store.objects[lost[0]]
    outcome = await desk.compare()
    assert (outcome.right, [one.key for one in outcome.wrong]) == (2, lost)


async def test_lookups_are_side_by_side_but_bounded(desk: Desk) -> None:
    await desk.stored(*range(40), template="{clipId}/{yyyy}.mp4")
    await desk.compare()
    assert desk.store.most_stats == LOOKUPS_AT_ONCE


async def test_unknown_objects_are_ours_to_name_and_not_to_touch(desk: Desk) -> None:
    await desk.stored(0)
    there = dict(desk.store.objects)
    for key in ("Porch/2026/01/01/notes.txt", "Porch/2026/01/01/07-07-07.mp4"):
        desk.spoil(key, b"mine")
    desk.spoil("Porch/2026/02/01/07-07-07.mp4", b"another day")
    desk.spoil("_nvr-backup/checkpoint", b"ours, but no clip")
    outcome = await desk.compare()
    assert sorted(one.key for one in outcome.strays) == [
        "Porch/2026/01/01/07-07-07.mp4",
        "Porch/2026/01/01/notes.txt",
    ]
    assert there.items() <= desk.store.objects.items()


async def test_strays_without_end_are_a_number(desk: Desk) -> None:
    for number in range(STRAYS_KEPT + 7):
        desk.spoil(f"Porch/2026/01/01/{number}.txt", b"")
    outcome = await desk.compare()
    assert (len(outcome.strays), outcome.stray_count) == (STRAYS_KEPT, STRAYS_KEPT + 7)


async def test_an_object_under_the_key_of_a_waiting_clip_is_no_stray(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    desk.spoil(key, b"x")
    await desk.compare()
    await desk.heal()
    outcome = await desk.compare()
    assert (outcome.stray_count, outcome.wrong, outcome.right) == (0, [], 0)


async def test_a_copy_stored_anew_meanwhile_is_not_called_wrong(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    del desk.store.objects[key]
    outcome = await desk.compare()
    (one,) = outcome.wrong
    # The daemon stores it under another key between the look and the verdict.
    elsewhere = StoredObject("elsewhere.mp4", 3, 1)
    await desk.commit(one.copy, elsewhere)
    assert await desk.known() == []

    def late(db: sqlite3.Connection) -> tuple[list[Finding], list[Finding]]:
        with transaction(db, durable=False):
            return findings.note(db, [one], NOW)

    assert await desk.checkpoint.database.run(late) == ([], [])
    assert await desk.known() == []


async def test_a_failing_store_makes_nothing_wrong(desk: Desk) -> None:
    await desk.stored(*range(30), template="{clipId}/{yyyy}.mp4")
    desk.store.faults.arm("stat", Transient("reset"))
    desk.store.faults.skip["stat"] = 11
    with pytest.raises(Transient):
        await desk.compare()
    assert await desk.known() == []
    assert desk.store.stats == 0  # nothing goes on behind our back


@pytest.mark.parametrize(
    ("may", "right", "unchecked", "said"),
    [
        (Capabilities(stat=False, list=False, read=False, delete=False, resume=True), 0, 3, 2),
        (Capabilities(stat=True, list=False, read=True, delete=False, resume=True), 3, 0, 1),
        (Capabilities(stat=False, list=True, read=False, delete=False, resume=True), 3, 0, 0),
    ],
)
async def test_what_the_key_may_not_do_is_said(
    desk: Desk, may: Capabilities, right: int, unchecked: int, said: int
) -> None:
    await desk.stored(0, 1, 2)
    desk.store.may = may
    outcome = await desk.compare()
    assert (outcome.right, outcome.unchecked, len(outcome.limits)) == (right, unchecked, said)
    assert outcome.wrong == []


async def test_doubts_without_a_second_look_are_no_findings(desk: Desk) -> None:
    gone, _ = await desk.stored(0, 1)
    del desk.store.objects[gone]
    desk.store.may = Capabilities(stat=False, list=True, read=False, delete=False, resume=True)
    outcome = await desk.compare()
    assert (outcome.right, outcome.unchecked, outcome.wrong) == (1, 1, [])


async def test_a_copy_stored_anew_under_its_key_is_not_called_wrong(desk: Desk) -> None:
    """Somebody else's `verify --fix` and the daemon were quicker than our verdict."""
    (key,) = await desk.stored(0)
    found = desk.store.objects.pop(key)
    (one,) = (await desk.compare()).wrong
    desk.store.objects[key] = found
    await desk.commit(one.copy, found[0], later=1)

    def late(db: sqlite3.Connection) -> tuple[list[Finding], list[Finding]]:
        with transaction(db, durable=False):
            return findings.note(db, [one], NOW)

    assert await desk.checkpoint.database.run(late) == ([], [])
    assert await desk.known() == []


async def test_what_was_found_earlier_is_looked_at_again_however_old(desk: Desk) -> None:
    back, gone = await desk.stored(0, 1)
    kept = dict(desk.store.objects)
    desk.store.objects.clear()
    await desk.compare()
    desk.store.objects[back] = kept[back]
    outcome = await desk.compare(begin=EPOCH + timedelta(days=2))
    assert (outcome.right, [one.key for one in outcome.wrong]) == (1, [gone])
    assert [one.key for one in await desk.known()] == [gone]


async def test_an_error_between_two_objects_leaves_no_listing_open(desk: Desk) -> None:
    gone, *_ = await desk.stored(*range(BATCH + 5))
    desk.spoil(gone, b"x")
    desk.store.faults.arm("stat", Blocked("no more"))
    with pytest.raises(Blocked):
        await desk.compare()
    assert desk.store.listing == 0


# -- reading back ---------------------------------------------------------------------------------


async def test_rot_is_wrong_in_every_later_comparison_until_it_is_read_well(desk: Desk) -> None:
    key, _ = await desk.stored(0, 1)
    good = desk.store.objects[key]
    desk.rot(key)
    await desk.read_back()
    outcome = await desk.compare()
    assert (outcome.right, [one.key for one in outcome.wrong], outcome.new) == (1, [key], [])
    outcome = await desk.read_again()
    assert (outcome.right, [one.key for one in outcome.wrong], outcome.new) == (1, [key], [])
    desk.store.objects[key] = good
    outcome = await desk.read_again(begin=EPOCH + timedelta(days=2))
    assert (outcome.right, outcome.wrong, outcome.read) == (1, [], 1)
    assert await desk.known() == []


async def test_an_object_that_goes_or_comes_between_look_and_reading(desk: Desk) -> None:
    gone, other = await desk.stored(0, 1)
    desk.store.after_stat = lambda key: (
        desk.spoil(other, b"x") if key == other else desk.store.objects.pop(gone, None) and None
    )
    outcome = await desk.read_back()
    assert {one.key: (one.what, one.generation) for one in outcome.wrong} == {
        gone: (What.MISSING, None),
        other: (What.SIZE, "2"),
    }


async def test_a_body_that_is_too_short_is_told_by_its_length(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    there, data = desk.store.objects[key]
    desk.store.objects[key] = (there, data[:-7])
    (one,) = (await desk.read_back()).wrong
    assert one.what is What.CONTENT
    assert one.detail == f"{len(data) - 7} bytes could be read, {len(data)} were stored"


async def test_what_is_read_again_stays_in_the_budget(desk: Desk) -> None:
    stored = await desk.stored(0, 1, 2)
    for key in stored:
        desk.rot(key)
    await desk.read_back()
    desk.store.reads.clear()
    size = len(stored[0]) * SIZE
    await desk.read_again(2 * size)
    assert {key for key, _ in desk.store.reads} == set(stored[:2])
    desk.store.reads.clear()
    await desk.read_again(size - 1)
    assert desk.store.reads == []


async def test_a_proof_is_that_of_the_copy_that_was_read(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    there, _ = desk.store.objects[key]

    async def stored_anew() -> None:
        await desk.commit(1, there, later=1)

    desk.store.while_read = stored_anew
    await desk.read_back()
    desk.store.while_read = None
    (one,) = await desk.checkpoint.database.run(
        lambda db: list(findings.stored(db, "nas", EPOCH, NOW))
    )
    assert one.proven is None
    await desk.read_back()
    (one,) = await desk.checkpoint.database.run(
        lambda db: list(findings.stored(db, "nas", EPOCH, NOW))
    )
    assert one.proven == NOW


@pytest.mark.parametrize("batch", [1, 500])
async def test_a_proof_from_the_future_takes_no_turn_away(
    desk: Desk, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was ahead once; such a copy would not be read again before that time comes."""
    monkeypatch.setattr("nvr_backup.verification.BATCH", batch)
    ahead, now = await desk.stored(0, 1)
    desk.clock.jump(timedelta(days=3650))
    await desk.read_back(1)
    desk.clock.jump(-timedelta(days=3650))
    assert [key for key, _ in desk.store.reads] == [ahead]
    await desk.read_back(1)
    await desk.read_back(1)
    assert [key for key, _ in desk.store.reads] == [ahead, ahead, now]


@pytest.mark.parametrize("rows", [1, 2, 3])
async def test_the_order_does_not_depend_on_how_many_rows_are_gone_through_at_once(
    desk: Desk, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await desk.stored(*range(7))
    monkeypatch.setattr(findings, "ROWS_AT_ONCE", rows)
    seen: list[str] = []
    for _ in stored:
        await desk.clock.advance(3600)
        desk.store.reads.clear()
        await desk.read_back(1)
        seen += [key for key, _ in desk.store.reads]
    assert seen == stored
    desk.store.reads.clear()
    assert (await desk.read_back()).read == 7


async def test_only_what_could_be_proven_is_read(desk: Desk) -> None:
    rotten, without, waits, well = await desk.stored(*range(4))
    desk.rot(rotten)
    there, data = desk.store.objects[without]
    desk.store.objects[without] = (replace(there, crc32c=None), data)
    await desk.commit(2, desk.store.objects[without][0])  # its store keeps no checksums
    outcome = await desk.read_back()
    assert [one.key for one in outcome.wrong] == [rotten]
    assert without not in {key for key, _ in desk.store.reads}
    gone = desk.store.objects.pop(waits)
    await desk.compare()
    await desk.heal([one for one in await desk.known() if one.key == waits])
    desk.store.objects[waits] = gone  # brought there, and not recorded so far
    desk.store.reads.clear()
    outcome = await desk.read_back()
    assert [key for key, _ in desk.store.reads] == [well]
    assert (outcome.read, outcome.wrong) == (1, [])


async def test_what_waits_is_not_asked_for(desk: Desk) -> None:
    (key,) = await desk.stored(0, template="{clipId}/{yyyy}.mp4")
    del desk.store.objects[key]
    await desk.compare()
    await desk.heal()
    desk.store.before_stat = pytest.fail
    outcome = await desk.compare()
    assert (outcome.right, outcome.wrong) == (0, [])


async def test_one_object_that_cannot_be_read_stays_one(desk: Desk) -> None:
    first, *others = await desk.stored(*range(6))
    desk.store.unreadable = frozenset({first})
    outcome = await desk.read_back()
    assert outcome.unread == {first: f"{first}: input/output error"}
    assert (outcome.read, outcome.wrong) == (5, [])
    assert {key for key, _ in desk.store.reads} == set(others)


async def test_bad_objects_apart_are_not_the_store(desk: Desk) -> None:
    stored = await desk.stored(*range(40))
    desk.store.unreadable = frozenset(stored[::4])
    outcome = await desk.read_back()
    assert (len(outcome.unread), outcome.read) == (10, 30)


async def test_a_store_of_which_nothing_can_be_read_is_left_soon(desk: Desk) -> None:
    stored = await desk.stored(*range(40))
    desk.store.unreadable = frozenset(stored)
    verification = desk.verification()
    with pytest.raises(Blocked):
        await verification.read_back(None)
    assert len(verification.outcome.unread) == FAILURES_IN_A_ROW - 1
    assert await desk.known() == []


async def test_rot_shows_only_when_read_and_a_listing_does_not_take_it_back(desk: Desk) -> None:
    key, _ = await desk.stored(0, 1)
    desk.rot(key)
    assert (await desk.compare()).right == 2
    outcome = await desk.read_back()
    assert [(one.key, one.what) for one in outcome.wrong] == [(key, What.CONTENT)]
    assert outcome.read == 2
    await desk.compare()
    assert [one.key for one in await desk.known()] == [key]


async def test_bytes_that_come_wrong_once_are_read_again(desk: Desk) -> None:
    await desk.stored(0)
    desk.store.garble_once = True
    outcome = await desk.read_back()
    assert (outcome.wrong, outcome.read) == ([], 1)
    assert len(desk.store.reads) == 2


async def test_reading_takes_turns_within_the_budget(desk: Desk) -> None:
    stored = await desk.stored(*range(6))
    size = len(stored[0]) * SIZE
    seen: list[str] = []
    for _ in range(3):
        await desk.clock.advance(3600)
        desk.store.reads.clear()
        assert (await desk.read_back(2 * size)).read_bytes == 2 * size
        seen += [key for key, _ in desk.store.reads]
    assert sorted(seen) == sorted(stored)
    await desk.clock.advance(3600)
    desk.store.reads.clear()
    await desk.read_back(2 * size)
    assert sorted(key for key, _ in desk.store.reads) == sorted(seen[:2])  # the oldest proof


async def test_an_object_larger_than_the_budget_is_read_all_the_same(desk: Desk) -> None:
    await desk.stored(0, 1)
    assert (await desk.read_back(1)).read == 1


async def test_without_permission_to_read_it_is_said(desk: Desk) -> None:
    await desk.stored(0)
    desk.store.may = Capabilities(stat=True, list=True, read=False, delete=False, resume=True)
    outcome = await desk.read_back()
    assert (outcome.read, len(outcome.limits)) == (0, 1)


# -- putting right --------------------------------------------------------------------------------


async def test_what_is_missing_waits_under_its_own_key(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    del desk.store.objects[key]
    await desk.compare()
    assert [one.key for one in await desk.heal()] == [key]
    claim = await desk.claim()
    assert claim is not None
    assert (claim.key, claim.replaces, claim.attempts) == (key, None, 0)
    assert await desk.known() == []


async def test_what_is_wrong_may_be_replaced_in_exactly_that_generation(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    desk.spoil(key, b"x", generation="77")
    await desk.compare()
    await desk.heal()
    claim = await desk.claim()
    assert claim is not None
    assert (claim.key, claim.replaces) == (key, "77")
    await desk.commit(claim.copy, StoredObject(key, 1, 1, "78"))
    assert await desk.known() == []
    row = await desk.checkpoint.database.run(
        lambda db: db.execute("SELECT generation, replaces, proven_ms FROM copy").fetchone()
    )
    assert row == ("78", None, None)


async def test_under_another_key_nothing_is_to_be_replaced_also_after_a_crash(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    desk.spoil(key, b"x")
    await desk.compare()
    await desk.heal()
    claim = await desk.claim()
    assert claim is not None
    assert claim.replaces == "2"
    await desk.checkpoint.change_key(claim.copy, iter(["another.mp4"]))
    await desk.checkpoint.release(claim.copy)
    claim = await desk.claim()
    assert claim is not None
    assert (claim.key, claim.replaces) == ("another.mp4", None)


async def test_what_has_no_generation_is_replaced_as_such(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    there, data = desk.store.objects[key]
    desk.store.objects[key] = (replace(there, size=3, generation=None), data[:3])
    await desk.compare()
    await desk.heal()
    claim = await desk.claim()
    assert claim is not None
    assert claim.replaces == ""


async def test_what_is_put_back_begins_anew(desk: Desk) -> None:
    addition = Addition(clip_at(0), frozenset({"nas"}))
    plan = Plan((addition,), (), 1, 0, None, None)
    await desk.checkpoint.apply(PORCH, plan, keys=keys, now=NOW)
    await desk.checkpoint.put_off(
        1, "no", again=3, not_before=NOW + timedelta(hours=5), tally=Tally(0, 0.0), now=NOW
    )
    await desk.commit(1, StoredObject("there", 4, google_crc32c.value(b"data"), "1"))
    desk.store.objects["there"] = (StoredObject("there", 4, google_crc32c.value(b"data")), b"data")
    await desk.read_back()
    del desk.store.objects["there"]
    await desk.compare()
    assert len(await desk.heal()) == 1
    columns = "attempts, same_reason, not_before_ms, finished_ms, verified, proven_ms, claim"
    row = await desk.checkpoint.database.run(
        lambda db: db.execute(f"SELECT {columns} FROM copy").fetchone()
    )
    assert row == (0, 0, 0, None, None, None, None)


async def test_without_permission_it_gets_another_key_and_replaces_nothing(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    desk.spoil(key, b"x")
    await desk.compare()
    await desk.heal(may_replace=False)
    claim = await desk.claim()
    assert claim is not None
    assert claim.key == list(candidates(TEMPLATE, claim.clip))[1]
    assert claim.replaces is None


@pytest.mark.parametrize("extension", [".mp4", ".mkv"])
async def test_it_never_goes_back_to_a_key_under_which_something_wrong_lies(
    desk: Desk, extension: str
) -> None:
    """The store says of rotten bytes that they are the clip's: they would count as stored."""
    (planned,) = await desk.stored(0)
    key = planned.removesuffix(".mp4") + extension
    there, data = desk.store.objects.pop(planned)
    desk.store.objects[key] = (replace(there, key=key), data)
    await desk.commit(1, desk.store.objects[key][0])
    tried = [key]
    while True:
        desk.rot(tried[-1])
        await desk.read_back()
        assert len(await desk.heal(may_replace=False)) == 1
        claim = await desk.claim()
        assert claim is not None
        assert claim.key not in tried
        assert claim.replaces is None
        there = replace(there, key=claim.key)
        desk.store.objects[claim.key] = (there, data)
        await desk.commit(claim.copy, there, later=len(tried))
        tried.append(claim.key)
        if claim.key == f"1-nas{extension}":
            break
    assert len(tried) == 5
    assert {at.removesuffix(extension) for at in tried[:-1]} == {
        at.removesuffix(".mp4") for at in candidates(TEMPLATE, claim.clip)
    }
    desk.rot(tried[-1])
    await desk.read_back()
    (one,) = await desk.known()
    assert await desk.heal(may_replace=False) == []
    assert await desk.known() == [one]


async def test_a_key_that_no_template_made_is_left_all_the_same(desk: Desk) -> None:
    (planned,) = await desk.stored(0)
    there, data = desk.store.objects.pop(planned)
    for key in ("plain", "a.b/Clip.MP4"):
        desk.store.objects[key] = (replace(there, key=key), data)
        await desk.commit(1, desk.store.objects[key][0], later=len(key))
        desk.rot(key)
        await desk.read_back()
        await desk.heal(may_replace=False)
        claim = await desk.claim()
        assert claim is not None
        assert claim.key == planned


async def test_healing_is_of_the_object_that_was_found(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    desk.spoil(key, b"x", generation="77")
    before = (await desk.compare()).wrong
    desk.spoil(key, b"y", generation="78")
    await desk.compare()
    assert await desk.heal(before) == []
    assert len(await desk.heal()) == 1
    claim = await desk.claim()
    assert claim is not None
    assert claim.replaces == "78"


async def test_healing_is_by_what_is_known_now(desk: Desk) -> None:
    (key,) = await desk.stored(0)
    desk.spoil(key, b"x")
    (one,) = (await desk.compare()).wrong
    await desk.commit(one.copy, StoredObject(key, 1, 1, "78"))  # stored anew meanwhile
    assert await desk.heal([one]) == []
    assert await desk.claim() is None


async def test_what_was_found_of_the_copy_before_heals_nothing_of_the_present_one(
    desk: Desk,
) -> None:
    """Two operators: it was stored anew and found wrong anew since the first one looked."""
    (key,) = await desk.stored(0)
    desk.rot(key)
    (one,) = (await desk.read_back()).wrong
    await desk.commit(one.copy, desk.store.objects[key][0], later=1)
    (again,) = (await desk.read_back()).wrong
    assert (again.generation, again.what) == (one.generation, one.what)
    assert await desk.heal([one]) == []
    assert await desk.heal([again]) == [again]


# -- what coverage makes of it --------------------------------------------------------------------


async def recorded(desk: Desk, begin: datetime) -> coverage.Record:
    reach = Reach(EPOCH, proven=NOW, seen=NOW, listed_until=NOW)
    await desk.checkpoint.advance(PORCH, {"nas": reach})
    (record,) = await desk.checkpoint.database.run(
        lambda db: coverage.records(db, begin, NOW, cameras=None)
    )
    return record


async def test_an_hour_with_an_object_found_wrong_is_not_safe(desk: Desk) -> None:
    gone, _ = await desk.stored(0, 1)
    del desk.store.objects[gone]
    await desk.compare()
    record = await recorded(desk, EPOCH)
    assert [clip.state for clip in record.clips] == [coverage.State.WRONG, coverage.State.SAFE]


@pytest.mark.parametrize(("began", "counts"), [(4.9, True), (5.1, False)])
async def test_a_clip_without_an_end_touches_what_its_five_minutes_touch(
    desk: Desk, began: float, counts: bool
) -> None:
    """Else it would look never planned when its source says an end after all."""
    clip = clip_at(0, seconds=None)
    plan = Plan((Addition(clip, frozenset({"nas"})),), (), 1, 0, None, None)
    await desk.checkpoint.apply(PORCH, plan, keys=keys, now=NOW)
    record = await recorded(desk, clip.start + timedelta(minutes=began))
    assert [known.start for known in record.clips] == [clip.start] * counts
    if counts:
        ended = replace(clip, end=clip.start + timedelta(minutes=5))
        assert coverage.unplanned(record, [ended], settled=NOW) == []
