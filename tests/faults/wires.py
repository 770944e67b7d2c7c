"""TCP proxies in a thread of their own, worked from tests that wait for processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.support.proxy import Break, Direction, How, MarkedBreak, TcpProxy

PATIENCE_SECONDS = 60.0

T = TypeVar("T")


@dataclass
class Wire:
    """A TCP proxy, worked from outside its loop."""

    proxy: TcpProxy
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return self.proxy.url()

    def cut(self, how: How, *, after_bytes: int, direction: Direction = "up") -> Break:
        return self._do(lambda: self.proxy.cut(how, after_bytes=after_bytes, direction=direction))

    def cut_behind(
        self,
        how: How,
        *marks: bytes | tuple[Direction, bytes],
        after_bytes: int = 0,
        direction: Direction = "up",
    ) -> MarkedBreak:
        return self._do(
            lambda: self.proxy.cut_behind(how, *marks, after_bytes=after_bytes, direction=direction)
        )

    def refuse(self) -> None:
        """The other side is gone: no link, and none to be had."""

        async def refuse() -> None:
            await self.proxy.refuse()
            self.proxy.drop_all()

        self._wait(refuse())

    def accept(self) -> None:
        self._wait(self.proxy.accept())

    def drop_all(self) -> None:
        self._do(self.proxy.drop_all)

    def clear(self) -> None:
        """End every stall, take back what has not happened."""

        def clear() -> None:
            self.proxy.release()
            self.proxy.forget()

        self._do(clear)

    def _do(self, work: Callable[[], T]) -> T:
        async def done() -> T:
            return work()

        return self._wait(done())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_SECONDS)


@contextmanager
def wires() -> Iterator[Callable[[str], Wire]]:
    """A loop in a thread of its own; what is yielded puts a proxy before a URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="wires")
    thread.start()
    opened: list[TcpProxy] = []

    def wire(url: str) -> Wire:
        host, _, port = url.rpartition("//")[2].partition(":")
        proxy = TcpProxy(host, int(port))
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(PATIENCE_SECONDS)
        opened.append(proxy)
        return Wire(proxy, loop)

    async def close() -> None:
        for proxy in opened:
            proxy.release()
            await proxy.__aexit__(None, None, None)

    try:
        yield wire
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
