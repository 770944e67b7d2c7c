"""The catalogue: reproducible, ended before now, and true to every change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from nvr_backup.model import to_ms
from nvr_backup.simulator import STYLES, Catalogue, SimCamera, SimulatorSettings
from tests.support.clock import VirtualClock

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
ALL_STYLES = tuple(SimCamera(style, style=style) for style in STYLES)


def catalogue(settings: SimulatorSettings | None = None) -> Catalogue:
    return Catalogue(settings or SimulatorSettings(), VirtualClock(NOW))


def test_the_same_seed_gives_the_same_clips_and_another_others() -> None:
    one, two = (catalogue(SimulatorSettings(cameras=ALL_STYLES)) for _ in range(2))
    other = catalogue(SimulatorSettings(cameras=ALL_STYLES, seed=2))
    assert one.clips() == two.clips()
    assert [c.id for c in one.clips()] == [c.id for c in two.clips()]
    assert [c.content.digest() for c in one.clips()] == [c.content.digest() for c in two.clips()]
    assert [c.start_ms for c in one.clips()] != [c.start_ms for c in other.clips()]


@pytest.mark.parametrize("clips", [1, 6, 500])
def test_the_past_is_over_before_now_and_within_history(clips: int) -> None:
    settings = SimulatorSettings(clips_per_camera=clips, history=timedelta(hours=24))
    for camera in catalogue(settings).cameras:
        assert len(camera.clips) == clips
        assert camera.clips == sorted(camera.clips)
        assert camera.clips[0].start_ms >= to_ms(NOW - timedelta(hours=24))
        assert camera.clips[-1].end_ms <= to_ms(NOW)
        gaps = zip(camera.clips, camera.clips[1:], strict=False)
        assert all(a.end_ms <= b.start_ms for a, b in gaps)


def test_many_clips() -> None:
    nvr = catalogue(SimulatorSettings(cameras=(SimCamera("Porch", clips=0),)))
    nvr.add_many("Porch", 20_000)
    clips = nvr.clips("Porch")
    assert len({clip.id for clip in clips}) == len({clip.start_ms for clip in clips}) == 20_000
    assert clips[-1].end_ms <= to_ms(NOW)
    assert clips[0].start_ms == to_ms(NOW - timedelta(days=1))


def test_every_clip_has_other_bytes() -> None:
    nvr = catalogue(SimulatorSettings(cameras=ALL_STYLES))
    digests = {clip.content.digest().sha256 for clip in nvr.clips()}
    assert len(digests) == len(nvr.clips()) == 6 * len(STYLES)


def test_sizes_and_contents() -> None:
    cameras = (
        SimCamera("a", clips=1),
        SimCamera("b", clips=1, clip_size=100_000),
        SimCamera("c", clips=1, content="webm"),
        SimCamera("d", clips=1, content="sample"),
    )
    sizes = [
        clip.content.size
        for clip in catalogue(SimulatorSettings(cameras=cameras, clip_size=50_000)).clips()
    ]
    assert (sizes[0], sizes[1], sizes[3]) == (50_000, 100_000, 50_000)
    nvr = catalogue(SimulatorSettings(cameras=cameras))
    assert [clip.content.content_type for clip in nvr.clips()] == [
        "video/mp4",
        "video/mp4",
        "video/webm",
        "video/mp4",
    ]
    big = nvr.add_clip("a", size=20 * 1024**3, seconds=60)
    assert (big.content.size, big.end_ms) == (20 * 1024**3, to_ms(NOW))


@pytest.mark.parametrize("style", list(STYLES))
def test_removed_clips_and_old_versions(style: str) -> None:
    nvr = catalogue(SimulatorSettings(cameras=(SimCamera("Porch", style=style, clips=0),)))
    camera = nvr.camera("Porch")
    clip = nvr.add_clip("Porch")
    grown = nvr.grow_clip(clip)
    assert camera.clips == [grown]
    assert grown.duration_ms == 20_000
    changes = STYLES[style].ids in ("json", "name")
    assert (clip.id != grown.id) == changes
    assert camera.find(grown.id) is grown
    assert camera.find(clip.id) is (clip if changes else grown)
    assert nvr.by_serial(clip.serial) is (clip if changes else grown)
    assert (clip.serial == grown.serial) == (not changes)
    assert clip.content.read() != grown.content.read()
    nvr.remove_clip(grown)
    assert camera.clips == []
    assert camera.find(grown.id) is None
    assert nvr.by_serial(grown.serial) is None


def test_cameras_come_go_and_change_their_names() -> None:
    nvr = catalogue()
    told: list[tuple[str, str, str]] = []
    nvr.watchers.append(lambda what, camera, id_: told.append((what, camera.name, id_)))
    porch = nvr.camera("Porch")
    old_id, clips = porch.device_id, list(porch.clips)
    assert nvr.rename("Porch", "Front door").device_id == old_id
    gone = nvr.remove("Front door")
    with pytest.raises(KeyError):
        nvr.camera("Front door")
    assert nvr.device(old_id) is None
    back = nvr.re_add(gone)
    assert (back.native_id, back.name, back.clips) == ("porch", "Front door", clips)
    assert back.device_id not in (old_id, *(c.device_id for c in nvr.cameras[:-1]))
    assert told == [
        ("renamed", "Front door", old_id),
        ("removed", "Front door", old_id),
        ("added", "Front door", back.device_id),
    ]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no style 'vhs'"):
        SimCamera("Porch", style="vhs")
    twins = (SimCamera("a", native_id="x"), SimCamera("b", native_id="x"))
    with pytest.raises(ValueError, match="nativeId x"):
        catalogue(SimulatorSettings(cameras=twins))
    with pytest.raises(ValueError, match="write_size"):
        SimulatorSettings(write_size=300_000)
