"""What a run has proven, counted: printed at its end, also when several processes share the tests.

A test that has survived a fault, a crash point or a seed says so through `counted`; only tests that
passed are summed.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable

import pytest

_MARK = "counted: "


# Processes that the tests start many times would compile the program anew each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: the longest tests wait for processes, sockets and disks, not for a core."""
    return 2 * (os.cpu_count() or 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share",
        metavar="N/M",
        help="of the tests marked `long`, run the N-th of M shares: the check on several "
        "Pythons gives each one its own",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = config.getoption("--share")
    if share is None:
        return
    number, _, shares = share.partition("/")
    if not (number.isdecimal() and shares.isdecimal() and 1 <= int(number) <= int(shares)):
        raise pytest.UsageError(f"--share takes N/M with 1 <= N <= M, not {share!r}")

    def is_ours(item: pytest.Item) -> bool:
        # By a checksum of its name: every second one would be all of one store.
        place = zlib.crc32(item.nodeid.encode()) % int(shares)
        return item.get_closest_marker("long") is None or place == int(number) - 1

    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = filter(is_ours, items)


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
