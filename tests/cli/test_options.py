"""Times on the command line, and which configuration counts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nvr_backup.cli import options
from nvr_backup.cli.exits import Misused
from nvr_backup.cli.options import moments, settings, since_moment, whereabouts
from nvr_backup.errors import ConfigError
from tests.cli.kit import CONFIG, run

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()


@pytest.fixture(autouse=True)
def _zone_again(monkeypatch: pytest.MonkeyPatch) -> object:
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", NOW - timedelta(hours=24)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-03-01T18:00Z", datetime(2026, 3, 1, 18, tzinfo=UTC)),
        ("2026-03-01T18:00+01:00", datetime(2026, 3, 1, 17, tzinfo=UTC)),
        ("2026-03-01T18:00", datetime(2026, 3, 1, 17, tzinfo=UTC)),
        ("2026-03-01 18:00:30", datetime(2026, 3, 1, 17, 0, 30, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 2, 28, 23, tzinfo=UTC)),
    ],
)
@pytest.mark.usefixtures("in_berlin")
def test_since_is_a_duration_or_a_time_local_without_an_offset(
    text: str, expected: datetime
) -> None:
    assert since_moment(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("yesterday", "neither"),
        ("", "neither"),
        ("24", "neither"),
        ("2027-01-01", "future"),
        ("2020-01-01", "too far back"),
        ("0001-01-01", "neither"),
        ("99999999d", "neither"),
    ],
)
def test_since_that_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(Misused, match=why):
        since_moment(text, NOW)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-03-01", 86_400),
        ("20260301", 86_400),
        ("2026-03-01T18:00", 60),
        ("2026-03-01 18:00:05", 1),
        ("2026-03-01T18:00:05Z", 1),
        ("2026-03-01T18:00:05.250Z", 0.001),
        ("2026-03-29", 23 * 3600),  # the day summer time begins
    ],
)
@pytest.mark.usefixtures("in_berlin")
def test_a_time_stands_for_a_stretch_as_long_as_it_is_vague(text: str, seconds: float) -> None:
    stretch = moments(text)
    assert stretch is not None
    assert (stretch[1] - stretch[0]).total_seconds() == seconds


def test_no_configuration_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nvr_backup.settings import load

    monkeypatch.setattr(load, "DEFAULT_CONFIG", tmp_path / "absent.toml")
    for command in ("status", "check-config", "once", "run", "doctor", "clips"):
        answer = run(command)
        assert answer.code == 78, command
        assert "There is no configuration." in answer.err
        assert "--config" in answer.err


def test_the_option_comes_before_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(CONFIG.replace('"state"', f'"{name}"'))
    monkeypatch.setenv("NVR_BACKUP_CONFIG", str(tmp_path / "a.toml"))
    assert settings(None).state_dir == whereabouts(None).state_dir == tmp_path / "a"
    other = tmp_path / "b.toml"
    assert settings(other).state_dir == whereabouts(other).state_dir == tmp_path / "b"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for command in ("status", "check-config"):
        answer = run(command, "--config", str(tmp_path / "none.toml"))
        assert answer.code == 78
        assert "there is no such file" in answer.err


def test_whereabouts_of_the_original_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nvr_backup.settings import load

    monkeypatch.setattr(load, "DEFAULT_CONFIG", tmp_path / "absent.toml")
    monkeypatch.setenv("GCS_BUCKET_NAME", "footage")
    monkeypatch.setenv("STATE_FILE_PATH", str(tmp_path / "state.json"))
    found = whereabouts(None)
    assert found.state_dir == tmp_path
    assert (set(found.cameras), set(found.stores)) == ({"scrypted"}, {"gcs"})


def test_whereabouts_do_not_look_at_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "absent"))
    assert whereabouts(path).state_dir == tmp_path / "state"
    with pytest.raises(ConfigError, match="credentials"):
        settings(path)


def test_whereabouts_still_refuse_a_schedule_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG.replace('every = "1h"', 'every = "soon"'))
    with pytest.raises(ConfigError, match=r"schedule\.every"):
        whereabouts(path)


def test_the_services_credentials_serve_the_installed_configuration_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = tmp_path / "config.toml"
    installed.write_text(CONFIG.replace('password = "hunter2"\n', ""))
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "sources.home.password").write_text("s3cret")
    monkeypatch.setattr(options, "DEFAULT_CONFIG", installed)
    monkeypatch.setattr(options, "UNIT_CREDENTIALS", tmp_path / "does not run")
    monkeypatch.setattr(options, "KEPT_CREDENTIALS", credentials)
    assert settings(installed).sources["home"].password.get_secret_value() == "s3cret"
    running = tmp_path / "running"
    running.mkdir()
    (running / "sources.home.password").write_text("n0w")
    monkeypatch.setattr(options, "UNIT_CREDENTIALS", running)
    assert settings(installed).sources["home"].password.get_secret_value() == "n0w"
    other = tmp_path / "other.toml"
    other.write_text(installed.read_text())
    with pytest.raises(ConfigError, match="password"):
        settings(other)
