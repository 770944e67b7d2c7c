"""What the tests of the directory store share: a store, its insides, and faults of system calls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.clock import SystemClock
from nvr_backup.model import UploadState
from nvr_backup.stores.directory import DirectorySettings, DirectoryStore, open_store
from tests.contract.test_store import Broken, Sender


def made_root(folder: Path) -> Path:
    """An empty folder for a store."""
    path = folder / "footage"
    path.mkdir()
    return path


def settings_for(root: Path, **changes: Any) -> DirectorySettings:
    return replace(DirectorySettings(name="nas", path=root, reserve_bytes=0), **changes)


@asynccontextmanager
async def opened(root: Path, **changes: Any) -> AsyncIterator[DirectoryStore]:
    async with open_store(settings_for(root, **changes), SystemClock()) as store:
        yield store


def partials(root: Path) -> list[str]:
    return sorted(os.listdir(root / ".nvr-backup" / "partial"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def broken_after(store: DirectoryStore, content: bytes, chunks: int) -> UploadState:
    """An unfinished upload of which `chunks` chunks are recorded."""
    sender = Sender(content, break_after=chunks)
    with pytest.raises(Broken):
        await sender(store)
    return sender.states[-1]


class Fault:
    """Replaces a function of `os`: the `nth` call whose arguments `when` accepts does `instead`."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        name: str,
        instead: Callable[..., Any],
        *,
        when: Callable[..., bool] = lambda *_, **__: True,
        nth: int | None = None,
    ) -> None:
        self.real = getattr(os, name)
        self.reached = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            if not when(*args, **kwargs):
                return self.real(*args, **kwargs)
            self.reached += 1
            if nth is not None and self.reached != nth:
                return self.real(*args, **kwargs)
            return instead(*args, **kwargs)

        patch.setattr(os, name, call)


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail
