"""The picture on a terminal: what it counts, and that it fits into 80 columns."""

from __future__ import annotations

import io
from datetime import timedelta

from rich.console import Console, RenderableType

from nvr_backup.cli.progress import LINES_AT_MOST, Tracker, drawing
from nvr_backup.clock import Clock
from nvr_backup.inflight import Outcomes, Running
from nvr_backup.model import Camera, Clip
from nvr_backup.pool import Pool
from nvr_backup.rows import Claim
from nvr_backup.transfer import Activity
from tests.support.clock import VirtualClock
from tests.support.fakes import EPOCH


class Pretend:
    """As much of a pool as the picture looks at."""

    def __init__(self) -> None:
        self.running: dict[int, Running] = {}
        self.outcomes = Outcomes()

    def begin(self, copy: int, name: str = "Porch", **activity: int | None) -> Activity:
        clip = Clip(Camera("home", name, name), f"c{copy}", EPOCH, EPOCH + timedelta(seconds=9))
        claim = Claim(copy, clip, "offsite", f"k{copy}", 0, 0, None, None)
        running = Running(claim, Activity(**activity), float(copy))  # type: ignore[arg-type]
        self.running[copy] = running
        return running.activity


def tracker(pool: Pretend, clock: Clock) -> Tracker:
    made: Pool = pool  # type: ignore[assignment]
    return Tracker(made, clock)


def text(picture: RenderableType, width: int = 80) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    out.print(picture)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


async def test_the_rate_is_that_of_the_last_seconds() -> None:
    pool, clock = Pretend(), VirtualClock()
    watched = tracker(pool, clock)
    activity = pool.begin(1, received=0)
    watched.look()
    for _ in range(20):
        await clock.advance(1)
        activity.received += 1_000_000
        watched.look()
    assert watched.rate == 1_000_000
    await clock.advance(6)
    watched.look()
    await clock.advance(1)
    watched.look()
    assert watched.rate == 0


async def test_the_rate_counts_every_transfer_once() -> None:
    pool, clock = Pretend(), VirtualClock()
    watched = tracker(pool, clock)
    pool.begin(1, received=500)
    pool.begin(2, received=250)
    watched.look()
    del pool.running[1]
    pool.begin(3, received=50)
    watched.look()
    assert watched.carried == 800


async def test_the_total_is_what_has_an_outcome_and_what_still_waits() -> None:
    pool, clock = Pretend(), VirtualClock()
    watched = tracker(pool, clock)

    async def waiting() -> int:
        return 7

    pool.outcomes = Outcomes(stored=3, failed=2, set_aside=1)
    await watched.count(waiting)
    assert (watched.done, watched.total) == (6, 11)  # the failed two are among the seven


def test_it_fits_eighty_columns_with_room_for_a_control_c() -> None:
    pool, clock = Pretend(), VirtualClock()
    pool.outcomes = Outcomes(stored=12_345, stored_bytes=999_900_000_000)
    for copy in range(LINES_AT_MOST + 3):
        name = "A camera with a very long name" if copy % 2 else "前门摄像机前门摄像机前门"
        pool.begin(copy, name, size=9_999_900_000 if copy else None, received=999_900_000)
    lines = text(drawing(tracker(pool, clock), "Backing up"))
    assert len(lines) == 1 + LINES_AT_MOST + 1
    assert "and 3 more" in lines[-1]
    assert all(Console(width=200).measure(line).maximum <= 77 for line in lines)
    assert "12,345 of 12,345 clips" in lines[0]


def test_an_empty_cycle_can_be_drawn() -> None:
    [line] = text(drawing(tracker(Pretend(), VirtualClock()), "Backing up"))
    assert "0 of 0 clips" in line


def test_control_characters_of_a_name_stay_out() -> None:
    pool = Pretend()
    pool.begin(1, "\x1b[2Jx")
    assert all("\x1b[2J" not in line for line in text(drawing(tracker(pool, VirtualClock()), "x")))
