"""A source as a transfer sees it: read within a visit, so that its manners are kept.

Wraps the adapter's bodies and changes nothing of them: it pauses where too many are read, and tells
the visit what came, when, and what failed. It must never swallow or make up an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from nvr_backup.clock import Clock
from nvr_backup.errors import Transient
from nvr_backup.manners import Visit
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.ports import ClipBody, ClipSource


class PoliteSource:
    """A `ports.ClipSource` whose bodies are read within a visit."""

    def __init__(self, source: ClipSource, visit: Visit, clock: Clock) -> None:
        self._source = source
        self._visit = visit
        self._clock = clock

    async def cameras(self) -> Sequence[Camera]:
        return await self._source.cameras()

    def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
        return self._source.clips(camera, window)

    @asynccontextmanager
    async def open(self, clip: Clip, *, offset: int = 0) -> AsyncIterator[ClipBody]:
        async with AsyncExitStack() as stack:
            self._visit.asks()
            try:
                body = await stack.enter_async_context(self._source.open(clip, offset=offset))
            except Transient as err:
                self._visit.failed(err)
                raise
            yield _PoliteBody(body, self._visit, self._clock)


class _PoliteBody:
    """A `ports.ClipBody` that pauses when too many are read, and says how it comes."""

    def __init__(self, body: ClipBody, visit: Visit, clock: Clock) -> None:
        self.size = body.size
        self.offset = body.offset
        self._pieces = aiter(body)
        self._visit = visit
        self._clock = clock

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._visit.waits:
            await self._visit.turn()
        asked = self._clock.monotonic()
        self._visit.asking = True
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            self._visit.ended()
            raise
        except Transient as err:
            self._visit.failed(err)
            raise
        finally:
            self._visit.asking = False
        self._visit.came(len(piece), asked)
        return piece
