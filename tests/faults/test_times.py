"""Clips at odd times: a recorder whose clock is off, clips across windows, clips in the making.

Each case has a rig of its own: a clip of this very moment moves what is listed away from the past.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import Counted
from tests.faults.rig import CAMERAS, CHUNK, KINDS, RANGED, STREAM, Kind, rig

pytestmark = [pytest.mark.process, pytest.mark.long]

SMALL = CHUNK - 1000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def now_ms() -> int:
    return int(time.time() * 1000)


def iso(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z"


def test_a_recorder_whose_clock_is_ahead(tmp_path: Path, counted: Counted) -> None:
    """It is said once for each camera, and once that it is over; other clips go on."""
    with rig("directory", tmp_path) as made:
        made.begin()
        later = [
            made.film(camera, size=SMALL, start_ms=now_ms() + hours * HOUR_MS)
            for camera, hours in zip(CAMERAS, (1, 2, 12, 14), strict=True)
        ]
        made.filmed.clear()
        made.film(RANGED, size=SMALL)
        made.settle()
        made.cycle()
        told = made.said("clips from the future")
        assert {line["camera"] for line in told} == set(CAMERAS)
        assert all("clock" in line["hint"] for line in told)
        assert made.keys_of(*(clip.id for clip in later)) == []
        for clip in later:
            made.nvr.do("remove-clip", camera=clip.camera, clip=clip.id)
        made.cycle()
        assert len(made.said("clocks agree again")) == len(CAMERAS)
        made.settled(told={"clips from the future": len(CAMERAS)})
    counted("fault cases", len(CAMERAS))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_that_are_still_being_made(tmp_path: Path, kind: Kind, counted: Counted) -> None:
    """Their ends lie ahead of us: they are stored when they have ended, and only then."""
    with rig(kind, tmp_path) as made:
        made.begin()
        start_ms = now_ms() - 3000
        clips = [made.film(name, size=SMALL, start_ms=start_ms, seconds=6) for name in CAMERAS]
        made.nudge(at_once=True)
        made.settle()
        ended = iso(min(clip.end_ms for clip in clips))
        assert all(line["time"] >= ended for line in made.said("clip started"))
        assert made.said("cycle listed")[0]["time"] < ended, "none was listed too early"
        made.settled()
    counted("fault cases", len(clips))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_that_lie_across_windows(tmp_path: Path, kind: Kind, counted: Counted) -> None:
    """Of each camera a clip across the beginning of the backfill, some across the days, and others
    within and beside them; each that ended within the backfill is taken once."""
    table = {"schedule": {"backfill": "60h"}}
    with rig(kind, tmp_path, start=False, tables=table) as made:
        made.begin()
        begin_ms = now_ms() - 60 * HOUR_MS
        for i, camera in enumerate(CAMERAS):
            at = begin_ms + i * MINUTE_MS
            for hours, length in ((-1, 2), (20, 10), (21, 1), (25, 0.01), (40, 19), (58, 1.5)):
                start_ms = at + int(hours * HOUR_MS)
                made.film(camera, size=SMALL, start_ms=start_ms, seconds=length * 3600)
        made.start()
        made.settle()
        made.cycle()
        made.settled()
    counted("fault cases", len(made.filmed))


def test_clips_of_a_clock_that_was_behind(tmp_path: Path, counted: Counted) -> None:
    """After it is set right, what was filmed meanwhile lies hours back: within the lookback it is
    found by every listing, further back by asking for it."""
    with rig("directory", tmp_path) as made:
        made.begin()
        made.film(RANGED, size=SMALL, start_ms=now_ms() - MINUTE_MS, seconds=5)
        made.settle()
        made.cycle()
        made.film(RANGED, size=SMALL, start_ms=now_ms() - HOUR_MS, seconds=5)
        made.settle()
        made.cycle()
        made.film(RANGED, size=SMALL, start_ms=now_ms() - 5 * HOUR_MS, seconds=5)
        made.film(STREAM, size=SMALL, start_ms=now_ms() - 5 * HOUR_MS, seconds=5)
        made.stop()
        assert made.backup.command("once", "--since", "6h").returncode == 0
        made.start()
        made.settle()
        made.settled()
    counted("fault cases", 3)
