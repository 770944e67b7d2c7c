"""Snapshots of a checkpoint: real SQLite files, real disks, a clock that goes astray."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from collections import namedtuple
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup import snapshots, soundness
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import FILE_NAME, MIGRATIONS, CheckpointError, RebuildNeeded
from nvr_backup.model import EPOCH as BEGINNING
from nvr_backup.model import UploadState
from nvr_backup.snapshots import (
    FREE_BYTES,
    PACE_BYTES_PER_SECOND,
    ROOM_BYTES,
    Snapshots,
    all_snapshots,
    copy_database,
    sound_snapshots,
    taken_at,
    why_unsound,
)
from tests.conftest import Counted
from tests.support.clock import VirtualClock
from tests.support.fakes import EPOCH, clip_at
from tests.test_checkpoint import TALLY, must_claim, put_in, store
from tests.test_soundness import garbled, statement

NOW = EPOCH + timedelta(hours=24)
SECRET = "https://example.com/upload?upload_id=do-not-tell"

Usage = namedtuple("Usage", "total used free")


class Home:
    """A state folder with an open checkpoint, and what takes its snapshots."""

    def __init__(self, state: Path, checkpoint: Checkpoint) -> None:
        self.state = state
        self.folder = state / "snapshots"
        self.path = state / FILE_NAME
        self.checkpoint = checkpoint
        self.clock = VirtualClock(NOW)
        self.snapshots = Snapshots(state, self.clock)
        self._minute = 0

    async def plan(self, clips: int = 1) -> None:
        """Something happens."""
        minutes = range(self._minute, self._minute + clips)
        self._minute += clips
        await put_in(self.checkpoint, *map(clip_at, minutes))

    async def take(self, keep: int = 2) -> Path:
        taken = await self.snapshots.take(keep)
        assert taken is not None
        return taken

    async def later(self, hours: float = 1.0) -> None:
        await self.clock.advance(hours * 3600)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    checkpoint = await Checkpoint.open(tmp_path / "state", now=NOW)
    try:
        yield Home(tmp_path / "state", checkpoint)
    finally:
        checkpoint.close()


def clips_in(path: Path) -> int:
    with closing(soundness.look_at(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM clip").fetchone()[0])


async def test_a_snapshot_is_one_sound_private_file_with_everything_committed(home: Home) -> None:
    await home.plan(50)
    assert (home.state / f"{FILE_NAME}-wal").stat().st_size  # it is not in the file yet
    taken = await home.take()
    assert home.names() == {taken.name}
    assert taken.stat().st_mode & 0o777 == 0o600
    assert home.folder.stat().st_mode & 0o777 == 0o700
    assert clips_in(taken) == 50
    assert why_unsound(taken) is None
    assert home.names() == {taken.name}  # looked at, it is still one file
    assert taken_at(taken) == NOW
    with closing(sqlite3.connect(taken)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


async def test_a_checkpoint_can_go_on_from_a_snapshot(home: Home, tmp_path: Path) -> None:
    await home.plan(3)
    await store(home.checkpoint, await must_claim(home.checkpoint))
    taken = await home.take()
    (tmp_path / "other").mkdir()
    copy_database(taken, tmp_path / "other" / FILE_NAME)
    assert (tmp_path / "other" / FILE_NAME).stat().st_mode & 0o777 == 0o600
    again = await Checkpoint.open(tmp_path / "other", now=NOW)
    try:
        assert await again.counts() == {"waiting": 2, "set_aside": 0}
        assert (await must_claim(again)).clip == clip_at(1)
    finally:
        again.close()


async def test_nothing_happened_nothing_is_written(home: Home) -> None:
    await home.plan()
    first = await home.take()
    for _ in range(3):
        await home.later()
        assert await home.snapshots.take(2) is None
    assert home.names() == {first.name}


async def test_everything_that_happens_to_a_clip_is_worth_a_snapshot(home: Home) -> None:
    await home.plan(2)
    await home.take(keep=9)
    claimed = await must_claim(home.checkpoint)
    await home.later()
    await store(home.checkpoint, claimed)
    await home.take(keep=9)
    claimed = await must_claim(home.checkpoint)
    await home.later()
    await home.checkpoint.put_off(claimed.copy, "x", again=1, not_before=NOW, tally=TALLY, now=NOW)
    await home.take(keep=9)
    claimed = await must_claim(home.checkpoint)
    await home.later()
    await home.checkpoint.set_aside(claimed.copy, "x", tally=TALLY, now=NOW)
    await home.take(keep=9)
    await home.later()
    await home.plan()
    await home.take(keep=9)
    assert len(home.names()) == 5


async def test_the_latest_few_are_kept(home: Home) -> None:
    taken = []
    for _ in range(5):
        await home.plan()
        taken.append(await home.take(keep=3))
        await home.later()
    assert home.names() == {path.name for path in taken[-3:]}
    assert await home.snapshots.take(1) is None  # nothing new, but fewer are wanted
    assert home.names() == {taken[-1].name}
    assert await home.snapshots.take(0) is None
    assert home.names() == set()


async def test_a_large_checkpoint_is_copied_seldom(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = FREE_BYTES + 3600 * PACE_BYTES_PER_SECOND
    monkeypatch.setattr(snapshots, "_bytes_of", lambda _: size)
    await home.plan()
    await home.take()
    await home.plan()
    await home.clock.advance(3599)
    assert await home.snapshots.take(2) is None
    await home.clock.advance(1)
    await home.take()
    assert PACE_BYTES_PER_SECOND * 86400 < 3e9


async def test_a_snapshot_never_fills_the_disk(
    home: Home, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    await home.plan()
    first = await home.take()
    await home.plan()
    await home.later()
    with closing(soundness.look_at(home.path)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    needed = pages * 4096 + ROOM_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(CheckpointError, match="no room") as refused:
        await home.snapshots.take(2)
    assert not isinstance(refused.value, RebuildNeeded)
    assert home.names() == {first.name}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    await home.take()
    counted("fault cases")


@pytest.mark.parametrize("where", ["write", "sync", "examine", "rename"])
async def test_a_disk_that_fails_meanwhile_leaves_no_half_snapshot(
    home: Home, monkeypatch: pytest.MonkeyPatch, where: str, counted: Counted
) -> None:
    await home.plan()
    first = await home.take()
    await home.plan()
    await home.later()
    happened: list[str] = []

    def unsound(*_: object) -> str:
        happened.append(where)
        return "damaged: x"

    def fails(*_: object, **__: object) -> object:
        happened.append(where)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(snapshots, "_copy", fails)
        if where == "sync":
            patch.setattr(snapshots, "_sync", fails)
        if where == "examine":
            patch.setattr(soundness, "examine", unsound)
        if where == "rename":
            patch.setattr(Path, "rename", fails)
        with pytest.raises(CheckpointError) as refused:
            await home.snapshots.take(2)
    assert happened == [where]
    assert not isinstance(refused.value, RebuildNeeded)
    assert home.names() == {first.name}
    await home.take()
    counted("fault cases")


async def test_a_damaged_checkpoint_replaces_no_sound_snapshot(
    home: Home, counted: Counted
) -> None:
    await home.plan(500)
    first = await home.take(keep=1)
    home.checkpoint.close()
    middle = home.path.stat().st_size // 2 // 4096 * 4096
    statement("UPDATE copy SET state = 'stored' WHERE id = 1")(home.path)
    for at in range(middle, middle + 5 * 4096, 4096):
        garbled(home.path, at)
    await home.later()
    with pytest.raises(RebuildNeeded, match="damaged"):
        await home.snapshots.take(1)
    assert home.names() == {first.name}
    assert clips_in(first) == 500
    counted("fault cases")


async def test_what_a_kill_left_is_cleared_away(home: Home) -> None:
    await home.plan()
    home.folder.mkdir()
    for name in ("checkpoint-20250101T000000.000000Z.sqlite3.partial", "x.partial-journal"):
        (home.folder / name).write_bytes(b"half")
    taken = await home.take()
    assert home.names() == {taken.name}


async def test_outcomes_do_not_wait_for_a_snapshot(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows one state of the checkpoint, whatever is written meanwhile."""
    await home.plan(200)
    monkeypatch.setattr(snapshots, "STEP_PAGES", 1)
    monkeypatch.setattr(snapshots, "REST_SECONDS", 0.001)
    entered, go_on = threading.Event(), threading.Event()
    real = snapshots._copy

    def held(*arguments: object) -> None:
        entered.set()
        assert go_on.wait(20)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots, "_copy", held)
    taking = asyncio.create_task(home.snapshots.take(2))
    await asyncio.to_thread(entered.wait, 20)
    for _ in range(5):
        await store(home.checkpoint, await must_claim(home.checkpoint))  # while it is being taken
    go_on.set()
    taken = await taking
    assert taken is not None
    with closing(soundness.look_at(taken)) as connection:
        states = connection.execute("SELECT DISTINCT state FROM copy").fetchall()
    assert states == [("waiting",)]
    assert why_unsound(taken) is None


