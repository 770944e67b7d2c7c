"""What is drawn once for a seed: how long, how much, how bad, and the configuration."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

STARTS = (
    datetime(2026, 1, 15, 12, 0, tzinfo=UTC),
    datetime(2026, 3, 28, 22, 30, tzinfo=UTC),  # the night in which Europe's clocks go forward
    datetime(2026, 10, 24, 22, 30, tzinfo=UTC),  # and back
    datetime(2028, 2, 28, 20, 0, tzinfo=UTC),
)


@dataclass(frozen=True)
class Plan:
    """What is drawn once for a seed."""

    sources: tuple[str, ...]
    stores: tuple[str, ...]
    hours: float
    incidents: int
    clips: int
    bad: float
    chunk_size: int
    lookback: timedelta
    backfill: timedelta
    cron: str | None
    zone: str
    start: datetime
    impatient: bool


def draw(rng: random.Random) -> Plan:
    """A plan, all of it by chance."""
    large = rng.random() < 0.04
    return Plan(
        sources=("home", "cabin")[: rng.choice((1, 1, 2))],
        stores=("nas", "offsite")[: rng.choice((1, 2))],
        hours=rng.uniform(2, 6),
        incidents=rng.randint(8, 30),
        clips=400 if large else rng.randint(20, 80),
        bad=rng.choice((0.0, 0.03, 0.06, 0.1, 0.2)),
        chunk_size=rng.choice((400, 700, 1500)),
        lookback=timedelta(minutes=rng.choice((30, 60, 120, 360))),
        backfill=timedelta(hours=rng.choice((1, 6, 24, 72, 72))),
        cron=rng.choice((None, None, None, "*/20 * * * *", "7 * * * *")),
        zone=rng.choice(("UTC", "Europe/Berlin", "America/New_York")),
        start=rng.choice(STARTS),
        impatient=rng.random() < 0.95,
    )
