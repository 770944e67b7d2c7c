"""A lost or damaged checkpoint, as an operator meets it: real processes, both kinds of stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Counted
from tests.process.parts import Backup, Nvr, Store, call, gcs_double, process, simulated_nvr
from tests.process.test_end_to_end import held, in_folder, truth

pytestmark = [pytest.mark.process, pytest.mark.long]

LOGS = ("-wal", "-shm")
CREATE, GET, LIST = "storage.objects.create", "storage.objects.get", "storage.objects.list"


@dataclass
class House:
    """A recorder, a store of either kind and the program, all clips stored."""

    nvr: Nvr
    store: Store | None
    backup: Backup

    @property
    def state(self) -> Path:
        return self.backup.folder / "state"

    @property
    def checkpoint(self) -> Path:
        return self.state / "checkpoint.sqlite3"

    def stored(self) -> Counter[str]:
        return held(self.store.objects()) if self.store else in_folder(self.backup.footage)

    def sent(self) -> object:
        """Changes whenever a store is sent a byte of a clip, or a file of a folder is touched."""
        if self.store is not None:
            return sum(
                seen["body_bytes"] for seen in self.store.journal() if seen["where"] != "token"
            )
        files = sorted(self.backup.footage.rglob("*.mp4"))
        return [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in files]

    def watermarks(self) -> dict[str, str]:
        status = json.loads(self.backup.command("status", "--json").stdout)
        return {camera["camera_id"]: camera["safe_until"] for camera in status["cameras"]}

    def rebuild(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.backup.command("rebuild", "--json", *arguments)
        assert done.returncode == code, done.stderr + done.stdout
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def nothing_new(self, marks: dict[str, str], sent: object) -> None:
        """A cycle stores nothing, and afterwards everything is as safe as it was."""
        result, _ = self.backup.once()
        assert (result["stored"], result["stored_bytes"], result["waiting"]) == (0, 0, 0)
        assert self.sent() == sent
        after = self.watermarks()
        assert after.keys() == marks.keys()
        assert all(after[camera] >= marks[camera] for camera in marks)
        assert self.stored() == truth(self.nvr)


@contextmanager
def at_home(
    folder: Path, kind: str, *, cameras: int = 2, clips: int = 4, key_file: Path | None = None
) -> Iterator[House]:
    with ExitStack() as stack:
        sizes = ("--style", "href", "--clip-size", "4096")
        counts = ("--cameras", str(cameras), "--clips", str(clips))
        nvr = stack.enter_context(simulated_nvr(*counts, *sizes))
        store: Store | None = None
        if kind == "gcs":
            account = () if key_file is None else ("--auth", "--service-account", str(key_file))
            store = stack.enter_context(gcs_double(*account))
        tables = {"transfer": {"workers": 16}}
        url = "" if store is None else store.url
        backup = Backup(folder, nvr, url, tables=tables, credentials=key_file)
        backup.once()
        house = House(nvr, store, backup)
        assert house.stored() == truth(nvr)
        assert house.stored().total() == cameras * clips
        yield house


@pytest.fixture(params=["gcs", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def garble(path: Path) -> None:
    """Overwrite a page in the middle of the file, as a bad sector does."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))


def test_a_deleted_checkpoint_comes_back_from_the_store(
    tmp_path: Path, kind: str, counted: Counted
) -> None:
    with at_home(tmp_path, kind, cameras=5, clips=100) as house:
        marks, sent = house.watermarks(), house.sent()
        shutil.rmtree(house.state)
        dry = house.rebuild("--dry-run")
        assert (dry["dry_run"], dry["stores"][0]["added"]) == (True, 500)
        assert not house.state.exists()

        rebuilt = house.rebuild()
        (found,) = rebuilt["stores"]
        assert (rebuilt["basis"], found["objects"], found["added"]) == ("nothing", 500, 500)
        house.nothing_new(marks, sent)
        again = house.rebuild()
        assert (again["basis"], again["stores"][0]["known"]) == ("checkpoint", 500)
        house.nothing_new(marks, sent)
    counted("fault cases")


def test_a_damaged_checkpoint_stays_until_the_one_command_is_run(
    tmp_path: Path, kind: str, counted: Counted
) -> None:
    with at_home(tmp_path, kind) as house:
        marks, sent = house.watermarks(), house.sent()
        snapshots = list((house.state / "snapshots").iterdir())
        assert len(snapshots) == 1
        assert snapshots[0].stat().st_mode & 0o777 == 0o600
        garble(house.checkpoint)
        damaged = house.checkpoint.read_bytes()
        before = [*house.state.iterdir()]
        for command in ("run", "once", "run"):
            refused = house.backup.command(command)
            assert refused.returncode == 65, refused.stderr
            assert "damaged" in refused.stderr
            assert "`nvr-backup rebuild`" in refused.stderr
            assert house.checkpoint.read_bytes() == damaged
        # SQLite's own traces of having looked: an index, and an empty log.
        log, index = (house.checkpoint.with_name(f"{house.checkpoint.name}{s}") for s in LOGS)
        assert not log.exists() or not log.stat().st_size
        assert {*house.state.iterdir()} - {log, index} == {*before} - {log, index}

        rebuilt = house.rebuild()
        assert rebuilt["basis"] == "snapshot"
        assert rebuilt["snapshot"] == str(snapshots[0])
        (kept,) = map(Path, rebuilt["kept"])
        assert kept.name.startswith("checkpoint.sqlite3.damaged-20")
        assert kept.read_bytes() == damaged
        house.nothing_new(marks, sent)
    counted("fault cases")


