"""Where a rebuilt checkpoint is made, and how it takes the old one's place: real files."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from nvr_backup import database as database_module
from nvr_backup import soundness
from nvr_backup.database import CheckpointError, Database
from nvr_backup.snapshots import ROOM_BYTES
from nvr_backup.workplace import BUILDING, Wish, put_in_place
from tests.conftest import Counted
from tests.support.fakes import EPOCH, FakeStore, clip_at, mp4
from tests.support.ruins import Ruins
from tests.test_soundness import garbled, made

NOW = EPOCH + timedelta(hours=24)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
async def ruins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ruins:
    ruins = Ruins(tmp_path, monkeypatch, stores={"nas": FakeStore()})
    ruins.source.add(clip_at(5), mp4(500))
    await ruins.once()
    return ruins


async def built(state: Path) -> bytes:
    """A finished successor in its folder; returns its bytes."""
    (state / BUILDING).mkdir(mode=0o700)
    return (await made(state / BUILDING, 3)).read_bytes()


async def test_the_new_file_takes_the_old_ones_place(tmp_path: Path) -> None:
    for suffix in ("", "-wal"):
        (tmp_path / f"checkpoint.sqlite3{suffix}").write_bytes(b"old" + suffix.encode())
    (tmp_path / "checkpoint.sqlite3-shm").write_bytes(b"an index of the log")
    new = await built(tmp_path)
    kept = put_in_place(tmp_path, NOW)
    name = f"checkpoint.sqlite3.damaged-{NOW:%Y%m%dT%H%M%SZ}"
    assert kept == [str(tmp_path / name), str(tmp_path / f"{name}-wal")]
    assert [Path(one).read_bytes() for one in kept] == [b"old", b"old-wal"]
    assert (tmp_path / "checkpoint.sqlite3").read_bytes() == new
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.sqlite3",
        name,
        f"{name}-wal",
    }


async def test_a_log_that_would_be_replayed_into_the_new_file_is_moved_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the steps leaves no file that an engine would take for sound."""
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"checkpoint.sqlite3{suffix}").write_bytes(b"old")
    await built(tmp_path)
    order: list[str] = []
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        order.append(f"{self.relative_to(tmp_path)}")
        assert soundness.lost(tmp_path / "checkpoint.sqlite3") or len(order) == 1
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    put_in_place(tmp_path, NOW)
    assert order == [
        "checkpoint.sqlite3",
        "checkpoint.sqlite3-wal",
        f"{BUILDING}/checkpoint.sqlite3",
    ]


async def test_an_unfinished_successor_takes_nobodys_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.sqlite3").write_bytes(b"old")
    await built(tmp_path)
    (tmp_path / BUILDING / "checkpoint.sqlite3-wal").write_bytes(b"not in it yet")
    with pytest.raises(CheckpointError, match="completed"):
        put_in_place(tmp_path, NOW)
    assert (tmp_path / "checkpoint.sqlite3").read_bytes() == b"old"


@pytest.mark.parametrize("names", [["", "-wal"], ["-wal"]])
async def test_what_is_kept_already_is_never_replaced(tmp_path: Path, names: list[str]) -> None:
    """Also where only half of an earlier one was moved before a kill."""
    first = f"checkpoint.sqlite3.damaged-{NOW:%Y%m%dT%H%M%SZ}"
    for suffix in names:
        (tmp_path / f"{first}{suffix}").write_bytes(b"first")
    (tmp_path / "checkpoint.sqlite3").write_bytes(b"second")
    await built(tmp_path)
    (kept,) = put_in_place(tmp_path, NOW)
    assert kept == str(tmp_path / f"{first}-2")
    assert Path(kept).read_bytes() == b"second"
    assert [(tmp_path / f"{first}{suffix}").read_bytes() for suffix in names] == [b"first"] * len(
        names
    )


async def test_empty_files_are_nothing_to_keep(tmp_path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"checkpoint.sqlite3{suffix}").touch()
    new = await built(tmp_path)
    assert put_in_place(tmp_path, NOW) == []
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.sqlite3"}
    assert (tmp_path / "checkpoint.sqlite3").read_bytes() == new


