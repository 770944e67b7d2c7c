"""The fault "overload": what a disk bears at once takes its time, what is more takes longer."""

from __future__ import annotations

import asyncio

from nvr_backup.simulator import Faults
from nvr_backup.simulator.disk import Disk
from tests.support.clock import VirtualClock

PORCH = frozenset({"Porch"})


async def test_a_disk_is_as_fast_as_memory_unless_the_fault_is_armed() -> None:
    clock, faults = VirtualClock(), Faults()
    await Disk(clock, faults).read(PORCH)
    faults.arm("overload", times=None, camera="Garden")
    await Disk(clock, faults).read(PORCH)
    assert clock.waits == []
    assert faults.happened("overload") == 0


async def test_more_readers_than_it_bears_take_longer_and_are_counted() -> None:
    clock, faults = VirtualClock(), Faults()
    disk = Disk(clock, faults)
    faults.arm("overload", times=None, parallel=2, seconds=1, by=5)
    async with clock.running(), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(disk.read(PORCH))
    assert sorted(clock.waits) == [1, 1, 5]
    assert faults.happened("overload") == 1
    assert dict(disk.spent) == {0: 0, 1: 4, 2: 0, 3: 1}
    await clock.advance(1)
    async with clock.running():
        await disk.read(PORCH)
    assert dict(disk.spent) == {0: 1, 1: 5, 2: 0, 3: 1}
