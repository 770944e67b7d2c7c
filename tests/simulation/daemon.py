"""The daemon's lives: the real service, started, signalled, killed and started again.

A kill leaves on the disk what SQLite had written; a power cut only what had been brought to the
disk (`fdatasync`), as of the latest time that was. Everything the dying process still does in
memory is without effect. It must never mend what the program left behind.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import structlog

from nvr_backup import engine as engine_module
from nvr_backup import service as service_module
from nvr_backup.database import FILE_NAME, CheckpointError, Database
from nvr_backup.engine import Engine
from nvr_backup.errors import ConfigError
from nvr_backup.notify import Notifier
from nvr_backup.service import Service
from nvr_backup.settings import Settings
from tests.simulation.loop import SimulatedLoop
from tests.simulation.recorder import SimulatedSource, SourceSite
from tests.simulation.sites import Life
from tests.simulation.storage import SimulatedStore, StoreSite
from tests.simulation.world import SimulatedClock, World

Say = Callable[[str, MutableMapping[str, Any]], None]
"""Told of every log line: its level and fields."""

DISK_FULL = CheckpointError("The checkpoint cannot be written: the disk is full.")

_FILES = (FILE_NAME, f"{FILE_NAME}-wal")


class Bug(AssertionError):
    """The daemon ended in a way it must not."""


class Daemon:
    """The process as its operator sees it: up or down."""

    def __init__(
        self,
        loop: SimulatedLoop,
        clock: SimulatedClock,
        world: World,
        sources: dict[str, SourceSite],
        stores: dict[str, StoreSite],
        *,
        folder: Path,
        seed: int,
        say: Say,
    ) -> None:
        self.state = folder / "state"
        self.settings: Settings | None = None
        self.refused = False  # the configuration that a reload finds is broken
        self.ends: list[str] = []
        self.watch: Callable[[sqlite3.Connection], None] = lambda _: None
        self.disk_fails = False
        self._fallback = folder / "fallback"
        self._fallback.mkdir()
        self._loop = loop
        self._clock = clock
        self._world = world
        self._sources = sources
        self._stores = stores
        self._rng = random.Random(f"daemon {seed}")
        self._say = say
        self._life = Life()
        self._task: asyncio.Task[None] | None = None
        self._open: Engine | None = None
        self._keep_synced = False
        loop.execute = self._execute

    # -- living -------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self, settings: Settings) -> None:
        """Start the service; there must be none."""
        assert not self.up
        self._forget_synced()
        self.settings = settings
        self._life = Life()
        service = Service(self._load, clock=self._clock, log=self._log(), notifier=Notifier(None))
        self._task = self._loop.create_task(service.run(settings))

    def _load(self) -> Settings:
        if self.refused or self.settings is None:
            raise ConfigError("[schedule] every: this is no duration.")
        return self.settings

    def signal(self, number: signal.Signals) -> None:
        """As `kill -s` does; nothing when nobody is there."""
        handler = self._loop.signals.get(number)
        if handler is not None:
            self._loop.call_soon(handler)

    def collect(self) -> str:
        """How the daemon ended, if it did: "drained", "cancelled", "disk" (Bug for all else)."""
        task, self._task = self._task, None
        if task is None:
            return ""
        end = self._end_of(task)
        self.ends.append(end)
        return end

    def _end_of(self, task: asyncio.Task[None]) -> str:
        if task.cancelled():
            return "cancelled"
        error = task.exception()
        if error is None:
            return "drained"
        for one in _leaves(error):
            if one is not DISK_FULL:
                raise Bug(f"the daemon ended with {one!r}") from error
        return "disk"

    @property
    def engine(self) -> Engine | None:
        """The running service's, once it is open."""
        return self._open if self.up else None

    def look(self) -> sqlite3.Connection | None:
        """The checkpoint as the running engine has it; between two steps nothing is half-done."""
        engine = self.engine
        return None if engine is None else engine.checkpoint._database._connection

    def late(self) -> list[str]:
        """Supervisors that broke their promise of a sign of life."""
        engine = self.engine
        return [] if engine is None else [pulse.part for pulse in engine.pulses if pulse.late]

    # -- dying --------------------------------------------------------------------------------

    def arm_power_cut(self) -> None:
        """What is there now counts as on the disk; from now on only what is brought there does."""
        self._keep_synced = True
        self._save_files()

    def _forget_synced(self) -> None:
        self._keep_synced = False
        for name in _FILES:
            (self._fallback / name).unlink(missing_ok=True)

    def kill(self, *, power: bool = False) -> None:
        """SIGKILL, or a power cut, right between two steps."""
        if not self.up:
            return
        if not (power and self._keep_synced):
            self._save_files()
        self._keep_synced = False
        self._life.over = True
        self._loop.refusing = True
        self._loop.signals.clear()
        self._bury()
        self._loop.refusing = False
        self._restore_files()

    def _bury(self) -> None:
        for result in self._loop.drop_work():
            if isinstance(result, Database):
                result.close()
        while tasks := [task for task in asyncio.all_tasks(self._loop) if not task.done()]:
            for task in sorted(tasks, key=hash):
                task.cancel()
            self._loop.run_rounds(20)
            for result in self._loop.drop_work():
                if isinstance(result, Database):
                    result.close()
        if self._task is not None and not self._task.cancelled():
            self._task.exception()  # whatever a dying process still says is not heard
        self._task = None

    def _save_files(self) -> None:
        for name in _FILES:
            (self._fallback / name).unlink(missing_ok=True)
            if (self.state / name).exists():
                shutil.copyfile(self.state / name, self._fallback / name)

    def _restore_files(self) -> None:
        for name in (*_FILES, f"{FILE_NAME}-shm"):
            (self.state / name).unlink(missing_ok=True)
        for name in _FILES:
            if (self._fallback / name).exists():
                (self._fallback / name).rename(self.state / name)

    # -- the threads' work --------------------------------------------------------------------

    def _execute(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_sync":  # bring the log to the disk
            if self._keep_synced:
                self._save_files()
            return None
        owner = getattr(func, "__self__", None)
        if isinstance(owner, Database):
            if self.disk_fails and self._rng.random() < 0.2:
                raise DISK_FULL
            result = func(*args)
            if self._keep_synced and _synced_by_itself(owner._connection):
                self._save_files()
            self.watch(owner._connection)
            return result
        return func(*args)

    # -- wiring -------------------------------------------------------------------------------

    @contextmanager
    def wired(self) -> Iterator[None]:
        """Within the block the engine opens simulated parts, and chance comes from the seed."""
        chance = SimpleNamespace(SystemRandom=lambda: self._rng, Random=random.Random)
        with (
            mock.patch.object(engine_module, "open_source", self._open_source),
            mock.patch.object(engine_module, "open_store", self._open_store),
            mock.patch.object(service_module, "open_engine", self._open_engine),
            mock.patch.object(service_module, "random", chance),
        ):
            yield

    @asynccontextmanager
    async def _open_engine(self, *arguments: Any, **options: Any) -> AsyncIterator[Engine]:
        async with engine_module.open_engine(*arguments, **options) as engine:
            self._open = engine
            try:
                yield engine
            finally:
                self._open = None

    @asynccontextmanager
    async def _open_source(self, name: str, *_: object, **__: object) -> AsyncIterator[Any]:
        yield SimulatedSource(self._sources[name], self._world, self._life, self._clock.true)

    @asynccontextmanager
    async def _open_store(self, name: str, *_: object, **__: object) -> AsyncIterator[Any]:
        yield SimulatedStore(self._stores[name], self._life)

    def _log(self) -> Any:
        life = self._life

        def keep(_: object, method: str, fields: MutableMapping[str, Any]) -> str:
            if not life.over:
                self._say(method, fields)
            raise structlog.DropEvent

        return structlog.wrap_logger(
            None, processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0)
        )


def _synced_by_itself(connection: sqlite3.Connection) -> bool:
    """Whether the latest transaction was one with `synchronous=FULL`."""
    full: bool = connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    return full


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