@pytest.mark.parametrize("number", range(3))
async def test_a_disk_that_fails_while_files_are_moved_loses_none(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch, number: int, counted: Counted
) -> None:
    garbled(ruins.checkpoint, 4096 * 3)
    damaged = ruins.checkpoint.read_bytes()
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == number + 1:
            raise OSError(5, "Input/output error")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        if number < 2:
            with pytest.raises(CheckpointError, match="Input/output"):
                await ruins.rebuild()
        else:
            await ruins.rebuild()
    rebuilt = await ruins.rebuild()
    assert damaged in [path.read_bytes() for path in ruins.state.glob("*damaged*")]
    assert rebuilt.inventories[0].objects == 1
    sent = ruins.sent()
    await ruins.once()
    assert ruins.sent() == sent
    counted("fault cases")


async def test_left_overs_of_killed_runs_are_cleared_away(ruins: Ruins) -> None:
    ruins.checkpoint.unlink()
    (ruins.state / BUILDING).mkdir()
    (ruins.state / BUILDING / "checkpoint.sqlite3").write_bytes(b"half")
    (ruins.state / "dry-run-abc").mkdir()
    (ruins.state / "dry-run-abc" / "checkpoint.sqlite3").write_bytes(b"half")
    await ruins.rebuild(Wish(dry_run=True))  # may run beside another one: leaves them
    assert (ruins.state / "dry-run-abc").exists()
    await ruins.rebuild()
    assert {path.name for path in ruins.state.iterdir()} == {
        "checkpoint.sqlite3",
        "engine.lock",
        "snapshots",
    }
    (ruins.state / "dry-run-abc").mkdir()
    (ruins.state / BUILDING).mkdir()
    await ruins.rebuild()  # also where the checkpoint is sound
    assert not (ruins.state / "dry-run-abc").exists()
    assert not (ruins.state / BUILDING).exists()


async def test_an_error_leaves_no_folder_behind(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruins.checkpoint.unlink()

    def bug(_prefix: str) -> object:
        raise IndexError

    monkeypatch.setattr(ruins.store, "list", bug)
    for wish in (Wish(), Wish(dry_run=True)):
        with pytest.raises(IndexError):
            await ruins.rebuild(wish)
        assert {path.name for path in ruins.state.iterdir()} == {"engine.lock", "snapshots"}


@pytest.mark.parametrize("fate", ["sound", "with a snapshot", "from a file"])
async def test_a_dry_run_beside_the_daemon_never_fills_the_disk(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch, fate: str, counted: Counted
) -> None:
    wish = Wish(dry_run=True)
    if fate == "from a file":
        file = ruins.folder / "copy.sqlite3"
        shutil.copy(next(ruins.state.glob("snapshots/*")), file)
        wish = Wish(dry_run=True, snapshot=file)
    if fate != "sound":
        ruins.checkpoint.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, ROOM_BYTES))
    with pytest.raises(CheckpointError, match="no room"):
        await ruins.rebuild(wish)
    assert not list(ruins.state.glob("dry-run*"))
    if fate != "sound":
        await ruins.rebuild(Wish(snapshot=wish.snapshot))  # a real one takes what there is
    counted("fault cases")


async def test_an_older_schema_is_migrated_as_at_every_start(
    ruins: Ruins, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ruins.folder / "step.sql"
    step.write_text("ALTER TABLE copy ADD COLUMN of_this_test INTEGER;")
    migrations = (*database_module.MIGRATIONS, str(step))
    monkeypatch.setattr(database_module, "MIGRATIONS", migrations)
    monkeypatch.setattr("nvr_backup.snapshots.MIGRATIONS", migrations)
    rebuilt = await ruins.rebuild()
    assert rebuilt.inventories[0].known == 1
    ruins.checkpoint.unlink()
    rebuilt = await ruins.rebuild()  # of a snapshot of the older schema
    assert rebuilt.start.snapshot
    with closing(Database(ruins.state)) as database:
        assert await database.run(lambda db: db.execute("SELECT of_this_test FROM copy").fetchall())


async def test_a_state_folder_that_cannot_be_used_is_one_clear_error(ruins: Ruins) -> None:
    shutil.rmtree(ruins.state)
    ruins.state.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be used"):
        await ruins.rebuild()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_root_rebuilds_belongs_to_the_service(ruins: Ruins) -> None:
    """`sudo nvr-backup rebuild`: else the daemon could not open what it was told to wait for."""
    ruins.checkpoint.unlink()
    (ruins.state / "engine.lock").unlink()
    assert ruins.state.stat().st_uid == 0
    os.chown(ruins.state, 4711, 4712)
    await ruins.rebuild()
    for path in (ruins.checkpoint, ruins.state / "engine.lock"):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
        assert path.stat().st_mode & 0o777 == 0o600
