"""Steps that block, run on threads beside the event loop, and never abandoned while they run.

A cancelled caller waits for its own step to end before it goes: nothing is closed under a running
step, and whatever a step has opened is known to whoever must close it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Beside:
    """A few threads; use `close` at the end."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, step: Callable[[], T]) -> T:
        """The result of `step`; raises what it raises."""
        work: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(self._pool, step)
        try:
            result: T = await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # looked at: the caller leaves for another reason
            raise
        return result

    def close(self) -> None:
        """End the threads, after the steps that run."""
        self._pool.shutdown()
