"""An engine over fakes: real checkpoint, pool, connections and scheduler on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from nvr_backup import engine as engine_module
from nvr_backup.engine import Engine, open_engine
from nvr_backup.settings import Settings
from tests.support.clock import VirtualClock
from tests.support.fakes import EPOCH, FakeSource, FakeStore

Lines = list[dict[str, Any]]


@dataclass
class Wired:
    """What a test holds of an engine and its surroundings."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(EPOCH + timedelta(hours=24)))
    sources: dict[str, FakeSource] = field(default_factory=lambda: {"home": FakeSource("home")})
    stores: dict[str, FakeStore] = field(default_factory=lambda: {"nas": FakeStore()})
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    lines: Lines = field(default_factory=list)

    def __post_init__(self) -> None:
        @asynccontextmanager
        async def open_source(name: str, *_: object, **__: object) -> AsyncIterator[FakeSource]:
            self.opened.append(name)
            yield self.sources[name]
            self.closed.append(name)

        @asynccontextmanager
        async def open_store(name: str, *_: object, **__: object) -> AsyncIterator[FakeStore]:
            self.opened.append(name)
            yield self.stores[name]
            self.closed.append(name)

        self.monkeypatch.setattr(engine_module, "open_source", open_source)
        self.monkeypatch.setattr(engine_module, "open_store", open_store)

    @property
    def source(self) -> FakeSource:
        return self.sources["home"]

    @property
    def store(self) -> FakeStore:
        return self.stores["nas"]

    def settings(self, **changes: Any) -> Settings:
        """The configuration of the fakes, with top-level tables replaced."""
        tables: dict[str, Any] = {
            "state_dir": str(self.folder / "state"),
            "schedule": {"every": "1h", "settle": "30s", "lookback": "2h", "backfill": "24h"},
            "transfer": {"workers": 2, "chunk_size": "256KiB"},
            "sources": {
                name: {
                    "kind": "scrypted",
                    "url": "http://127.0.0.1:1",
                    "username": "u",
                    "password": "p",
                }
                for name in self.sources
            },
            "stores": {
                name: {"kind": "directory", "path": str(self.folder / name)} for name in self.stores
            },
        }
        return Settings.model_validate(tables | changes)

    def log(self) -> Any:
        def keep(_: object, method: str, fields: MutableMapping[str, Any]) -> str:
            self.lines.append({"level": method, **fields})
            raise structlog.DropEvent

        return structlog.wrap_logger(
            None, processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0)
        )

    def said(self, what: str) -> Lines:
        return [line for line in self.lines if line["event"] == what]

    @asynccontextmanager
    async def engine(self, settings: Settings | None = None) -> AsyncIterator[Engine]:
        async with open_engine(
            settings or self.settings(),
            clock=self.clock,
            log=self.log(),
            rng=random.Random(1),
        ) as engine:
            yield engine

    @asynccontextmanager
    async def daemon(self, settings: Settings | None = None) -> AsyncIterator[Engine]:
        """The engine running; drained at the end."""
        stop = asyncio.Event()
        async with self.engine(settings) as engine, asyncio.TaskGroup() as group:
            running = group.create_task(engine.run(stop))
            try:
                yield engine
            finally:
                stop.set()
            async with asyncio.timeout(20):
                await running

    async def until(self, happened: Callable[[], object], *, step: float = 0.0) -> None:
        """Let the program work until `happened`, `step` virtual seconds passing at every look."""
        async with asyncio.timeout(60):
            while not happened():
                await asyncio.sleep(0.001)
                if step:
                    await self.clock.advance(step)
