"""`once` over fakes: summary, exit code, cameras, the dry run that writes nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import CheckpointError
from nvr_backup.errors import Blocked, Suspect, Transient, Unfit
from nvr_backup.model import Clip
from tests.cli.kit import GARDEN, PORCH, Desk
from tests.support.fakes import FakeSource, FakeStore, mp4
from tests.support.wired import Wired


class Scene:
    """A desk whose recorder and store are fakes."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.desk = desk
        self.wired = Wired(desk.folder, monkeypatch)

    @property
    def source(self) -> FakeSource:
        return self.wired.source

    @property
    def store(self) -> FakeStore:
        return self.wired.store

    def record(self, hours: float, camera: object = PORCH) -> Clip:
        assert isinstance(camera, type(PORCH))
        start = self.desk.ago(hours)
        clip = Clip(camera, f"{camera.id}-{hours}", start, start + timedelta(seconds=10))
        return self.source.add(clip, mp4(5000, seed=int(hours * 7)))


@pytest.fixture
def scene(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(desk, monkeypatch)


def test_everything_stored_is_0(scene: Scene) -> None:
    clips = [scene.record(hours) for hours in (1, 2, 3)]
    answer = scene.desk("once")
    assert answer.code == 0
    assert "3 clips stored (15.0 kB in " in answer.out
    data = {scene.source.recordings[clip.id].data for clip in clips}
    assert {stored for _, stored in scene.store.objects.values()} == data
    again = scene.desk("once")
    assert again.code == 0
    assert "Nothing new" in again.out
    assert len(scene.store.objects) == 3


def test_json_alone_is_on_stdout_and_json_lines_on_stderr(scene: Scene) -> None:
    scene.record(1)
    answer = scene.desk("once", "--json")
    assert answer.json["stored"] == 1
    assert answer.json["stored_bytes"] == 5000
    assert answer.json["interrupted"] is False
    lines = [json.loads(line) for line in answer.err.splitlines()]
    assert "clip stored" in [line["message"] for line in lines]


def test_a_failed_clip_is_1_and_named_with_its_reason(scene: Scene) -> None:
    scene.record(1)
    scene.store.faults.arm("finish", Transient("The store hiccuped."))
    answer = scene.desk("once")
    assert answer.code == 1
    assert "1 clip failed, to be tried again:" in answer.out
    assert "Porch/" in answer.out
    assert "→ nas: The store hiccuped." in answer.out
    found = scene.desk("once", "--json")  # not due for half a minute: by hand it is tried anyway
    assert (found.code, found.json["stored"]) == (0, 1)


def test_a_set_aside_clip_is_1_once_and_remembered_after(scene: Scene) -> None:
    scene.record(1)
    scene.source.faults.arm("open", Unfit("The clip is gone."))
    answer = scene.desk("once", "--json")
    assert answer.code == 1
    assert [clip["reason"] for clip in answer.json["set_aside"]] == ["The clip is gone."]
    assert answer.json["set_aside_earlier"] == 0
    later = scene.desk("once")
    assert later.code == 0
    assert "1 clip set aside earlier" in later.out


def test_one_bad_clip_does_not_hide_the_good_ones(scene: Scene) -> None:
    scene.record(1)
    scene.record(2)
    scene.source.faults.arm("open", Suspect("An error page."))
    found = scene.desk("once", "--json")
    assert (found.code, found.json["stored"], len(found.json["failed"])) == (1, 1, 1)


@pytest.mark.parametrize("step", ["cameras", "clips"])
def test_an_unusable_source_is_69_with_its_remedy(scene: Scene, step: str) -> None:
    scene.record(1)
    scene.source.faults.arm(step, Blocked("Wrong password.", hint="Check it."))
    answer = scene.desk("once")
    assert answer.code == 69
    assert "sources.home cannot be used: Wrong password.\n  Check it." in answer.out
    assert scene.store.objects == {}


def test_an_unusable_store_is_69_and_its_clips_wait(scene: Scene) -> None:
    scene.record(1)
    scene.store.faults.arm("put", Blocked("No such bucket."))
    answer = scene.desk("once", "--json")
    assert answer.code == 69
    assert [part["part"] for part in answer.json["blocked"]] == ["stores.nas"]
    assert answer.json["waiting"] == 1


def test_a_camera_that_cannot_be_listed_is_1(scene: Scene) -> None:
    scene.record(1)
    scene.source.faults.arm("clips", Transient("Listing timed out."))
    answer = scene.desk("once")
    assert answer.code == 1
    assert "camera Porch not listed: Listing timed out." in answer.out


@pytest.mark.parametrize("name", ["garden", "GARDEN", "plugin:garden"])
def test_only_the_named_camera_is_listed_and_carried(scene: Scene, name: str) -> None:
    scene.desk.clip(4)  # of the porch, in the backlog
    scene.record(1)
    garden = scene.record(2, GARDEN)
    answer = scene.desk("once", "--camera", name, "--json")
    assert answer.code == 0
    assert answer.json["stored"] == 1
    assert [clip for clip, _ in scene.source.opened] == [garden.id]
    assert {camera for camera, _ in scene.source.windows} == {GARDEN.id}


def test_an_unknown_camera_is_2_and_names_those_there_are(scene: Scene) -> None:
    scene.record(1)
    scene.record(1, GARDEN)
    answer = scene.desk("once", "--camera", "porch", "--camera", "Cellar")
    assert answer.code == 2
    assert "'Cellar'. There are: Garden, Porch." in answer.err
    assert scene.store.objects == {}


def test_an_unknown_camera_of_an_unusable_source_is_69(scene: Scene) -> None:
    scene.source.faults.arm("cameras", Blocked("Unreachable."))
    answer = scene.desk("once", "--camera", "Cellar")
    assert answer.code == 69


def test_since_reaches_further_back_than_the_schedule(scene: Scene) -> None:
    old = scene.record(100)
    assert scene.desk("once", "--json").json["stored"] == 0
    assert scene.desk("once", "--since", "7d", "--json").json["stored"] == 1
    assert [clip for clip, _ in scene.source.opened] == [old.id]


def test_beside_an_engine_it_is_refused_with_75_and_the_remedy(scene: Scene) -> None:
    async def engine(_checkpoint: object) -> None:
        import asyncio

        answer = await asyncio.to_thread(scene.desk, "once")
        assert answer.code == 75
        assert "SIGUSR1" in answer.err

    scene.desk.engine(engine)


# -- the dry run ----------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def test_a_dry_run_names_what_is_new_and_writes_nothing(scene: Scene) -> None:
    scene.record(1)
    scene.record(2, GARDEN)
    before = everything(scene.desk.folder)
    answer = scene.desk("once", "--dry-run")
    assert answer.code == 0
    assert "2 new clips" in answer.out
    assert "Nothing was changed." in answer.out
    assert "Porch" in answer.out
    assert everything(scene.desk.folder) == before
    assert scene.store.objects == {}
    assert scene.source.opened == []


def test_a_dry_run_knows_what_the_checkpoint_knows(scene: Scene) -> None:
    scene.record(1)
    scene.desk("once")
    fresh = scene.record(0.5)
    checkpoint = scene.desk.state / "checkpoint.sqlite3"
    before = checkpoint.read_bytes()
    found = scene.desk("once", "--dry-run", "--json").json
    assert [clip["clip"] for clip in found["clips"]] == [fresh.id]
    assert checkpoint.read_bytes() == before


def test_a_dry_run_works_beside_an_engine(scene: Scene) -> None:
    scene.record(1)

    async def engine(_checkpoint: object) -> None:
        import asyncio

        answer = await asyncio.to_thread(scene.desk, "once", "--dry-run", "--json")
        assert (answer.code, answer.json["planned"]) == (0, 1)

    scene.desk.engine(engine)


def test_a_dry_run_of_an_unusable_source_is_69(scene: Scene) -> None:
    scene.source.faults.arm("cameras", Blocked("Unreachable."))
    answer = scene.desk("once", "--dry-run", "--json")
    assert answer.code == 69
    assert answer.json["blocked"][0]["reason"] == "Unreachable."


async def test_who_peeks_cannot_write(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    state = tmp_path / "state"
    empty = await Checkpoint.peek(state)
    assert await empty.last_cycle() is None
    empty.close()
    assert not state.exists()
    (await Checkpoint.open(state, now=now)).close()
    peeking = await Checkpoint.peek(state)
    with pytest.raises(CheckpointError):
        await peeking.record_cycle(now)
    peeking.close()
