"""An engine over fakes whose checkpoint is lost or damaged, and what makes it anew."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from nvr_backup import matching as matching_module
from nvr_backup import rebuild as rebuild_module
from nvr_backup import workplace as workplace_module
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import Blocked
from nvr_backup.model import StoredObject
from nvr_backup.ports import Capabilities
from nvr_backup.rebuild import Inventory, Rebuilt, rebuild
from nvr_backup.settings import Settings
from nvr_backup.workplace import Wish
from tests.support.fakes import FakeSource, FakeStore
from tests.support.wired import Wired

Watermarks = dict[tuple[str, str, str], datetime]


class GuardedStore(FakeStore):
    """A store whose key may not list, and perhaps not look."""

    def __init__(self, *, may_stat: bool = True) -> None:
        super().__init__(may_stat=may_stat)
        self.may_list = True

    async def probe(self) -> Capabilities:
        found = await super().probe()
        return Capabilities(
            stat=found.stat, list=self.may_list, read=True, delete=self.may_list, resume=True
        )

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        if not self.may_list:
            raise Blocked("The key may not list objects.")
        async for each in super().list(prefix):
            yield each


class Ruins(Wired):
    """What a test holds of a program whose checkpoint meets misfortune."""

    def __post_init__(self) -> None:
        super().__post_init__()

        @asynccontextmanager
        async def open_source(name: str, *_: object, **__: object) -> AsyncIterator[FakeSource]:
            yield self.sources[name]

        @asynccontextmanager
        async def open_store(name: str, *_: object, **options: Any) -> AsyncIterator[FakeStore]:
            self.used_before[name] = options["used_before"]
            yield self.stores[name]

        self.used_before: dict[str, bool] = {}
        self.told: list[tuple[str, int]] = []
        self.monkeypatch.setattr(matching_module, "open_source", open_source)
        self.monkeypatch.setattr(rebuild_module, "open_store", open_store)
        self.monkeypatch.setattr(workplace_module, "open_store", open_store)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def checkpoint(self) -> Path:
        return self.state / "checkpoint.sqlite3"

    async def once(self, settings: Settings | None = None) -> None:
        """One cycle by hand."""
        async with self.engine(settings) as engine:
            await engine.once(asyncio.Event())

    async def rebuild(self, wish: Wish | None = None, settings: Settings | None = None) -> Rebuilt:
        def tell(inventory: Inventory) -> None:
            self.told.append((inventory.store, inventory.objects))

        return await rebuild(settings or self.settings(), wish or Wish(), self.clock, tell)

    def lose(self) -> None:
        """Everything below the state folder."""
        shutil.rmtree(self.state)

    async def watermarks(self) -> Watermarks:
        checkpoint = await Checkpoint.peek(self.state)
        try:
            return await checkpoint.watermarks()
        finally:
            checkpoint.close()

    def sent(self) -> int:
        return sum(store.received for store in self.stores.values())

    def objects(self) -> dict[str, dict[str, tuple[StoredObject, bytes]]]:
        return {name: dict(store.objects) for name, store in self.stores.items()}

    def files(self) -> dict[str, bytes]:
        """Contents of the state folder, whatever SQLite needs for looking left out."""
        return {
            str(path.relative_to(self.state)): path.read_bytes()
            for path in self.state.rglob("*")
            if path.is_file() and not path.name.endswith("-shm") and path.stat().st_size
        }
