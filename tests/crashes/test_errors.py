"""Every write of the program is refused once: the disk is full, the disk is sick.

The steps are those of `test_kills`; here each of them fails with ENOSPC, then with EIO (SQLite:
`database or disk is full`, `disk I/O error`). The run must end by itself, say what happened and
where, with the right exit code, or go on; what it says and records must be true; and the next run,
with the disk mended, must leave nothing undone.
"""

from __future__ import annotations

import pytest

from tests.conftest import Counted
from tests.crashes.program import Ended
from tests.crashes.stage import Stage
from tests.crashes.watch import How
from tests.crashes.world import ALL_KINDS, World

pytestmark = [pytest.mark.process, pytest.mark.long]

SHARES = 3
TRIES = 5
CLIPS = tuple(made for made in ALL_KINDS if made.camera == "porch")
REFUSED = frozenset(
    {
        *("create", "mkdir", "write", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate"),
        *("link", "replace", "rename", "sql", "COMMIT"),
    }
)
SAID = {
    "ENOSPC": ("full", "No space left on device"),
    "EIO": ("nput/output error", "I/O error"),
}
UNREACHABLE, CHECKPOINT = 69, 74


async def refused_at(stage: Stage, step: str, how: How) -> bool:
    """Refuse a step, then mend the disk; False if the step was not met."""
    async with stage.world(["folder"], CLIPS) as world:
        ended = await world.once(step=step, how=how)
        if step not in ended.steps:
            return False
        check_refused(world, ended, step, how)
        again = await world.once()
        assert again.code == 0, again.said
        world.check_whole()
        assert world.litter() == [], ended.said
        return True


def check_refused(world: World, ended: Ended, step: str, how: How) -> None:
    """It went on if only a snapshot is missing; it said what happened, where, and nothing wrong."""
    assert "Traceback" not in ended.err, ended.said
    snapshot = " state/snapshots" in step or step == "before sql backup"
    checkpoint = any(part in step for part in (" state", " sql ", " COMMIT "))
    if snapshot:
        assert ended.code == 0, ended.said
        assert "snapshot not taken" in ended.err
        world.check_whole()
    else:
        assert ended.code == (CHECKPOINT if checkpoint else UNREACHABLE), ended.said
    assert any(text in ended.err + ended.out for text in SAID[how]), ended.said
    assert str(world.state if checkpoint else world.footage) in ended.err + ended.out
    world.check_promises()
    world.check_said(ended)


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("how", ["ENOSPC", "EIO"])
async def test_a_write_that_is_refused_is_said_and_loses_nothing(
    how: How, share: int, stage: Stage, counted: Counted
) -> None:
    async with stage.world(["folder"], CLIPS) as world:
        ended = await world.once()
    steps = [
        step for step in ended.steps if step.startswith("before ") and step.split(" ")[1] in REFUSED
    ]
    for step in steps[share::SHARES]:
        for _ in range(TRIES):
            if await refused_at(stage, step, how):
                counted("fault cases")
                break
        else:
            assert "fdatasync state/" in step, f"the step {step!r} was never met again"
