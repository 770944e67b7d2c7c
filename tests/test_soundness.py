"""Whether a checkpoint's file can be relied on: real SQLite files, damaged in every way we know."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvr_backup import soundness
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import (
    FILE_NAME,
    MIGRATIONS,
    CheckpointError,
    Database,
    EngineLock,
    RebuildNeeded,
    hand_over,
)
from nvr_backup.errors import ConfigError
from nvr_backup.snapshots import copy_database, why_unsound
from tests.conftest import Counted
from tests.support.fakes import EPOCH, clip_at
from tests.test_checkpoint import put_in

NOW = EPOCH + timedelta(hours=24)
CLIPS = 300


async def made(folder: Path, clips: int = CLIPS) -> Path:
    """A closed checkpoint with some clips in it."""
    checkpoint = await Checkpoint.open(folder, now=NOW)
    try:
        await put_in(checkpoint, *(clip_at(minute) for minute in range(clips)))
    finally:
        checkpoint.close()
    return folder / FILE_NAME


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def garbled(path: Path, at: int, length: int = 4096) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(at).randbytes(length))


def statement(sql: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute(sql)

    return run


def entry_gone_from_an_index(path: Path) -> None:
    """The table still has the row, its index no longer does: `quick_check` finds nothing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("PRAGMA journal_mode=DELETE")
        sql = connection.execute(
            "SELECT sql FROM sqlite_schema WHERE name = 'clip_identity'"
        ).fetchone()[0]
        hide = "UPDATE sqlite_schema SET sql = ? WHERE name = 'clip_identity'"
        connection.execute(hide, (sql + " WHERE id < 0",))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("REINDEX clip_identity")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(hide, (sql,))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)


def another_programs(path: Path) -> None:
    path.unlink()
    statement("CREATE TABLE x (y)")(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "the header": lambda path: garbled(path, 0, 100),
    "a page in the middle": lambda path: garbled(path, path.stat().st_size // 2 // 4096 * 4096),
    "the last page": lambda path: garbled(path, path.stat().st_size - 4096),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one page short": lambda path: os.truncate(path, path.stat().st_size - 4096),
    "an index without its entries": entry_gone_from_an_index,
    "a table gone": statement("DROP TABLE upload"),
    "an index gone": statement("DROP INDEX copy_waiting"),
    "a column gone": statement("ALTER TABLE clip DROP COLUMN classes"),
    "no version": statement("PRAGMA user_version=0"),
    "another program's": another_programs,
}


async def test_a_sound_file_is_sound(tmp_path: Path) -> None:
    path = await made(tmp_path)
    assert soundness.examine(path, MIGRATIONS) is None
    assert soundness.lost(path) is None


@pytest.mark.parametrize("kind", list(DAMAGE))
async def test_damage_is_named_and_nothing_is_changed(
    tmp_path: Path, kind: str, counted: Counted
) -> None:
    path = await made(tmp_path)
    DAMAGE[kind](path)
    before = path.read_bytes()
    what = soundness.examine(path, MIGRATIONS)
    assert what is not None
    assert what.startswith("damaged: ")
    with pytest.raises(RebuildNeeded) as refused:
        await Checkpoint.open(tmp_path, now=NOW)
    assert "nvr-backup rebuild" in refused.value.hint
    assert str(path) in refused.value.message
    assert path.read_bytes() == before
    EngineLock(tmp_path).acquire()  # given back: the rebuild needs it
    counted("fault cases")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.sampled_from([1, 16, 512, 4096, 20_000]))
def test_no_garbled_stretch_is_taken_for_what_was_there(seed: int, length: int) -> None:
    """It is found, or it hit nothing but pages out of use or the inside of values."""
    before = PRISTINE.rows()
    with PRISTINE.copied() as path:
        rng = random.Random(seed)
        garbled(path, rng.randrange(path.stat().st_size - length), length)
        try:
            what = soundness.examine(path, MIGRATIONS)
        except sqlite3.Error as err:
            what = str(err)
        if what is None:
            with closing(soundness.look_at(path)) as connection:
                same = sum(a == b for a, b in zip(rows_of(connection), before, strict=True))
            # SQLite keeps no checksums: a value can change unseen, but no row is lost.
            assert same >= len(before) - 2 - length // 16


