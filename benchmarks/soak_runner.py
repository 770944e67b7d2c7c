"""The command line with a count of its tasks: `python -m benchmarks.soak_runner FILE run …`.

The daemon itself is not changed: beside `Service.run` one more task writes, every few seconds, what
tasks there are (itself left out) to FILE, as JSON. Nothing else is watched from within.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from nvr_backup import cli
from nvr_backup.service import Service
from nvr_backup.settings import Settings

EVERY_SECONDS: Final = 5.0


def _names() -> Counter[str]:
    """How many tasks of each name; those without a name by their coroutine."""
    found: Counter[str] = Counter()
    for one in asyncio.all_tasks() - {asyncio.current_task()}:
        name = one.get_name()
        if name.startswith("Task-"):
            name = getattr(one.get_coro(), "__qualname__", "?")
        found[re.sub(r"\d+", "#", name)] += 1
    return found


async def _count(file: Path) -> None:
    written = file.with_suffix(".new")
    while True:
        written.write_text(json.dumps(_names()), "utf-8")
        written.rename(file)
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
