"""Which keys a transfer may fall back to, on a real checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import Unfit
from nvr_backup.ledger import RowLedger
from nvr_backup.model import Clip
from nvr_backup.planner import Addition, Plan
from tests.support.fakes import EPOCH, PORCH, clip_at

NOW = EPOCH + timedelta(days=1)
KEYS = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def keys(_store: str, _clip: Clip) -> Iterator[str]:
    return iter(KEYS)


@pytest.mark.parametrize(
    ("planned", "extension", "offered"),
    [
        ("a.mp4", ".mp4", ["b.mp4", "c.mp4", "d.mp4"]),
        ("a.mp4", ".mkv", ["a.mkv", "b.mkv", "c.mkv", "d.mkv"]),
        ("c.mp4", ".mp4", ["d.mp4"]),
        ("c.mp4", ".mkv", ["c.mkv", "d.mkv"]),
        ("other.mp4", ".mp4", KEYS),
    ],
)
async def test_keys_are_offered_in_order_and_never_one_from_before(
    tmp_path: Path, planned: str, extension: str, offered: list[str]
) -> None:
    """Under an earlier key may lie what was found wrong, and its store would say it is the clip."""
    checkpoint = await Checkpoint.open(tmp_path, now=NOW)
    try:
        addition = Addition(clip_at(0), frozenset({"nas"}))
        plan = Plan((addition,), (), 1, 0, None, None)
        await checkpoint.apply(PORCH, plan, keys=lambda *_: iter([planned]), now=NOW)
        claim = await checkpoint.claim(
            sources={"home"}, stores={"nas"}, cameras=lambda _: True, busy={}, due=None
        )
        assert claim is not None
        ledger = RowLedger(checkpoint, claim, keys)
        assert [await ledger.another_key(extension) for _ in offered] == offered
        with pytest.raises(Unfit):
            await ledger.another_key(extension)
    finally:
        checkpoint.close()
