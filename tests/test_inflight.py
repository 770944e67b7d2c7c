"""Who occupies a worker: a clip that only waits for the store's last answer does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.errors import StartOver
from nvr_backup.inflight import Running, room
from nvr_backup.model import Camera, Clip
from nvr_backup.rows import Claim
from nvr_backup.transfer import Activity
from tests.support.fakes import EPOCH, clip_at, mp4
from tests.support.wired import Wired

KIB = 1024
CLIP = Clip(Camera("home", "porch", "Porch"), "1", EPOCH, EPOCH + timedelta(seconds=10))


def running(finishing: int | None) -> Running:
    claim = Claim(1, CLIP, "nas", "a.mp4", attempts=0, same_reason=0, reason=None, upload=None)
    return Running(claim, Activity(finishing=finishing), 0.0)


@pytest.mark.parametrize(
    ("finishing", "is_room"),
    [
        ([], True),
        ([None], True),
        ([None, None], False),
        ([None, 100], True),  # it occupies nobody
        ([None, None, 100], False),
        ([100, 100, None], True),
        ([256 * KIB, 1, None], False),  # a chunk together, not more
        ([1, 256 * KIB, None], False),
        ([128 * KIB, 128 * KIB, None], True),
        ([0, 0, None], True),
        ([0, 0, 0, None], False),  # as many as there are workers, not more
    ],
)
def test_two_workers(finishing: list[int | None], is_room: bool) -> None:
    on_their_way = [running(held) for held in finishing]
    assert room(on_their_way, workers=2, spare_bytes=256 * KIB) == is_room


async def test_a_store_that_thinks_does_not_hold_up_the_next_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, chunks of 256 KiB, clips of 100 KiB: two wait for an answer beside two."""
    wired = Wired(tmp_path, monkeypatch)
    wired.store.thinks = asyncio.Event()
    for number in range(8):
        wired.source.add(clip_at(1200 + number), mp4(100 * KIB, seed=number))
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.store.asked == 4, step=1)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert wired.store.asked == len(engine.pool.running) == 4
        assert sum(one.activity.finishing or 0 for one in engine.pool.running.values()) == 400 * KIB
        wired.store.thinks.set()
        await wired.until(lambda: len(wired.store.objects) == 8)
    assert not wired.store.sessions


async def test_a_clip_whose_last_answer_is_an_error_needs_its_worker_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is taken: it begins anew, and counts as working while it reads."""
    wired = Wired(tmp_path, monkeypatch)
    wired.store.thinks = asyncio.Event()
    wired.source.add(clip_at(1200), mp4(100 * KIB))
    async with wired.daemon() as engine:
        await wired.until(lambda: wired.store.asked == 1, step=1)
        (only,) = engine.pool.running.values()
        assert only.activity.finishing == 100 * KIB
        wired.source.hold = asyncio.Event()
        wired.store.faults.arm("finish", StartOver("The bytes differ."))
        wired.store.thinks.set()
        await wired.until(lambda: len(wired.source.opened) == 1 and only.activity.finishing is None)
        wired.source.hold.set()
        await wired.until(lambda: len(wired.store.objects) == 1)


async def test_what_ends_while_the_next_claim_is_looked_for_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder is asked for one clip at first: until its end there is nothing to claim."""
    wired = Wired(tmp_path, monkeypatch)
    for number in range(3):
        wired.source.add(clip_at(1200 + number), mp4(700, seed=number))
    async with wired.engine() as engine:
        claim = engine.checkpoint.claim

        async def slow_claim(**wanted: Any) -> Claim | None:
            claimed = await claim(**wanted)
            if claimed is None:
                await wired.until(lambda: not engine.pool.running)
            return claimed

        monkeypatch.setattr(engine.checkpoint, "claim", slow_claim)
        await engine.once(asyncio.Event())
    assert len(wired.store.objects) == 3
