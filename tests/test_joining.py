"""Clips joined by ffmpeg: all of them or nothing, and never what would not play."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nvr_backup import joining
from nvr_backup.footage import Holding, Place
from nvr_backup.joining import Tools, Unjoinable, find_tools, join, to_join
from nvr_backup.landing import Landing
from nvr_backup.layout import lay_out
from nvr_backup.model import Camera, Clip
from nvr_backup.restore import Restored
from nvr_backup.simulator.media import sample
from tests.support.fakes import clip_at

TOOLS = find_tools()
needs_ffmpeg = pytest.mark.skipif(TOOLS is None, reason="ffmpeg is not installed")
CAMERA = Camera("home", "1", "It's a door")


@pytest.fixture
def landing(tmp_path: Path) -> Iterator[Landing]:
    made = Landing(tmp_path / "out")
    made.open()
    yield made
    made.close()


def restored(
    landing: Landing, clips: list[Clip], *data: bytes, key: str = "k.mp4"
) -> list[Restored]:
    holdings = [Holding(clip, (Place("nas", key, 1, 1, None, "store"),)) for clip in clips]
    found = []
    for target, content in zip(lay_out(holdings), data, strict=True):
        path = landing.path / target.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        place = target.holding.places[0]
        found.append(Restored(target, place, len(content), 1, "", checked=True, already=False))
    return found


def clips(number: int) -> list[Clip]:
    return [clip_at(minute, camera=CAMERA) for minute in range(number)]


def seconds(path: Path) -> float:
    assert TOOLS is not None
    command = (TOOLS.ffprobe, "-v", "error", "-of", "csv=p=0", "-show_entries", "format=duration")
    return float(subprocess.run([*command, path], capture_output=True, check=True).stdout)


def frames(path: Path) -> list[str]:
    """The checksum of every decoded picture."""
    assert TOOLS is not None
    command = (TOOLS.ffmpeg, "-v", "error", "-i", path, "-map", "0:v", "-f", "framemd5", "-")
    out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return [line.split(",")[-1].strip() for line in out.splitlines() if not line.startswith("#")]


@needs_ffmpeg
async def test_a_cameras_clips_become_one_with_every_picture(landing: Landing) -> None:
    assert TOOLS is not None
    made = restored(landing, clips(3), *[sample("mp4")] * 3)
    found = await join(landing, TOOLS, made)
    path = landing.path / found.file
    assert found.file == ("It's a door_2026-01-01_00-00-00Z_to_2026-01-01_00-02-10Z (3 clips).mp4")
    one = landing.path / made[0].target.path
    assert frames(path) == frames(one) * 3
    assert abs(seconds(path) - 3 * seconds(one)) < 0.5
    assert (found.clips, found.size, found.already) == (3, path.stat().st_size, False)
    assert (await join(landing, TOOLS, made)).already
    assert sorted(each.name for each in landing.path.iterdir()) == ["It's a door", found.file]


@needs_ffmpeg
async def test_clips_of_different_shapes_are_not_joined(landing: Landing) -> None:
    assert TOOLS is not None
    other = landing.path / "other.mp4"
    made_of = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=5:duration=1", "-c:v", "mpeg4")
    subprocess.run([TOOLS.ffmpeg, "-v", "error", *made_of, str(other)], check=True)
    content = other.read_bytes()
    other.unlink()
    made = restored(landing, clips(2), sample("mp4"), content)
    with pytest.raises(Unjoinable, match=r"00-01-00Z\.mp4 is mpeg4 64x48.*00-00-00Z\.mp4 is h264"):
        await join(landing, TOOLS, made)
    assert [each.name for each in landing.path.iterdir()] == ["It's a door"]


@needs_ffmpeg
async def test_what_is_no_video_is_said_by_name(landing: Landing) -> None:
    assert TOOLS is not None
    made = restored(landing, clips(2), sample("mp4"), b"no video")
    with pytest.raises(Unjoinable, match=r"ffprobe cannot read .*00-01-00Z\.mp4"):
        await join(landing, TOOLS, made)


@needs_ffmpeg
async def test_different_containers_are_not_joined(landing: Landing) -> None:
    assert TOOLS is not None
    made = restored(landing, clips(1), sample("mp4"))
    made += restored(landing, [clip_at(9, camera=CAMERA)], sample("ts"), key="k.ts")
    with pytest.raises(Unjoinable, match=r"different kinds \(\.mp4, \.ts\)"):
        await join(landing, TOOLS, made)


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["ts", "webm"])
async def test_other_containers_are_joined_too(landing: Landing, kind: str) -> None:
    assert TOOLS is not None
    made = restored(landing, clips(2), *[sample(kind)] * 2, key=f"k.{kind}")
    found = await join(landing, TOOLS, made)
    path = landing.path / found.file
    assert len(frames(path)) == 2 * len(frames(landing.path / made[0].target.path))


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("ffmpeg", "reason"),
    [
        ("echo 'No space left on device' >&2; exit 1", "ffmpeg failed: No space left on device"),
        ("exit 3", "ffmpeg failed: it does not say why"),
        ('for last; do :; done; echo short > "${last#file:}"', "what ffmpeg made of them lasts"),
    ],
)
async def test_a_failure_of_ffmpeg_leaves_nothing(
    landing: Landing, tmp_path: Path, ffmpeg: str, reason: str
) -> None:
    probe = 'case "$*" in *.part) d=1;; *) d=60;; esac; '
    probe += """printf '{"streams":[{"codec_type":"video"}],"format":{"duration":"%s"}}' $d"""
    tools = Tools(script(tmp_path, "ffmpeg", ffmpeg), script(tmp_path, "ffprobe", probe))
    made = restored(landing, clips(2), b"a", b"b")
    with pytest.raises(Unjoinable, match=reason):
        await join(landing, tools, made)
    assert [each.name for each in landing.path.iterdir()] == ["It's a door"]


async def test_a_program_that_says_nothing_is_given_up(
    landing: Landing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "PROBE_SECONDS", 0.05)
    silent = script(tmp_path, "ffprobe", "exec sleep 600")
    made = restored(landing, clips(2), b"a", b"b")
    with pytest.raises(Unjoinable, match="ffprobe says nothing"):
        await join(landing, Tools(silent, silent), made)


async def test_no_room_is_said_before_anything_is_written(
    landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Landing, "free_bytes", lambda _: 1)
    with pytest.raises(Unjoinable, match="has no room for 2 bytes more"):
        await join(landing, Tools("/none", "/none"), restored(landing, clips(2), b"a", b"b"))


def test_by_camera_in_order_of_several_versions_the_longest(landing: Landing) -> None:
    short, long = clip_at(0, seconds=5), clip_at(0, seconds=9)
    later = replace(clip_at(1), start=clip_at(1).start + timedelta(milliseconds=1))
    made = restored(landing, [later, short, long, clip_at(0, camera=CAMERA)], *[b"x"] * 4)
    found = to_join(made)
    assert list(found) == ["It's a door", "Porch"]
    assert [one.target.holding.clip for one in found["Porch"]] == [long, later]
