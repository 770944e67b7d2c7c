"""Engine, pool, connections and surveys together: everything real but the two ends."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nvr_backup import engine as engine_module
from nvr_backup import pool
from nvr_backup.connections import FIRST_PROBE_SECONDS
from nvr_backup.engine import Engine, open_engine
from nvr_backup.errors import Blocked, KeyTaken, Transient, Unfit
from nvr_backup.inflight import Outcomes
from nvr_backup.keys import candidates
from nvr_backup.model import Camera, Clip, StoredObject, Window
from nvr_backup.pool import FIRST_DELAY, JITTER, LONGEST_DELAY, LONGEST_NAP_SECONDS, PATIENCE
from nvr_backup.rows import Claim
from nvr_backup.settings import Settings
from tests.support.fakes import FakeSource, FakeStore, clip_at, mp4
from tests.support.wired import Wired

GARDEN = Camera("home", "garden", "Garden")
HOUR = 3600.0
KIB_300 = 300 * 1024  # two chunks


@pytest.fixture
def wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wired]:
    wired = Wired(tmp_path, monkeypatch)
    yield wired
    faults = [part.faults for part in wired.sources.values()]
    faults += [part.faults for part in wired.stores.values()]
    assert [fault.unused() for fault in faults if fault.unused()] == []


def fill(wired: Wired, clips: int = 5, camera: Camera | None = None, size: int = 500) -> None:
    """Clips from 22:00 of a day on whose midnight the tests begin, within the lookback."""
    for number in range(clips):
        clip = clip_at(1330 + number, camera=camera or clip_at(0).camera)
        wired.source.add(clip, mp4(size, seed=number + 1))


def stored_exactly(store: FakeStore, source: FakeSource) -> bool:
    """Every recording is in the store once, byte for byte."""
    held = sorted(data for _, data in store.objects.values())
    return held == sorted(item.data for item in source.recordings.values())


def states(wired: Wired) -> list[str]:
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        return [row[0] for row in db.execute("SELECT state FROM copy ORDER BY start_ms")]


async def once(engine: Engine) -> None:
    await engine.once(asyncio.Event())


# -- one cycle -------------------------------------------------------------------------------------


async def test_once_carries_everything_and_again_nothing(wired: Wired) -> None:
    fill(wired, 7)
    fill(wired, 3, GARDEN, size=KIB_300)
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.store, wired.source)
    assert sorted(wired.store.objects)[0] == "Garden/2026/01/01/22-10-00.mp4"
    sent = wired.store.received
    async with wired.engine() as engine:
        cycle = await engine.once(asyncio.Event())
    assert (cycle.listed, cycle.planned) == (10, 0)
    assert wired.store.received == sent
    assert sorted(wired.opened) == sorted(wired.closed)


async def test_every_store_gets_every_clip_with_a_state_of_its_own(wired: Wired) -> None:
    wired.stores["offsite"] = FakeStore()
    fill(wired, 4)
    wired.stores["offsite"].faults.arm("finish", Transient("503"))
    async with wired.engine() as engine:
        await once(engine)
        assert stored_exactly(wired.store, wired.source)
        assert len(wired.stores["offsite"].objects) == 3
        marks = await engine.checkpoint.watermarks()
        assert marks["home", "porch", "nas"] > marks["home", "porch", "offsite"]
        await once(engine)
    assert len(wired.stores["offsite"].objects) == 3  # tried once in the life of an engine by hand
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.stores["offsite"], wired.source)


async def test_a_store_added_later_is_backfilled(wired: Wired) -> None:
    fill(wired, 4)
    async with wired.engine() as engine:
        await once(engine)
    wired.stores["offsite"] = FakeStore()
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.stores["offsite"], wired.source)


async def test_one_camera_by_hand_leaves_the_others_alone(wired: Wired) -> None:
    fill(wired, 2)
    fill(wired, 2, GARDEN)
    async with wired.engine() as engine:
        await engine.once(asyncio.Event(), wanted=lambda camera: camera.name == "Garden")
    assert {key.partition("/")[0] for key in wired.store.objects} == {"Garden"}


async def test_one_camera_by_hand_leaves_the_backlog_of_the_others_alone(wired: Wired) -> None:
    fill(wired, 2)
    fill(wired, 2, GARDEN)
    async with wired.engine() as engine:
        await engine.list_all()
        await engine.once(asyncio.Event(), wanted=lambda camera: camera.name == "Garden")
        assert {key.partition("/")[0] for key in wired.store.objects} == {"Garden"}
        assert await engine.checkpoint.counts() == {"waiting": 2, "set_aside": 0}


async def test_a_cycle_by_hand_leaves_nothing_running(wired: Wired) -> None:
    fill(wired, 2)
    async with wired.engine() as engine:
        before = asyncio.all_tasks()
        await once(engine)
        await wired.clock.settle()
        assert asyncio.all_tasks() == before


async def test_a_cycle_counts_what_came_of_it_and_begins_anew(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "REASONS_KEPT", 3)
    fill(wired, 9, size=700)
    wired.source.faults.arm("open", *[Transient("timeout")] * 4, *[Unfit("gone")] * 2)
    async with wired.engine() as engine:
        await once(engine)
        outcomes = engine.pool.take_outcomes()
        assert (outcomes.stored, outcomes.stored_bytes) == (3, 3 * 700)
        assert (outcomes.failed, outcomes.set_aside) == (4, 2)
        assert len(outcomes.reasons) == 3  # all are in the checkpoint, memory is bounded
        assert engine.pool.take_outcomes() == Outcomes()


async def test_a_clip_that_could_not_be_compared_is_not_called_verified(wired: Wired) -> None:
    """Its answer was lost, and the key may not look at objects."""
    fill(wired, 2)
    wired.stores["nas"] = blind = FakeStore(may_stat=False)
    foreign(wired, "Porch/2026/01/01/22-10-00.mp4")
    blind.faults.arm("finish", KeyTaken("exists", maybe_ours=True))
    one = wired.settings(transfer={"workers": 1, "chunk_size": "256KiB"})
    async with wired.engine(one) as engine:
        await once(engine)
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        kept = db.execute("SELECT state, verified FROM copy ORDER BY start_ms").fetchall()
    assert kept == [("stored", 0), ("stored", 1)]


async def test_a_short_stretch_by_hand_does_not_count_as_the_whole(wired: Wired) -> None:
    fill(wired, 3)  # from 22:10 on; it is midnight
    wired.source.add(late := clip_at(1435), mp4(500))
    async with wired.engine() as engine:
        since = wired.clock.now() - timedelta(hours=1)
        await engine.once(asyncio.Event(), since=since)
        assert len(wired.store.objects) == 1
        reach = (await engine.checkpoint.reaches(late.camera))["nas"]
        assert reach.listed_until == reach.seen == reach.begin  # nothing counts as listed
        await once(engine)
    assert stored_exactly(wired.store, wired.source)


# -- bad clips -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (mp4(900)[:600], "cut off"),
        (b"<html>502</html>", "HTML"),
        (b"", "empty"),
    ],
)
async def test_a_bad_body_is_reported_by_name_and_holds_the_watermark(
    wired: Wired, body: bytes, says: str
) -> None:
    fill(wired, 5)
    bad = wired.source.recordings["porch-1332"]
    good, bad.data = bad.data, body
    wired.source.announce_size = False
    async with wired.engine() as engine:
        await once(engine)
        marks = await engine.checkpoint.watermarks()
        assert marks["home", "porch", "nas"] == clip_at(1332).start
        ((clip, reason),) = engine.pool.outcomes.reasons.values()
        assert clip.id == "porch-1332"
        assert says in reason
    assert len(wired.store.objects) == 4
    (line,) = wired.said("clip failed")
    assert (line["clip"], line["camera"]) == ("porch-1332", "Porch")
    assert says in line["reason"]
    bad.data = good
    async with wired.engine() as engine:
        await once(engine)
        marks = await engine.checkpoint.watermarks()
        assert marks["home", "porch", "nas"] == wired.clock.now() - timedelta(seconds=30)
    assert stored_exactly(wired.store, wired.source)


async def test_a_clip_that_is_gone_is_set_aside_by_name(wired: Wired) -> None:
    fill(wired, 3)
    wired.source.faults.arm("open", Unfit("The clip is gone at the NVR."))
    async with wired.engine() as engine:
        await once(engine)
        assert await engine.checkpoint.counts() == {"waiting": 0, "set_aside": 1}
        await once(engine)
    (line,) = wired.said("clip set aside")
    assert line["reason"] == "The clip is gone at the NVR."
    assert len(wired.store.objects) == 2


async def test_patience_with_a_suspect_body_ends_after_a_while(wired: Wired) -> None:
    fill(wired, 1)
    wired.source.recordings["porch-1330"].data = mp4(900)[:600]
    wired.source.announce_size = False
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip set aside"), step=600)
    (line,) = wired.said("clip set aside")
    assert line["attempts"] == PATIENCE
    assert states(wired) == ["set_aside"]


async def test_failures_wait_twice_as_long_each_time_up_to_six_hours(wired: Wired) -> None:
    fill(wired, 1)
    failures = 13
    wired.store.faults.arm("put", *[Transient(f"503 {n}") for n in range(failures)])
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip stored"), step=600)
    delays = [line["retry_in_seconds"] for line in wired.said("clip failed")]
    assert len(delays) == failures
    for attempt, delay in enumerate(delays):
        expected = min(FIRST_DELAY.total_seconds() * 2**attempt, LONGEST_DELAY.total_seconds())
        assert (1 - JITTER) * expected - 1 <= delay <= (1 + JITTER) * expected + 1
    assert stored_exactly(wired.store, wired.source)


async def test_the_other_sides_wish_to_wait_is_honoured(wired: Wired) -> None:
    fill(wired, 1)
    wired.store.faults.arm("put", Transient("429", retry_after=500))
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip failed"))
    assert wired.said("clip failed")[0]["retry_in_seconds"] == 500


@pytest.mark.parametrize(("asked", "waits"), [(5, 30), (1e9, 6 * HOUR), (-7, 30)])
async def test_the_other_sides_wish_is_no_command(wired: Wired, asked: float, waits: float) -> None:
    fill(wired, 1)
    wired.store.faults.arm("put", Transient("429", retry_after=asked))
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip failed"))
    (line,) = wired.said("clip failed")
    assert (1 - JITTER) * waits - 1 <= line["retry_in_seconds"] <= (1 + JITTER) * waits + 1


async def test_a_failed_clip_is_tried_again_when_it_is_due_and_not_before(wired: Wired) -> None:
    fill(wired, 1)
    wired.store.faults.arm("put", Transient("503"))
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip failed"))
        failed = wired.clock.monotonic()
        asked = wired.said("clip failed")[0]["retry_in_seconds"]
        # The pool sleeps until then, to the second (the line is rounded).
        await wired.until(lambda: any(abs(wait - asked) <= 1 for wait in wired.clock.waits))
        await wired.until(lambda: len(wired.said("clip started")) == 2, step=1)
        assert wired.clock.monotonic() - failed >= asked - 1
        await wired.until(lambda: wired.said("clip stored"))


async def test_jitter_parts_clips_that_failed_together(wired: Wired) -> None:
    fill(wired, 12)
    wired.store.faults.arm("put", *[Transient("503")] * 12)
    async with wired.daemon():
        await wired.until(lambda: len(wired.said("clip failed")) == 12)
    delays = {line["retry_in_seconds"] for line in wired.said("clip failed")}
    assert len(delays) > 3
    first = FIRST_DELAY.total_seconds()
    assert (1 - JITTER) * first - 1 <= min(delays) <= max(delays) <= (1 + JITTER) * first + 1


def shorter_than_the_delay_after(attempt: int) -> float:
    """Virtual seconds in which no second attempt can come, so that none escapes a test's look."""
    return float(min(10 << attempt, 600))


