"""A small disk that is full from one step on: really full, for SQLite and the kernel as well.

The state folder or the directory store lies on a tmpfs. At each step that writes there, all that is
free is taken at once; then the disk is given room again. What the program says, records and leaves
must be true, and the next run must leave nothing undone. Mounting needs root: skipped without.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import Counted
from tests.crashes.stage import Stage
from tests.crashes.test_errors import CHECKPOINT, CLIPS, REFUSED, TRIES, UNREACHABLE
from tests.crashes.watch import FILLER
from tests.crashes.world import World

pytestmark = [pytest.mark.process, pytest.mark.long]

Part = Literal["state", "footage"]
SIZE = "66M"
"""Room for a snapshot, which leaves 64 MiB free, and for a probe, which wants as much."""

TAKES_ROOM = REFUSED - {"fsync", "fdatasync", "ftruncate", "rename"}
LEAST_REFUSED = {"state": 15, "footage": 8}
"""So many runs at least must have met the full disk: after some steps nothing more is written."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "nvr-backup-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def partly_on_disk(world: World, part: Part) -> Iterator[Path]:
    """The state or the footage lies on a disk of its own meanwhile."""
    with small_disk(world.folder / "disk") as disk:
        world.disk, world.on_disk = disk, part
        yield disk


async def met_full(stage: Stage, part: Part, step: str) -> bool | None:
    """Whether a run ended for the disk that is full from this step on; None if it had not it."""
    async with stage.world(["folder"], CLIPS) as world:
        with partly_on_disk(world, part) as disk:
            ended = await world.once(step=step, how="fill")
            if step not in ended.steps:
                return None
            assert (disk / FILLER).stat().st_size
            assert "Traceback" not in ended.err, ended.said
            if ended.code:
                assert ended.code == (CHECKPOINT if part == "state" else UNREACHABLE), ended.said
                assert "full" in ended.err or "No space left" in ended.err
                assert str(world.state if part == "state" else world.footage) in ended.err
            else:
                world.check_whole()
            (disk / FILLER).unlink()
            world.check_promises()
            world.check_said(ended)
            again = await world.once()
            assert again.code == 0, again.said
            world.check_whole()
            for name in world.litter():  # cancelled before it could be recorded: nothing is in it
                assert (world.footage / name).stat().st_size == 0
            await world.check_litter_goes()
            return ended.code != 0


def takes_room_on(part: Part) -> Callable[[str], bool]:
    """Which steps write there, SQLite's included."""

    def takes_room(step: str) -> bool:
        when, what, where = step.split(" ")[:3]
        there = where.startswith(f"disk/{part}") or (part == "state" and what in ("sql", "COMMIT"))
        return when == "before" and what in TAKES_ROOM and there

    return takes_room


@pytest.mark.parametrize("part", ["state", "footage"])
async def test_a_disk_that_is_full_from_any_step_on_is_said_and_loses_nothing(
    part: Part, stage: Stage, counted: Counted
) -> None:
    async with stage.world(["folder"], CLIPS) as world:
        with partly_on_disk(world, part):
            ended = await world.once()
            assert ended.code == 0, ended.said
    refused = 0
    for step in filter(takes_room_on(part), ended.steps):
        for _ in range(TRIES):
            outcome = await met_full(stage, part, step)
            if outcome is not None:
                break
        else:
            raise AssertionError(f"the step {step!r} was never met again")
        refused += outcome
        counted("fault cases")
    assert refused >= LEAST_REFUSED[part]
