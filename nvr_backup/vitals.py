"""What the service manager hears of us all the time: that we start, how we are, that we live.

Three loops that run beside the engine when there is somebody to tell, and end at once when there is
not. They only look; they must never change what the daemon does, and never report a life that is
none.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from nvr_backup.clock import Clock
from nvr_backup.database import CheckpointError
from nvr_backup.engine import Engine
from nvr_backup.headline import headline, view
from nvr_backup.notify import Notifier

STATUS_SECONDS: Final = 10.0
"""The status line is renewed this often while clips are carried, and when something changes."""

LOOK_SECONDS: Final = 10.0
EXTENSION_SECONDS: Final = 60.0
"""While the start is looked at this often and makes progress, it may take so much longer."""

SHOWN_FRAMES: Final = 20


class Vitals:
    """Tells `notifier`; see the three loops."""

    def __init__(self, notifier: Notifier, *, clock: Clock, log: FilteringBoundLogger) -> None:
        self._notifier = notifier
        self._clock = clock
        self._log = log

    async def starting(self) -> None:
        """A large checkpoint is looked at page by page, or migrated: more time while that moves.

        What moves is seen by the kernel's books: CPU time used, blocks read.
        """
        before = _usage()
        while self._notifier.listening:
            await self._clock.sleep(LOOK_SECONDS)
            now = _usage()
            if now != before:
                self._notifier.extend(EXTENSION_SECONDS)
            before = now

    async def status(self, engine: Engine) -> None:
        """The status line, at changes and while clips are carried."""
        pool, said = engine.pool, ""
        received, looked = pool.received, self._clock.monotonic()
        while self._notifier.listening:
            if not pool.running:
                await pool.news.wait()
            pool.news.clear()
            seconds = self._clock.monotonic() - looked
            rate = (pool.received - received) / seconds if seconds > 0 else 0.0
            received, looked = pool.received, self._clock.monotonic()
            try:
                line = headline(await view(engine, rate), now=self._clock.now())
            except CheckpointError as err:  # whoever needs it will stumble over it
                line = f"The checkpoint cannot be read: {err.message}"
            if line != said:
                self._notifier.status(line)
                said = line
            await self._clock.sleep(STATUS_SECONDS)

    async def watchdog(self, engine: Engine) -> None:
        """Food for the watchdog, while the loop turns and every supervisor keeps its promises."""
        limit, said = self._notifier.watchdog_seconds, False
        while limit is not None:
            hung = [pulse.part for pulse in engine.pulses if pulse.late]
            if not hung:
                self._notifier.alive()
            elif not said:
                said = True
                self._log.critical("hung", parts=hung, stack=_stacks())
            await self._clock.sleep(limit / 2)


def _usage() -> tuple[int, int]:
    """Hundredths of CPU seconds that this process used, and blocks that it had read."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # The loop's own turn costs less than a hundredth, so an idle wait does not look like progress.
    return round((usage.ru_utime + usage.ru_stime) * 100), usage.ru_inblock


def _stacks() -> str:
    """Where every one of the loop's tasks stands."""
    return "\n".join(f"{task.get_name()}: {_where(task)}" for task in asyncio.all_tasks())


def _where(task: asyncio.Task[Any]) -> str:
    """The chain of awaits, outermost first: `Task.get_stack` knows only the outermost."""
    found: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None and len(found) < SHOWN_FRAMES:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is None:
            break
        found.append(f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return " → ".join(found)
