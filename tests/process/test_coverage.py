"""`coverage` over a week, hour by hour, against the simulated NVR's own knowledge."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.process.parts import Backup, Nvr, simulated_nvr

pytestmark = [pytest.mark.process, pytest.mark.long]

STYLES = 13
BACKFILL = timedelta(hours=100)
RANK = [
    "nothing",
    "safe",
    "unverified",
    "unasked",
    "waiting",
    "unplanned",
    "set_aside",
    "wrong",
    "lost",
]


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def hours_of(found: dict[str, Any]) -> dict[str, list[tuple[int, int, str]]]:
    return {
        camera["camera"]: [
            (ms(hour["start"]), ms(hour["end"]), hour["state"]) for hour in camera["hours"]
        ]
        for camera in found["cameras"]
    }


def expected(clips: list[dict[str, Any]], fates: dict[str, str], hour: tuple[int, int, str]) -> str:
    """What an hour must be, given every clip there ever was and what became of it."""
    touching = [
        fates.get(clip["clip_id"], "safe")
        for clip in clips
        if clip["start_ms"] < hour[1] and clip["end_ms"] > hour[0]
    ]
    return max(touching, key=RANK.index, default="nothing")


def no_leap_day(moment: datetime) -> datetime:
    """The day before, for the 29th of February: a POSIX TZ cannot name it."""
    return moment - timedelta(days=(moment.month, moment.day) == (2, 29))


def yearday(moment: datetime) -> int:
    """As POSIX' TZ counts: from 1, in every year without the 29th of February."""
    return moment.replace(year=2001).timetuple().tm_yday


def clips_of(nvr: Nvr) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for clip in nvr.ask("oracle?digests=0"):
        found[clip["camera"]].append(clip)
    return found


def test_a_week_is_told_hour_by_hour(tmp_path: Path) -> None:
    with simulated_nvr("--cameras", str(STYLES), "--clips", "14", "--hours", "160") as nvr:
        backup = Backup(tmp_path, nvr)
        backup.tables["schedule"] = {"backfill": "100h"}
        began = datetime.now(UTC)
        names = [camera["name"] for camera in nvr.ask("state")["cameras"]]
        still, outage = names[1], ((began - timedelta(hours=60)), (began - timedelta(hours=40)))

        # The recorder was down for 20 hours, and one camera never saw anything.
        for name, clips in clips_of(nvr).items():
            for clip in clips:
                down = outage[0].timestamp() < clip["start_ms"] / 1000 < outage[1].timestamp()
                if name == still or down:
                    nvr.do("remove-clip", camera=name, clip=clip["clip_id"])
        there = clips_of(nvr)
        there[still] = []

        # One clip fails in the first cycle and is deleted before the second; one fails in both.
        # Both in the last hours, where nothing but them is.
        def youngest(name: str) -> str:
            return str(max(there[name], key=lambda clip: clip["start_ms"])["clip_id"])

        lost, waiting = (names[0], youngest(names[0])), (names[2], youngest(names[2]))
        nvr.do("faults", name="html_page", camera=lost[0], clip=lost[1], times=1)
        nvr.do("faults", name="server_error", camera=waiting[0], clip=waiting[1], times=100)
        result, _ = backup.once(code=1)
        assert nvr.happened("html_page") == 1
        recipes = {item["camera"] for item in result["set_aside"]}
        assert len(recipes) == 1
        nvr.do("remove-clip", camera=lost[0], clip=lost[1])
        # An empty listing would prove nothing: another clip shows that listings work.
        nvr.do("clips", camera=lost[0], count=1)
        there[lost[0]] += [clip for clip in clips_of(nvr)[lost[0]] if clip not in there[lost[0]]]
        backup.once(code=1)
        assert nvr.happened("server_error") >= 2

        since = (began - timedelta(days=7)).isoformat()
        done = backup.command("coverage", "--since", since, "--json", TZ="Asia/Kolkata")
        assert done.returncode == 1, done.stderr
        found = json.loads(done.stdout)
        assert found["asked"] is True
        assert found["unheard"] == {}

        fates = {lost[1]: "lost", waiting[1]: "waiting"}
        for name, clips in there.items():
            for clip in clips:
                if clip["end_ms"] / 1000 < (began - BACKFILL).timestamp() - 1:
                    fates[clip["clip_id"]] = "unplanned"
                elif name in recipes:
                    fates[clip["clip_id"]] = "set_aside"
        told = hours_of(found)
        assert set(told) == set(names)
        seen = set()
        for name, hours in told.items():
            assert len(hours) in {168, 169}
            for hour in hours:
                assert (hour[0] // 60_000) % 60 in {30, (ms(since) // 60_000) % 60}
                wanted = expected(there[name], fates, hour)
                assert hour[2] == wanted, (name, datetime.fromtimestamp(hour[0] / 1000, UTC))
                seen.add(wanted)
        assert seen == {"nothing", "safe", "waiting", "unplanned", "set_aside", "lost"}
        assert {hour[2] for hour in told[still]} == {"nothing"}
        assert found["cameras"][0]["camera"] == lost[0]  # the worst first

        # In a zone whose clocks go forward and back on two days of this very week.
        short, long = (no_leap_day(began - timedelta(days=days)) for days in (5, 2))
        zone = f"AAA0BBB,J{yearday(short)}/2,J{yearday(long)}/3"
        again = backup.command("coverage", "--since", since, "--json", TZ=zone)
        for name, hours in hours_of(json.loads(again.stdout)).items():
            for hour in hours:
                assert hour[2] == expected(there[name], fates, hour), (name, hour)
        lines = backup.command("coverage", "--since", since, "--camera", names[2], TZ=zone).stdout
        days = dict(re.findall(r"^  \w{3} (\S+)  (\S+)$", lines, re.MULTILINE))
        assert len(days[f"{short:%Y-%m-%d}"]) == 23
        assert len(days[f"{long:%Y-%m-%d}"]) == 25

        shown = backup.command("coverage", "--since", since, "--camera", lost[0], TZ="UTC")
        assert shown.returncode == 1
        assert "X" in shown.stdout
        assert "lost" in shown.stdout.split("Not safe, the worst first\n")[1].splitlines()[0]
        assert names[2] not in shown.stdout

    # The recorder is gone: what was listed for good is told as before, the rest is not known.
    away = backup.command("coverage", "--since", since, "--camera", still, "--json")
    assert away.returncode == 69, away.stderr
    answer = json.loads(away.stdout)
    assert list(answer["unheard"]) == ["home"]
    assert {hour["state"] for hour in answer["cameras"][0]["hours"]} == {"nothing", "unasked"}


def test_a_camera_nobody_knows_is_a_usage_error(tmp_path: Path) -> None:
    with simulated_nvr("--cameras", "1", "--clips", "1") as nvr:
        backup = Backup(tmp_path, nvr)
        backup.once()
        done = backup.command("coverage", "--camera", "Attic")
        assert done.returncode == 2
        assert "Attic" in done.stderr
        assert backup.command("coverage").returncode == 0
        assert "#" in backup.command("coverage", "--offline").stdout