async def test_patience_begins_anew_when_the_finding_changes(wired: Wired) -> None:
    fill(wired, 1)
    recording = wired.source.recordings["porch-1330"]
    wired.source.announce_size = False
    nearly = PATIENCE - 1
    bodies = [mp4(900)[:600]] * nearly + [b"<html>502</html>"] * nearly + [b""]
    async with wired.daemon():
        for attempt, body in enumerate(bodies):
            recording.data = body
            await wired.until(
                lambda attempt=attempt: len(wired.said("clip failed")) > attempt,  # type: ignore[misc]
                step=shorter_than_the_delay_after(attempt),
            )
    assert wired.said("clip set aside") == []
    assert states(wired) == ["waiting"]


async def test_patience_ends_although_the_cut_falls_elsewhere_each_time(wired: Wired) -> None:
    fill(wired, 1)
    recording = wired.source.recordings["porch-1330"]
    recording.size = 500
    async with wired.daemon():
        for attempt in range(PATIENCE):
            recording.data = mp4(300 + attempt)
            await wired.until(
                lambda attempt=attempt: (  # type: ignore[misc]
                    len(wired.said("clip failed") + wired.said("clip set aside")) > attempt
                ),
                step=shorter_than_the_delay_after(attempt),
            )
    (line,) = wired.said("clip set aside")
    assert line["attempts"] == PATIENCE


