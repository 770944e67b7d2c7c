"""A source or store in use: opened once, leased to transfers, closed when nobody needs it.

A connection that is Blocked takes no new work; it is probed slowly until it works again: one
warning when it blocks, one line when it recovers. Retiring a connection (a reload replaced it) lets
transfers in flight finish on it. Must never close an adapter under a transfer, and never hammer a
server that refuses us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime
from typing import Final, Generic, TypeVar

from structlog.typing import FilteringBoundLogger

from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked, Transient

FIRST_PROBE_SECONDS: Final = 30.0
SLOWEST_PROBE_SECONDS: Final = 900.0
"""A blocked source or store is asked after 30 s, then ever more rarely, at last every 15 min."""

A = TypeVar("A")


class Connection(Generic[A]):
    """One configured source or store. `part` is its path in the configuration."""

    def __init__(
        self,
        part: str,
        open_adapter: Callable[[], AbstractAsyncContextManager[A]],
        probe: Callable[[A], Awaitable[object]],
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        changed: Callable[[], None],
    ) -> None:
        self.part = part
        self.blocked: Blocked | None = None
        self.blocked_since: datetime | None = None
        self._open_adapter = open_adapter
        self._probe = probe
        self._clock = clock
        self._log = log
        self._changed = changed
        self._adapter: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._leases = 0
        self._retiring = asyncio.Event()
        self._moved = asyncio.Event()

    async def live(self) -> None:
        """Own the adapter's life: open it, probe while blocked, close it once retired and unused.

        Runs as a task of its own, because an adapter must be closed by the task that opened it.
        """
        try:
            async with self._open_adapter() as adapter:
                self._adapter.set_result(adapter)
                while self._leases or not self._retired:
                    if self.blocked is not None and not self._retired:
                        await self._recover(adapter)
                    else:
                        await self._moved.wait()
                    self._moved.clear()
        except BaseException as err:
            if not self._adapter.done():
                self._adapter.set_exception(err)
                self._adapter.exception()  # seen: it is raised here as well
            raise

    async def _recover(self, adapter: A) -> None:
        delay = FIRST_PROBE_SECONDS
        while self.blocked is not None:
            await self._pause(delay)
            if self._retired:
                return
            try:
                await self._probe(adapter)
            except Blocked as err:
                self.blocked = err
            except Transient as err:
                self._log.debug("still blocked", part=self.part, reason=str(err))
            else:
                self._unblock()
            delay = min(delay * 2, SLOWEST_PROBE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the connection is retired."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        retiring = asyncio.ensure_future(self._retiring.wait())
        try:
            await asyncio.wait({sleeping, retiring}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            retiring.cancel()

    @property
    def _retired(self) -> bool:
        return self._retiring.is_set()

    async def adapter(self) -> A:
        """The adapter, once it is open."""
        return await asyncio.shield(self._adapter)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the adapter open for the time of the block."""
        self._leases += 1
        try:
            yield
        finally:
            self._leases -= 1
            self._moved.set()

    def block(self, reason: Blocked) -> None:
        """Take no new work until a probe succeeds. Warns once."""
        if self.blocked is None:
            self.blocked_since = self._clock.now()
            self._log.warning("blocked", part=self.part, reason=reason.message, hint=reason.hint)
            self._moved.set()
        self.blocked = reason
        self._changed()

    def _unblock(self) -> None:
        assert self.blocked_since is not None  # noqa: S101 - set by block()
        seconds = (self._clock.now() - self.blocked_since).total_seconds()
        self.blocked = self.blocked_since = None
        self._log.info("recovered", part=self.part, blocked_seconds=round(max(0.0, seconds)))
        self._changed()

    def retire(self) -> None:
        """Take no more work; close as soon as the last transfer has ended."""
        self._retiring.set()
        self._moved.set()
