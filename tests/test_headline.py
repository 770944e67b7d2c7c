"""The line that `systemctl status` shows, in a time zone of the test's choice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from nvr_backup.headline import View, headline

NOW = datetime(2026, 3, 1, 14, 2, tzinfo=UTC)
CALM = View(
    cameras=3,
    safe_until=datetime(2026, 3, 1, 14, 0, tzinfo=UTC),
    waiting=0,
    set_aside=0,
    uploading=0,
    bytes_per_second=0.0,
    blocked=(),
    next_cycle=datetime(2026, 3, 1, 15, 0, tzinfo=UTC),
)
CALM_LINE = "3 cameras safe to 14:00; 0 clips waiting; next cycle 15:00"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, CALM_LINE),
        (
            {"waiting": 12, "uploading": 2, "bytes_per_second": 4_100_000.0},
            "3 cameras safe to 14:00; 12 clips waiting; uploading 2 at 4.1 MB/s; next cycle 15:00",
        ),
        (
            {"cameras": 1, "waiting": 1, "set_aside": 4},
            "1 camera safe to 14:00; 1 clip waiting; 4 set aside; next cycle 15:00",
        ),
        (
            {"cameras": 0, "safe_until": None, "next_cycle": NOW},
            "no camera listed yet; 0 clips waiting; next cycle now",
        ),
        ({"safe_until": None}, "3 cameras not yet safe; 0 clips waiting; next cycle 15:00"),
        (
            {"blocked": (("stores.nas", "The disk is full."), ("sources.home", "Wrong password."))},
            "stores.nas blocked: The disk is full; sources.home blocked: Wrong password; "
            + CALM_LINE,
        ),
        (
            {"safe_until": NOW - timedelta(days=2), "next_cycle": None},
            "3 cameras safe to 2026-02-27 14:02; 0 clips waiting",
        ),
    ],
)
def test_the_line(changes: dict[str, object], line: str) -> None:
    assert headline(replace(CALM, **changes), now=NOW, zone=UTC) == line  # type: ignore[arg-type]


def test_times_and_days_are_those_of_the_zone() -> None:
    late = replace(CALM, next_cycle=datetime(2026, 3, 1, 15, 30, tzinfo=UTC))
    kolkata = headline(late, now=NOW, zone=ZoneInfo("Asia/Kolkata"))
    assert kolkata.endswith("safe to 19:30; 0 clips waiting; next cycle 21:00")
    auckland = headline(late, now=datetime(2026, 3, 1, 10, tzinfo=UTC), zone=ZoneInfo("Asia/Tokyo"))
    assert auckland.endswith("next cycle 2026-03-02 00:30")
