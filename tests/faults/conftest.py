"""One rig for each kind of store and test process, made anew after a case that did not end well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.faults.rig import Kind, Rig, rig

Rigs = Callable[[Kind], Rig]


class _Standing:
    """The rigs that stand now."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._made: dict[Kind, tuple[ExitStack, Rig]] = {}

    def get(self, kind: Kind) -> Rig:
        if kind in self._made and not self._made[kind][1].proven:
            self._made.pop(kind)[0].close()
        if kind not in self._made:
            stack = ExitStack()
            made = stack.enter_context(rig(kind, self._folders.mktemp(kind)))
            self._made[kind] = (stack, made)
        found = self._made[kind][1]
        found.begin()
        return found

    def close(self) -> None:
        for stack, _ in self._made.values():
            stack.close()


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    """The rig for a kind of store; a case begins with asking for it."""
    standing = _Standing(tmp_path_factory)
    yield standing.get
    standing.close()
