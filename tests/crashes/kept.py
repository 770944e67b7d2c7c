"""A world's files and bucket at one moment: to go back to, and to compare with.

What was stored must be the very same object afterwards, not one that looks like it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.crashes.world import World
from tests.support.gcs_double import Held


class Kept:
    """A world's files and bucket at one moment, to go back to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._aside = world.folder / "kept"
        self._aside.mkdir()
        copy_tree(world.state, self._aside / "state")
        copy_tree(world.footage, self._aside / "footage")
        self._objects = dict(world.gcs.objects["footage"])
        self._files = _files(world)

    def restore(self) -> None:
        """As it was then, with nothing beside it."""
        for place, kept in ((self._world.state, "state"), (self._world.footage, "footage")):
            shutil.rmtree(place)
            copy_tree(self._aside / kept, place)
        self._world.gcs.objects["footage"].clear()
        self._world.gcs.objects["footage"].update(self._objects)
        self._files = _files(self._world)

    def nothing_replaced(self) -> None:
        """The objects of that moment are there, each the very same one."""
        now = self._world.gcs.objects["footage"]
        assert {key: _identity(held) for key, held in self._objects.items()} == {
            key: _identity(held) for key, held in now.items()
        }
        assert _files(self._world) == self._files


def _files(world: World) -> dict[str, tuple[int, int]]:
    """The clips in the folder, each with what changes when it is replaced or written to."""
    status = {key: (world.footage / key).stat() for key in world.objects("folder")}
    return {key: (found.st_ino, found.st_mtime_ns) for key, found in status.items()}


def _identity(held: Held) -> tuple[int, int]:
    return held.generation, held.size


def copy_tree(source: Path, target: Path) -> None:
    """A copy of a folder in which hard links stay hard links."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