def test_what_was_waiting_or_set_aside_is_planned_again(
    tmp_path: Path, kind: str, counted: Counted
) -> None:
    with at_home(tmp_path, kind) as house:
        name = house.nvr.ask("state")["cameras"][0]["name"]
        house.nvr.do("clips", camera=name, count=2)
        house.nvr.do("faults", name="early_end", times=1)
        house.backup.once(code=1)
        assert house.nvr.happened("early_end") == 1
        assert house.stored().total() == 9
        shutil.rmtree(house.state)
        house.rebuild()
        result, _ = house.backup.once()
        assert result["stored"] == 1
        assert house.stored() == truth(house.nvr)
    counted("fault cases")


def test_objects_without_metadata_are_known_by_key_and_size(
    tmp_path: Path, counted: Counted
) -> None:
    with at_home(tmp_path, "directory") as house:
        marks, sent = house.watermarks(), house.sent()
        shutil.rmtree(house.state)
        shutil.rmtree(house.backup.footage / ".nvr-backup" / "objects")
        cut = sorted(house.backup.footage.rglob("*.mp4"))[0]
        whole = cut.read_bytes()
        cut.write_bytes(whole[:-1])  # under the right key, but not the clip
        (found,) = house.rebuild()["stores"]
        assert (found["matched"], found["unmatched"]) == (7, 1)
        result, _ = house.backup.once()
        assert result["stored"] == 1
        assert cut.read_bytes() == whole[:-1]
        cut.unlink()
        assert house.stored() == truth(house.nvr)
        assert house.watermarks().keys() == marks.keys()
        assert sent != house.sent()
    counted("fault cases")


def test_a_store_that_must_not_be_listed_gets_no_clip_twice(
    tmp_path: Path, counted: Counted
) -> None:
    """A key that may only create: what is there is found out by trying."""
    key_file = tmp_path / "gcs.json"
    with at_home(tmp_path, "gcs", key_file=key_file) as house:
        assert house.store is not None
        call(f"{house.store.url}/_double/permissions", {"permissions": [CREATE]})
        shutil.rmtree(house.state)
        rebuilt = house.rebuild(code=1)
        assert LIST in rebuilt["stores"][0]["not_listed"]
        before = house.store.objects()
        result, _ = house.backup.once()
        assert result["stored"] == 8
        assert house.store.objects() == before
        clips = json.loads(house.backup.command("clips", "--json").stdout)
        assert {clip["verified"] for clip in clips} == {False}

        name = house.nvr.ask("state")["cameras"][0]["name"]
        house.nvr.do("clips", camera=name, count=1)
        result, _ = house.backup.once()
        assert result["stored"] == 1
        assert house.stored() == truth(house.nvr)
    counted("fault cases")


def test_a_store_that_is_away_changes_nothing_unless_it_is_left_out(
    tmp_path: Path, counted: Counted
) -> None:
    with at_home(tmp_path, "directory") as house:
        house.checkpoint.unlink()
        away = tmp_path / "away"
        house.backup.footage.rename(away)
        refused = house.backup.command("rebuild", "--no-snapshot")
        assert refused.returncode == 69
        assert "--without offsite" in refused.stderr
        assert house.backup.command("run").returncode == 65  # never as if it were new
        house.rebuild("--no-snapshot", "--without", "offsite", code=1)
        away.rename(house.backup.footage)
        house.backup.once()  # every clip meets its own object
        assert house.stored() == truth(house.nvr)
    counted("fault cases")


def test_a_rebuild_that_was_killed_is_run_again(tmp_path: Path, counted: Counted) -> None:
    with at_home(tmp_path, "gcs") as house:
        assert house.store is not None
        marks, sent = house.watermarks(), house.sent()
        shutil.rmtree(house.state / "snapshots")
        garble(house.checkpoint)
        damaged = house.checkpoint.read_bytes()
        house.store.fault(where="list", what="Stall")
        seen = len(house.store.journal())
        with process("nvr_backup", "rebuild", "--config", str(house.backup.config)) as running:
            while len(house.store.journal()) == seen:
                assert running.poll() is None
            assert house.checkpoint.read_bytes() == damaged
            running.send_signal(signal.SIGKILL)
            running.wait()
        assert house.checkpoint.read_bytes() == damaged
        assert house.backup.command("once").returncode == 65
        rebuilt = house.rebuild()
        assert Path(rebuilt["kept"][0]).read_bytes() == damaged
        house.nothing_new(marks, sent)
        assert not [path for path in house.state.iterdir() if "rebuilding" in path.name]
    counted("crash points")


def test_beside_the_daemon_it_refuses(tmp_path: Path) -> None:
    with at_home(tmp_path, "directory") as house, house.backup.daemon() as daemon:
        daemon.until_said("cycle finished")
        assert house.backup.command("rebuild").returncode == 75
        dry = house.rebuild("--dry-run")
        assert dry["stores"][0]["known"] == 8
        daemon.signal(signal.SIGTERM)
        assert daemon.end() == 0
