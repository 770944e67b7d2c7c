"""What becomes of an error: exit code, message, and never a traceback for one that was foreseen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import typer

from nvr_backup import cli
from nvr_backup.cli import carry
from nvr_backup.cli.exits import Code, known_error, reported
from nvr_backup.database import CheckpointError, EngineRunningError
from nvr_backup.errors import Blocked, ConfigError, NvrBackupError, Transient, Unfit
from tests.cli.kit import Desk, run
from tests.cli.processes import environment


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 78),
        (EngineRunningError("x"), 75),
        (CheckpointError("x"), 74),
        (Blocked("x"), 69),
        (Transient("x"), 69),
        (Unfit("x"), 1),
        (NvrBackupError("x"), 1),
    ],
)
def test_a_foreseen_error_is_a_message_a_hint_and_a_code(
    error: NvrBackupError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error.hint = "Do this."
    with pytest.raises(typer.Exit) as caught, reported():
        raise ExceptionGroup("g", [ExceptionGroup("h", [error, error])])
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == "nvr-backup: x\n  Do this.\n"


def test_a_bug_beside_a_foreseen_error_is_a_bug() -> None:
    group = ExceptionGroup("g", [Blocked("x"), ExceptionGroup("h", [KeyError("oops")])])
    assert known_error(group) is None
    with pytest.raises(ExceptionGroup), reported():
        raise group


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_interruption_is_130_and_silent(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise error
    assert caught.value.exit_code == Code.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_bug_shows_its_traceback_without_secrets_and_is_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], desk: Desk
) -> None:
    def broken(_config: object) -> None:
        raise KeyError("password=hunter2")

    monkeypatch.setattr(carry, "settings", broken)
    monkeypatch.setattr(sys, "argv", ["nvr-backup", "once", "-c", str(desk.config)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "KeyError" in err
    assert "hunter2" not in err


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("status", "--nonsense"), ("simulate",), ("clips", "--limit", "0")]
)
def test_a_wrong_command_line_is_2(arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert answer.err


def test_the_version() -> None:
    from nvr_backup import __version__

    assert run("--version").out == f"nvr-backup {__version__}\n"


@pytest.mark.process
def test_a_reader_that_leaves_ends_it_quietly(desk: Desk) -> None:
    for hours in range(1, 4):
        desk.clip(hours)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nvr_backup", "clips", "--json", "-c", str(desk.config)]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            command, stdout=gone, stderr=subprocess.PIPE, check=False, env=environment()
        )
    assert done.returncode == Code.PIPE_CLOSED
    assert done.stderr == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("arguments", [("status",), ("retry", "--all"), ("once", "--dry-run")])
def test_another_user_is_told_to_use_sudo(arguments: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        desk = Desk(Path(name))
        desk.cycle()
        desk.config.chmod(0o644)
        desk.state.chmod(0o700)
        desk("status")  # everything that another user could not import is imported
        os.seteuid(65534)
        try:
            answer = desk(*arguments)
        finally:
            os.seteuid(0)
    assert answer.code == Code.CHECKPOINT
    assert "sudo" in answer.err
