"""What a power cut or a bad disk leaves of the checkpoint's files: torn, cut off, overwritten.

A write-ahead log that ends anywhere must open as the state of an earlier commit, and the next run
must heal the rest: objects were stored before they were recorded, so nothing is lost and nothing is
replaced. A database file that is damaged must never be gone on with: the start is refused with the
command that mends it, nothing is touched, and that command mends it.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Counted
from tests.crashes.kept import Kept
from tests.crashes.program import Ended
from tests.crashes.stage import Stage
from tests.crashes.world import ALL_KINDS, World

pytestmark = [pytest.mark.process, pytest.mark.long]

SHARES = 2
CLIPS = tuple(made for made in ALL_KINDS if made.camera == "porch")
STORES = ("bucket", "folder")
DAMAGED = 65
LOG_HEADER, FRAME_HEADER = 32, 24


@dataclass
class Log:
    """A write-ahead log (sqlite.org/fileformat2.html#walformat): where frames and commits end."""

    data: bytes

    @property
    def frame(self) -> int:
        """Bytes of a frame with its header."""
        return int(struct.unpack(">I", self.data[8:12])[0]) + FRAME_HEADER

    def frames(self) -> Iterator[tuple[int, bool]]:
        """Where each frame begins, and whether it ends a transaction."""
        for at in range(LOG_HEADER, len(self.data) - self.frame + 1, self.frame):
            yield at, struct.unpack(">I", self.data[at + 4 : at + 8])[0] != 0

    def commits(self) -> list[int]:
        """Where each transaction ends; first of all, where none has begun."""
        return [LOG_HEADER, *(at + self.frame for at, ends in self.frames() if ends)]

    def torn(self, at: int, how: int) -> bytes:
        """The log with the frame at `at`, if there is one, damaged in one of four ways."""
        if at + self.frame > len(self.data):
            return self.data[:at]
        match how % 4:
            case 0:
                return self.data[: at + FRAME_HEADER // 2]
            case 1:
                return self.data[: at + self.frame // 2]
            case 2:
                return self.data[:at] + bytes(self.frame)
            case _:  # a byte is another; what comes after it is whole
                middle = at + self.frame // 2
                return self.data[:middle] + bytes([self.data[middle] ^ 1]) + self.data[middle + 1 :]


@asynccontextmanager
async def stored_world(stage: Stage, *, step: str | None) -> AsyncIterator[World]:
    """A world in which every clip is stored; the program was killed at `step`, or has ended."""
    async with stage.world(STORES, CLIPS) as world:
        ended = await world.once(step=step)
        assert ended.code == (0 if step is None else -9), ended.said
        yield world


def log_of(world: World) -> Path:
    return world.database.with_name(f"{world.database.name}-wal")


def content(database: Path, log: bytes, aside: Path) -> list[str]:
    """All rows, as SQLite finds them with this log."""
    shutil.copy(database, aside / "db")
    (aside / "db-shm").unlink(missing_ok=True)
    (aside / "db-wal").write_bytes(log)
    with closing(sqlite3.connect(aside / "db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(db.iterdump())


async def test_a_torn_log_opens_as_an_earlier_state(
    stage: Stage, counted: Counted, tmp_path: Path
) -> None:
    """Every frame, in two of the four ways each."""
    async with stored_world(stage, step="before close checkpoint.sqlite3") as world:
        log = Log(log_of(world).read_bytes())
        begin = LOG_HEADER
        before = content(world.database, log.data[:begin], tmp_path)
        states = 0
        for number, (at, ends) in enumerate(log.frames()):
            for how in (number, number + 2):
                assert content(world.database, log.torn(at, how), tmp_path) == before
                counted("crash points")
            if ends:
                states += 1
                before = content(world.database, log.data[: at + log.frame], tmp_path)
        assert states > 20


@pytest.mark.parametrize("share", range(SHARES))
async def test_the_program_heals_whatever_a_torn_log_lost(
    share: int, stage: Stage, counted: Counted
) -> None:
    """Every commit of the log is the last one that is left, once."""
    async with stored_world(stage, step="before close checkpoint.sqlite3") as world:
        log = Log(log_of(world).read_bytes())
        kept = Kept(world)
        for number, end in list(enumerate(log.commits()))[share::SHARES]:
            kept.restore()
            (world.state / "checkpoint.sqlite3-shm").unlink(missing_ok=True)
            log_of(world).write_bytes(log.torn(end, number // SHARES))
            world.check_promises()
            ended = await world.once()
            assert ended.code == 0, ended.said
            world.check_whole()
            kept.nothing_replaced()
            counted("crash points")


async def test_a_log_that_was_half_moved_into_the_database_is_moved_again(
    stage: Stage, counted: Counted
) -> None:
    """Every page but the first is torn in the middle; the log still has all of them."""
    async with stored_world(stage, step="before close checkpoint.sqlite3") as world:
        kept = Kept(world)
        log = log_of(world).read_bytes()
        with closing(sqlite3.connect(world.database)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        moved = bytearray(world.database.read_bytes())
        size = Log(log).frame - FRAME_HEADER
        for at in range(size, len(moved), size):
            moved[at + size // 2 : at + size] = bytes(size // 2)
        kept.restore()
        world.database.write_bytes(moved)
        assert log_of(world).read_bytes() == log
        world.check_promises()
        ended = await world.once()
        assert ended.code == 0, ended.said
        world.check_whole()
        kept.nothing_replaced()
        counted("crash points")


# -- damage --------------------------------------------------------------------------------------

PAGE = 4096
LEAF_INDEX, LEAF_TABLE = 10, 13
HARMLESS = ("opening", "sqlite_sequence")
"""Rows for a person to read, and a number that may begin anew as long as those rows are there."""

Damage = Callable[[bytearray, int], None]


def zeroed(data: bytearray, at: int) -> None:
    data[at : at + PAGE] = bytes(PAGE)


def overwritten(data: bytearray, at: int) -> None:
    data[at : at + PAGE] = random.Random(at).randbytes(PAGE)


def flipped(data: bytearray, at: int) -> None:
    """One bit in the page's own header (after the file's, on the first page)."""
    data[at + (100 if at == 0 else 0)] ^= 0x08


def cut_off(data: bytearray, at: int) -> None:
    del data[at + PAGE // 2 :]


def of_another_page(data: bytearray, at: int) -> None:
    """A write that went astray: the page after it lies here as well."""
    other = (at + PAGE) % len(data)
    data[at : at + PAGE] = data[other : other + PAGE]


def alike(page: bytes, other: bytes) -> bool:
    """Whether both are empty leaves of the same kind: one in place of the other is no damage."""
    return (
        page[0] == other[0]
        and page[0] in (LEAF_INDEX, LEAF_TABLE)
        and not any(page[3:5] + other[3:5])
    )


def pages_of(world: World, tables: Collection[str]) -> list[int]:
    """The only page of each of these tables, from 1 on."""
    found = dict(world.rows("SELECT name, rootpage FROM sqlite_schema"))
    return [found[table] for table in tables]


def check_refused(world: World, ended: Ended, damaged: bytes) -> None:
    """It says what to do, and has touched nothing."""
    assert ended.code == DAMAGED, ended.said
    assert "nvr-backup rebuild" in ended.err
    assert str(world.database) in ended.err
    assert "Traceback" not in ended.err
    assert world.database.read_bytes() == damaged


@pytest.mark.parametrize("damage", [zeroed, overwritten, flipped, cut_off, of_another_page])
async def test_a_damaged_database_is_refused_and_rebuilt(
    damage: Damage, stage: Stage, counted: Counted
) -> None:
    async with stored_world(stage, step=None) as world:
        assert not log_of(world).exists()
        kept = Kept(world)
        size = world.database.stat().st_size
        harmless = {(page - 1) * PAGE for page in pages_of(world, HARMLESS)}
        for number, at in enumerate(range(0, size, PAGE)):
            kept.restore()
            data = bytearray(world.database.read_bytes())
            page = bytes(data[at : at + PAGE])
            damage(data, at)
            if len(data) == size and alike(page, bytes(data[at : at + PAGE])):
                continue
            world.database.write_bytes(data)
            ended = await world.once()
            if damage is of_another_page and at in harmless and not ended.code:
                world.check_whole()
                kept.nothing_replaced()
                continue
            check_refused(world, ended, bytes(data))
            kept.nothing_replaced()
            if number % 4 == 0:
                ended = await world.once(command=("rebuild",))
                assert ended.code == 0, ended.said
                ended = await world.once()
                assert ended.code == 0, ended.said
                world.check_whole()
                kept.nothing_replaced()
            counted("fault cases")