async def test_a_clip_that_failed_a_thousand_times_waits_no_longer_than_any(
    wired: Wired,
) -> None:
    fill(wired, 1)
    async with wired.engine() as engine:
        await engine.list_all()
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        db.execute("UPDATE copy SET attempts = 1000")
    wired.store.faults.arm("put", Transient("503"))
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip failed"))
    (line,) = wired.said("clip failed")
    assert line["attempt"] == 1001
    assert line["retry_in_seconds"] <= (1 + JITTER) * LONGEST_DELAY.total_seconds()


async def test_a_failing_link_never_sets_a_clip_aside(wired: Wired) -> None:
    fill(wired, 1)
    wired.store.faults.arm("put", *[Transient("timeout")] * 2 * PATIENCE)
    async with wired.daemon():
        await wired.until(lambda: wired.said("clip stored"), step=1800)
    assert wired.said("clip set aside") == []
    assert len(wired.said("clip failed")) == 2 * PATIENCE


async def test_a_clip_put_back_from_outside_is_noticed(wired: Wired) -> None:
    """`retry` works on the database beside the daemon and has no way to wake it."""
    fill(wired, 1)
    wired.source.faults.arm("open", Unfit("gone"))
    async with wired.daemon():
        await wired.until(lambda: wired.said("cycle finished"))
        with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
            db.execute("UPDATE copy SET state = 'waiting'")
        await wired.until(lambda: wired.clock.sleepers >= 2)
        await wired.clock.advance(LONGEST_NAP_SECONDS)
        await wired.until(lambda: wired.said("clip stored"))


async def test_a_backlog_that_nobody_wants_makes_no_haste(wired: Wired) -> None:
    fill(wired, 1)
    async with wired.daemon() as engine:
        engine.pool.cameras = lambda _: False
        await wired.until(lambda: wired.said("cycle finished"))
        await wired.until(lambda: wired.clock.sleepers >= 2)
        assert min(wired.clock.waits) >= 1


# -- foreign objects -------------------------------------------------------------------------------


def foreign(wired: Wired, key: str) -> None:
    wired.store.objects[key] = (StoredObject(key, 7, 1), b"foreign")


async def test_a_clip_beside_foreign_objects_gets_a_key_of_its_own(wired: Wired) -> None:
    fill(wired, 1)
    clip = wired.source.recordings["porch-1330"].clip
    planned, *others = candidates("{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4", clip)
    for key in (planned, *others[:2]):
        foreign(wired, key)
    async with wired.engine() as engine:
        await once(engine)
        await once(engine)
    assert len(wired.store.objects) == 4
    assert wired.store.objects[others[2]][1] == wired.source.recordings["porch-1330"].data
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        assert db.execute("SELECT state, object_key FROM copy").fetchall() == [
            ("stored", others[2])
        ]


