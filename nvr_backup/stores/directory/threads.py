"""Disk work beside the event loop: a few threads, one step at a time for each user.

A step that began is never abandoned while it holds a descriptor: a cancelled caller waits for its
own step (bounded by the stall limit) before anything is closed. When a disk stops answering, the
caller is told so and the closing is left to the stuck thread itself. It must never let the loop
wait for a disk, nor close a descriptor under a running step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from nvr_backup.errors import Blocked

_Result = TypeVar("_Result")

THREADS = 4
"""Steps on the disk at the same time; more only makes a disk's head move more."""


class DiskThreads:
    """The threads of one store."""

    def __init__(self, *, name: str, root: str, stall_seconds: float) -> None:
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=f"disk-{name}")
        self._root = root
        self._stall_seconds = stall_seconds
        self._stuck: set[Future[Any]] = set()

    async def run(self, step: Callable[[], _Result]) -> _Result:
        """The result of `step`, which must close whatever it opens."""
        return await self.lane(lambda: None).run(step)

    def lane(self, close: Callable[[], None]) -> Lane:
        """For steps that follow each other and share descriptors, which `close` closes."""
        return Lane(self, close)

    def submit(self, step: Callable[[], _Result]) -> Future[_Result]:
        """Queue a step."""
        return self._pool.submit(step)

    @property
    def stall_seconds(self) -> float:
        """How long a step may take."""
        return self._stall_seconds

    def stuck(self, future: Future[Any]) -> Blocked:
        """Keep a step that does not come back in mind; the error to raise for it."""
        self._stuck.add(future)
        future.add_done_callback(self._stuck.discard)
        return Blocked(
            f"The store {self._root} has not answered for {self._stall_seconds:g} s.",
            hint="Check the disk, or the NAS and the network to it.",
        )

    def close(self) -> None:
        """End the threads; those stuck in the kernel end when it lets them go."""
        self._pool.shutdown(wait=not self._stuck)


class Lane:
    """Steps one after the other, and the closing of what they share after the last of them."""

    def __init__(self, threads: DiskThreads, close: Callable[[], None]) -> None:
        self._threads = threads
        self._close = close
        self._last: Future[Any] | None = None

    async def run(self, step: Callable[[], _Result]) -> _Result:
        """The result of `step`; Blocked when it takes longer than the stall limit.

        After that, or after a cancellation, this lane takes only `aclose`. A step still in the
        queue then never runs; a running one is waited for.
        """
        if self._last is not None and not self._last.done():
            raise self._threads.stuck(self._last)
        return await self._await(self._threads.submit(step), revocable=True)

    async def aclose(self) -> None:
        """Close what the steps share: now, or as soon as a stuck step comes back."""
        last = self._last
        if last is None or last.done():
            await self._await(self._threads.submit(self._close), revocable=False)
        else:
            last.add_done_callback(lambda _: self._close())

    async def _await(self, future: Future[_Result], *, revocable: bool) -> _Result:
        self._last = future
        done = asyncio.wrap_future(future)
        try:
            async with asyncio.timeout(self._threads.stall_seconds):
                return await asyncio.shield(done)
        except TimeoutError as err:
            if revocable:
                future.cancel()
            raise self._threads.stuck(future) from err
        except asyncio.CancelledError:
            if revocable:
                future.cancel()
            await self._ended(future, done)
            raise

    async def _ended(self, future: Future[_Result], done: asyncio.Future[_Result]) -> None:
        """Wait for a step nobody wants the result of, whatever else happens to the caller."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._threads.stall_seconds
        while not done.done() and loop.time() < deadline:
            try:
                await asyncio.wait({done}, timeout=deadline - loop.time())
            except asyncio.CancelledError:
                continue  # the caller raises the first cancellation once the step has ended
        if not done.done():
            self._threads.stuck(future)
        elif not done.cancelled():
            done.exception()  # looked at: its consequence is that the lane is closed
