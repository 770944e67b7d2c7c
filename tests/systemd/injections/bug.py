"""The daemon with a bug: a cycle after /run/nvr-backup/crash exists ends it."""

import sys
from pathlib import Path
from typing import Any

from nvr_backup import cli, survey

CRASH = Path("/run/nvr-backup/crash")

real = survey.plan  # type: ignore[attr-defined]


def plan(*arguments: Any, **options: Any) -> Any:
    if CRASH.exists():
        raise RuntimeError("a bug\nof two lines")
    return real(*arguments, **options)


survey.plan = plan  # type: ignore[attr-defined]
sys.argv[0] = "nvr-backup"
cli.main()