async def test_a_clip_whose_every_key_is_taken_is_set_aside_by_name(wired: Wired) -> None:
    fill(wired, 2)
    clip = wired.source.recordings["porch-1330"].clip
    for key in candidates("{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4", clip):
        foreign(wired, key)
    held = dict(wired.store.objects)
    async with wired.engine() as engine:
        await once(engine)
    assert states(wired) == ["set_aside", "stored"]
    (line,) = wired.said("clip set aside")
    assert line["clip"] == "porch-1330"
    assert "prefix" in line["hint"]
    assert held.items() <= wired.store.objects.items()


async def test_a_clip_in_another_container_is_stored_under_its_own_extension(
    wired: Wired,
) -> None:
    fill(wired, 1)
    body = (b"G\0\0\x10" + b"\0" * 184) * 5  # an MPEG transport stream
    wired.source.recordings["porch-1330"].data = body
    async with wired.engine() as engine:
        await once(engine)
    ((key, (stored, data)),) = wired.store.objects.items()
    assert key == "Porch/2026/01/01/22-10-00.ts"
    assert (stored.content_type, data) == ("video/mp2t", body)


# -- blocked ---------------------------------------------------------------------------------------


async def test_a_blocked_store_waits_and_the_other_goes_on(wired: Wired) -> None:
    wired.stores["offsite"] = FakeStore()
    fill(wired, 5)
    offsite = wired.stores["offsite"]
    gone = "The bucket is gone."
    # The third comes after the probe has found everything in order: the same trouble still.
    offsite.faults.arm("put", Blocked(gone, hint="Make it."), Blocked(gone), Blocked(gone))
    offsite.faults.skip["probe"] = 1  # the look at the start finds everything in order
    offsite.faults.arm("probe", Blocked("still gone"), Transient("timeout"))
    async with wired.daemon():
        await wired.until(lambda: stored_exactly(wired.store, wired.source))
        await wired.until(lambda: wired.said("blocked"))
        assert offsite.objects == {}
        await wired.until(lambda: stored_exactly(offsite, wired.source), step=FIRST_PROBE_SECONDS)
    (warning,) = [line for line in wired.said("blocked") if line["level"] == "warning"]
    assert (warning["level"], warning["part"], warning["hint"]) == (
        "warning",
        "stores.offsite",
        "Make it.",
    )
    assert len(wired.said("recovered")) == 2  # after the probe, and after work truly succeeded
    assert not wired.said("clip set aside")
    # Only a clip that met the trouble again after the probe had found none steps back: of three
    # times, the first is never one.
    assert len(wired.said("clip failed")) <= 2


async def test_a_blocked_source_is_not_asked_until_it_recovers(wired: Wired) -> None:
    fill(wired, 2)
    wired.source.faults.arm(
        "cameras", Blocked("Incorrect password."), Blocked("Incorrect password.")
    )
    async with wired.daemon():
        await wired.until(lambda: wired.said("blocked"))
        since = wired.clock.now()
        await wired.until(lambda: wired.source.faults.unused() == [], step=1)
        assert (wired.clock.now() - since).total_seconds() >= FIRST_PROBE_SECONDS - 5
        assert not wired.said("recovered")
        await wired.until(lambda: wired.said("recovered"), step=FIRST_PROBE_SECONDS)
        await wired.until(lambda: stored_exactly(wired.store, wired.source), step=HOUR / 4)


async def test_once_ends_although_a_part_is_blocked(wired: Wired) -> None:
    fill(wired, 3)
    wired.store.faults.arm("put", Blocked("disk full"))
    one = wired.settings(transfer={"workers": 1, "chunk_size": "256KiB"})
    async with wired.engine(one) as engine:
        await once(engine)
        assert engine.stores["nas"].blocked is not None
        assert await engine.checkpoint.counts() == {"waiting": 3, "set_aside": 0}


async def test_a_blocked_source_is_a_failure_of_the_cycle_and_stops_no_other(
    wired: Wired,
) -> None:
    wired.sources["cabin"] = FakeSource("cabin")
    fill(wired, 2)
    wired.sources["cabin"].faults.arm("cameras", Blocked("Incorrect password."))
    async with wired.engine() as engine:
        for _ in range(2):  # the second time it is not even asked
            cycle = await engine.once(asyncio.Event())
            assert cycle.failures == [("sources.cabin", "Incorrect password.")]
    assert stored_exactly(wired.store, wired.source)
    assert len(wired.said("blocked")) == 1


async def test_a_transfer_that_finds_its_source_blocked_blocks_the_source_alone(
    wired: Wired,
) -> None:
    fill(wired, 3)
    wired.source.faults.arm("open", Blocked("Incorrect password."))
    one = wired.settings(transfer={"workers": 1, "chunk_size": "256KiB"})
    async with wired.engine(one) as engine:
        await once(engine)
        assert engine.sources["home"].blocked is not None
        assert engine.stores["nas"].blocked is None
    assert {line["part"] for line in wired.said("blocked")} == {"sources.home"}


@pytest.mark.parametrize("part", ["sources.home", "stores.nas"])
async def test_a_trouble_is_over_once_a_clip_was_stored(wired: Wired, part: str) -> None:
    """Not at the next listing only: another block until then is a new one, and is said again."""
    fill(wired, 1)
    faults, step = (
        (wired.source.faults, "open") if part == "sources.home" else (wired.store.faults, "put")
    )
    faults.arm(step, Blocked("Refused."))
    async with wired.daemon() as engine:
        connection = engine.sources["home"] if part == "sources.home" else engine.stores["nas"]
        assert connection.part == part
        await wired.until(lambda: wired.said("blocked"))
        assert connection.blocked_since is not None
        await wired.until(lambda: wired.said("clip stored"), step=FIRST_PROBE_SECONDS)
        assert len(wired.said("cycle started")) == 1
        assert connection.blocked_since is None


