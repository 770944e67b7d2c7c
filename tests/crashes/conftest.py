"""What the crash tests share: a fork server for the program, and a stage for small worlds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crashes.program import Program
from tests.crashes.stage import Stage

MEMORY = Path("/dev/shm")
"""What a kill leaves does not depend on the disk, and thousands of syncs are free here."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Worlds one after the other, and a program to run in them."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY)) if MEMORY.is_dir() else tmp_path
    try:
        async with Program.started() as program:
            yield Stage(folder, program)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
