"""`rebuild` is killed, or the power is cut, at each of its durable steps, and is run again.

Until it is done, the program must refuse to start, or find everything as it was; in the end every
object is on record and the very same one, and whatever lay there before still lies beside it.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import Counted
from tests.crashes.kept import Kept
from tests.crashes.power import POWER_CUTS, cut_power, renames_in_doubt
from tests.crashes.program import Ended
from tests.crashes.stage import Stage
from tests.crashes.test_kills import TRIES, within_a_transaction
from tests.crashes.world import ALL_KINDS, World

pytestmark = [pytest.mark.process, pytest.mark.long]

CLIPS = tuple(made for made in ALL_KINDS if made.camera == "porch")
STORES = ("bucket", "folder")
DAMAGED = 65
NAMES_CHANGE = ("mkdir", "create", "rename", "unlink", "rmdir", "fsync")
NOISE = b"this is no database" * 1000


async def stored_in_two_runs(world: World, begin: datetime) -> None:
    """All but the last clip, with a snapshot; then the last one, and death just before the end."""
    world.record(CLIPS[:-1], begin)
    assert (await world.once()).code == 0
    world.record(CLIPS[-1:], begin)
    assert (await world.once(step="before sql backup")).code == -signal.SIGKILL


async def gone(world: World, begin: datetime) -> None:
    """The database is gone and its log is not, which must not become that of the new one."""
    await stored_in_two_runs(world, begin)
    world.database.unlink()


async def gone_with_the_snapshots(world: World, begin: datetime) -> None:
    """Nothing is left but what an earlier rebuild kept aside."""
    await stored_in_two_runs(world, begin)
    for file in (*world.state.glob("snapshots/*"), *world.state.glob("checkpoint.sqlite3*")):
        file.unlink()
    (world.state / "checkpoint.sqlite3.damaged-20260101T000000Z").write_bytes(NOISE)


async def no_database_any_more(world: World, begin: datetime) -> None:
    """It was overwritten; the log beside it is whole."""
    await stored_in_two_runs(world, begin)
    world.database.write_bytes(NOISE)


Before = Callable[[World, datetime], Awaitable[None]]
CASES: tuple[Before, ...] = (gone, gone_with_the_snapshots, no_database_any_more)


@pytest.mark.parametrize("before", CASES, ids=lambda before: before.__name__)
async def test_a_rebuild_that_is_killed_anywhere_can_be_run_again(
    before: Before, stage: Stage, counted: Counted
) -> None:
    async with stage.world(STORES, ()) as world:
        await before(world, stage.begin)
        kept = Kept(world)
        left = contents(world)
        for step in await steps_of_rebuild(world):
            if before is gone and step.split(" ")[1] not in NAMES_CHANGE:
                continue  # as without a database that is one
            await died_at(world, kept, step)
            await check_mended(world, kept, left)
            counted("crash points")


async def test_a_power_cut_anywhere_in_a_rebuild_mixes_nothing(
    stage: Stage, counted: Counted
) -> None:
    """Also when of the names that it changed only some are as they were."""
    async with stage.world(STORES, ()) as world:
        await no_database_any_more(world, stage.begin)
        kept = Kept(world)
        left = contents(world)
        for step in await steps_of_rebuild(world):
            if step.startswith("during "):
                continue
            number, more = 0, True
            while more:
                died = await died_at(world, kept, step)
                in_doubt = list(renames_in_doubt(died.journal, world.state))
                variant = zlib.crc32(step.encode()) % POWER_CUTS
                cut_power(died.journal, world.footage, world.database, variant)
                for old, new in in_doubt[number - 1 : number] if number else ():
                    new.rename(old)
                await check_mended(world, kept, left)
                counted("crash points")
                number, more = number + 1, number < len(in_doubt)
        for variant in range(POWER_CUTS):
            kept.restore()
            ended = await world.once(command=("rebuild",))
            cut_power(ended.journal, world.footage, world.database, variant)
            ended = await world.once()
            assert ended.code == 0, ended.said  # what it had done is done
            await check_mended(world, kept, left)
            counted("crash points")


async def steps_of_rebuild(world: World) -> list[str]:
    """The steps of a whole one; what it leaves is left."""
    ended = await world.once(command=("rebuild",))
    assert ended.code == 0, ended.said
    return [step for step in ended.steps if not within_a_transaction(step)]


async def died_at(world: World, kept: Kept, step: str) -> Ended:
    """Everything as it was, then a rebuild that is killed at this step."""
    for _ in range(TRIES):
        kept.restore()
        died = await world.once(step=step, command=("rebuild",))
        if died.code == -signal.SIGKILL:
            return died
    raise AssertionError(f"the step {step!r} was never met again")


async def check_mended(world: World, kept: Kept, left: set[bytes]) -> None:
    """It is whole, or says that a rebuild is needed and is whole after that."""
    ended = await world.once()
    if ended.code == DAMAGED:
        assert "nvr-backup rebuild" in ended.err
        kept.nothing_replaced()
        assert left <= contents(world)
        again = await world.once(command=("rebuild",))
        assert again.code == 0, again.said
        ended = await world.once()
    assert ended.code == 0, ended.said
    assert "Nothing new" in ended.out
    world.check_whole()
    kept.nothing_replaced()
    assert left <= contents(world)


def contents(world: World) -> set[bytes]:
    """What lies in the state folder that only a person may throw away."""
    found: set[Path] = {world.database, *world.state.glob("checkpoint.sqlite3*")}
    return {
        path.read_bytes()
        for path in found
        if path.is_file() and path.stat().st_size and not path.name.endswith("-shm")
    }
