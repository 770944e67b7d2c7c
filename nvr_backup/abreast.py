"""The same work for many things, a bounded number of them at a time.

Nothing goes on behind the caller's back: when it ends, for whatever reason, so has all it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def in_order(things: Iterable[T]) -> AsyncGenerator[T]:
    """Each of them."""
    for one in things:
        yield one


async def each(
    things: AsyncGenerator[T], work: Callable[[T], Coroutine[Any, Any, None]], at_once: int
) -> None:
    """`work` for each of them, so many at a time; the first error ends it all and is raised."""
    running: set[asyncio.Task[None]] = set()
    try:
        async with aclosing(things):
            async for one in things:
                running.add(asyncio.create_task(work(one), name="abreast"))
                if len(running) >= at_once:
                    running = await _one_ended(running)
        while running:
            running = await _one_ended(running)
    finally:
        for child in running:
            child.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _one_ended(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that go on when at least one has ended; its error is raised."""
    done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for child in done:
        child.result()
    return left
