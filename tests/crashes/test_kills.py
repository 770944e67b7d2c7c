"""The program is killed at every durable step of its clips' way, enumerated, and run again.

A first run names the steps. Then, for each of them, in a world of its own: a real process dies by
SIGKILL at this very step, is run again and dies there once more if the step comes again, and is run
a last time to its end. After each death what must always hold is looked at, in the end everything.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

import pytest

from tests.conftest import Counted
from tests.crashes.power import POWER_CUTS, cut_power
from tests.crashes.stage import Stage
from tests.crashes.world import ALL_KINDS, Made, World

pytestmark = [pytest.mark.process, pytest.mark.long]

SHARES = 4
"""A story's steps are shared among so many tests, which may run side by side."""

MOST_DEATHS = 2
"""A step that comes again after the restart kills the program once more."""

TRIES = 5
"""So often a step is tried to be met that the order of things made another run miss."""


@dataclass(frozen=True)
class Story:
    """Clips, where they go, and what happened before the run whose steps are counted."""

    name: str
    stores: Sequence[str]
    clips: Sequence[Made]
    workers: int = 1
    before: Callable[[World], Awaitable[None]] | None = None
    known: str = ""
    """The steps of this story are not tried again, only those that are new in this one."""
    only: str = ""
    """Only steps that speak of this."""
    command: str = "run"
    """What dies; what goes on after it and ends by itself is the same."""
    deposits: bool = False
    """The checkpoint's snapshot goes into the stores."""

    def world(self, stage: Stage) -> AbstractAsyncContextManager[World]:
        """A new one, before anything happened."""
        return stage.world(self.stores, self.clips, workers=self.workers, deposits=self.deposits)


async def half_way(world: World) -> None:
    """The program died in the middle of the long clip, once for each store."""
    if "folder" in world.stores:
        assert (await world.once(step="before pwritev footage/.nvr-backup/partial/* #3")).code < 0
    if "bucket" in world.stores:
        assert (await world.once(step="before PUT resumable bytes 262144-524287/*")).code < 0


async def grown_before_it_began(world: World) -> None:
    """A clip was planned and nobody could begin on it before it grew.

    An older clip comes first, so that the growth is listed before the clip's turn has come.
    """
    world.write_config()
    world.footage.rmdir()
    assert (await world.once(write_config=False)).code == 69
    world.grow("garden 2", 50_000)
    # Should its turn come before it is listed again, the recorder gives the longer one for it.
    world.allowed[world.clips["garden 2"].content.digest().sha256] += 1


async def grown_when_stored(world: World) -> None:
    """A clip that is stored has grown."""
    await world.once()
    world.grow("garden 2", 50_000)


SMALL_AND_BIG = tuple(made for made in ALL_KINDS if made.camera == "porch")
GROWING = tuple(made for made in ALL_KINDS if made.camera == "garden")
WITH_A_RECIPE = tuple(made for made in ALL_KINDS if made.camera in ("porch", "studio"))
WITH_A_TWIN = tuple(made for made in ALL_KINDS if made.camera in ("porch", "second-porch"))
STORIES = {
    story.name: story
    for story in (
        Story("folder", ["folder"], WITH_A_TWIN),
        Story("bucket", ["bucket"], WITH_A_RECIPE),
        Story("both", ["bucket", "folder"], SMALL_AND_BIG, workers=2, command="once"),
        Story(
            "deposits", ["bucket", "folder"], SMALL_AND_BIG, workers=2, known="both", deposits=True
        ),
        Story("folder, resumed", ["folder"], SMALL_AND_BIG, before=half_way, known="folder"),
        Story("bucket, resumed", ["bucket"], SMALL_AND_BIG, before=half_way, known="bucket"),
        Story(
            "grown",
            ["folder"],
            SMALL_AND_BIG + GROWING,
            before=grown_before_it_began,
            only="INTO camera",
        ),
        Story("grown later", ["bucket"], GROWING, before=grown_when_stored, known="bucket"),
    )
}


