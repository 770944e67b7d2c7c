"""Worlds one after the other, each with a folder, a recorder and a bucket of its own.

A test may need hundreds: nothing of one may be left to the next, on disk or in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nvr_backup.simulator import Simulator, SimulatorSettings
from tests.crashes.program import Program
from tests.crashes.world import ALL_KINDS, CAMERAS, Made, World
from tests.support.gcs_double import GcsDouble


def beginning() -> datetime:
    """When the clips of a story began: a whole minute some hours ago."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=3)


@dataclass
class Stage:
    """Opens one world after the other: they share times, and the program that keeps nothing."""

    folder: Path
    program: Program
    begin: datetime = field(default_factory=beginning)
    _count: int = 0

    @asynccontextmanager
    async def world(
        self,
        stores: Sequence[str],
        clips: Iterable[Made] = ALL_KINDS,
        *,
        workers: int = 1,
        deposits: bool = False,
    ) -> AsyncIterator[World]:
        self._count += 1
        folder = self.folder / str(self._count)
        folder.mkdir()
        settings = SimulatorSettings(cameras=CAMERAS, digests="none")
        async with Simulator(settings) as nvr, GcsDouble() as gcs:
            world = World(folder, self.program, nvr, gcs, stores, workers, deposits=deposits)
            world.record(clips, self.begin)
            yield world
        shutil.rmtree(folder)
