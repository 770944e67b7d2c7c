"""At 256 kbit/s a chunk takes minutes: nobody takes that for the silence of the other side.

Time leaps by more than the stall limits at every place where it is we who hold something back.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvr_backup.errors import Blocked, Transient
from nvr_backup.ports import ClipBody
from nvr_backup.simulator import SimCamera
from nvr_backup.stores.gcs import open_store
from tests.sources.kit import bench
from tests.stores.gcs_rig import BIG, BUCKET, KEY, SMALL, LeapClock, carry, settings
from tests.support.gcs_double import GcsDouble, Slow
from tests.support.leap import leaping_loop

STALL_SECONDS = 8.0
LONGER = STALL_SECONDS + 2
MIB = 1024 * 1024


@pytest.mark.parametrize("style", ["href", "stream", "buffer"])
@pytest.mark.parametrize("size", [200_000, 3 * MIB, 12 * MIB])
async def test_a_clip_that_is_read_slowly_is_no_stall_of_the_nvr(style: str, size: int) -> None:
    camera = SimCamera("Porch", style=style, clips=1, clip_size=size)
    async with bench(camera, stall_seconds=STALL_SECONDS) as b:
        clip, truth = await b.one()
        with leaping_loop() as leap:
            async with b.source.open(clip) as body:
                assert await slowly(body, leap) == truth


async def slowly(body: ClipBody, leap: Any) -> bytes:
    """All of it, with a pause longer than the stall limit after the first and the third piece."""
    pieces: list[bytes] = []
    async for piece in body:
        pieces.append(piece)
        if len(pieces) in {1, 3}:
            await leap(LONGER)
    return b"".join(pieces)


async def test_an_nvr_that_falls_silent_while_we_want_more_is_a_stall() -> None:
    """The other half: the limit is still there when it is the NVR that sends nothing."""
    camera = SimCamera("Porch", style="href", clips=1, clip_size=12 * MIB)
    async with bench(camera, stall_seconds=STALL_SECONDS) as b:
        clip, _ = await b.one()
        b.nvr.faults.arm("stall_body", at_bytes=6 * MIB)
        with leaping_loop() as leap:
            async with b.source.open(clip) as body, asyncio.TaskGroup() as group:
                leaping = group.create_task(leap_when_stalled(b, leap))
                with pytest.raises(Transient, match="sent nothing"):
                    async for _ in body:
                        pass
                leaping.cancel()


async def leap_when_stalled(b: Any, leap: Any) -> None:
    await b.nvr.faults.wait_happened("stall_body")
    while True:
        await asyncio.sleep(0.01)
        await leap(LONGER)


class Holding:
    """An allowance that takes longer than the stall limit, `times` times."""

    unlimited = False

    def __init__(self, leap: Any, times: int) -> None:
        self.taken = 0
        self._leap = leap
        self._times = times

    async def take(self, wanted: int) -> int:
        if self._times:
            self._times -= 1
            await self._leap(LONGER)
        taken = min(wanted, 50_000)
        self.taken += taken
        return taken


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["single", "session"])
async def test_bytes_held_back_by_the_limit_are_no_stall_of_the_store(data: bytes) -> None:
    async with GcsDouble() as gcs:
        with leaping_loop() as leap:
            holding = Holding(leap, 5)
            wanted = settings(gcs, stall_seconds=STALL_SECONDS, retry_seconds=0.0)
            async with open_store(wanted, LeapClock(), allow=holding) as store:
                await carry(store, data)
        assert gcs.objects[BUCKET][KEY].data == data
        sent = sum(seen.body_bytes for seen in gcs.requests if seen.where != "initiate")
        assert holding.taken == sent  # every byte was asked for, and once


async def test_a_store_that_takes_nothing_is_a_stall_also_under_a_limit() -> None:
    async with GcsDouble() as gcs:
        gcs.faults.add("single", Slow(piece=1, pause_seconds=3600), times=None)
        with leaping_loop() as leap:
            wanted = settings(gcs, stall_seconds=STALL_SECONDS, retry_seconds=0.0)
            async with (
                open_store(wanted, LeapClock(), allow=Holding(leap, 0)) as store,
                asyncio.TaskGroup() as group,
            ):
                leaping = group.create_task(leap_for_ever(leap))
                with pytest.raises((Blocked, Transient)):
                    await carry(store, SMALL)
                leaping.cancel()
        assert not gcs.faults.unused()


async def leap_for_ever(leap: Any) -> None:
    while True:
        await asyncio.sleep(0.05)
        await leap(LONGER)
