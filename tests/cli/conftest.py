"""Fixtures of the command line's tests: nothing of the caller's environment gets in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.kit import Desk


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration by variables; UTC, so that expected texts are the same everywhere."""
    for name in list(os.environ):
        if name.startswith(("NVR_BACKUP_", "SCRYPTED_", "GCS_", "CREDENTIALS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TZ", "UTC")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder with a configuration."""
    return Desk(tmp_path)
