"""A source or store in use: opened once, leased to transfers, closed when nobody needs it.

A connection that is Blocked takes no new work; it is probed slowly until it works again: one
warning when it blocks, one line when it recovers, also when the probe succeeds and the work then
does not. Retiring a connection (a reload replaced it) lets
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
        probe_first: bool = False,
    ) -> None:
        self.part = part
        self.blocked: Blocked | None = None
        self.blocked_since: datetime | None = None
        self._open_adapter = open_adapter
        self._probe = probe
        self._clock = clock
        kind, _, name = part.partition(".")
        self._log = log.bind(**{kind.removesuffix("s"): name})  # source=…, or store=…
        self._changed = changed
        self.ready = not probe_first  # work may be given to it: its first probe has ended
        self._adapter: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._leases = 0
        self._delay = FIRST_PROBE_SECONDS
        self._on_trial = False  # probed well after a block, no work has succeeded since
        self._relapsed = False  # blocked again while on trial: said once is enough
        self._retiring = asyncio.Event()
        self._moved = asyncio.Event()

    async def live(self) -> None:
        """Own the adapter's life: open it, probe while blocked, close it once retired and unused.

        Runs as a task of its own, because an adapter must be closed by the task that opened it.
        """
        try:
            async with self._open_adapter() as adapter:
                self._adapter.set_result(adapter)
                if not self.ready:
                    await self._look_first(adapter)
                while self._leases or not self.retired:
                    if self.blocked is not None and not self.retired:
                        await self._recover(adapter)
                    else:
                        await self._moved.wait()
                    self._moved.clear()
        except BaseException as err:
            if not self._adapter.done():
                self._adapter.set_exception(err)
                self._adapter.exception()  # seen: it is raised here as well
            raise

    async def _look_first(self, adapter: A) -> None:
        try:
            await self._unless_retired(self._probe(adapter))
        except Blocked as err:
            self.block(err)
        except Transient as err:
            self._log.debug("not probed", part=self.part, reason=str(err))
        self.ready = True
        self._changed()

    async def _recover(self, adapter: A) -> None:
        while self.blocked is not None:
            await self._unless_retired(self._clock.sleep(self._delay))
            if self.retired:
                return
            try:
                await self._unless_retired(self._probe(adapter))
            except Blocked as err:
                self.blocked = err
            except Transient as err:
                self._log.debug("still blocked", part=self.part, reason=str(err))
            else:
                if not self.retired:
                    self._unblock()
            self._delay = min(self._delay * 2, SLOWEST_PROBE_SECONDS)

    async def _unless_retired(self, work: Awaitable[object]) -> None:
        """Do `work`, but give it up at once when the connection is retired: nobody needs it."""
        working = asyncio.ensure_future(work)
        retiring = asyncio.ensure_future(self._retiring.wait())
        try:
            await asyncio.wait({working, retiring}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            retiring.cancel()
            working.cancel()
            await asyncio.wait({working, retiring})
        if not working.cancelled():
            working.result()

    @property
    def retired(self) -> bool:
        """No new work may be begun here."""
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
        """Take no new work until a probe succeeds. Warns once for each trouble."""
        if self.blocked is None:
            self._relapsed = self._on_trial
            self.blocked_since = self.blocked_since or self._clock.now()
            say = self._log.debug if self._relapsed else self._log.warning
            say("blocked", part=self.part, reason=reason.message, hint=reason.hint)
            self._moved.set()
        self.blocked = reason
        self._changed()

    def worked(self) -> None:
        """Real work has succeeded: the trouble, if there was one, is over."""
        if self._on_trial and self.blocked is None:
            self._on_trial = False
            self._delay = FIRST_PROBE_SECONDS
            if self._relapsed:
                self._say_recovered()
            self._relapsed = False
            self.blocked_since = None

    def _unblock(self) -> None:
        """A probe has succeeded: work may be tried again."""
        self.blocked = None
        self._on_trial = True
        if not self._relapsed:
            self._say_recovered()
        self._changed()

    def _say_recovered(self) -> None:
        since = self.blocked_since or self._clock.now()
        seconds = max(0.0, (self._clock.now() - since).total_seconds())
        self._log.info("recovered", part=self.part, blocked_seconds=round(seconds))

    def retire(self) -> None:
        """Take no more work; close as soon as the last transfer has ended."""
        self._retiring.set()
        self._moved.set()
