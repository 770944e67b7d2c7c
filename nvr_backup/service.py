"""The daemon on one page: start, signals, reload, drain.

    start → engine.run ┬ SIGTERM, SIGINT: drain (chunks in flight are finished), then exit 0
                       │  a second one: stop at once; what was in flight resumes next time
                       ├ SIGHUP: read the configuration again; an invalid one changes nothing
                       ├ SIGUSR1: a cycle now
                       └ the service manager: ready, reloading, stopping, a status, the watchdog

Nothing here polls but the watchdog, if there is one. A drain that the other side holds up ends
after DRAIN_SECONDS, because every upload can be resumed.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from structlog.typing import FilteringBoundLogger

from nvr_backup import __version__
from nvr_backup.clock import Clock
from nvr_backup.engine import Engine, open_engine
from nvr_backup.errors import ConfigError
from nvr_backup.notify import Notifier
from nvr_backup.settings import Settings, changes
from nvr_backup.vitals import Vitals

DRAIN_SECONDS: Final = 60.0
"""How long a drain may take; systemd's own limit (TimeoutStopSec) is to be longer."""


class Service:
    """One run of the daemon."""

    def __init__(
        self,
        load: Callable[[], Settings],
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        notifier: Notifier,
    ) -> None:
        self._load = load
        self._clock = clock
        self._log = log
        self._notifier = notifier
        self._vitals = Vitals(notifier, clock=clock, log=log)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._overdue = False
        self.engine: Engine | None = None

    async def run(self, settings: Settings) -> None:
        """Work until a signal ends it; returns after a drain.

        Raises what `open_engine` raises (errors of its parts within an ExceptionGroup).
        """
        main = asyncio.current_task()
        assert main is not None  # noqa: S101 - we are a coroutine
        self._log.info("starting", version=__version__, state_dir=str(settings.state_dir))
        with self._signals(main):
            limit = asyncio.create_task(self._limit_drain(main), name="drain limit")
            try:
                await self._work(settings)
            except asyncio.CancelledError:
                if not self._overdue:
                    raise
                main.uncancel()
            finally:
                limit.cancel()
                await asyncio.wait({limit})
        self._log.info("stopped")

    async def _work(self, settings: Settings) -> None:
        starting = asyncio.create_task(self._vitals.starting(), name="starting")
        try:
            async with open_engine(
                settings, clock=self._clock, log=self._log, rng=random.SystemRandom()
            ) as engine:
                starting.cancel()
                self.engine = engine
                async with asyncio.TaskGroup() as group:
                    beside = [
                        group.create_task(self._reloads(engine), name="reload"),
                        group.create_task(self._vitals.status(engine), name="status"),
                        group.create_task(self._vitals.watchdog(engine), name="watchdog"),
                    ]
                    await engine.run(self._stop, started=self._started)
                    for one in beside:
                        one.cancel()
        finally:
            starting.cancel()
            await asyncio.wait({starting})

    def _started(self) -> None:
        if not self._stop.is_set():
            self._notifier.ready()

    @contextmanager
    def _signals(self, main: asyncio.Task[None]) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            if self._stop.is_set():
                self._log.warning("stopping at once", signal=name)
                main.cancel()
                return
            running = len(self.engine.pool.running) if self.engine else 0
            self._log.info("draining", signal=name, transfers=running)
            self._notifier.stopping()
            self._notifier.status(f"stopping: {running} transfers finish their chunks")
            self._stop.set()

        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: stop("SIGTERM"),
            signal.SIGINT: lambda: stop("SIGINT"),
            signal.SIGHUP: self._reload.set,
            signal.SIGUSR1: self._cycle_now,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _cycle_now(self) -> None:
        if self.engine is not None and self.engine.scheduler is not None:
            self._log.info("cycle asked for", signal="SIGUSR1")
            self.engine.scheduler.trigger()

    async def _limit_drain(self, main: asyncio.Task[None]) -> None:
        await self._stop.wait()
        await self._clock.sleep(DRAIN_SECONDS)
        self._log.warning("drain took too long; transfers will resume", seconds=DRAIN_SECONDS)
        self._overdue = True
        main.cancel()

    async def _reloads(self, engine: Engine) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notifier.reloading()
            await self._reload_once(engine)
            if not self._reload.is_set():  # else another one was asked for: this is not the end
                self._notifier.ready()

    async def _reload_once(self, engine: Engine) -> None:
        old = engine.settings
        try:
            new = await asyncio.to_thread(self._load)
        except ConfigError as err:
            self._log.error("reload refused, the old configuration stays", reason=str(err))
            return
        for change in changes(old, new):
            self._log.info("changed", setting=change.path, old=change.old_text, new=change.new_text)
        if new.state_dir != old.state_dir:
            self._log.warning("state_dir changes only with a restart", state_dir=str(new.state_dir))
            new = new.model_copy(update={"state_dir": old.state_dir})
        await engine.apply(new)
        self._log.info("reloaded")
