"""The daemon whose start takes until /run/nvr-backup/go exists."""

import sys
import time
from pathlib import Path
from typing import Any

from nvr_backup import cli, service

GO = Path("/run/nvr-backup/go")
HELD = Path("/run/nvr-backup/held")

real = service.open_engine  # type: ignore[attr-defined]


def held(*arguments: Any, **options: Any) -> Any:
    HELD.touch()
    while not GO.exists():
        time.sleep(0.02)
    return real(*arguments, **options)


service.open_engine = held  # type: ignore[attr-defined]
sys.argv[0] = "nvr-backup"
cli.main()