# -- listing ---------------------------------------------------------------------------------------


async def test_a_listing_that_fails_skips_nothing(wired: Wired) -> None:
    fill(wired, 2)
    fill(wired, 2, GARDEN)
    wired.source.faults.arm("clips", Transient("plugin dead"))
    async with wired.engine() as engine:
        cycle = await engine.once(asyncio.Event())
        assert cycle.failures == [("camera Porch", "plugin dead")]
        reach = (await engine.checkpoint.reaches(clip_at(0).camera))["nas"]
        assert reach.listed_until == reach.seen == reach.begin
        await engine.once(asyncio.Event())
    assert stored_exactly(wired.store, wired.source)
    assert [line["event"] for line in wired.lines if line["event"].startswith("camera")] == [
        "camera not listed",
        "camera listed again",
    ]


async def test_a_source_that_cannot_be_listed_is_said_once_and_stops_no_other(
    wired: Wired,
) -> None:
    wired.sources["cabin"] = FakeSource("cabin")
    fill(wired, 2)
    wired.sources["cabin"].faults.arm("cameras", *[Transient("timeout", hint="Wait.")] * 2)
    async with wired.engine() as engine:
        for failures in (1, 1, 0):
            cycle = await engine.once(asyncio.Event())
            assert cycle.failures == [("sources.cabin", "timeout Wait.")] * failures
    assert stored_exactly(wired.store, wired.source)
    said = [line for line in wired.lines if line.get("part") == "sources.cabin"]
    assert [(line["level"], line["event"]) for line in said] == [
        ("warning", "source not listed"),
        ("debug", "source not listed"),
        ("info", "source listed again"),
    ]


async def test_a_dry_run_beside_a_daemon_only_looks(wired: Wired) -> None:
    fill(wired, 2)
    async with wired.daemon():
        await wired.until(lambda: wired.said("cycle finished"))
        wired.source.add(clip_at(1400), mp4(300))
        async with open_engine(
            wired.settings(), clock=wired.clock, log=wired.log(), rng=random.Random(1), peek=True
        ) as beside:
            cycle = await beside.list_all(dry_run=True)
            only_garden = await beside.list_all(
                dry_run=True, wanted=lambda camera: camera.name == "Garden"
            )
        assert (cycle.listed, cycle.planned) == (3, 1)
        assert [clip.id for clip in cycle.additions] == ["porch-1400"]
        assert (only_garden.cameras, only_garden.listed) == ([], 0)
        assert len(wired.store.objects) == 2


async def test_a_first_cycle_over_months_keeps_what_it_listed_before_it_failed(
    wired: Wired,
) -> None:
    for day in range(5):
        wired.source.add(clip_at(-day * 1440 + 60, id=f"day{day}"), mp4(300, seed=day))
    wired.source.faults.skip["clips"] = 3
    wired.source.faults.arm("clips", Transient("link lost"))
    settings = wired.settings(schedule={"every": "1h", "backfill": "5d"})
    async with wired.engine(settings) as engine:
        await engine.once(asyncio.Event())
        reach = (await engine.checkpoint.reaches(clip_at(0).camera))["nas"]
        assert reach.begin == reach.proven == reach.listed_until  # one pass alone proves nothing
        assert reach.seen == clip_at(-2 * 1440 + 60).start
        assert len(wired.store.objects) == 3
        await engine.once(asyncio.Event())
    assert stored_exactly(wired.store, wired.source)


async def test_a_swallowed_listing_error_leaves_no_gap(wired: Wired) -> None:
    """An empty listing proves nothing: what it hid is found although the lookback is long over."""
    fill(wired, 1)
    async with wired.engine() as engine:
        await once(engine)
    hidden, wired.source.recordings = wired.source.recordings, {}
    wired.source.extra_cameras = [clip_at(0).camera]
    for _ in range(5):
        wired.clock.jump(timedelta(hours=6))
        async with wired.engine() as engine:
            await once(engine)
    wired.source.recordings = hidden
    fill(wired, 1)
    wired.source.add(clip_at(1500), mp4(700))
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.store, wired.source)


async def test_a_clock_that_was_ahead_leaves_no_gap(wired: Wired) -> None:
    fill(wired, 1)
    async with wired.engine() as engine:
        await once(engine)
    wired.clock.jump(timedelta(days=3650))
    async with wired.engine() as engine:
        await once(engine)
    wired.clock.jump(timedelta(days=-3650) + timedelta(hours=9))
    wired.source.add(clip_at(1450), mp4(700))  # much more than a lookback ago
    async with wired.engine() as engine:
        await once(engine)
        marks = await engine.checkpoint.watermarks()
        assert marks["home", "porch", "nas"] <= wired.clock.now()
    assert stored_exactly(wired.store, wired.source)


async def test_clips_from_the_future_are_said_once_and_stored_in_time(wired: Wired) -> None:
    ahead = wired.source.add(clip_at(1440 + 30), mp4(300))

    async def clips(camera: Camera, window: object) -> AsyncIterator[Clip]:
        yield ahead

    wired.monkeypatch.setattr(wired.source, "clips", clips)
    async with wired.engine() as engine:
        for _ in range(3):
            await once(engine)
        assert wired.store.objects == {}
        assert (
            len(
                [line for line in wired.said("clips from the future") if line["level"] == "warning"]
            )
            == 1
        )
        wired.clock.jump(timedelta(hours=1))
        await once(engine)
    assert stored_exactly(wired.store, wired.source)
    assert len(wired.said("clocks agree again")) == 1


