"""The process dies before any one of its system calls: the next process finds a sound store.

The death is played inside the test's own process: from the fatal call on every watched call of the
store raises `Death` instead of reaching the kernel, and afterwards the descriptors it held are
closed, as the kernel would. What a *power cut* may lose on top is a matter of order (see
`test_everything_is_durable_before_what_needs_it`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.clock import SystemClock
from nvr_backup.errors import StartOver
from nvr_backup.stores.directory import DirectorySettings, open_store
from tests.contract.conftest import CHUNK
from tests.contract.test_store import METADATA, Sender, clip

WATCHED = (
    *("open", "dup", "pwritev", "pread", "fsync", "fdatasync", "link", "replace"),
    *("mkdir", "unlink", "ftruncate", "write", "rename"),
)
MOST_CALLS = 1000


class Death(BaseException):
    """What the code under test cannot catch."""


class Mortal:
    """Lets `calls` watched calls through; then nothing works any more."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: int) -> None:
        self.left = calls
        self.held: set[int] = set()
        for name in WATCHED:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        patch.setattr(os, "close", self._close)
        self._real_close = os.close

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                self.left = -1
                raise Death
            self.left -= 1
            result = real(*args, **kwargs)
            if name in ("open", "dup"):
                self.held.add(result)
            return result

        return call

    def _close(self, fd: int) -> None:
        if self.left >= 0:
            self._gone(fd)

    def _gone(self, fd: int) -> None:
        self.held.discard(fd)
        _CLOSE(fd)

    def buried(self) -> bool:
        """Close what a dead process held; whether it died at all."""
        for fd in list(self.held):
            self._gone(fd)
        return self.left < 0


_CLOSE = os.close


@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
async def test_death_before_any_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """Nothing or the whole clip is visible; the recorded state leads to the whole clip."""
    content = clip(2 * CHUNK + 1)
    died = 0
    for calls in range(MOST_CALLS):
        root = tmp_path / str(calls)
        root.mkdir()
        key = "cam/day/a.mp4"
        settings = DirectorySettings(name="nas", path=root, reserve_bytes=0)
        sender = Sender(content, key=key)
        async with open_store(settings, SystemClock()) as store:
            if resumed:
                unfinished = Sender(content, key=key, break_after=1)
                with suppress(Exception):
                    await unfinished(store)
                sender.states.extend(unfinished.states)
            with monkeypatch.context() as patch:
                mortal = Mortal(patch, calls)
                with suppress(Death):
                    await sender(store, resume=sender.states[-1] if resumed else None)
            dead = mortal.buried()
        place = root / key
        assert not place.exists() or place.read_bytes() == content
        async with open_store(settings, SystemClock()) as store:
            again = Sender(content, key=key)
            try:
                stored = await again(store, resume=sender.states[-1] if sender.states else None)
            except StartOver:
                stored = await again(store)
            assert place.read_bytes() == content
            assert place.stat().st_nlink == 1
            assert stored == await store.stat(key)
            assert dict(stored.metadata) == METADATA
            assert [found.key async for found in store.list("")] == [key]
        if not dead:
            break
        died += 1
    else:
        raise AssertionError("the upload never got through")
    assert died > 40


@pytest.mark.parametrize("harm", ["rotten", "truncated"])
async def test_death_while_a_corrupt_file_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """The bad file is under its key or kept aside, never lost; the clip gets there all the same."""
    content = clip(2 * CHUNK + 1)
    bad = content[:-9] if harm == "truncated" else b"?" + content[1:]
    died = between = 0
    for calls in range(MOST_CALLS):
        root = tmp_path / str(calls)
        root.mkdir()
        key = "cam/day/a.mp4"
        place, aside = root / key, root / ".nvr-backup" / "replaced"
        settings = DirectorySettings(name="nas", path=root, reserve_bytes=0)
        async with open_store(settings, SystemClock()) as store:
            await Sender(content, key=key)(store)
            place.write_bytes(bad)
            there = await store.stat(key)
            assert there is not None
            sender = Sender(content, key=key, replaces=there.generation or "")
            with monkeypatch.context() as patch:
                mortal = Mortal(patch, calls)
                with suppress(Death):
                    await sender(store)
            dead = mortal.buried()
        kept = [path.read_bytes() for path in aside.iterdir()] if aside.exists() else []
        if place.exists() and place.read_bytes() == bad:
            assert kept == []
        else:
            assert kept == [bad]
            assert not place.exists() or place.read_bytes() == content
            between += not place.exists()
        async with open_store(settings, SystemClock()) as store:
            again = Sender(content, key=key, replaces=sender.replaces)
            try:
                stored = await again(store, resume=sender.states[-1] if sender.states else None)
            except StartOver:
                stored = await again(store)
            assert place.read_bytes() == content
            assert stored == await store.stat(key)
            assert dict(stored.metadata) == METADATA
            assert [found.key async for found in store.list("")] == [key]
        assert [path.read_bytes() for path in aside.iterdir()] == [bad]
        if not dead:
            break
        died += 1
    else:
        raise AssertionError("the upload never got through")
    assert died > 40
    assert between > 2
