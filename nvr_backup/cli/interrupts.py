"""SIGINT and SIGTERM for commands that carry clips: the first drains, the second ends at once.

The daemon has its own (`service`); this is for a person at a terminal, who is told what happens.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from nvr_backup.cli.exits import say


@contextmanager
def draining(stop: asyncio.Event, text: str) -> Iterator[None]:
    """Set `stop` at the first signal and say `text`; cancel the calling task at the second."""
    main = asyncio.current_task()
    assert main is not None  # noqa: S101 - called within a coroutine
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if stop.is_set():
            main.cancel()
            return
        if text:
            say(text)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
