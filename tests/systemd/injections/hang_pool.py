"""The daemon, whose pool waits for ever for an answer once /run/nvr-backup/hang exists.

The event loop goes on turning.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from nvr_backup import cli, pool
from nvr_backup.checkpoint import Checkpoint

HANG = Path("/run/nvr-backup/hang")

pool.STEP_SECONDS = 0.5  # type: ignore[misc]
pool.LONGEST_NAP_SECONDS = 0.5  # type: ignore[misc]
real = Checkpoint.claim


async def claim(self: Checkpoint, *arguments: Any, **options: Any) -> Any:
    if HANG.exists():
        HANG.unlink()
        await this_never_comes()
    return await real(self, *arguments, **options)


async def this_never_comes() -> None:
    await asyncio.Event().wait()


Checkpoint.claim = claim  # type: ignore[method-assign]
sys.argv[0] = "nvr-backup"
cli.main()
