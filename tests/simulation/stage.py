"""The stage of one seed: the world, its parts and the daemon, all by chance and all put together.

Beside that it knows the story so far, what has begun and when it is to end, and the daemon's
configuration as it is now.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from nvr_backup.settings import Settings
from tests.simulation.daemon import Daemon
from tests.simulation.invariants import Invariants
from tests.simulation.loop import SimulatedLoop
from tests.simulation.plan import draw
from tests.simulation.recorder import SourceSite
from tests.simulation.storage import StoreSite
from tests.simulation.world import Habits, SimulatedClock, World
from tests.support.fakes import FakeSource


@dataclass
class Story:
    """What came of a seed. `trace` is a digest of all that was told."""

    seed: int
    happened: Counter[str] = field(default_factory=Counter)
    clips: int = 0
    stored: int = 0
    checks: int = 0
    hours: float = 0.0
    trace: str = ""


class Stage:
    """Everything of one seed. It does nothing by itself."""

    def __init__(self, seed: int, folder: Path, *, say: Callable[[str], None]) -> None:
        self.story = Story(seed)
        self.rng = rng = random.Random(f"script {seed}")
        self.plan = plan = draw(rng)
        self.loop = SimulatedLoop(random.Random(f"loop {seed}"))
        self.clock = SimulatedClock(self.loop, plan.start)
        happened = self.story.happened
        fakes = {name: FakeSource(name, piece=rng.choice((97, 250, 1000))) for name in plan.sources}
        self.sources = {
            name: SourceSite(
                random.Random(f"{name} {seed}"),
                happened,
                name=name,
                fake=fakes[name],
                ranges=rng.random() < 0.5,
                says_size=rng.random() < 0.7,
                blind=rng.choice((None, None, timedelta(minutes=5), timedelta(hours=10))),
            )
            for name in plan.sources
        }
        self.stores = {
            name: StoreSite(
                random.Random(f"{name} {seed}"), happened, name=name, may_stat=rng.random() < 0.85
            )
            for name in plan.stores
        }
        habits = Habits(
            largest=rng.choice((600, 2500, 6000)),
            longest_late=plan.lookback * 0.7,
            retention=rng.choice((None, None, timedelta(hours=rng.uniform(1, 40)))),
        )
        self.world = World(random.Random(f"world {seed}"), self.clock, fakes, habits)
        self.folder = folder
        self.daemon = Daemon(
            self.loop,
            self.clock,
            self.world,
            self.sources,
            self.stores,
            folder=folder,
            seed=seed,
            say=self._heard,
        )
        self.invariants = Invariants(self.world, self.clock, self.sources, self.stores)
        self.daemon.watch = self.invariants.watch
        self.stores_on = set(plan.stores)
        self.workers = rng.randint(1, 5)
        self._say = say
        self._digest = hashlib.sha256()
        self._ends: list[tuple[float, Callable[[], None]]] = []

    # -- telling ------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Note what happens, with when."""
        line = f"{self.loop.time():12.4f} {self.loop.rounds:8d} {text}"
        self._digest.update(line.encode())
        self._say(line)

    def _heard(self, level: str, fields: MutableMapping[str, Any]) -> None:
        told = " ".join(f"{key}={fields[key]}" for key in fields)
        told = told.replace(str(self.folder), "")
        self.tell(f"{level} {told}")
        if fields.get("event") == "clip stored":
            self.invariants.announced.add((fields["store"], fields["key"]))

    def told(self) -> Story:
        """The story, as far as it has come."""
        story = self.story
        story.clips = len(self.world.truths)
        story.stored = sum(len(site.shelf) for site in self.stores.values())
        story.checks = self.invariants.checks
        story.hours = self.loop.time() / 3600
        story.trace = self._digest.hexdigest()
        return story

    # -- what is to end -----------------------------------------------------------------------

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Have it done once so much time has passed."""
        self._ends.append((self.loop.time() + seconds, act))

    def end_what_is_over(self, *, all_of_it: bool = False) -> None:
        """Do what was to be done by now."""
        now = float("inf") if all_of_it else self.loop.time()
        for ended, act in [one for one in self._ends if one[0] <= now]:
            self._ends.remove((ended, act))
            act()

    # -- the daemon ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon unless it is up."""
        if not self.daemon.up:
            self.daemon.collect()
            self.tell("--- start")
            self.daemon.disk_fails = False
            self.daemon.start(self.settings())

    def settings(self) -> Settings:
        """The configuration as it is now."""
        plan = self.plan
        schedule: dict[str, Any] = {
            "settle": "30s",
            "lookback": f"{int(plan.lookback.total_seconds())}s",
            "backfill": f"{int(plan.backfill.total_seconds())}s",
        }
        if plan.cron is None:
            schedule["every"] = "20m"
        else:
            schedule |= {"cron": plan.cron, "timezone": plan.zone}
        settings = Settings.model_validate(
            {
                "state_dir": str(self.daemon.state),
                "schedule": schedule,
                "transfer": {"workers": self.workers},
                "sources": {
                    name: {"kind": "scrypted", "url": "http://127.0.0.1:1", "username": ""}
                    for name in plan.sources
                },
                "stores": {
                    name: {"kind": "directory", "path": f"/{name}"}
                    for name in plan.stores
                    if name in self.stores_on
                },
            }
        )
        # Smaller than the configuration allows: many chunks of few bytes.
        transfer = settings.transfer.model_copy(update={"chunk_size": plan.chunk_size})
        return settings.model_copy(update={"transfer": transfer})
