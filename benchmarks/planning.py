"""Planning a day of 20,000 clips: with an empty checkpoint, and with a million clips on record.

The history is made the way it comes about: day after day is listed and planned by the real survey,
planner and checkpoint, on disk, and then marked as stored. Only the source is a list in memory. The
cost of a day is that of everything from the listing to the last durable transaction.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import median, run
from benchmarks.tables import table

DAY_CLIPS: Final = 20_000
CAMERAS: Final = 20
DAYS: Final = 50
"""So many days of history: a million clips."""

FIRST_DAY: Final = 1_750_000_000
"""Seconds since the epoch; any will do."""


@dataclass(frozen=True, slots=True)
class Step:
    """What something cost. CPU is that of all threads of the process."""

    name: str
    cpu_seconds: float
    wall_seconds: float
    rows: int
    listed: int


def measure(rounds: int) -> str:
    """A table; each round is a process of its own with a checkpoint of its own."""
    found: dict[str, list[Step]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            command = [sys.executable, "-m", "benchmarks.planning", folder]
            for told in json.loads(run(command, folder=Path(folder)).output):
                step = Step(**told)
                found.setdefault(step.name, []).append(step)
    rows = [
        [
            name,
            f"{steps[0].rows:,}",
            f"{steps[0].listed:,}",
            f"{median(step.cpu_seconds for step in steps):.3f}",
            f"{median(step.wall_seconds for step in steps):.3f}",
        ]
        for name, steps in found.items()
    ]
    return table(["", "clips on record", "listed", "CPU s", "wall s"], rows)


# -- in the process that is measured ---------------------------------------------------------------


async def _measure(folder: Path) -> list[Step]:
    # What is measured is imported here: the process that starts this one stays small.
    from nvr_backup.checkpoint import Checkpoint  # noqa: PLC0415
    from nvr_backup.keys import candidates  # noqa: PLC0415
    from nvr_backup.model import Camera, Clip, Window  # noqa: PLC0415
    from nvr_backup.planner import Rules  # noqa: PLC0415
    from nvr_backup.ports import ClipBody  # noqa: PLC0415
    from nvr_backup.survey import Survey  # noqa: PLC0415

    class Listing:
        """`ClipSource` over clips in memory."""

        def __init__(self) -> None:
            self.all = [Camera("nvr", f"camera-{n}", f"Camera {n}") for n in range(CAMERAS)]
            self.listed: dict[str, list[Clip]] = {}

        async def cameras(self) -> Sequence[Camera]:
            return self.all

        async def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
            for clip in self.listed[camera.id]:
                if clip.start < window.end and (clip.end or clip.start) >= window.start:
                    yield clip

        def open(self, clip: Clip, *, offset: int = 0) -> AbstractAsyncContextManager[ClipBody]:
            raise NotImplementedError

        def record(self, begin: datetime) -> None:
            """A day of clips, evenly; the evening before is still listed."""
            each = DAY_CLIPS // CAMERAS
            step = timedelta(days=1) / each
            for camera in self.all:
                kept = self.listed.get(camera.id, [])[-each // 4 :]
                self.listed[camera.id] = kept + [
                    Clip(
                        camera,
                        f"{camera.id}-{begin.timestamp():.0f}-{number}",
                        begin + number * step,
                        begin + number * step + timedelta(seconds=30),
                        ("motion", "person"),
                    )
                    for number in range(each)
                ]

    template = "{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4"
    source = Listing()
    begin = datetime.fromtimestamp(FIRST_DAY, UTC)
    checkpoint = await Checkpoint.open(folder / "state", now=begin)
    survey = Survey(
        source=source,
        stores=["offsite"],
        checkpoint=checkpoint,
        rules=Rules(timedelta(seconds=30), timedelta(hours=2), timedelta(hours=24)),
        keys=lambda _store, clip: candidates(template, clip),
    )

    async def cycle(name: str, now: datetime, since: datetime | None = None) -> Step:
        known = _count(folder)
        cpu, wall = time.process_time(), time.monotonic()
        await survey.begin(source.all, now=now)
        listed = 0
        for camera in source.all:
            listed += (await survey.camera(camera, now=now, since=since)).listed
        return Step(name, time.process_time() - cpu, time.monotonic() - wall, known, listed)

    steps = []
    try:
        for day in range(DAYS + 1):
            source.record(begin + timedelta(days=day))
            now = begin + timedelta(days=day + 1, minutes=1)
            step = await cycle("a day of 20,000 new clips", now)
            if day == 0:
                steps.append(replace(step, name="the same, nothing on record"))
            if day < DAYS:
                _all_stored(folder)
        if _count(folder) != DAY_CLIPS * (DAYS + 1):
            raise AssertionError(f"{_count(folder)} clips are on record")
        steps.insert(0, step)
        steps.append(await cycle("the day once more, nothing new", now, now - timedelta(days=1)))
        steps.append(await cycle("the next cycle, nothing new", now + timedelta(hours=1)))
    finally:
        checkpoint.close()
    return steps


def _database(folder: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(folder / "state" / "checkpoint.sqlite3", isolation_level=None))


def _count(folder: Path) -> int:
    with _database(folder) as db:
        return int(db.execute("SELECT count(*) FROM clip").fetchone()[0])


def _all_stored(folder: Path) -> None:
    """As if every waiting copy had been carried since."""
    with _database(folder) as db:
        db.execute(
            "UPDATE copy SET state = 'stored', size = 3000000, crc32c = 1, generation = '1',"
            " verified = 1, finished_ms = start_ms WHERE state = 'waiting'"
        )


def _told(steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
    return (asdict(step) for step in steps)


if __name__ == "__main__":
    print(json.dumps(list(_told(asyncio.run(_measure(Path(sys.argv[1])))))))
