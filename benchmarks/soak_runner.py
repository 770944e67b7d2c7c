"""The command line with a count of its tasks: `python -m benchmarks.soak_runner FILE run …`.

The daemon itself is not changed: beside `Service.run` one more task writes, every few seconds, how
many tasks there are (itself left out) to FILE. Nothing else is watched from within.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from nvr_backup import cli
from nvr_backup.service import Service
from nvr_backup.settings import Settings

EVERY_SECONDS: Final = 5.0


async def _count(file: Path) -> None:
    while True:
        file.write_text(str(len(asyncio.all_tasks()) - 1), "utf-8")
        await asyncio.sleep(EVERY_SECONDS)


def main() -> None:
    """Run `nvr-backup` with the remaining arguments."""
    file = Path(sys.argv.pop(1))
    run = Service.run

    async def counted(self: Service, settings: Settings) -> None:
        counting = asyncio.create_task(_count(file), name="count tasks")
        try:
            await run(self, settings)
        finally:
            counting.cancel()
            await asyncio.wait([counting])

    Service.run = counted  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
