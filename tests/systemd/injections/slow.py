"""The daemon whose start takes until /run/nvr-backup/go exists.

It is at work meanwhile, until /run/nvr-backup/idle exists: then it waits for ever.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nvr_backup import cli, service, vitals

GO = Path("/run/nvr-backup/go")
IDLE = Path("/run/nvr-backup/idle")

vitals.LOOK_SECONDS = 0.3  # type: ignore[misc]
vitals.EXTENSION_SECONDS = 1.0  # type: ignore[misc]
real = service.open_engine  # type: ignore[attr-defined]


@asynccontextmanager
async def slow(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
    while not GO.exists():
        if IDLE.exists():
            await asyncio.Event().wait()
        sum(range(1_000_000))
        await asyncio.sleep(0.01)
    async with real(*arguments, **options) as engine:
        yield engine


service.open_engine = slow  # type: ignore[attr-defined]
sys.argv[0] = "nvr-backup"
cli.main()
