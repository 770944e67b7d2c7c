"""`restore` at the command line: what it says, its exit codes, and that it reads only."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import google_crc32c
import pytest
from rich.console import Console

from nvr_backup.cli import restoring
from nvr_backup.cli.restoring import drawing
from nvr_backup.errors import Blocked
from nvr_backup.evidence import Manifest
from nvr_backup.footage import Holding, Place
from nvr_backup.keys import DEFAULT_TEMPLATE, object_key
from nvr_backup.layout import lay_out
from nvr_backup.metadata import describe
from nvr_backup.model import Camera, Clip, StoredObject, Window
from nvr_backup.restore import Progress, Running
from tests.cli.kit import GARDEN, PORCH, Answer, Desk
from tests.cli.test_docs import section
from tests.support.fakes import FakeStore, clip_at, mp4


class Scene:
    """A desk whose store is in memory, and what must come out of it."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.desk = desk
        self.stores = {"nas": FakeStore()}
        self.used: dict[str, bool] = {}
        self.into = desk.folder / "out"

        @asynccontextmanager
        async def open_store(
            name: str, *_: object, used_before: bool, **__: object
        ) -> AsyncIterator[FakeStore]:
            self.used[name] = used_before
            yield self.stores[name]

        monkeypatch.setattr(restoring, "open_store", open_store)

    @property
    def store(self) -> FakeStore:
        return self.stores["nas"]

    def put(self, hours: float, camera: Camera = PORCH, size: int = 5000) -> tuple[Clip, bytes]:
        start = self.desk.ago(hours)
        clip = Clip(camera, f"{camera.id}-{hours}", start, start + timedelta(seconds=20))
        data = mp4(size, seed=int(hours * 10))
        key = object_key(DEFAULT_TEMPLATE, clip)
        stored = StoredObject(
            key, len(data), google_crc32c.value(data), "7", "video/mp4", describe(clip)
        )
        self.store.objects[key] = (stored, data)
        return clip, data

    def __call__(self, *arguments: str, since: str = "24h") -> Answer:
        return self.desk("restore", "--from", since, "--into", str(self.into), *arguments)

    def files(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.into.rglob("*.mp4"))]


