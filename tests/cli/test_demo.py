"""The demo from within: the diary that makes clips the same every time, and new clips."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nvr_backup import demo
from nvr_backup.clock import SystemClock
from nvr_backup.database import EngineRunningError
from nvr_backup.demo import BACKLOG_PER_CAMERA, Diary, Recording, open_demo
from nvr_backup.engine import Engine
from nvr_backup.errors import ConfigError
from nvr_backup.model import from_ms
from nvr_backup.simulator import DEMO_CAMERAS
from tests.cli.kit import run

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
COUNT = BACKLOG_PER_CAMERA * len(DEMO_CAMERAS)


def test_a_day_of_recordings_that_are_all_over(tmp_path: Path) -> None:
    diary = Diary.begin(tmp_path, 1, NOW)
    assert len(diary.recordings) == COUNT == 72
    assert len({(one.camera, one.start_ms) for one in diary.recordings}) == COUNT
    for one in diary.recordings:
        start = from_ms(one.start_ms)
        assert NOW - timedelta(days=1) <= start
        assert start + timedelta(seconds=demo.CLIP_SECONDS) + demo.SETTLE <= NOW


def test_the_same_seed_is_the_same_day_and_another_another(tmp_path: Path) -> None:
    first = Diary.begin(tmp_path, 1, NOW).recordings
    assert Diary.begin(tmp_path, 1, NOW).recordings == first
    assert Diary.begin(tmp_path, 2, NOW).recordings != first


def test_the_diary_is_read_as_it_was_written(tmp_path: Path) -> None:
    diary = Diary.begin(tmp_path, 5, NOW)
    diary.write()
    more = Recording("porch", 1_770_000_000_000, 123_456)
    diary.add(more)
    for seed in (None, 5):
        read = Diary.read(tmp_path, seed)
        assert read is not None
        assert read.recordings == diary.recordings
        assert read.recordings[-1] == more


def test_a_line_that_a_crash_cut_off_is_forgotten_and_mended(tmp_path: Path) -> None:
    diary = Diary.begin(tmp_path, 1, NOW)
    diary.write()
    path = tmp_path / demo.DIARY_NAME
    path.write_text(path.read_text()[:-9])
    read = Diary.read(tmp_path, None)
    assert read is not None
    assert read.recordings == diary.recordings[:-1]
    read.write()
    read.add(diary.recordings[-1])
    again = Diary.read(tmp_path, None)
    assert again is not None
    assert again.recordings == diary.recordings


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", json.dumps({"seed": "x"})])
def test_what_is_no_diary_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / demo.DIARY_NAME).write_text(text)
    with pytest.raises(ConfigError, match="not the diary"):
        Diary.read(tmp_path, None)


def test_another_seed_needs_another_folder(tmp_path: Path) -> None:
    Diary.begin(tmp_path, 1, NOW).write()
    with pytest.raises(ConfigError, match="--seed 1"):
        Diary.read(tmp_path, 2)


def test_the_demo_is_not_pleased_with_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def idle(*_: object, **__: object) -> None:
        return

    monkeypatch.setattr(Engine, "once", idle)
    answer = run("demo", "--once", "--dir", str(tmp_path))
    assert answer.code == 1
    assert "72 clips not stored yet" in answer.out


async def test_new_clips_are_backed_up_as_they_come_and_kept_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LIVE_SECONDS", 0.2)
    monkeypatch.setattr(demo, "CYCLE", timedelta(seconds=1))
    monkeypatch.setattr(demo, "BACKLOG_PER_CAMERA", 1)
    clock = SystemClock()
    stop = asyncio.Event()
    async with (
        open_demo(tmp_path, seed=None, clock=clock, told=lambda _: None) as shown,
        asyncio.TaskGroup() as group,
    ):
        with pytest.raises(EngineRunningError):
            async with open_demo(tmp_path, seed=None, clock=clock, told=lambda _: None):
                pass
        running = group.create_task(shown.engine.run(stop))
        recording = group.create_task(shown.record(stop))
        while len(shown.verdict.identical) < 5:
            _ = [one async for one in shown.verify()]
            await asyncio.sleep(0.05)
        recording.cancel()
        stop.set()
        await running
        _ = [one async for one in shown.verify()]
        verdict = await shown.conclude()
        recorded = len(shown.nvr.catalogue.clips())
        assert (verdict.different, verdict.strays) == (set(), [])

    async with open_demo(tmp_path, seed=None, clock=clock, told=lambda _: None) as shown:
        assert len(shown.nvr.catalogue.clips()) == recorded
        await shown.settled()
        await shown.engine.once(asyncio.Event())
        compared = [one async for one in shown.verify()]
        assert (await shown.conclude()).perfect
        assert len(compared) == recorded
        assert len({one.key for one in compared}) == recorded


async def test_a_full_disk_of_the_simulated_nvr_ends_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(demo, "RECORDINGS_KEPT", 5)
    monkeypatch.setattr(demo, "BACKLOG_PER_CAMERA", 1)
    async with open_demo(tmp_path, seed=None, clock=SystemClock(), told=lambda _: None) as shown:
        await shown.record(asyncio.Event())
        assert len(shown.nvr.catalogue.clips()) == 5