async def steps_of(stage: Stage, story: Story) -> list[str]:
    """The steps of a whole run at which a death differs from that at the step before."""
    async with story.world(stage) as world:
        if story.before is not None:
            await story.before(world)
        ended = await world.once(command=[story.command])
        world.check_whole()
        assert ended.code in (0, 1), ended.said
    steps = [step for step in ended.steps if not within_a_transaction(step)]
    steps = [step for step in steps if story.only in step]
    if story.known:
        known = set(await steps_of(stage, STORIES[story.known]))
        steps = [step for step in steps if step not in known]
    return steps


def within_a_transaction(step: str) -> bool:
    """A death there is one before its COMMIT."""
    return step.startswith("before sql ") and not step.startswith("before sql backup")


async def cut_off_at(stage: Stage, story: Story, step: str, variant: int) -> int:
    """The power fails at a step: what was not synced is gone as well. Then recover."""
    async with story.world(stage) as world:
        ended = await world.once(step=step)
        if ended.code != -signal.SIGKILL:
            return 0
        cut_power(ended.journal, world.footage, world.database, variant)
        world.check_promises()
        world.check_said(ended)
        ended = await world.once()
        assert ended.code in (0, 1), ended.said
        assert "Traceback" not in ended.err
        world.check_whole()
        await world.check_litter_goes()
        return 1


async def killed_at(stage: Stage, story: Story, step: str) -> int:
    """Die at a step, twice if it comes twice, and recover; how often it died."""
    async with story.world(stage) as world:
        if story.before is not None:
            await story.before(world)
        deaths = 0
        while True:
            ended = await world.once(
                step=step if deaths < MOST_DEATHS else None, command=[story.command]
            )
            if ended.code != -signal.SIGKILL:
                break
            deaths += 1
            world.check_promises()
            world.check_said(ended)
        assert ended.code in (0, 1), ended.said
        assert "Traceback" not in ended.err
        world.check_whole()
        world.check_litter()
        world.check_thrift()
        await world.check_litter_goes()
        return deaths


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", [name for name in STORIES if name != "both"])
async def test_death_at_any_step_loses_nothing(
    name: str, share: int, stage: Stage, counted: Counted
) -> None:
    story = STORIES[name]
    steps = (await steps_of(stage, story))[share::SHARES]
    for step in steps:
        counted("crash points", await met(stage, story, step, killed_at))


@pytest.mark.parametrize("share", range(SHARES))
async def test_a_power_cut_at_any_step_loses_nothing(
    share: int, stage: Stage, counted: Counted
) -> None:
    story = STORIES["both"]
    steps = (await steps_of(stage, story))[share::SHARES]
    for step in steps:
        if not step.startswith("during "):  # half of what is then lost anyway
            variant = zlib.crc32(step.encode()) % POWER_CUTS
            cut_off = partial(cut_off_at, variant=variant)
            counted("crash points", await met(stage, story, step, cut_off))


@pytest.mark.parametrize("variant", range(POWER_CUTS))
async def test_a_power_cut_after_the_end_takes_nothing(
    variant: int, stage: Stage, counted: Counted
) -> None:
    async with STORIES["both"].world(stage) as world:
        ended = await world.once()
        cut_power(ended.journal, world.footage, world.database, variant)
        world.check_said(ended)
        world.check_whole()
        assert list(world.state.glob("snapshots/checkpoint-*.sqlite3"))
        counted("crash points")


async def met(
    stage: Stage, story: Story, step: str, end_at: Callable[[Stage, Story, str], Awaitable[int]]
) -> int:
    """End at a step, until it was met; how many points that proves."""
    for _ in range(TRIES):
        if await end_at(stage, story, step):
            return 1
    # Those who wait for the disk at the same time share a sync: how many there are varies.
    assert "fdatasync state/" in step, f"the step {step!r} was never met again"
    return 0