@pytest.fixture
def scene(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(desk, monkeypatch)


def test_all_that_is_there_is_0(scene: Scene) -> None:
    data = [scene.put(hours)[1] for hours in (3, 2, 1)]
    scene.put(40)
    answer = scene()
    assert answer.code == 0
    assert "3 clips restored into " in answer.out
    assert "Each has the checksum it was stored with." in answer.out
    assert re.search(r"^Porch +3 +15.0 kB  20", answer.out, re.MULTILINE)
    assert scene.files() == data
    again = scene()
    assert again.code == 0
    assert "0 clips restored" in again.out
    assert "3 were there already" in again.out


def test_without_a_checkpoint_the_stores_are_listed_and_that_is_said(scene: Scene) -> None:
    scene.put(1)
    answer = scene("--json")
    assert answer.code == 0
    assert "There is no checkpoint" in answer.err
    assert "The stores are listed instead." in answer.err
    assert (answer.json["restored"], answer.json["from_checkpoint"]) == (1, [])
    assert scene.used == {"nas": False}
    assert "no checkpoint" not in scene("--no-checkpoint").err


def test_with_a_checkpoint_it_is_asked(scene: Scene) -> None:
    clip = scene.desk.clip(30)
    scene.desk.store()
    assert clip.camera == PORCH
    answer = scene("--json", since="29h")
    assert answer.code == 1  # nothing within that time
    assert answer.json["from_checkpoint"] == ["nas"]
    assert scene.used == {"nas": True}
    assert not scene.store.listings
    assert not scene.into.exists()


def test_a_damaged_checkpoint_is_no_obstacle(scene: Scene) -> None:
    scene.put(1)
    scene.desk.clip(30)
    path = scene.desk.state / "checkpoint.sqlite3"
    path.write_bytes(b"x" * 10_000)
    answer = scene()
    assert answer.code == 0
    assert "The stores are listed instead." in answer.err
    assert path.read_bytes() == b"x" * 10_000


def test_a_missing_clip_is_1_and_named_with_reason_and_remedy(scene: Scene) -> None:
    good, (clip, data) = scene.put(2)[1], scene.put(1)
    key = object_key(DEFAULT_TEMPLATE, clip)
    told = scene.store.objects[key][0]
    scene.store.objects[key] = (told, data[:-1] + b"?")
    answer = scene()
    assert answer.code == 1
    assert "1 clip restored" in answer.out
    assert "1 clip is missing:\n  Porch/" in answer.out
    assert f"The object '{key}' is damaged: its CRC32C is" in answer.out
    assert "What came of it is kept: Porch/" in answer.out
    assert scene.files() == [good, data[:-1] + b"?"]
    assert [path.name.count(".damaged") for path in sorted(scene.into.rglob("*.mp4"))] == [0, 1]


def test_another_file_of_that_name_is_1(scene: Scene) -> None:
    clip, data = scene.put(1)
    path = scene.into / "Porch" / f"{clip.start:%Y-%m-%d_%H-%M-%S}Z.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(data[::-1])
    answer = scene()
    assert answer.code == 1
    assert "Another file has its name" in answer.out
    assert "Move it away" in answer.out
    assert path.read_bytes() == data[::-1]


def test_nothing_of_that_time_is_1_and_makes_no_folder(scene: Scene) -> None:
    scene.put(40)
    answer = scene()
    assert answer.code == 1
    assert "There is no clip from " in answer.out
    assert not scene.into.exists()
    found = scene("--camera", "porch", since="48h")
    assert found.code == 0
    other = scene("--camera", "attic", since="48h")
    assert other.code == 1
    assert "There is no clip of attic from " in other.out
    assert "At that time there are clips of: Porch" in other.out


def test_a_camera_that_the_checkpoint_does_not_know_either_is_2(scene: Scene) -> None:
    scene.put(1)
    scene.desk.clip(30)
    scene.desk.store()
    answer = scene("--camera", "attic")
    assert answer.code == 2
    assert "There is no camera 'attic'. There are: Porch." in answer.err
    known = scene("--camera", "PORCH")
    assert known.code == 1
    assert "Going by the checkpoint" in known.out
    assert scene("--camera", "PORCH", "--no-checkpoint").code == 0


def test_one_camera_of_several(scene: Scene) -> None:
    scene.put(2)
    garden = scene.put(1, GARDEN)[1]
    assert scene("--camera", "plugin:GARDEN").code == 0
    assert scene.files() == [garden]


def test_a_store_that_is_away_is_69(scene: Scene) -> None:
    scene.put(1)
    scene.store.faults.arm("list", Blocked("It is away.", hint="Mount it."))
    answer = scene()
    assert answer.code == 69
    assert answer.err.endswith("nvr-backup: It is away.\n  Mount it.\n")


def test_a_store_that_fails_on_the_way_is_said_once(scene: Scene) -> None:
    for hours in range(1, 9):
        scene.put(hours)
    scene.store.faults.arm("read", *[Blocked("No permission.", hint="Grant it.")] * 8)
    answer = scene()
    assert answer.code == 69
    assert "stores.nas cannot be used: No permission.\n  Grant it." in answer.out
    assert "8 clips are missing:" in answer.out
    log = [json.loads(line) for line in answer.err.splitlines() if line.startswith("{")]
    assert [line["message"] for line in log].count("store failed") == 1
    assert 3 <= len(log) <= 5  # those that were on their way


def test_one_of_two_stores_away_is_1_and_the_rest_comes(scene: Scene) -> None:
    scene.desk.configure(
        scene.desk.config.read_text() + '[stores.usb]\nkind = "directory"\npath = "usb"\n'
    )
    scene.stores["usb"] = FakeStore()
    data = scene.put(1)[1]
    scene.stores["usb"].faults.arm("list", Blocked("It is away.", hint="Mount it."))
    answer = scene()
    assert answer.code == 1
    assert "stores.usb could not be listed: It is away.\n  Mount it." in answer.out
    assert scene.files() == [data]
    assert scene("--store", "nas").code == 0


def test_a_folder_that_cannot_be_written_is_73(scene: Scene) -> None:
    scene.put(1)
    scene.into.write_bytes(b"")
    answer = scene()
    assert answer.code == 73
    assert "is no folder" in answer.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "2020-01-01"), "--from must be before --to"),
        (("--to", "soon"), "--to 'soon' is neither a time such as"),
        (("--from", "yesterday"), "--from 'yesterday' is neither"),
        (("--store", "cellar"), "There is no store 'cellar'. There are: nas."),
    ],
)
def test_what_cannot_be_meant_is_2(scene: Scene, arguments: tuple[str, ...], text: str) -> None:
    answer = scene(*arguments)
    assert answer.code == 2
    assert text in answer.err


@pytest.mark.parametrize("below", [".", "deeper/down"])
def test_a_store_is_no_place_to_restore_into(scene: Scene, below: str) -> None:
    scene.put(1)
    answer = scene("--into", str(scene.desk.folder / "nas" / below))
    assert answer.code == 2
    assert "lies in the store 'nas', which is only read" in answer.err
    assert list((scene.desk.folder / "nas").iterdir()) == []


@pytest.mark.parametrize(
    ("begin", "end", "first", "after"),
    [
        ("2026-03-01", "2026-03-01", "2026-03-01T00:00", "2026-03-02T00:00"),
        ("2026-03-01T17:20", "2026-03-01 18:20", "2026-03-01T17:20", "2026-03-01T18:21"),
        ("2026-03-01T17:20:05+01:00", "2026-03-01T17:00:00Z", "2026-03-01T16:20:05",
         "2026-03-01T17:00:01"),
    ],
)  # fmt: skip
def test_a_day_or_a_minute_counts_as_a_whole(
    scene: Scene, begin: str, end: str, first: str, after: str
) -> None:
    found = scene("--to", end, "--dry-run", "--json", since=begin).json
    assert found["from"].startswith(first)
    assert found["to"].startswith(after)