def rows_of(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    connection.text_factory = bytes
    return connection.execute("SELECT * FROM clip ORDER BY id").fetchall()


class Pristine:
    """One checkpoint made once, copied for each example."""

    def __init__(self) -> None:
        self._bytes = b""

    def _made(self) -> bytes:
        if not self._bytes:
            with tempfile.TemporaryDirectory() as folder:
                self._bytes = asyncio.run(made(Path(folder))).read_bytes()
        return self._bytes

    def copied(self) -> Copied:
        return Copied(self._made())

    def rows(self) -> list[tuple[object, ...]]:
        with self.copied() as path, closing(soundness.look_at(path)) as connection:
            return rows_of(connection)


class Copied:
    def __init__(self, data: bytes) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / FILE_NAME
        self._path.write_bytes(data)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


PRISTINE = Pristine()


async def test_what_a_killed_process_left_in_the_log_is_looked_at_and_kept(tmp_path: Path) -> None:
    """The file alone is old; with its write-ahead log it is whole, and looking moves nothing."""
    folder, dead = tmp_path / "live", tmp_path / "dead"
    folder.mkdir()
    dead.mkdir()
    checkpoint = await Checkpoint.open(folder, now=NOW)
    await put_in(checkpoint, clip_at(0))
    for name, data in contents(folder).items():
        (dead / name).write_bytes(data)
    checkpoint.close()
    path = dead / FILE_NAME
    file, log = path.read_bytes(), (dead / f"{FILE_NAME}-wal").read_bytes()
    assert log
    assert soundness.examine(path, MIGRATIONS) is None
    assert (path.read_bytes(), (dead / f"{FILE_NAME}-wal").read_bytes()) == (file, log)
    with closing(soundness.look_at(path)) as connection:
        assert connection.execute("SELECT count(*) FROM clip").fetchone() == (1,)


async def test_a_file_that_nobody_may_write_to_is_only_looked_at(tmp_path: Path) -> None:
    path = await made(tmp_path, 1)
    with closing(soundness.look_at(path)) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM copy")
    with pytest.raises(FileNotFoundError):
        soundness.look_at(tmp_path / "absent.sqlite3")
    assert not (tmp_path / "absent.sqlite3").exists()
    odd = tmp_path / "a?b#c%20d"
    odd.mkdir()
    assert soundness.examine(await made(odd, 1), MIGRATIONS) is None


async def test_a_newer_programs_file_is_not_called_damaged(tmp_path: Path) -> None:
    path = await made(tmp_path, 1)
    statement("ALTER TABLE clip DROP COLUMN classes")(path)
    statement(f"PRAGMA user_version={len(MIGRATIONS) + 1}")(path)
    assert soundness.examine(path, MIGRATIONS) is None
    with pytest.raises(ConfigError, match="newer"):
        await Checkpoint.open(tmp_path, now=NOW)


def a_snapshot(state: Path) -> None:
    (state / "snapshots").mkdir()
    (state / "snapshots" / "checkpoint-20260101T000000.000000Z.sqlite3").touch()


TRACES: dict[str, Callable[[Path], object]] = {
    "a snapshot": a_snapshot,
    "its log": lambda state: (state / f"{FILE_NAME}-wal").write_bytes(b"x"),
    "one kept aside": lambda state: (state / f"{FILE_NAME}.damaged-20260101Z").write_bytes(b"x"),
    "one half rebuilt": lambda state: os.mkdir(state / f"{FILE_NAME}.rebuilding"),
}


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("kind", list(TRACES))
async def test_a_lost_checkpoint_is_not_taken_for_a_new_one(
    tmp_path: Path, kind: str, empty: bool, counted: Counted
) -> None:
    TRACES[kind](tmp_path)
    if empty:
        (tmp_path / FILE_NAME).touch()
    before = contents(tmp_path)
    assert (soundness.lost(tmp_path / FILE_NAME) or "").startswith("empty" if empty else "gone")
    for _ in range(2):
        with pytest.raises(RebuildNeeded, match="there was one"):
            await Checkpoint.open(tmp_path, now=NOW)
    with pytest.raises(RebuildNeeded):
        Database(tmp_path, writable=False)
    after = contents(tmp_path)
    after.pop("engine.lock")
    assert after == before
    counted("fault cases")


@pytest.mark.parametrize("kind", ["nothing", "a lock", "an empty log", "an empty file", "a header"])
async def test_a_first_start_that_was_killed_is_no_lost_checkpoint(
    tmp_path: Path, kind: str
) -> None:
    """Before the schema is there, nothing was ever recorded."""
    if kind == "a lock":
        (tmp_path / "engine.lock").write_text("1")
    if kind == "an empty log":
        (tmp_path / f"{FILE_NAME}-wal").touch()
    if kind == "an empty file":
        (tmp_path / FILE_NAME).touch()
    if kind == "a header":
        statement("PRAGMA journal_mode=WAL")(tmp_path / FILE_NAME)
    (tmp_path / "snapshots").mkdir()
    assert await made(tmp_path, 1)
    assert soundness.examine(tmp_path / FILE_NAME, MIGRATIONS) is None


async def test_damage_that_shows_itself_later_is_damage_too(tmp_path: Path) -> None:
    checkpoint = await Checkpoint.open(tmp_path, now=NOW)
    try:
        await put_in(checkpoint, *(clip_at(minute) for minute in range(CLIPS)))
        await checkpoint._database.run(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
        path = tmp_path / FILE_NAME
        for at in range(4096, path.stat().st_size, 4096):
            garbled(path, at)
        await checkpoint._database.run(lambda db: db.execute("PRAGMA shrink_memory"))
        with pytest.raises(RebuildNeeded, match="damaged"):
            await checkpoint._database.run(
                lambda db: db.execute("SELECT count(reason) FROM copy").fetchall()
            )
    finally:
        checkpoint.close()


def test_only_a_wrong_file_is_called_damaged(tmp_path: Path) -> None:
    """Another process's lock, or a disk that fails, asks for patience, not for a rebuild."""
    path = tmp_path / "x.sqlite3"
    statement("CREATE TABLE x (y)")(path)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
    ):
        one.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.execute("SELECT * FROM x")
    assert not soundness.is_damage(locked.value)
    assert not soundness.is_damage(sqlite3.ProgrammingError("no code"))
    for code in (sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_CORRUPT_VTAB):  # a kind of a kind
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = code
        assert soundness.is_damage(error)
    path.write_bytes(b"no database" * 100)
    with (
        closing(sqlite3.connect(path)) as connection,
        pytest.raises(sqlite3.DatabaseError) as damaged,
    ):
        connection.execute("SELECT * FROM sqlite_schema")
    assert soundness.is_damage(damaged.value)


async def test_a_busy_file_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await made(tmp_path, 1)
    statement("PRAGMA journal_mode=DELETE")(path)
    monkeypatch.setattr(soundness, "BUSY_SECONDS", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CheckpointError) as refused:
            await Checkpoint.open(tmp_path, now=NOW)
        assert not isinstance(refused.value, RebuildNeeded)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_root_makes_belongs_to_the_service(tmp_path: Path) -> None:
    """`sudo nvr-backup once`: the daemon of another user must be able to go on."""
    os.chown(tmp_path, 4711, 4712)
    path = await made(tmp_path, 1)
    lock = tmp_path / "engine.lock"
    assert {(one.stat().st_uid, one.stat().st_gid) for one in (path, lock)} == {(4711, 4712)}
    assert {one.stat().st_mode & 0o777 for one in (path, lock)} == {0o600}


def test_who_is_not_root_gives_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", lambda *_: pytest.fail("it must not try"))
    hand_over(tmp_path)


async def test_a_garbled_schema_is_damage_and_no_bug(tmp_path: Path, counted: Counted) -> None:
    """SQLite's message quotes it, and Python cannot make text of that."""
    path = await made(tmp_path, 3)
    data = path.read_bytes()
    assert data.count(b"CREATE TABLE clip (") == 1
    path.write_bytes(data.replace(b"CREATE TABLE clip (", b"CREATE TABLE cl\xffp \xbc"))
    with pytest.raises(UnicodeDecodeError), closing(soundness.look_at(path)) as connection:
        connection.execute("SELECT * FROM sqlite_schema")
    assert (soundness.examine(path, MIGRATIONS) or "").startswith("damaged: ")
    with pytest.raises(RebuildNeeded):
        Database(tmp_path)
    with closing(Database(tmp_path, writable=False)) as looking, pytest.raises(RebuildNeeded):
        await looking.run(lambda db: db.execute("SELECT * FROM clip").fetchall())
    with pytest.raises(RebuildNeeded):
        await Checkpoint.open(tmp_path, now=NOW)
    assert why_unsound(path)
    with pytest.raises(CheckpointError):
        copy_database(path, tmp_path / "copy")
    counted("fault cases")