async def test_a_rename_keeps_the_camera_and_the_keys(wired: Wired) -> None:
    fill(wired, 2)
    async with wired.engine() as engine:
        await once(engine)
    front = Camera("home", "porch", "Front Door")
    for item in wired.source.recordings.values():
        item.clip = Clip(front, item.clip.id, item.clip.start, item.clip.end)
    wired.source.add(clip_at(1340, camera=front), mp4(800))
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.store, wired.source)
    assert sorted(key.partition("/")[0] for key in wired.store.objects) == [
        "Front Door",
        "Porch",
        "Porch",
    ]


# -- the daemon ------------------------------------------------------------------------------------


async def test_the_daemon_cycles_by_the_hour_and_says_so(wired: Wired) -> None:
    fill(wired, 2)
    async with wired.daemon():
        await wired.until(lambda: len(wired.said("cycle finished")) == 1)
        wired.source.add(clip_at(1450), mp4(800))
        await wired.until(lambda: wired.clock.sleepers >= 1)
        await wired.clock.advance(HOUR)
        await wired.until(lambda: len(wired.said("cycle finished")) == 2)
    finished = wired.said("cycle finished")
    assert [(line["stored"], line["waiting"], line["set_aside"]) for line in finished] == [
        (2, 0, 0),
        (1, 0, 0),
    ]
    assert len(wired.said("cycle started")) == 2
    assert stored_exactly(wired.store, wired.source)
    assert {line["level"] for line in wired.said("watermark")} == {"debug"}


async def test_a_restart_lists_at_once_although_the_hour_is_not_over(wired: Wired) -> None:
    for cycles in (1, 2):
        async with wired.daemon():
            await wired.until(lambda cycles=cycles: len(wired.said("cycle finished")) == cycles)  # type: ignore[misc]
    assert wired.clock.monotonic() == 0


async def test_a_cycle_that_was_due_while_the_daemon_was_down_is_caught_up_once(
    wired: Wired,
) -> None:
    hourly = wired.settings(schedule={"cron": "0 * * * *", "timezone": "UTC"})
    async with wired.daemon(hourly):
        await wired.until(lambda: wired.clock.sleepers >= 2)
        assert not wired.said("cycle started")
        await wired.until(lambda: wired.said("cycle finished"), step=60)
    wired.clock.jump(timedelta(hours=3))
    async with wired.daemon(hourly):
        await wired.until(lambda: len(wired.said("cycle finished")) == 2)
        await wired.until(lambda: wired.clock.sleepers >= 2)
    assert len(wired.said("cycle started")) == 2


async def test_a_store_is_told_whether_it_has_held_clips_before(wired: Wired) -> None:
    """So that an unmounted disk is not taken for a new and empty one."""
    fill(wired, 1)
    told: list[object] = []
    real = vars(engine_module)["open_store"]

    def open_store(*arguments: Any, **options: Any) -> Any:
        told.append(options["used_before"])
        return real(*arguments, **options)

    wired.monkeypatch.setattr(engine_module, "open_store", open_store)
    for _ in range(2):
        async with wired.engine() as engine:
            await once(engine)
    assert told == [False, True]


async def test_the_pool_never_runs_more_transfers_than_workers(wired: Wired) -> None:
    fill(wired, 8)
    for number in range(8):  # younger than all the others
        wired.source.add(clip_at(1400 + number, camera=GARDEN), mp4(500, seed=number))
    wired.source.hold = asyncio.Event()
    async with wired.engine() as engine:
        await engine.list_all()
    async with wired.daemon() as engine:
        await wired.until(lambda: len(engine.pool.running) == 2, step=1)
        for _ in range(50):
            await asyncio.sleep(0.001)
        cameras = {running.claim.clip.camera.name for running in engine.pool.running.values()}
        assert len(engine.pool.running) == 2
        assert cameras == {"Porch", "Garden"}  # fair from the start
        wired.source.hold.set()
        await wired.until(lambda: stored_exactly(wired.store, wired.source))


async def test_a_drain_keeps_what_was_sent_and_the_next_start_goes_on(wired: Wired) -> None:
    fill(wired, 1, size=4 * KIB_300)
    wired.source.silent_after = KIB_300
    async with wired.daemon():
        await wired.until(lambda: wired.store.received > 0)
    assert wired.store.objects == {}
    (line,) = wired.said("clip paused")
    assert line["confirmed_bytes"] == 256 * 1024
    wired.source.silent_after = None
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.store, wired.source)
    assert wired.store.received == 4 * KIB_300


async def test_a_cancelled_engine_loses_nothing(wired: Wired) -> None:
    fill(wired, 3, size=KIB_300)

    async def work() -> None:
        async with wired.engine() as engine:
            await engine.run(asyncio.Event())

    for turns in (5, 50, 200, 400):
        running = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    async with wired.engine() as engine:
        await once(engine)
    assert stored_exactly(wired.store, wired.source)


async def test_a_bug_in_an_adapter_ends_the_engine_loudly(wired: Wired) -> None:
    fill(wired, 1)

    class Bug(Exception):
        pass

    async def broken() -> list[Camera]:
        raise Bug

    wired.monkeypatch.setattr(wired.source, "cameras", broken)
    with pytest.raises(ExceptionGroup) as caught:
        async with wired.daemon():
            await asyncio.sleep(20)
    assert caught.group_contains(Bug)


