"""Every fault the simulated NVR knows, met by a daemon with either store.

`CASES` has a row for each name in `nvr_backup.simulator.faults.FAULTS` (a test holds that), with
what the operator is told. Whatever happens, the clip ends in the store as the NVR has it, once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from nvr_backup.simulator.faults import FAULTS
from tests.conftest import Counted
from tests.faults.conftest import Rigs
from tests.faults.rig import CHUNK, FILE, KINDS, NVR, RANGED, SIX, STREAM, Kind, Rig, Told
from tests.process.parts import call

pytestmark = [pytest.mark.process, pytest.mark.long]

FAILED = {"clip failed": 1}
LINK_FAILED: Told = {"clip failed": 1, "camera not listed": (0, 1)}
"""The link breaks for a clip, and perhaps for a listing that is under way beside it."""
UNLISTED = {"camera not listed": 1}
BLOCKED = {"blocked": 1}
NOTHING: Told = {}


@dataclass(frozen=True)
class Case:
    """A fault as it is armed, and what the operator is told of it."""

    fault: str
    told: Told = field(default_factory=dict)
    camera: str = RANGED
    options: dict[str, Any] = field(default_factory=dict)
    times: int = 1
    relink: bool = False
    """The fault strikes a new link: the tokens die and the links break first."""
    any_camera: bool = False
    size: int | None = SIX

    @property
    def name(self) -> str:
        more = "-".join(str(value) for value in self.options.values())
        return f"{self.fault}-{self.camera}" + (f"-{more}" if more else "")


CASES = (
    # the link
    Case("drop_link", UNLISTED, options={"on": "getVideoClips"}, any_camera=True),
    Case("drop_link", LINK_FAILED, FILE, {"on": "getVideoClip"}, any_camera=True),
    Case("drop_link", LINK_FAILED, FILE, {"on": "convertMediaObject"}, any_camera=True),
    Case("black_hole", UNLISTED, options={"on": "getVideoClips"}, any_camera=True),
    Case("black_hole", LINK_FAILED, FILE, {"on": "getVideoClip"}, any_camera=True),
    Case("silent_link", {"blocked": (0, 1)}, relink=True, any_camera=True),
    Case("refuse_link", BLOCKED, relink=True, any_camera=True, times=2),
    Case("login_error", BLOCKED, relink=True, any_camera=True),
    Case("login_html", BLOCKED, relink=True, any_camera=True),
    # listings
    Case("listing_error", UNLISTED),
    Case("slow_listing", NOTHING, options={"seconds": 0.3}),
    Case("hang_listing", UNLISTED),
    Case("empty_listing", NOTHING),
    Case("listing_outside", NOTHING),
    Case("listing_duplicates", NOTHING),
    Case("listing_unsorted", NOTHING, times=2),
    Case("listing_no_duration", NOTHING),
    Case("listing_missing_fields", NOTHING),
    Case("listing_not_a_list", UNLISTED),
    Case("listing_not_a_list", UNLISTED, options={"value": {"clips": []}}),
    Case("growing_clip", NOTHING),
    Case("growing_clip", NOTHING, NVR),
    Case("listing_short", NOTHING, times=2),
    # single clips
    Case("clip_error", FAILED, FILE, times=2),
    Case("hang_clip", FAILED, FILE),
    Case("convert_error", FAILED, FILE, times=2),
    Case("plugin_dead", {**UNLISTED, "clip failed": (0, 1)}, FILE),
    Case("plugin_dead", {"camera not listed": (0, 1), "clip failed": (0, 1)}, options={"skip": 1}),
    # bodies
    *(
        Case(fault, told, camera, options, times)
        for camera in (RANGED, STREAM)
        for fault, told, options, times in (
            ("unauthorized", NOTHING, {}, 1),
            ("not_found", NOTHING, {}, 1),
            ("not_found", FAILED, {}, 2),
            ("server_error", FAILED, {"status": 503, "retry_after": 1}, 1),
            ("hang_http", FAILED, {}, 1),
            ("html_page", FAILED, {}, 1),
            ("empty_body", FAILED, {}, 1),
            ("stall_body", FAILED, {}, 1),
            ("cut_body", FAILED, {}, 1),
            ("early_end", FAILED, {}, 1),
            ("slow_body", NOTHING, {"seconds": 0.02}, 1),
            ("drop_link_in_body", {"camera not listed": (0, 1)}, {}, 1),
        )
    ),
    Case("length_too_large", FAILED),
    Case("length_too_small", FAILED),
    Case("length_too_large", FAILED, options={"by": 8}),
    Case("wrong_bytes", FAILED, options={"at_bytes": 4}),
    Case("wrong_bytes", FAILED, STREAM, options={"at_bytes": 4}),
)
ELSEWHERE = {"restart_in_body", "listing_garbage", "overload"}
"""Faults with a test of their own below."""


def test_every_fault_of_the_simulator_is_met() -> None:
    assert {case.fault for case in CASES} | ELSEWHERE == FAULTS.keys()


def names(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=names)
def test_a_fault_of_the_recorder(rigs: Rigs, kind: Kind, case: Case, counted: Counted) -> None:
    rig = rigs(kind)
    where = {} if case.any_camera else {"camera": case.camera}
    rig.fault(case.fault, times=case.times, **where, **case.options)
    if case.relink:
        rig.nvr.do("expire")
        rig.nvr.do("drop-links")
    rig.film(case.camera, size=case.size)
    if case.relink:
        # A link that breaks just as it is asked over is one more camera not listed.
        case_told: Told = {**case.told, "camera not listed": (0, 1)}
    else:
        case_told = case.told
    rig.until(lambda: struck(rig, case), f"{case.fault} struck")
    rig.settle()
    assert rig.happened(case.fault) == [case.times]
    rig.settled(told=case_told)
    counted("fault cases")


def struck(rig: Rig, case: Case) -> bool:
    if rig.happened(case.fault) == [case.times]:
        return True
    rig.nudge(at_once=True)
    return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("camera", [RANGED, STREAM, FILE])
def test_the_recorder_restarts_in_the_middle_of_a_body(
    rigs: Rigs, kind: Kind, camera: str, counted: Counted
) -> None:
    """Tokens, links and signed addresses die with it; the upload goes on when it is back."""
    rig = rigs(kind)
    before = rig.nvr.ask("state")["restarts"]
    rig.fault("restart_in_body", camera=camera, at_bytes=4 * CHUNK, down=0.3)
    rig.film(camera)
    rig.film(RANGED if camera != RANGED else STREAM)
    rig.nudge(at_once=True)
    rig.until(lambda: restarted(rig, before), "restart")
    rig.settle()
    assert rig.happened("restart_in_body") == [1]
    clip = rig.filmed[0]
    offsets = [b["offset"] for b in rig.nvr.ask("served") if b["clip_id"] == clip.id]
    assert offsets[-1] >= (2 * CHUNK if camera != STREAM else 0)
    rig.settled(told={"clip failed": (0, 2), "blocked": (0, 1), "camera not listed": (0, 1)})
    counted("fault cases")


def restarted(rig: Rig, before: int) -> bool:
    try:
        return int(call(f"{rig.nvr.control}state", timeout_seconds=2)["restarts"]) > before
    except OSError:
        return False  # it is down just now, or went down while it was asked


@pytest.mark.parametrize("kind", KINDS)
def test_entries_that_are_no_clips_do_no_harm(rigs: Rigs, kind: Kind, counted: Counted) -> None:
    """Three of the absurd entries could be versions of the clip whose start they have.

    What is served as that clip now is stored for each: better twice than not at all.
    """
    rig = rigs(kind)
    rig.film(RANGED)
    rig.settle()
    rig.cycle()
    looks_real = ("negative-duration", "text-duration", "huge-duration")
    rig.fault("listing_garbage", camera=RANGED)
    rig.film(RANGED)
    rig.nudge(at_once=True)
    rig.until(lambda: len(rig.keys_of(*looks_real)) == 3, "planned")
    keys = rig.keys_of(*looks_real)
    rig.settle(keys=keys)
    assert rig.happened("listing_garbage") == [1]
    known = rig.expected | rig.truth()
    versions = {key: known[key[: -len("_12345678.mp4")] + ".mp4"] for key in keys}
    rig.settled(truth=rig.truth() | versions)
    counted("fault cases")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("camera", [RANGED, NVR])
def test_a_stored_clip_that_grows_is_stored_again_under_another_key(
    rigs: Rigs, kind: Kind, camera: str, counted: Counted
) -> None:
    rig = rigs(kind)
    clip = rig.film(camera)
    rig.settle()
    short = rig.truth()
    rig.fault("growing_clip", camera=camera)
    rig.cycle()
    rig.cycle()
    assert rig.happened("growing_clip") == [1]
    stem = clip.key.removesuffix(".mp4")
    rig.until(lambda: len(objects(rig, stem)) == 2, "two versions")
    (longer,) = objects(rig, stem) - {clip.key}
    assert len(longer) == len(clip.key) + len("_12345678")
    rig.settled(truth={**short, longer: rig.truth()[clip.key]})
    counted("fault cases")


def objects(rig: Rig, stem: str) -> set[str]:
    return {key for key in rig.stored() if key.startswith(stem)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_that_is_wrong_within_the_video_is_stored_as_it_was_sent(
    rigs: Rigs, kind: Kind, counted: Counted
) -> None:
    """No recorder tells a clip's checksum: what is promised is every byte that left the NVR."""
    rig = rigs(kind)
    clip = rig.film(RANGED)
    rig.fault("wrong_bytes", camera=RANGED, at_bytes=3 * CHUNK + 17)
    rig.settle()
    (served,) = [body for body in rig.nvr.ask("served") if body["clip_id"] == clip.id]
    assert served["fault"] == "wrong_bytes"
    assert served["sha256"] != rig.truth()[clip.key]
    rig.settled(truth={clip.key: served["sha256"]})
    counted("fault cases")


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_that_changes_while_it_is_resumed_begins_anew(
    rigs: Rigs, kind: Kind, counted: Counted
) -> None:
    """Without Range the first bytes are read again: a wrong one among them is found out."""
    rig = rigs(kind)
    rig.film(STREAM)
    rig.fault("cut_body", camera=STREAM, at_bytes=3 * CHUNK + 100)
    rig.fault("wrong_bytes", camera=STREAM, at_bytes=CHUNK + 17)
    rig.settle()
    assert rig.happened("cut_body", "wrong_bytes") == [1, 1]
    rig.settled(told={"clip failed": 1})
    counted("fault cases")


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_bears_one_reader_gets_one_most_of_the_time(
    rigs: Rigs, kind: Kind, counted: Counted
) -> None:
    """Beyond that each piece takes five times as long; what is slow is no failure."""
    rig = rigs(kind)
    rig.fault("overload", times=None, parallel=1, seconds=0.01)
    for camera in (RANGED, STREAM, NVR):
        for _ in range(3):
            rig.film(camera)
    rig.settle()
    assert rig.happened("overload")[0] > 0
    rig.settled(told=NOTHING)
    counted("fault cases")


@pytest.mark.parametrize("kind", KINDS)
def test_faults_on_all_cameras_at_once(rigs: Rigs, kind: Kind, counted: Counted) -> None:
    """A cut, a stall, an error page and a restart, and each clip of each camera arrives once."""
    rig = rigs(kind)
    for camera in (RANGED, STREAM, NVR, FILE):
        for _ in range(3):
            rig.film(camera)
    rig.fault("cut_body", camera=RANGED, times=3)
    rig.fault("stall_body", camera=STREAM, times=2)
    rig.fault("html_page", camera=NVR, times=2)
    rig.fault("restart_in_body", camera=FILE, skip=1)
    before = rig.nvr.ask("state")["restarts"]
    rig.nudge(at_once=True)
    rig.until(lambda: restarted(rig, before), "restart")
    rig.settle()
    struck = ("cut_body", "stall_body", "html_page", "restart_in_body")
    assert rig.happened(*struck) == [3, 2, 2, 1]
    failed = Counter(line["clip"] for line in rig.said("clip failed"))
    assert max(failed.values()) <= 6
    rig.settled(
        told={"clip failed": (4, 24), "blocked": (0, 1), "camera not listed": (0, len(rig.filmed))}
    )
    counted("fault cases", 8)
