"""Looks which of a camera's clips is the oldest that the recorder still lists, and warns in time.

A few narrow listings: the oldest that was there the last time, and only if it is gone a search
among the clips on record. An empty answer may be an error in disguise, so nothing is believed
unless a later clip is listed and the missing one is missing twice. It must never do more than
LISTINGS of them in a look, and never look more often than EVERY.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from structlog.typing import FilteringBoundLogger

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import Transient
from nvr_backup.logs import Troubles
from nvr_backup.model import Camera, Window
from nvr_backup.ports import ClipSource
from nvr_backup.retention import MARGIN, first_life, looked_again

EVERY: Final = timedelta(minutes=15)
LISTINGS: Final = 48
"""Twice the steps of a search among ten million clips."""

WIDTH: Final = timedelta(seconds=1)

DANGER: Final = "danger"


def _nothing() -> None:
    pass


class Lookout:
    """Watches the cameras of one source. `step` is called before each listing: it goes on."""

    def __init__(
        self, source: ClipSource, checkpoint: Checkpoint, step: Callable[[], None] = _nothing
    ) -> None:
        self._source = source
        self._checkpoint = checkpoint
        self._step = step
        self._listings = 0

    async def look(self, camera: Camera, now: datetime) -> None:
        """Note the camera's oldest clip, if it is time; raises Transient or Blocked."""
        lives = self._checkpoint.lives
        life = await lives.of(camera)
        if life is None:
            known = await lives.starts(camera, _BEGINNING, skip=0, limit=1)
            if known:
                await lives.note(camera, first_life(known[0], now))
            return
        if timedelta() <= now - life.looked < EVERY:
            return
        waiting = await lives.waiting(camera, limit=1)
        oldest = await self._oldest(camera, min([life.oldest, *waiting]))
        if oldest is not None:
            await lives.note(camera, looked_again(life, oldest, now))

    async def _oldest(self, camera: Camera, first: datetime) -> datetime | None:
        """The oldest clip on record, of those from `first` on, that is listed; None: not known.

        What is deleted is deleted in order, so it lies between one that is gone and one that is
        there: steps that double, then halves.
        """
        self._listings = LISTINGS
        if await self._there(camera, first):
            return first
        starts, count = (
            self._checkpoint.lives.starts,
            await self._checkpoint.lives.count(camera, first),
        )
        gone, there, step = 0, None, 1
        while there is None and gone < count - 1:
            at = min(gone + step, count - 1)
            found = await starts(camera, first, skip=at, limit=1)
            if found and await self._there(camera, found[0]):
                there = at
            else:
                gone, step = at, 2 * step
        while there is not None and there - gone > 1 and self._listings > 1:
            at = (gone + there) // 2
            found = await starts(camera, first, skip=at, limit=1)
            if found and await self._there(camera, found[0]):
                there = at
            else:
                gone = at
        if there is None or await self._there(camera, first):
            return None
        found = await starts(camera, first, skip=there, limit=1)
        return found[0] if found else None

    async def _there(self, camera: Camera, start: datetime) -> bool:
        if not self._listings:
            return False
        self._listings -= 1
        self._step()
        window = Window(start, start + WIDTH)
        return bool([clip async for clip in self._source.clips(camera, window)])


_BEGINNING: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


async def look_at(
    lookout: Lookout, camera: Camera, now: datetime, log: FilteringBoundLogger
) -> None:
    """A look; one that fails is made up for by the next. Raises Blocked."""
    try:
        await lookout.look(camera, now)
    except Transient as err:
        log.debug("oldest clip not found", reason=err.message)


async def judge(
    checkpoint: Checkpoint, now: datetime, *, troubles: Troubles, log: FilteringBoundLogger
) -> None:
    """Warn once when the recorder will delete before we are done, and say when it will not."""
    loss = await checkpoint.lives.danger(now)
    if loss is not None:
        troubles.failed(
            DANGER,
            log,
            "footage in danger",
            camera=loss.camera,
            hours_left=_hours(loss.left),
            hours_needed=None if loss.needed is None else _hours(loss.needed),
            waiting=loss.waiting,
            hint="The recorder deletes faster than clips are stored: raise transfer.upload_limit, "
            "mend the store, or give the recorder more room.",
        )
    elif DANGER in troubles and await checkpoint.lives.danger(now, margin=MARGIN) is None:
        troubles.recovered(DANGER, log, "footage out of danger")


def _hours(time: timedelta) -> float:
    return round(time / timedelta(hours=1), 1)
