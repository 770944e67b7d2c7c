"""Asks the sources what they list now, beside the daemon, for commands that compare.

A source or camera that cannot be asked is part of the answer, never the end of the inquiry. It
changes nothing, at the source or here, and asks one camera of a source at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from nvr_backup.adapters import open_source
from nvr_backup.clock import Clock
from nvr_backup.errors import NvrBackupError
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.ports import ClipSource
from nvr_backup.settings import SourceSettings

PART: Final = timedelta(days=1)
"""One listing asks for so much, as a cycle's does."""

SILENT_SECONDS: Final = 300.0
"""A source that does not answer one listing in this time counts as not to be asked."""


@dataclass(slots=True)
class Answer:
    """`clips` has every camera that could be listed, by (source, camera id); `unheard` says why
    others could not, by source or "source, camera". `sources` are those that named their cameras.
    """

    clips: dict[tuple[str, str], Sequence[Clip]] = field(default_factory=dict)
    unheard: dict[str, str] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)

    def of(self, source: str, camera_id: str) -> Sequence[Clip] | None:
        """A camera's clips; () for one that its source does not have any more, None if unknown."""
        if (source, camera_id) in self.clips:
            return self.clips[source, camera_id]
        known = source in self.sources and not any(
            part.startswith(f"{source}, ") for part in self.unheard
        )
        return () if known else None


async def inquire(
    sources: Mapping[str, SourceSettings],
    window: Window,
    *,
    wanted: Callable[[Camera], bool],
    clock: Clock,
) -> Answer:
    """What every source lists of its wanted cameras within `window`. Raises only what is a bug."""
    answer = Answer()
    async with asyncio.TaskGroup() as group:
        for name, settings in sources.items():
            group.create_task(_source(name, settings, window, answer, wanted=wanted, clock=clock))
    return answer


async def _source(
    name: str,
    settings: SourceSettings,
    window: Window,
    answer: Answer,
    *,
    wanted: Callable[[Camera], bool],
    clock: Clock,
) -> None:
    try:
        async with open_source(name, settings, clock) as source:
            async with asyncio.timeout(SILENT_SECONDS):
                cameras = await source.cameras()
            answer.sources.add(name)
            for camera in filter(wanted, cameras):
                await _camera(source, camera, window, answer)
    except NvrBackupError as err:
        answer.unheard[name] = str(err)
    except TimeoutError:
        answer.unheard[name] = _SILENT


async def _camera(source: ClipSource, camera: Camera, window: Window, answer: Answer) -> None:
    found: list[Clip] = []
    try:
        for part in window.split(PART):
            async with asyncio.timeout(SILENT_SECONDS):
                found += [clip async for clip in source.clips(camera, part)]
    except NvrBackupError as err:
        answer.unheard[f"{camera.source}, {camera.name}"] = str(err)
    except TimeoutError:
        answer.unheard[f"{camera.source}, {camera.name}"] = _SILENT
    else:
        # A clip across two parts is listed in both.
        answer.clips[camera.source, camera.id] = list(dict.fromkeys(found))


_SILENT: Final = f"No answer within {SILENT_SECONDS:.0f} s."
