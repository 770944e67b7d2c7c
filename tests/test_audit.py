"""The daemon's own verification: when it is due, what it finds, and that it touches nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.audit import Audits
from nvr_backup.database import CheckpointError
from nvr_backup.errors import Blocked, Transient
from nvr_backup.logs import Troubles
from nvr_backup.model import Camera, Clip, Window
from tests.support.fakes import FakeSource, clip_at, mp4
from tests.support.wired import Wired

HOUR = 3600.0
SIZE = 500


@pytest.fixture
def wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wired:
    wired = Wired(tmp_path, monkeypatch)
    for number in range(3):
        wired.source.add(clip_at(1330 + number), mp4(SIZE, seed=number + 1))
    return wired


async def hours(wired: Wired, count: float) -> None:
    """So much time passes, cycle by cycle."""
    target = wired.clock.now() + timedelta(hours=count)
    while wired.clock.now() < target:
        await wired.clock.advance(HOUR / 4)
        await asyncio.sleep(0.01)


async def stored(wired: Wired) -> None:
    await wired.until(lambda: len(wired.store.objects) == 3, step=60)


async def audits(wired: Wired, count: int) -> None:
    await wired.until(lambda: len(wired.said("store audited")) >= count, step=HOUR / 4)


def asked_for(wired: Wired) -> bool:
    """Whether it was once asked when the store is due: the interval counts from then on."""
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        return bool(db.execute("SELECT 1 FROM meta WHERE name = 'audit due STORE nas'").fetchall())


def states(wired: Wired) -> list[str]:
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        return [row[0] for row in db.execute("SELECT state FROM copy ORDER BY start_ms")]


async def test_the_first_comes_an_interval_after_the_first_cycle(wired: Wired) -> None:
    settings, minute = wired.settings(audit={"every": "6h"}), timedelta(minutes=1)
    begun = wired.clock.now()
    due = []
    async with wired.engine(settings) as engine:
        asked = Audits(
            engine.checkpoint.database,
            clock=wired.clock,
            log=wired.log(),
            troubles=Troubles(wired.clock),
        )
        for _ in range(20 * 60):
            if await asked.listing_due(settings) == {"home"}:
                due.append(wired.clock.now() - begun)
                await asked.listed(["home"], wired.clock.now())
            await wired.clock.advance(60)
        assert due == [timedelta(hours=6), timedelta(hours=12), timedelta(hours=18)]
        wired.clock.jump(-timedelta(hours=10))  # a clock that was ahead
        assert await asked.listing_due(settings)
        assert await asked.listing_due(settings)  # until it was done
        await asked.listed(["home"], wired.clock.now())
        wired.clock.jump(minute)
        assert not await asked.listing_due(settings)


async def test_a_source_that_is_down_is_listed_when_it_is_back_and_the_others_once(
    wired: Wired,
) -> None:
    """Everything is listed again of each source by itself."""
    cabin = wired.sources["cabin"] = FakeSource("cabin")
    cabin.add(clip_at(1330, camera=Camera("cabin", "gate", "Gate")), mp4(SIZE, seed=9))
    settings = wired.settings(audit={"every": "6h"}, schedule={"every": "1h", "backfill": "20h"})
    longest: dict[str, timedelta] = defaultdict(timedelta)
    for source in wired.sources.values():
        listing = source.clips

        def clips(camera: Camera, window: Window, listing: Any = listing) -> AsyncIterator[Clip]:
            reach = wired.clock.now() - window.start
            longest[camera.source] = max(longest[camera.source], reach)
            found: AsyncIterator[Clip] = listing(camera, window)
            return found

        source.clips = clips  # type: ignore[method-assign]
    async with wired.daemon(settings):
        await wired.until(lambda: len(wired.store.objects) == 4, step=60)
        await hours(wired, 2)
        cabin.faults.arm("cameras", *[Transient("no answer")] * 100)
        longest.clear()
        await hours(wired, 6)
        assert longest["home"] > timedelta(hours=24)
        longest.clear()
        await hours(wired, 3)
        assert timedelta() < longest["home"] < timedelta(hours=24)
        assert "cabin" not in longest
        cabin.faults.armed.clear()
        await hours(wired, 2)
        assert longest["cabin"] > timedelta(hours=24)


async def test_its_result_is_said(wired: Wired) -> None:
    begun = wired.clock.now()
    async with wired.daemon(wired.settings(audit={"every": "6h"})):
        await audits(wired, 1)
    assert wired.clock.now() - begun >= timedelta(hours=6)
    assert wired.said("store audited")[0] == {
        "level": "info",
        "event": "store audited",
        "store": "nas",
        "compared": 3,
        "wrong": 0,
        "read": 3,
        "bytes": sum(len(data) for _, data in wired.store.objects.values()),
        "limits": [],
    }


async def test_a_restart_does_not_put_it_off(wired: Wired) -> None:
    settings = wired.settings(audit={"every": "6h"})
    for _ in range(4):
        async with wired.daemon(settings):
            await wired.until(lambda: asked_for(wired))
            await hours(wired, 2)
    async with wired.daemon(settings):
        await wired.until(lambda: wired.said("store audited"))


async def test_one_that_was_cut_short_is_still_due(wired: Wired) -> None:
    settings = wired.settings(audit={"every": "6h"})
    wired.store.read_hold = asyncio.Event()
    async with wired.daemon(settings):
        await wired.until(lambda: wired.store.reads, step=HOUR / 4)
    assert wired.said("store audited") == []
    wired.store.read_hold = None
    async with wired.daemon(settings):
        await wired.until(lambda: wired.said("store audited"))


async def test_never_is_never(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "never"})):
        await hours(wired, 50)
    assert wired.said("store audited") == []
    assert wired.store.served == 0


async def test_what_a_listing_once_left_out_is_planned_after_all(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "24h"})):
        await hours(wired, 5)
        # The recorder had hidden this clip so far; no cycle reaches back to it any more.
        wired.source.add(clip_at(1200), mp4(SIZE, seed=9))
        await hours(wired, 12)
        assert len(wired.store.objects) == 3
        await wired.until(lambda: len(wired.store.objects) == 4, step=HOUR / 4)


async def test_what_is_wrong_is_said_once_stays_on_record_and_is_left_alone(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "6h"})):
        await stored(wired)
        gone, rotten, _ = sorted(wired.store.objects)
        kept = wired.store.objects.pop(gone)
        there, data = wired.store.objects[rotten]
        wired.store.objects[rotten] = (there, b"?" + data[1:])
        await audits(wired, 2)
        assert sorted(
            (line["key"], line["found"]) for line in wired.said("object found wrong")
        ) == [
            (gone, "missing"),
            (rotten, "content"),
        ]
        assert [line["level"] for line in wired.said("object found wrong")] == ["error"] * 2
        assert [line["wrong"] for line in wired.said("store audited")] == [2, 2]
        assert states(wired) == ["stored"] * 3
        assert sorted(wired.store.objects) == sorted({rotten, *wired.store.objects} - {gone})
        wired.store.objects[gone] = kept
        await audits(wired, 3)
    with closing(sqlite3.connect(wired.folder / "state" / "checkpoint.sqlite3")) as db, db:
        assert db.execute("SELECT what FROM finding").fetchall() == [("content",)]


async def test_a_sample_is_a_sample(wired: Wired) -> None:
    settings = wired.settings(audit={"every": "6h", "sample": "1B"})
    async with wired.daemon(settings):
        await audits(wired, 3)
    assert [line["read"] for line in wired.said("store audited")] == [1, 1, 1]
    assert len({key for key, _ in wired.store.reads}) == 3  # in turn


async def test_a_store_that_fails_is_said_and_tried_with_the_next(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "6h"})):
        await hours(wired, 2)
        wired.store.faults.arm("list", Transient("reset"))
        await wired.until(lambda: wired.said("store not audited"), step=HOUR / 4)
        await audits(wired, 1)
    assert len(wired.said("store audited again")) == 1
    assert states(wired) == ["stored"] * 3


async def test_no_clip_waits_for_it(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "6h"})):
        await hours(wired, 2)
        wired.store.read_hold = asyncio.Event()
        await wired.until(lambda: wired.store.reads, step=HOUR / 4)
        late = wired.clock.now() - timedelta(minutes=5)
        minute = (late - clip_at(0).start) / timedelta(minutes=1)
        wired.source.add(clip_at(minute), mp4(SIZE, seed=5))
        await wired.until(lambda: len(wired.store.objects) == 4, step=HOUR / 4)
        assert wired.said("store audited") == []
    # The end of the daemon does not wait for it either.


async def test_an_object_that_cannot_be_read_is_said_and_no_finding(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "6h"})):
        await stored(wired)
        bad = sorted(wired.store.objects)[0]
        wired.store.faults.arm("read", Blocked("input/output error"))
        await audits(wired, 1)
    (line,) = wired.said("object not read")
    assert (line["level"], line["key"], line["reason"]) == ("warning", bad, "input/output error")
    assert [line["read"] for line in wired.said("store audited")] == [2]
    assert wired.said("object found wrong") == []


async def test_a_store_that_is_blocked_is_not_asked_and_still_due(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "6h"})) as engine:
        await stored(wired)
        wired.store.listings.clear()
        store = engine.stores["nas"]
        wired.store.faults.arm("probe", *[Blocked("gone")] * 100)
        store.block(Blocked("gone"))
        await hours(wired, 8)
        assert wired.store.listings == []
        assert wired.said("store not audited") == []
        wired.store.faults.armed["probe"].clear()
        await audits(wired, 1)


async def test_trouble_with_the_checkpoint_is_not_laid_at_the_stores_door(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise CheckpointError("The state disk is full.")

    settings = wired.settings(audit={"every": "1h"})
    async with wired.engine(settings) as engine:
        looked = Audits(
            engine.checkpoint.database,
            clock=wired.clock,
            log=wired.log(),
            troubles=Troubles(wired.clock),
        )
        await looked.look(settings, engine.stores)
        wired.clock.jump(timedelta(hours=2))
        monkeypatch.setattr("nvr_backup.findings.at_keys", full)
        monkeypatch.setattr("nvr_backup.findings.stored", full)
        with pytest.raises(CheckpointError):
            await looked.look(settings, engine.stores)
    assert wired.said("store not audited") == []


async def test_while_one_is_at_work_no_other_waits_for_its_turn(wired: Wired) -> None:
    settings = wired.settings(audit={"every": "1h"})
    async with wired.daemon(wired.settings(audit={"every": "never"})) as engine:
        await wired.until(lambda: len(wired.store.objects) == 3)
        looked = Audits(
            engine.checkpoint.database,
            clock=wired.clock,
            log=wired.log(),
            troubles=Troubles(wired.clock),
        )
        await looked.look(settings, engine.stores)
        wired.clock.jump(timedelta(hours=2))
        wired.store.read_hold = asyncio.Event()
        first = asyncio.create_task(looked.look(settings, engine.stores))
        await wired.until(lambda: wired.store.reads)
        await looked.look(settings, engine.stores)
        assert not first.done()
        looked.stop()
        await first
    assert wired.said("store audited") == []


async def test_without_a_sample_nothing_is_read(wired: Wired) -> None:
    async with wired.daemon(wired.settings(audit={"every": "6h", "sample": "0B"})):
        await audits(wired, 1)
    assert [(line["compared"], line["read"]) for line in wired.said("store audited")] == [(3, 0)]
    assert wired.store.reads == []


async def test_a_store_that_a_reload_replaces_stays_open_for_it(wired: Wired) -> None:
    settings = wired.settings(audit={"every": "1h"})
    async with wired.daemon(wired.settings(audit={"every": "never"})) as engine:
        await wired.until(lambda: len(wired.store.objects) == 3)
        looked = Audits(
            engine.checkpoint.database,
            clock=wired.clock,
            log=wired.log(),
            troubles=Troubles(wired.clock),
        )
        await looked.look(settings, engine.stores)
        wired.clock.jump(timedelta(hours=2))
        wired.store.read_hold = asyncio.Event()
        audit = asyncio.create_task(looked.look(settings, engine.stores))
        await wired.until(lambda: wired.store.reads)
        wired.closed.clear()
        engine.stores["nas"].retire()
        await wired.clock.settle()
        assert wired.closed == []
        wired.store.read_hold.set()
        await audit
        await wired.until(lambda: wired.closed == ["nas"])
        assert len(wired.said("store audited")) == 1
