"""Things that happen at the same time: each once let one part stop another, or a daemon end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nvr_backup.connections import FIRST_PROBE_SECONDS
from nvr_backup.errors import Blocked
from nvr_backup.model import Camera
from nvr_backup.ports import Capabilities
from tests.support.fakes import FakeSource, FakeStore, clip_at, mp4
from tests.support.wired import Wired
from tests.test_connections import GONE, Line
from tests.test_engine import fill, stored_exactly


@pytest.fixture
def wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wired:
    return Wired(tmp_path, monkeypatch)


async def hang() -> Capabilities:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def test_a_first_probe_that_hangs_keeps_no_other_store_waiting(wired: Wired) -> None:
    wired.stores["offsite"] = FakeStore()
    fill(wired, 6)
    wired.monkeypatch.setattr(wired.stores["offsite"], "probe", hang)
    async with wired.daemon():
        await wired.until(lambda: stored_exactly(wired.store, wired.source), step=1)
    assert wired.stores["offsite"].objects == {}


async def test_a_drain_does_not_wait_for_a_first_probe(wired: Wired) -> None:
    fill(wired, 1)
    wired.monkeypatch.setattr(wired.store, "probe", hang)
    async with wired.daemon() as engine:  # the end of the block is the drain
        await wired.until(lambda: wired.said("cycle listed"))
        assert not engine.stores["nas"].ready


async def test_a_cycle_by_hand_waits_for_the_first_probe_of_its_store(wired: Wired) -> None:
    fill(wired, 2)
    go, probe = asyncio.Event(), wired.store.probe

    async def slow() -> Capabilities:
        await go.wait()
        return await probe()

    wired.monkeypatch.setattr(wired.store, "probe", slow)
    async with wired.engine() as engine:
        cycle = asyncio.create_task(engine.once(asyncio.Event()))
        await wired.until(lambda: engine.pool is not None and wired.source.windows)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not cycle.done()
        go.set()
        await cycle
    assert stored_exactly(wired.store, wired.source)


async def test_a_cycle_that_starts_while_a_reload_removes_a_source(wired: Wired) -> None:
    wired.sources["cabin"] = FakeSource("cabin")
    async with wired.engine() as engine:
        real = engine.checkpoint.has_stored

        async def has_stored(name: str) -> bool:
            await engine.list_all()
            return await real(name)

        wired.monkeypatch.setattr(engine.checkpoint, "has_stored", has_stored)
        cabin = wired.sources.pop("cabin")
        elsewhere = {"nas": {"kind": "directory", "path": str(wired.folder / "b")}}
        await engine.apply(wired.settings(stores=elsewhere))
        wired.sources["cabin"] = cabin
    assert sorted(wired.opened) == sorted(wired.closed)


async def test_a_source_that_recovers_while_its_cycle_lists_another_is_caught_up(
    wired: Wired,
) -> None:
    cabin = wired.sources["cabin"] = FakeSource("cabin")
    cabin.add(clip_at(1330, camera=Camera("cabin", "lake", "Lake")), mp4(300))
    cabin.faults.arm("cameras", Blocked("Refused."))
    go, real = asyncio.Event(), wired.source.cameras

    async def slow() -> object:
        await go.wait()
        return await real()

    wired.monkeypatch.setattr(wired.source, "cameras", slow)
    async with wired.daemon():
        await wired.until(lambda: wired.said("recovered"), step=5)
        go.set()
        since = wired.clock.now()
        await wired.until(lambda: wired.store.objects, step=1)
        assert (wired.clock.now() - since).total_seconds() < 1800  # not an hour later


async def test_a_connection_retired_in_a_pause_is_not_probed_again() -> None:
    line = Line()
    async with line.living() as connection:
        connection.block(GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS - 1)
    assert line.probes == []