def test_a_dry_run_writes_nothing(scene: Scene) -> None:
    clip, _ = scene.put(1)
    answer = scene("--dry-run")
    assert answer.code == 0
    assert "1 clip (5.0 kB) would be restored." in answer.out
    found = scene("--dry-run", "--json").json
    assert found["clips"][0]["file"].startswith("Porch/20")
    assert found["clips"][0]["key"] == object_key(DEFAULT_TEMPLATE, clip)
    assert not scene.into.exists()
    assert not scene.store.reads


def test_the_store_alone_is_configuration_enough(scene: Scene) -> None:
    scene.desk.configure('[stores.nas]\nkind = "directory"\npath = "nas"\n')
    data = scene.put(1)[1]
    assert scene("--no-checkpoint").code == 0
    assert scene.files() == [data]


def test_a_mistake_in_a_source_does_not_matter_one_in_a_store_does(scene: Scene) -> None:
    scene.put(1)
    text = scene.desk.config.read_text()
    scene.desk.configure(text.replace('password = "hunter2"', "pasword = 1"))
    assert scene().code == 0
    scene.desk.configure(text.replace('path = "nas"', 'pth = "nas"'))
    answer = scene()
    assert answer.code == 78
    assert "stores.nas" in answer.err


def test_the_manifest_names_what_is_there_and_what_is_not(scene: Scene) -> None:
    good, data = scene.put(2)
    clip, _ = scene.put(1)
    del scene.store.objects[object_key(DEFAULT_TEMPLATE, clip)]
    clip, bad = scene.put(3)
    key = object_key(DEFAULT_TEMPLATE, clip)
    scene.store.objects[key] = (scene.store.objects[key][0], bad[::-1])
    answer = scene("--manifest", "--json")
    assert answer.code == 1
    manifest = json.loads((scene.into / answer.json["manifest"]).read_text())
    assert manifest["stores"] == {"nas": str(scene.desk.folder / "nas")}
    assert [one["key"] for one in manifest["missing"]] == [key]
    (one,) = manifest["clips"]
    assert one["size"] == len(data)
    assert one["crc32c"] == f"{google_crc32c.value(data):08x}"
    assert one["start"] == good.start.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert (one["store"], one["generation"], one["checked_against"]) == ("nas", "7", "store")
    assert one["key"] == object_key(DEFAULT_TEMPLATE, good)
    again = scene("--manifest", "--json")
    assert again.json["manifest"] not in {None, answer.json["manifest"]}


def test_an_empty_manifest_is_json_too() -> None:
    begin = clip_at(0).start
    manifest = Manifest(begin, Window(begin, begin + timedelta(hours=1)), {}, [], [])
    assert json.loads(b"".join(manifest.pieces()))["clips"] == []


def test_without_ffmpeg_the_clips_come_and_that_is_said(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = scene.put(1)[1]
    monkeypatch.setattr(restoring, "find_tools", lambda: None)
    answer = scene("--concat")
    assert answer.code == 1
    assert "Not joined: all cameras: ffmpeg and ffprobe are not installed here" in answer.out
    assert scene.files() == [data]


def test_the_keys_of_the_result_are_documented(scene: Scene) -> None:
    scene.put(1)
    scene.put(2)
    scene.store.faults.arm("read", Blocked("x"))
    found = scene("--json").json
    text = section("restore")
    dry = scene("--dry-run", "--json").json
    for key in [*found, *found["missing"][0], *dry, *dry["clips"][0]]:
        assert f"`{key}`" in text, key


def test_text_in_a_pipe_is_plain_and_log_lines_are_json(scene: Scene) -> None:
    scene.put(1)
    answer = scene("--no-checkpoint")
    assert "\x1b" not in answer.out + answer.err
    messages = [json.loads(line)["message"] for line in answer.err.splitlines()]
    assert messages == ["clip restored"]


def test_the_picture_fits_a_terminal(tmp_path: Path) -> None:
    camera = Camera("home", "1", "A camera with a name that never ends, ever")
    clips = [clip_at(minute, camera=camera) for minute in range(12)]
    place = Place("nas", "k.mp4", 9_999_999_999, 1, None, "store")
    targets = lay_out([Holding(clip, (place,)) for clip in clips])
    progress = Progress(total=123_456, total_bytes=1, received=9_876_543_210_000)
    for at, target in enumerate(targets):
        progress.running[target.path] = Running(target, float(at), received=9_999_999_998)
    out = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    out.print(drawing(progress, "Restoring", 123_456_789.0))
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 10
    assert all(len(line.rstrip()) <= 78 for line in lines)
    assert "0 of 123,456 clips" in lines[0]
    assert "123.5 MB/s" in lines[0]
    assert "…" in lines[1]
    assert "and 4 more" in lines[-1]
