"""The fault switchboard: strikes as often as armed, only where it should, and remembers."""

from __future__ import annotations

import asyncio

import pytest

from nvr_backup.simulator import FAULTS, Faults

PORCH = frozenset({"Porch", "31", "porch", "clip-1"})
GARDEN = frozenset({"Garden", "32", "garden", "clip-2"})


def test_nothing_strikes_unarmed() -> None:
    assert Faults().take(*FAULTS, subjects=PORCH) is None


def test_count_skip_and_for_ever() -> None:
    faults = Faults()
    faults.arm("not_found", times=2, skip=2)
    struck = [faults.take("not_found") is not None for _ in range(6)]
    assert struck == [False, False, True, True, False, False]
    assert faults.happened("not_found") == 2
    faults.arm("cut_body", times=None)
    assert all(faults.take("cut_body") for _ in range(10))
    faults.disarm("cut_body")
    assert faults.take("cut_body") is None
    assert faults.counts() == {"not_found": 2, "cut_body": 10}


@pytest.mark.parametrize("name", ["Porch", "31", "porch"])
def test_filters(name: str) -> None:
    faults = Faults()
    faults.arm("not_found", camera=name)
    assert faults.take("not_found", subjects=GARDEN) is None
    assert faults.take("cut_body", subjects=PORCH) is None
    assert faults.take("not_found", subjects=PORCH)
    faults.arm("not_found", camera=name, clip="clip-2")
    assert faults.take("not_found", subjects=PORCH) is None
    faults.arm("drop_link", on="getVideoClip")
    assert faults.take("drop_link", on="getVideoClips") is None
    assert faults.take("drop_link", on="getVideoClip")


def test_unexercised() -> None:
    faults = Faults()
    faults.arm("not_found", times=2)
    faults.arm("cut_body", times=None)
    faults.take("not_found")
    assert faults.unexercised() == ["not_found", "cut_body"]
    faults.take("not_found")
    faults.take("cut_body")
    assert faults.unexercised() == []
    faults.arm("early_end")
    faults.disarm()
    assert faults.unexercised() == []


def test_a_wrong_name_or_option_is_refused() -> None:
    faults = Faults()
    with pytest.raises(ValueError, match="no fault 'nonsense'"):
        faults.arm("nonsense")
    with pytest.raises(ValueError, match="no option nonsense"):
        faults.arm("cut_body", nonsense=1)
    with pytest.raises(ValueError, match="no fault"):
        faults.happened("nonsense")


async def test_waiting_for_a_fault_and_releasing() -> None:
    faults = Faults()
    faults.arm("stall_body", times=2)
    async with asyncio.TaskGroup() as group:
        seen = group.create_task(faults.wait_happened("stall_body", 2))
        held = group.create_task(faults.wait_release())
        await asyncio.sleep(0)
        faults.take("stall_body")
        await asyncio.sleep(0)
        assert not seen.done()
        faults.take("stall_body")
        faults.release()
    assert held.done()
    assert seen.done()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await faults.wait_release()