async def test_a_stop_gives_up_what_is_under_way(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.plan(200)
    monkeypatch.setattr(snapshots, "STEP_PAGES", 1)
    monkeypatch.setattr(snapshots, "REST_SECONDS", 60.0)
    taking = asyncio.create_task(home.snapshots.take(2))
    async with asyncio.timeout(20):
        while not home.folder.exists() or not home.names():
            await asyncio.sleep(0.001)
        home.snapshots.stop()
        assert await taking is None
    assert home.names() == set()
    assert await home.snapshots.bare_copy(home.path) is None


async def test_who_is_cancelled_leaves_no_thread_at_work(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.plan()
    entered, go_on = threading.Event(), threading.Event()
    real = snapshots._copy

    def held(*arguments: object) -> None:
        entered.set()
        assert go_on.wait(20)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots, "_copy", held)
    taking = asyncio.create_task(home.snapshots.take(2))
    await asyncio.to_thread(entered.wait, 20)
    taking.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not taking.done()
    go_on.set()
    await asyncio.wait({taking})
    assert taking.cancelled()
    assert len(home.names()) == 1  # whole, under its name: nothing is half


# -- the clock ------------------------------------------------------------------------------------


async def test_a_clock_that_goes_back_does_not_push_out_the_new_ones(home: Home) -> None:
    """After a boot without the time it is 1970: what is taken then is the latest all the same."""
    await home.plan()
    old = await home.take()
    home.clock.jump(BEGINNING + timedelta(minutes=1) - NOW)
    await home.plan()
    new = await home.take(keep=1)
    assert home.names() == {new.name}
    assert clips_in(new) == 2
    home.clock.jump(NOW - BEGINNING)
    await home.plan()
    newest = await home.take(keep=2)
    assert home.names() == {new.name, newest.name}
    assert old.name not in home.names()


async def test_a_clock_that_was_ahead_stops_no_snapshots(home: Home) -> None:
    home.clock.jump(timedelta(days=3000))
    await home.plan()
    ahead = await home.take()
    home.clock.jump(timedelta(days=-3000))
    for _ in range(3):
        await home.plan()
        latest = await home.take(keep=2)
        await home.later()
    assert ahead.name not in home.names()
    assert next(sound_snapshots(home.state, home.clock.now())) == latest


MOMENTS = st.integers(0, 10**15 * 4).map(lambda us: BEGINNING + timedelta(microseconds=us))


@given(st.lists(MOMENTS, min_size=1, max_size=8, unique=True), MOMENTS)
def test_the_order_is_by_name_with_the_future_last(moments: list[datetime], here: datetime) -> None:
    """Against a plain reading of the rule, and whatever order the folder has."""
    folder = Listing(f"checkpoint-{one:%Y%m%dT%H%M%S.%f}Z.sqlite3" for one in moments)
    past = sorted((one for one in moments if one <= here), reverse=True)
    future = sorted((one for one in moments if one > here), reverse=True)
    assert [taken_at(path) for path in folder.ordered(here)] == past + future


class Listing:
    """A state folder that exists only as the names in it."""

    def __init__(self, names: object) -> None:
        self._paths = [Path("/nowhere/snapshots") / name for name in names]  # type: ignore[attr-defined]

    def ordered(self, now: datetime) -> list[Path]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "glob", lambda *_: iter(self._paths))
            return all_snapshots(Path("/nowhere"), now)


