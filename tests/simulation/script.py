"""What happens in one seed: a world is drawn, incident follows incident, then everything is mended.

Nothing here is measured or waited for: a seed is a function. When an invariant does not hold,
`Failed` has the seed and the last of what happened; the same seed tells the same story again.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from tests.simulation.incidents import Incidents
from tests.simulation.stage import Stage, Story

REST_LIMIT = timedelta(days=4)
REST_STEP_SECONDS = 700.0
LINES_KEPT = 60


class Failed(AssertionError):
    """A seed that did not hold."""


class Script:
    """One seed on its way."""

    def __init__(self, seed: int, folder: Path, *, say: Callable[[str], None]) -> None:
        self.stage = Stage(seed, folder, say=say)
        self.incidents = Incidents(self.stage)

    def run(self) -> Story:
        """Let it all happen; Failed, Violated or Bug when something does not hold."""
        stage = self.stage
        for number in range(stage.rng.randint(1, 4)):
            self.incidents.new_camera(number)
        for site in (*stage.sources.values(), *stage.stores.values()):
            site.weather.bad = stage.plan.bad
        with stage.daemon.wired():
            try:
                stage.start()
                for _ in range(stage.plan.incidents):
                    self.incidents.happen()
                    self._pass_time()
                    self._look()
                self._rest()
                self._end()
            finally:
                try:
                    stage.daemon.kill()
                finally:
                    stage.loop.close()
        return stage.told()

    def _pass_time(self) -> None:
        """A few steps of the program, or some minutes."""
        stage = self.stage
        if stage.rng.random() < 0.35:
            stage.loop.run_rounds(stage.rng.randint(1, 600))
        else:
            mean = stage.plan.hours * 3600 / stage.plan.incidents / 0.65
            stage.loop.run_seconds(min(stage.rng.expovariate(1 / mean), 5 * mean))
        stage.end_what_is_over()

    def _look(self) -> None:
        """Check everything; see whether the daemon has ended."""
        stage, daemon = self.stage, self.stage.daemon
        if late := daemon.late():
            raise Failed(f"no sign of life of {late[0]}")
        if unheard := stage.loop.unheard:
            raise Failed(f"nobody hears: {unheard[0]}")
        db = daemon.look()
        if db is not None:
            stage.invariants.check(db)
        elif not daemon.up and (end := daemon.collect()):
            stage.tell(f"--- the daemon has ended: {end}")
            stage.story.happened[f"daemon ended: {end}"] += 1
            stage.later(stage.rng.expovariate(1 / 300), stage.start)

    # -- the end ------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Everything is mended and nothing new comes: all must come to rest."""
        stage = self.stage
        stage.tell("--- rest")
        self._mend()
        deadline = stage.loop.time() + REST_LIMIT.total_seconds()
        absent: list[str] = []
        routes = dict.fromkeys(stage.plan.sources, stage.plan.stores)
        calm = 0
        while calm < 2:
            if stage.loop.time() > deadline:
                raise Failed(f"no rest: {absent or 'copies wait'}")
            stage.loop.run_seconds(REST_STEP_SECONDS)
            self._look()
            if not stage.daemon.up:
                stage.start()
                continue
            stage.world.advance()
            db = stage.daemon.look()
            if db is None:
                continue
            absent = stage.invariants.missing(db, routes)
            # Somebody who looks asks again for what is a video; the rest may wait its hours.
            waiting = stage.invariants.waiting(db, videos=stage.plan.impatient)
            calm = calm + 1 if not absent and not waiting else 0
            if absent and not waiting:
                self.incidents.retry()
            elif waiting and stage.plan.impatient:
                self.incidents.retry(waiting)

    def _mend(self) -> None:
        stage = self.stage
        stage.stores_on = set(stage.plan.stores)
        stage.end_what_is_over(all_of_it=True)
        stage.world.recording = False
        for site in (*stage.sources.values(), *stage.stores.values()):
            site.weather.bad = site.weather.slow = 0.0
            site.weather.down, site.weather.full = "", False
        stage.clock.set_wrong(timedelta(0))
        stage.loop.slow_disk = stage.daemon.disk_fails = False
        stage.daemon.refused = False
        if stage.daemon.up:
            stage.daemon.settings = stage.settings()
            stage.loop.run_rounds(20)  # it may have been started just now: let it set its handlers
            stage.daemon.signal(signal.SIGHUP)
        else:
            stage.start()

    def _end(self) -> None:
        daemon = self.stage.daemon
        daemon.signal(signal.SIGTERM)
        self.stage.loop.run_seconds(300)
        if daemon.up or daemon.collect() != "drained":
            raise Failed("the daemon did not end when it was asked to")
        self._look()


def play(seed: int, *, say: Callable[[str], None] | None = None) -> Story:
    """Run a seed. Failed with the story's last lines when it does not hold."""
    lines: deque[str] = deque(maxlen=LINES_KEPT)

    def keep(line: str) -> None:
        lines.append(line)
        if say is not None:
            say(line)

    memory = "/dev/shm"
    place = memory if os.access(memory, os.W_OK) else None
    collecting = gc.isenabled()
    gc.disable()  # what a collection finishes would otherwise depend on what else was made
    try:
        with tempfile.TemporaryDirectory(prefix="simulation-", dir=place) as folder:
            return Script(seed, Path(folder), say=keep).run()
    except Exception as err:
        told = "\n".join(lines)
        raise Failed(f"seed {seed}: {type(err).__name__}: {err}\n{told}") from err
    finally:
        if collecting:
            gc.enable()