# -- reload ----------------------------------------------------------------------------------------


async def test_a_reload_keeps_what_did_not_change_and_lets_transfers_finish(wired: Wired) -> None:
    fill(wired, 1, size=KIB_300)
    wired.source.hold = asyncio.Event()
    async with wired.daemon() as engine:
        await wired.until(lambda: engine.pool.running)
        source = engine.sources["home"]
        new = wired.settings(
            stores={"nas": {"kind": "directory", "path": str(wired.folder / "elsewhere")}},
            transfer={"workers": 1, "chunk_size": "256KiB"},
        )
        await engine.apply(new)
        assert engine.sources["home"] is source
        await wired.until(lambda: wired.opened.count("nas") == 2)
        assert wired.closed == []  # the old store is still in use
        wired.source.hold.set()
        await wired.until(lambda: wired.closed == ["nas"])
        assert stored_exactly(wired.store, wired.source)
    assert sorted(wired.closed) == ["home", "nas", "nas"]


async def test_a_reload_changes_the_schedule_and_the_parts(wired: Wired) -> None:
    fill(wired, 1)
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.said("cycle finished"))
        wired.stores["offsite"] = FakeStore()
        await engine.apply(wired.settings(schedule={"every": "10m"}))
        await wired.until(lambda: wired.clock.sleepers >= 1)
        await wired.clock.advance(600)
        await wired.until(lambda: stored_exactly(wired.stores["offsite"], wired.source))
        del wired.stores["offsite"]
        await engine.apply(wired.settings())
        assert list(engine.stores) == ["nas"]
        await wired.until(lambda: "offsite" in wired.closed)
        wired.stores["offsite"] = FakeStore()


async def test_a_blocked_part_can_be_replaced(wired: Wired) -> None:
    fill(wired, 1)
    wired.store.faults.arm("put", Blocked("The folder is missing."))
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.said("blocked"))
        new = wired.settings(stores={"nas": {"kind": "directory", "path": str(wired.folder / "b")}})
        await engine.apply(new)
        await wired.until(lambda: stored_exactly(wired.store, wired.source))
        await wired.until(lambda: wired.closed == ["nas"])


async def test_a_source_that_is_replaced_serves_its_last_transfer_first(wired: Wired) -> None:
    fill(wired, 1, size=3 * KIB_300)
    wired.store.hold = asyncio.Event()
    moved = {"home": {"kind": "scrypted", "url": "http://127.0.0.1:2", "username": "u"}}
    moved["home"]["password"] = "p"
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.store.held == 1)
        await wired.until(lambda: wired.said("cycle listed"))
        await engine.apply(wired.settings(sources=moved))
        await wired.until(lambda: wired.opened.count("home") == 2)
        await wired.clock.settle()
        assert wired.closed == []  # the old one is still being read
        wired.store.hold.set()
        await wired.until(lambda: wired.closed == ["home"])
        assert stored_exactly(wired.store, wired.source)
    assert len(wired.said("clip started")) == 1


@pytest.mark.parametrize("what", ["store replaced", "source replaced", "both replaced"])
async def test_a_reload_between_a_claim_and_its_transfer_uses_the_new_part(
    wired: Wired, what: str
) -> None:
    fill(wired, 1)
    elsewhere = {"nas": {"kind": "directory", "path": str(wired.folder / "b")}}
    moved = {"home": {"kind": "scrypted", "url": "http://127.0.0.1:2", "username": "u"}}
    moved["home"]["password"] = "p"
    new = wired.settings(
        **({} if what == "source replaced" else {"stores": elsewhere}),
        **({} if what == "store replaced" else {"sources": moved}),
    )
    async with wired.daemon() as engine:
        reload_after_claim(wired, engine, new)
        await wired.until(lambda: stored_exactly(wired.store, wired.source))
        replaced = 2 if what == "both replaced" else 1
        await wired.until(lambda: len(wired.closed) == replaced)
    assert len(wired.said("clip started")) == 1


async def test_a_part_that_is_taken_away_after_a_claim_leaves_the_clip_in_the_backlog(
    wired: Wired,
) -> None:
    fill(wired, 1)
    both = {"nas": FakeStore(), "offsite": FakeStore()}
    wired.stores = dict(both)
    old = wired.settings()
    del wired.stores["offsite"]
    new = wired.settings()
    wired.stores = both
    async with wired.daemon(old) as engine:
        reload_after_claim(wired, engine, new, store="offsite")
        await wired.until(lambda: stored_exactly(wired.store, wired.source))
        await wired.until(lambda: wired.said("cycle finished"))
        assert wired.stores["offsite"].objects == {}
        await engine.apply(old)  # it comes back: nothing was lost
        await wired.until(lambda: stored_exactly(wired.stores["offsite"], wired.source))


def reload_after_claim(
    wired: Wired, engine: Engine, new: Settings, *, store: str | None = None
) -> None:
    """Let new settings come when a clip has just been claimed, and no transfer begun."""
    real = engine.checkpoint.claim
    reloaded = False

    async def claim(**options: Any) -> Claim | None:
        nonlocal reloaded
        claimed = await real(**options)
        if claimed is not None and store in {None, claimed.store} and not reloaded:
            reloaded = True
            await engine.apply(new)
        return claimed

    wired.monkeypatch.setattr(engine.checkpoint, "claim", claim)


