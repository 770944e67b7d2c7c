"""Time that leaps in a real event loop: limits of minutes are met without waiting for minutes.

Whatever is armed in the loop (`asyncio.timeout`, aiohttp's own limits) sees so much time gone by at
once; sockets know nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from unittest import mock

STEP_SECONDS = 0.5
ROUNDS = 20
"""Time goes by in steps; after each the loop turns so often: what has arrived by then is seen."""

Leap = Callable[[float], Awaitable[None]]


@contextmanager
def leaping_loop() -> Iterator[Leap]:
    """Within the block the running loop's clock can be put forward by `await leap(seconds)`."""
    loop = asyncio.get_running_loop()
    real, gone = loop.time, 0.0

    async def leap(seconds: float) -> None:
        nonlocal gone
        until = gone + seconds
        while gone < until:
            gone = min(until, gone + STEP_SECONDS)
            for _ in range(ROUNDS):
                await asyncio.sleep(0)

    with mock.patch.object(loop, "time", lambda: real() + gone):
        yield leap