def test_a_name_that_tells_no_time_is_the_oldest() -> None:
    assert taken_at(Path("checkpoint-monday.sqlite3")) == BEGINNING
    assert taken_at(Path("checkpoint-20260101T000001.500000Z.sqlite3")) == datetime(
        2026, 1, 1, 0, 0, 1, 500_000, UTC
    )


# -- which of them can be relied on ---------------------------------------------------------------


async def test_only_sound_snapshots_of_a_schema_we_know_are_offered(
    home: Home, counted: Counted
) -> None:
    paths = []
    for _ in range(6):
        await home.plan(100)
        paths.append(await home.take(keep=9))
        await home.later()
    good, newer, damaged, empty, foreign, unread = paths
    statement(f"PRAGMA user_version={len(MIGRATIONS) + 1}")(newer)
    for at in range(4096, damaged.stat().st_size, 4096):
        garbled(damaged, at)
    empty.write_bytes(b"")
    foreign.unlink()
    statement("CREATE TABLE x (y)")(foreign)
    unread.unlink()
    unread.mkdir()
    assert list(sound_snapshots(home.state, home.clock.now())) == [good]
    assert "schema" in (why_unsound(newer) or "")
    assert "schema 0" in (why_unsound(empty) or "")
    assert "damaged" in (why_unsound(damaged) or "")
    assert "not usable" in (why_unsound(unread) or "")
    assert "not usable" in (why_unsound(home.folder / "absent") or "")
    counted("fault cases", 5)