async def test_a_source_that_is_replaced_as_a_cycle_begins_is_left_to_the_next(
    wired: Wired,
) -> None:
    fill(wired, 1)
    moved = {"home": {"kind": "scrypted", "url": "http://127.0.0.1:2", "username": "u"}}
    moved["home"]["password"] = "p"
    async with wired.engine() as engine:
        await engine.sources["home"].adapter()
        real = engine.checkpoint.note_pairs
        noted = asyncio.Event()

        async def note_and_tell(*args: Any) -> None:
            await real(*args)
            noted.set()

        wired.monkeypatch.setattr(engine.checkpoint, "note_pairs", note_and_tell)
        listing = asyncio.create_task(engine.list_all())
        await noted.wait()  # it makes its list of sources now
        await engine.apply(wired.settings(sources=moved))
        cycle = await listing
        assert (cycle.cameras, cycle.failures) == ([], [])
        assert (await engine.list_all()).planned == 1


async def test_a_source_that_is_replaced_while_it_is_listed_stays_open_until_then(
    wired: Wired,
) -> None:
    fill(wired, 1)
    real, listing, go = wired.source.clips, asyncio.Event(), asyncio.Event()

    async def slow(camera: Camera, window: Window) -> AsyncIterator[Clip]:
        listing.set()
        await go.wait()
        assert wired.closed == []
        async for clip in real(camera, window):
            yield clip

    wired.monkeypatch.setattr(wired.source, "clips", slow)
    moved = {"home": {"kind": "scrypted", "url": "http://127.0.0.1:2", "username": "u"}}
    moved["home"]["password"] = "p"
    async with wired.engine() as engine:
        cycle = asyncio.create_task(engine.list_all())
        await listing.wait()
        await engine.apply(wired.settings(sources=moved))
        await wired.clock.settle()
        go.set()
        assert (await cycle).planned == 1
        await wired.until(lambda: wired.closed == ["home"])


@pytest.mark.parametrize("when", ["before the cycle", "by the cycle"])
async def test_a_cycle_that_missed_a_blocked_source_is_caught_up_when_it_recovers(
    wired: Wired, when: str
) -> None:
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.said("cycle finished"))
        if when == "before the cycle":
            engine.sources["home"].block(Blocked("Refused."))
        else:
            wired.source.faults.arm("cameras", Blocked("Refused."))
        assert engine.scheduler is not None
        engine.scheduler.trigger()
        await wired.until(lambda: len(wired.said("cycle listed")) == 2)
        fill(wired, 1)
        await wired.until(lambda: wired.clock.sleepers >= 3)  # schedule, pool, and the probe's
        await wired.clock.advance(FIRST_PROBE_SECONDS)  # no hour passes
        await wired.until(lambda: stored_exactly(wired.store, wired.source))
    assert wired.said("cycle listed")[1]["failures"] == 1


async def test_a_trouble_is_over_once_a_source_was_listed(wired: Wired) -> None:
    """Even where there is no clip to carry: another block is said again."""
    wired.source.extra_cameras = [GARDEN]
    wired.source.faults.arm("cameras", Blocked("Refused."))
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.said("blocked"))
        await wired.until(lambda: wired.clock.sleepers >= 3)
        await wired.clock.advance(FIRST_PROBE_SECONDS)
        await wired.until(lambda: len(wired.said("cycle finished")) == 2)
        assert engine.sources["home"].blocked_since is None
        engine.sources["home"].block(Blocked("Refused again."))
    assert [line["level"] for line in wired.said("blocked")] == ["warning", "warning"]


async def test_a_source_that_is_taken_away_is_closed_and_not_listed(wired: Wired) -> None:
    wired.sources["cabin"] = FakeSource("cabin")
    camera = Camera("cabin", "lake", "Lake")
    wired.sources["cabin"].add(clip_at(1330, camera=camera), mp4(300))
    fill(wired, 1)
    async with wired.engine() as engine:
        await once(engine)
        assert len(wired.store.objects) == 2
        cabin = wired.sources.pop("cabin")
        await engine.apply(wired.settings())
        wired.sources["cabin"] = cabin
        await wired.until(lambda: wired.closed == ["cabin"])
        cabin.windows.clear()
        assert (await engine.list_all()).listed == 1
        assert cabin.windows == []


async def test_a_changed_chunk_size_applies_to_the_next_clip(wired: Wired) -> None:
    fill(wired, 1, size=4 * KIB_300)
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.store.objects)
        assert wired.store.most_in_memory == 256 * 1024
        await engine.apply(wired.settings(transfer={"workers": 2, "chunk_size": "512KiB"}))
        wired.source.add(clip_at(1400), mp4(4 * KIB_300, seed=99))
        assert engine.scheduler is not None
        engine.scheduler.trigger()
        await wired.until(lambda: len(wired.store.objects) == 2)
        assert wired.store.most_in_memory == 512 * 1024


async def test_fewer_workers_apply_as_soon_as_transfers_end(wired: Wired) -> None:
    fill(wired, 6, size=KIB_300)
    wired.store.hold = asyncio.Event()
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.store.held == 2)
        await engine.apply(wired.settings(transfer={"workers": 1, "chunk_size": "256KiB"}))
        wired.source.hold = asyncio.Event()
        wired.store.hold.set()
        await wired.until(lambda: len(wired.store.objects) == 2)
        await wired.until(lambda: engine.pool.running)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert len(engine.pool.running) == 1
        wired.source.hold.set()
        await wired.until(lambda: stored_exactly(wired.store, wired.source))
