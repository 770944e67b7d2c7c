"""What happens to the daemon and to the world around it, one incident at a time.

Each begins something and notes when it is to end (`Stage.later`); none waits and none checks.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

from nvr_backup import report
from nvr_backup.keys import DEFAULT_TEMPLATE, object_key
from tests.simulation.stage import Stage
from tests.simulation.world import SimulatedCamera


class Incidents:
    """All that can happen on a stage, with how likely it is."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._numbers = iter(range(1, 1000))

    def happen(self) -> None:
        incidents: dict[str, tuple[float, Callable[[], None]]] = {
            "kill": (3, self._kill),
            "power cut": (2, self._power_cut),
            "drain": (1.5, self._drain),
            "two signals": (1, self._two_signals),
            "reload": (2, self._reload),
            "broken reload": (0.5, self._broken_reload),
            "cycle now": (1.5, self._cycle_now),
            "state disk full": (1, self._disk_full),
            "slow disk": (0.5, self._slow_disk),
            "clock wrong": (1.5, self._clock_wrong),
            "suspend": (1.5, self._suspend),
            "recorder's clock wrong": (1, self._nvr_clock),
            "source down": (2, self._source_down),
            "source weather": (3, self._source_weather),
            "store down": (1.5, self._store_down),
            "store full": (1, self._store_full),
            "store weather": (3, self._store_weather),
            "sessions lost": (1, self._sessions_lost),
            "foreign object": (1, self._foreign_object),
            "camera added": (0.7, self._camera_added),
            "camera renamed": (0.7, self._camera_renamed),
            "camera removed": (0.7, self._camera_removed),
            "retention": (0.7, self._retention),
            "retry": (1, self.retry),
        }
        names = list(incidents)
        (name,) = self.stage.rng.choices(names, [incidents[one][0] for one in names])
        self.stage.tell(f"--- {name}")
        self.stage.story.happened[f"incident: {name}"] += 1
        incidents[name][1]()

    def _kill(self) -> None:
        if self.stage.daemon.up:
            self.stage.daemon.kill()
            self.stage.later(self.stage.rng.expovariate(1 / 200), self.stage.start)

    def _power_cut(self) -> None:
        if self.stage.daemon.up:
            self.stage.daemon.arm_power_cut()
            self.stage.loop.run_rounds(self.stage.rng.randint(1, 3000))
            self.stage.daemon.kill(power=True)
            self.stage.later(self.stage.rng.expovariate(1 / 200), self.stage.start)

    def _drain(self) -> None:
        self.stage.daemon.signal(signal.SIGTERM)

    def _two_signals(self) -> None:
        self.stage.daemon.signal(signal.SIGTERM)
        self.stage.loop.run_rounds(self.stage.rng.randint(1, 100))
        self.stage.daemon.signal(signal.SIGINT)

    def _reload(self) -> None:
        if len(self.stage.plan.stores) > 1 and self.stage.rng.random() < 0.5:
            if len(self.stage.stores_on) > 1:
                self.stage.stores_on.discard(self.stage.rng.choice(self.stage.plan.stores))
            else:
                self.stage.stores_on = set(self.stage.plan.stores)
        self.stage.workers = self.stage.rng.randint(1, 5)
        self.stage.daemon.refused = False
        if self.stage.daemon.up:
            self.stage.daemon.settings = self.stage.settings()
        self.stage.daemon.signal(signal.SIGHUP)

    def _broken_reload(self) -> None:
        self.stage.daemon.refused = True
        self.stage.daemon.signal(signal.SIGHUP)

    def _cycle_now(self) -> None:
        for _ in range(self.stage.rng.randint(1, 3)):
            self.stage.daemon.signal(signal.SIGUSR1)

    def _disk_full(self) -> None:
        self.stage.daemon.disk_fails = True
        self.stage.later(60, lambda: setattr(self.stage.daemon, "disk_fails", False))

    def _slow_disk(self) -> None:
        self.stage.loop.slow_disk = True
        self.stage.later(300, lambda: setattr(self.stage.loop, "slow_disk", False))

    def _clock_wrong(self) -> None:
        hours = self.stage.rng.choice((-6.0, -1.0, -0.01, 0.02, 1.0, 9.0))
        self.stage.clock.set_wrong(timedelta(hours=hours * self.stage.rng.random()))
        self.stage.later(
            self.stage.rng.expovariate(1 / 2400), lambda: self.stage.clock.set_wrong(timedelta(0))
        )

    def _suspend(self) -> None:
        hours = self.stage.rng.choice((0.1, 1, 5, 30)) * self.stage.rng.random()
        self.stage.clock.suspend(timedelta(hours=hours))

    def _nvr_clock(self) -> None:
        source = self.stage.rng.choice(self.stage.plan.sources)
        minutes = self.stage.rng.choice(
            (-0.25 * self.stage.plan.lookback / timedelta(minutes=1), 2, 15, 90)
        )
        self.stage.world.nvr_error[source] = timedelta(minutes=minutes)
        self.stage.later(1800, lambda: self.stage.world.nvr_error.update({source: timedelta(0)}))

    def _source_down(self) -> None:
        site = self.stage.sources[self.stage.rng.choice(self.stage.plan.sources)]
        site.weather.down = self.stage.rng.choice(("no route to host", "wrong password"))
        seconds = self.stage.rng.choice((20, 600, 7200)) * self.stage.rng.random()
        self.stage.later(seconds, lambda: setattr(site.weather, "down", ""))

    def _source_weather(self) -> None:
        site = self.stage.sources[self.stage.rng.choice(self.stage.plan.sources)]
        site.weather.bad = self.stage.plan.bad * self.stage.rng.choice((0, 1, 3))
        site.weather.slow = self.stage.rng.choice((0.0, 0.05, 0.5))

    def _store_down(self) -> None:
        site = self.stage.stores[self.stage.rng.choice(self.stage.plan.stores)]
        site.weather.down = self.stage.rng.choice(("HTTP 403", "there is no bucket"))
        seconds = self.stage.rng.choice((20, 600, 7200)) * self.stage.rng.random()
        self.stage.later(seconds, lambda: setattr(site.weather, "down", ""))

    def _store_full(self) -> None:
        site = self.stage.stores[self.stage.rng.choice(self.stage.plan.stores)]
        site.weather.full = True
        self.stage.later(
            self.stage.rng.expovariate(1 / 1200), lambda: setattr(site.weather, "full", False)
        )

    def _store_weather(self) -> None:
        site = self.stage.stores[self.stage.rng.choice(self.stage.plan.stores)]
        site.weather.bad = self.stage.plan.bad * self.stage.rng.choice((0, 1, 3))
        site.weather.slow = self.stage.rng.choice((0.0, 0.05, 0.3))

    def _sessions_lost(self) -> None:
        site = self.stage.stores[self.stage.rng.choice(self.stage.plan.stores)]
        site.lose_sessions(finished=self.stage.rng.random() < 0.5)

    def _foreign_object(self) -> None:
        """Where the latest clip of a camera would go."""
        if self.stage.world.truths:
            truth = self.stage.rng.choice(self.stage.world.truths[-5:])
            site = self.stage.stores[self.stage.rng.choice(self.stage.plan.stores)]
            site.place(object_key(DEFAULT_TEMPLATE, truth.final.clip), b"not ours")

    def new_camera(self, number: int) -> None:
        rng, plan = self.stage.rng, self.stage.plan
        history = timedelta(hours=rng.choice((6, 6, 6, 60)) * rng.random())
        ids: Literal["plain", "telling"] = rng.choice(("plain", "telling"))
        has_ends = rng.random() < 0.85
        self.stage.world.add_camera(
            SimulatedCamera(
                source=rng.choice(plan.sources),
                id=f"camera-{number}",
                name=rng.choice(("Porch", "Garden", "Porch", "Hof/Tür")),
                ids=ids,
                has_ends=has_ends,
                mean_gap=(timedelta(hours=plan.hours + 6) + history) * 2 / plan.clips,
                grows=rng.choice((0.0, 0.3)) if has_ends else 0.0,
                late=rng.choice((0.0, 0.2)),
                bad=rng.choice((0.0, 0.0, 0.03)),
                twins=rng.choice((0.0, 0.1)) if ids == "plain" else 0.0,
            ),
            history=history,
        )

    def _camera_added(self) -> None:
        self.new_camera(100 + next(self._numbers))

    def _camera_renamed(self) -> None:
        there = [camera for camera in self.stage.world.cameras if camera.present]
        if there:
            self.stage.world.rename(
                self.stage.rng.choice(there), self.stage.rng.choice(("Yard", "Porch", "Tor"))
            )

    def _camera_removed(self) -> None:
        there = [camera for camera in self.stage.world.cameras if camera.present]
        if there:
            camera = self.stage.rng.choice(there)
            self.stage.world.remove(camera)
            id_ = None if self.stage.rng.random() < 0.5 else f"camera-{100 + next(self._numbers)}"
            self.stage.later(
                self.stage.rng.expovariate(1 / 3000),
                lambda: self.stage.world.bring_back(camera, id=id_),
            )

    def _retention(self) -> None:
        if self.stage.world.cameras:
            self.stage.world.forget_oldest(self.stage.rng.choice(self.stage.world.cameras), 0.3)

    def retry(self, rows: list[int] | None = None) -> None:
        """`nvr-backup retry`, of all or of some, beside the daemon."""
        if self.stage.daemon.look() is None:
            return

        async def retry() -> None:
            now = self.stage.clock.now()
            await report.change(self.stage.daemon.state, lambda db: report.retry(db, rows, now=now))

        self.stage.loop.create_task(retry())