async def test_a_damaged_latest_snapshot_does_not_stop_the_next(home: Home) -> None:
    await home.plan()
    first = await home.take()
    first.write_bytes(b"garbage")
    await home.later()
    second = await home.take()  # nothing has happened, but the first one is of no use
    assert clips_in(second) == 1


# -- copies ---------------------------------------------------------------------------------------


async def test_a_copy_replaces_nothing_and_needs_room(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.plan()
    target = tmp_path / "copy"
    target.write_bytes(b"precious")
    with pytest.raises(CheckpointError):
        copy_database(home.path, target)
    assert target.read_bytes() == b"precious"
    with pytest.raises(CheckpointError):
        copy_database(tmp_path / "absent", tmp_path / "new")
    copy_database(home.path, tmp_path / "new")
    assert clips_in(tmp_path / "new") == 1
    size = (tmp_path / "new").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, size + 10))
    copy_database(home.path, tmp_path / "fits", leave=10)
    for leave in (11, 10_000_000):
        with pytest.raises(CheckpointError, match="no room"):
            copy_database(home.path, tmp_path / "not", leave=leave)
    assert not (tmp_path / "not").exists()


async def test_a_bare_copy_carries_no_secret_and_is_otherwise_whole(home: Home) -> None:
    """Also not one that was deleted before: its bytes stay in pages out of use."""
    await home.plan(3)
    for number in range(3):
        claimed = await must_claim(home.checkpoint)
        state = UploadState(f"{SECRET}-{number}" + "x" * 900, claimed.key, "video/mp4", NOW)
        await home.checkpoint.save_upload(claimed.copy, state)
        if number == 1:
            await home.checkpoint.forget_upload(claimed.copy)
    taken = await home.take()
    assert taken.read_bytes().count(SECRET.encode()) >= 2
    bare = await home.snapshots.bare_copy(taken)
    assert bare is not None
    assert bare.stat().st_mode & 0o777 == 0o600
    assert SECRET.encode() not in bare.read_bytes()
    assert why_unsound(bare) is None
    with closing(soundness.look_at(taken)) as one, closing(soundness.look_at(bare)) as other:
        tables = ["clip", "copy", "camera", "meta", "opening", "reach", "attempt"]
        tables += ["sqlite_sequence"]
        for table in tables:
            rows = f"SELECT * FROM {table}"
            assert one.execute(rows).fetchall() == other.execute(rows).fetchall()
        assert other.execute("SELECT count(*) FROM upload").fetchone() == (0,)
    assert taken.read_bytes().count(SECRET.encode()) >= 2  # the snapshot goes on with them


async def test_a_bare_copy_never_fills_the_disk_and_leaves_nothing_when_it_fails(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.plan()
    taken = await home.take()
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "disk_usage", lambda _: Usage(0, 0, taken.stat().st_size + ROOM_BYTES - 1)
        )
        with pytest.raises(CheckpointError, match="no room"):
            await home.snapshots.bare_copy(taken)
    for at in range(4096, taken.stat().st_size, 4096):
        garbled(taken, at)
    with pytest.raises(sqlite3.DatabaseError):
        await home.snapshots.bare_copy(taken)
    assert home.names() == {taken.name}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_root_takes_belongs_to_the_service(home: Home) -> None:
    """Else the daemon of another user could take no more."""
    os.chown(home.state, 4711, 4712)
    await home.plan()
    taken = await home.take()
    for path in (home.folder, taken):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
