"""What a run has proven, counted: printed at its end, also when several processes share the tests.

A test that has survived a fault, a crash point or a seed says so through `counted`; only tests that
passed are summed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

_MARK = "counted: "


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: the longest tests wait for processes, sockets and disks, not for a core."""
    return 2 * (os.cpu_count() or 1)


Counted = Callable[..., None]
"""`counted(kind, number=1)`: so many of this kind were proven by the running test."""


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Counted:
    """Count what the running test has proven: "fault cases", "crash points", "seeds"."""

    def count(kind: str, number: int = 1) -> None:
        request.node.user_properties.append((_MARK + kind, number))

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    proven: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, number in report.user_properties:
            if name.startswith(_MARK):
                proven[name.removeprefix(_MARK)] += number
    if proven:
        terminalreporter.section("survived")
        for kind, number in sorted(proven.items()):
            terminalreporter.write_line(f"{number:>8,} {kind}")
