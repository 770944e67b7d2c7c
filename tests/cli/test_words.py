"""Numbers, times and names as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.cli import words

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (5 * 10**9, "5.0 GB"),
        (3 * 10**18, "3000.0 PB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (119, "1 min"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
        (86_400 + 59 * 60, "1 d"),
    ],
)
def test_span(seconds: int, text: str) -> None:
    assert words.span(timedelta(seconds=seconds)) == text


def test_ago() -> None:
    assert words.ago(NOW - timedelta(minutes=5), NOW) == "5 min ago"
    assert words.ago(NOW + timedelta(minutes=5), NOW) == "in 5 min"


def test_number() -> None:
    assert words.number(1, "clip") == "1 clip"
    assert words.number(1234, "clip") == "1,234 clips"


def test_iso_is_utc_with_milliseconds() -> None:
    assert words.iso(NOW + timedelta(microseconds=1500)) == "2026-03-10T12:00:00.001Z"
    assert words.iso(None) is None


@given(st.text(), st.integers(min_value=2, max_value=60))
def test_short_is_printable_and_no_longer_than_asked(text: str, width: int) -> None:
    shown = words.short(text, width)
    assert len(shown) <= width
    assert shown.isprintable()


def test_short_keeps_both_ends() -> None:
    assert words.short("Front door/2026/03/01/17-20-05.mp4", 15) == "Front d…-05.mp4"
