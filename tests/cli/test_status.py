"""`status`: what it says, in words and in JSON, and when its exit code says "behind"."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from nvr_backup import report
from tests.cli.kit import CONFIG, GARDEN, TALLY, Desk


def test_all_is_well_after_a_cycle_that_stored_everything(desk: Desk) -> None:
    desk.clip(5)
    desk.store()
    desk.cycle()
    answer = desk("status")
    assert answer.code == 0, answer.out
    assert "0 clips waiting" in answer.out
    assert "1 (1.5 MB)" in answer.out
    assert "Needs a person" not in answer.out


def test_json_counts_each_camera_and_store(desk: Desk) -> None:
    desk.clip(5)
    desk.store()
    desk.clip(4)
    desk.clip(3, GARDEN)
    desk.cycle(0.1)
    found = desk("status", "--json").json
    assert found["behind"] is False
    assert found["concerns"] == []
    assert (found["waiting"], found["set_aside"]) == (2, 0)
    assert found["engine"] == {"running": False, "process": None}
    garden, porch = found["cameras"]
    assert (garden["camera"], garden["stored"], garden["waiting"]) == ("Garden", 0, 1)
    assert (porch["camera"], porch["stored"], porch["stored_bytes"]) == ("Porch", 1, 1_500_000)
    assert porch["waiting"] == 1
    assert porch["camera_id"] == "plugin:porch"
    assert porch["configured"] is True
    at = desk.ago(4).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert porch["safe_until"] == porch["oldest_waiting"] == found["oldest_waiting"] == at
    assert 4 * 3600 - 5 < found["lag_seconds"] < 4 * 3600 + 60
    assert found["last_cycle"] == desk.ago(0.1).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert found["next_cycle"] > found["last_cycle"]


def test_the_watermark_is_the_reach_when_nothing_waits(desk: Desk) -> None:
    desk.clip(5)
    desk.set_aside("gone")
    desk.cycle()
    [porch] = desk("status", "--json").json["cameras"]
    assert porch["safe_until"] == desk.ago(0).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def test_no_cycle_yet_is_behind(desk: Desk) -> None:
    desk.engine(_nothing)
    answer = desk("status")
    assert answer.code == 1
    assert "No cycle has run yet." in answer.out


@pytest.mark.parametrize(("hours", "code"), [(0.5, 0), (1.9, 0), (2.1, 1), (50, 1)])
def test_a_last_cycle_older_than_twice_the_schedule_is_behind(
    desk: Desk, hours: float, code: int
) -> None:
    desk.listed(hours=hours)
    desk.cycle(hours)
    answer = desk("status")
    assert answer.code == code
    assert ("nothing runs" in answer.out) is bool(code)


def test_a_cron_schedule_is_behind_after_two_missed_times(desk: Desk) -> None:
    hour = desk.now.hour
    desk.configure(CONFIG.replace('every = "1h"', f'cron = "0 {hour} * * *"'))
    desk.listed()
    desk.cycle(24)  # after yesterday's time: only today's is due since
    assert desk("status").code == 0
    desk.cycle(26)
    assert desk("status").code == 1


@pytest.mark.parametrize(("planned", "code"), [(1.9, 0), (2.1, 1)])
def test_a_clip_that_waits_for_more_than_two_hours_is_behind(
    desk: Desk, planned: float, code: int
) -> None:
    desk.clip(5, planned=planned)
    desk.fail("The recorder sent nothing for 60 s.")
    desk.cycle()
    answer = desk("status")
    assert answer.code == code
    assert ("The recorder sent nothing" in answer.out) is bool(code)


def test_a_set_aside_clip_is_behind_with_its_reason_and_the_remedy(desk: Desk) -> None:
    desk.clip(5)
    desk.set_aside("The clip is gone at the NVR.")
    desk.cycle()
    answer = desk("status")
    assert answer.code == 1
    assert "1 clip set aside: The clip is gone at the NVR." in answer.out
    assert "nvr-backup retry" in answer.out
    found = desk("status", "--json").json
    assert found["behind"] is True
    assert [concern["behind"] for concern in found["concerns"]] == [True]


@pytest.mark.parametrize(("days", "code"), [(6.9, 1), (7.1, 0)])
def test_what_was_set_aside_long_ago_stays_listed_but_is_not_behind(
    desk: Desk, days: float, code: int
) -> None:
    desk.clip(24 * 8)
    desk.set_aside("gone", hours=24 * days)
    desk.cycle()
    answer = desk("status")
    assert answer.code == code
    assert "1 clip set aside: gone" in answer.out


def test_many_reasons_are_summed_up(desk: Desk) -> None:
    for number in range(report.REASONS_SHOWN + 2):
        desk.clip(5 + number)
        desk.set_aside(f"reason {number}")
    desk.cycle()
    concerns = desk("status", "--json").json["concerns"]
    assert len(concerns) == report.REASONS_SHOWN + 1
    assert concerns[-1]["text"].startswith("2 clips set aside: 2 other reasons")


@pytest.mark.parametrize(
    ("hours", "code", "named"), [(1, 0, False), (2.5, 1, True), (24 * 6, 1, True), (170, 0, True)]
)
def test_a_camera_that_cannot_be_listed_is_behind_for_a_week(
    desk: Desk, hours: float, code: int, named: bool
) -> None:
    desk.listed(hours=0)
    desk.listed(GARDEN, hours=hours)
    desk.cycle(0.1)
    answer = desk("status")
    assert answer.code == code, answer.out
    since = f"{desk.ago(hours):%Y-%m-%d %H:%M:%S} (home → nas): Garden"
    assert (f"Not listed since {since}" in answer.out) is named


@pytest.mark.parametrize(
    ("patterns", "code"),
    [
        ('exclude = ["gard*"]', 0),
        ('exclude = ["plugin:garden"]', 0),
        ('include = ["Porch"]', 0),
        ('include = ["Porch", "G*"]', 1),
        ('exclude = ["Garage"]', 1),
    ],
)
def test_a_camera_that_is_no_longer_wanted_need_not_be_listed(
    desk: Desk, patterns: str, code: int
) -> None:
    desk.listed()
    desk.listed(GARDEN, hours=5)
    desk.cycle()
    desk.configure(CONFIG.replace("password =", f"cameras = {{ {patterns} }}\npassword ="))
    assert desk("status").code == code


@pytest.mark.parametrize(("hours", "code"), [(7, 0), (8.5, 1)])
def test_a_camera_without_clips_for_long_is_given_more_time(
    desk: Desk, hours: float, code: int
) -> None:
    desk.listed(hours=hours, proven=hours + 72)
    desk.cycle(0.1)
    assert desk("status").code == code


def test_a_source_that_was_never_listed_is_behind(desk: Desk) -> None:
    desk.cycle()
    answer = desk("status")
    assert answer.code == 1
    assert "No camera of home was ever listed." in answer.out


def test_many_unlisted_cameras_are_one_concern(desk: Desk) -> None:
    for number in range(7):
        desk.listed(type(GARDEN)("home", f"c{number}", f"Cam {number}"), hours=5)
    desk.cycle()
    [concern] = desk("status", "--json").json["concerns"]
    assert "Cam 0, Cam 1, Cam 2, Cam 3, Cam 4 and 2 more" in concern["text"]


def test_clips_of_a_part_that_is_no_longer_configured_are_named_but_not_behind(desk: Desk) -> None:
    desk.clip(5)
    desk.cycle()
    desk.configure(CONFIG.replace("[stores.nas]", "[stores.other]"))
    answer = desk("status")
    assert answer.code == 0, answer.out
    assert "home → nas, which is no longer configured" in answer.out


def test_an_upload_is_under_way_only_while_an_engine_runs(desk: Desk) -> None:
    desk.clip(5)
    desk.half_way()
    desk.cycle()
    with _engine_lock(desk.state):  # another opening: what the one before held is void
        assert desk("status", "--json").json["uploading"] == []
    desk.half_way()
    assert desk("status", "--json").json["uploading"] == []
    with _engine_lock(desk.state):
        answer = desk("status")
        found = desk("status", "--json").json
    assert found["engine"] == {"running": True, "process": os.getpid()}
    [upload] = found["uploading"]
    assert (upload["camera"], upload["confirmed_bytes"]) == ("Porch", 4_000_000)
    assert "4.0 MB confirmed" in answer.out
    assert "secret-session" not in answer.out + str(found)


def test_a_name_from_the_recorder_cannot_steer_the_terminal(desk: Desk) -> None:
    evil = type(GARDEN)("home", "evil", "\x1b[2J\rPorch")
    desk.clip(5, evil)
    desk.set_aside("bad \x1b]0;title\x07 reason")
    desk.cycle()
    for answer in (desk("status"), desk("clips")):
        assert "\x1b" not in answer.out
    assert desk("status", "--json").json["cameras"][0]["camera"] == evil.name


def test_without_a_checkpoint_it_says_so(desk: Desk) -> None:
    answer = desk("status")
    assert answer.code == 74
    assert answer.err.startswith("nvr-backup: There is no checkpoint at ")
    assert not desk.state.exists()


def test_a_damaged_checkpoint_is_no_traceback(desk: Desk) -> None:
    desk.cycle()
    (desk.state / "checkpoint.sqlite3").write_bytes(b"not a database" * 100)
    answer = desk("status")
    assert answer.code == 65
    assert "damaged" in answer.err
    assert "nvr-backup rebuild" in answer.err


def test_it_needs_no_secret_and_no_flawless_configuration(desk: Desk) -> None:
    desk.listed()
    desk.cycle()
    desk.configure(CONFIG.replace('password = "hunter2"', "colour = 3"))
    assert desk("status").code == 0
    assert desk("once").code == 78


def test_lines_fit_a_terminal(desk: Desk) -> None:
    desk.clip(5, type(GARDEN)("home", "long", "A camera with quite a long name over the door"))
    desk.cycle()
    table = [line for line in desk("status").out.splitlines() if "…" in line or "Safe" in line]
    assert len(table) == 2
    assert all(len(line) <= 80 for line in table)


async def _nothing(_checkpoint: object) -> None:
    return


class _engine_lock:  # noqa: N801 - used like a function
    """The lock as another process has it: a lock of its own description of the file."""

    def __init__(self, state: Path) -> None:
        self._file = (state / "engine.lock").open("r+")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_the_pace_tells_when_the_backlog_will_be_empty(desk: Desk) -> None:
    desk.clip(6)
    desk.clip(5)
    desk.clip(4)
    desk.clip(3)
    assert "Pace     nothing stored in the last 15 min" in desk("status").out
    desk.store()
    desk.fail("the store is full")  # no pace comes of that
    pace = desk("status", "--json").json["pace"]
    assert (pace["clips"], pace["bytes"]) == (1, TALLY.received)
    assert 12 * 60 <= pace["seconds"] < 13 * 60  # since that attempt began
    line = next(line for line in desk("status").out.splitlines() if line.startswith("Pace"))
    assert line.startswith("Pace     1 clip in 12 min, ")
    assert line.endswith("; the backlog is empty in about 36 min")


def test_watching_is_for_people(desk: Desk) -> None:
    answer = desk("status", "--watch", "--json")
    assert answer.code == 2
    assert "--watch" in answer.err
