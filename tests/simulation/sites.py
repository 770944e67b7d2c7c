"""What every part of the simulated world has: weather, chance of its own, and the daemon's life.

`Weather` says how often what goes wrong; every fault that happens is counted by name. An adapter
belongs to one life of the daemon: when that ends, nothing it still does has any effect.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from nvr_backup.errors import Blocked, Transient


@dataclass
class Weather:
    """How likely a step of a part goes wrong (0 to 1), and outages. `down` says why, if it is."""

    bad: float = 0.0
    slow: float = 0.0
    down: str = ""
    full: bool = False  # probes succeed, work does not


@dataclass
class Life:
    """One life of the daemon; `over` once it was killed."""

    over: bool = False

    def check(self) -> None:
        """To be called right before anything that the world would notice."""
        if self.over:
            raise asyncio.CancelledError


@dataclass
class Site:
    """A part of the world with its weather and what it has done; it outlives every daemon."""

    rng: random.Random
    happened: Counter[str]
    weather: Weather = field(default_factory=Weather)

    def luck(self, fault: str, weight: float = 1.0) -> bool:
        """Whether a fault strikes here."""
        if self.rng.random() >= self.weather.bad * weight:
            return False
        self.happened[fault] += 1
        return True

    async def pause(self, longest: float = 2.0) -> None:
        """The time an answer takes."""
        luck = self.rng.random()
        if luck < self.weather.slow:
            await asyncio.sleep(longest * self.rng.random())
        elif luck < 0.5:
            await asyncio.sleep(0.01 * self.rng.random())
        else:
            await asyncio.sleep(0)

    def check_up(self, what: str) -> None:
        """Raise Blocked during an outage."""
        if self.weather.down:
            self.happened[f"{what} blocked"] += 1
            raise Blocked(f"It cannot be used: {self.weather.down}.", hint="Mend it.")

    def transient(self) -> Transient:
        """A failure with or without a wish of the other side."""
        wish = self.rng.choice((None, None, 5.0, 90.0))
        return Transient("The other side answered 503.", retry_after=wish)
