"""The program as the crash tests run it: one command after the other, each in a process of its own.

The other end of `runner --serve`. A command that dies is an answer like any other; only the end of
the server itself is an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Ended:
    """How a run ended: its exit code (negative: the signal), what it said, its steps."""

    code: int
    out: str
    err: str
    journal: list[dict[str, Any]]

    @property
    def steps(self) -> list[str]:
        return [entry["step"] for entry in self.journal if "step" in entry]

    @property
    def said(self) -> str:
        return f"exit code {self.code}\n{self.err}\n{self.out}"


STUCK_SECONDS = 120
"""A run takes a fraction of a second; one that takes this long would never end."""


class Program:
    """The fork server of `runner`: runs commands one after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator[Program]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.crashes.runner", "--serve"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            start_new_session=True,
        )
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def order(self, **order: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)  # the server and the run
            raise
        assert line, "the fork server has ended"
        return int(json.loads(line)["code"])
