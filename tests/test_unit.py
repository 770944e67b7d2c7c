"""What is read of the installed unit, and how the doctor says that it is somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvr_backup import unit as unit_module
from nvr_backup.doctor import _service
from nvr_backup.unit import Unit, installed, me, read

SHOWN = """\
LoadState=loaded
User=nvr-backup
DynamicUser=yes
StateDirectory=nvr-backup
SupplementaryGroups=
"""
FILES = """\
# /etc/systemd/system/nvr-backup.service
[Service]
# LoadCredential=not:/this
ExecStart=/opt/nvr-backup/current/bin/nvr-backup run
LoadCredential=a.password:/etc/nvr-backup/credentials/a.password
SetCredential=a.password:\\n

# /etc/systemd/system/nvr-backup.service.d/more.conf
[Service]
LoadCredential = b.key:/etc/nvr-backup/credentials/b.key
"""
CREDENTIALS = (
    "LoadCredential=a.password:/etc/nvr-backup/credentials/a.password",
    "LoadCredential=b.key:/etc/nvr-backup/credentials/b.key",
)


def test_what_makes_the_service_who_it_is() -> None:
    assert read(SHOWN, FILES) == Unit(
        "nvr-backup",
        ("User=nvr-backup", "DynamicUser=yes", "StateDirectory=nvr-backup", *CREDENTIALS),
    )


def test_an_empty_line_takes_the_credentials_before_it_back() -> None:
    later = "[Service]\nLoadCredential=\nLoadCredential=c:/z\n"
    assert read("LoadState=loaded\nUser=u\n", FILES + later) == Unit(
        "u", ("User=u", "LoadCredential=c:/z")
    )


def test_a_unit_without_a_user_is_roots() -> None:
    assert read("LoadState=loaded\nUser=\nDynamicUser=no\n", "") == Unit("root", ())


@pytest.mark.parametrize("shown", ["", "LoadState=not-found\nUser=\n", "LoadState=masked\n"])
def test_no_unit(shown: str) -> None:
    assert read(shown, "") is None


def test_no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed() is None


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            f"if [ $1 = show ]; then cat <<'E'\n{SHOWN}E\nelse cat <<'E'\n{FILES}E\nfi",
            read(SHOWN, FILES),
        ),
        (f"[ $1 = show ] && cat <<'E'\n{SHOWN}E", read(SHOWN, "")),
        ("exit 1", None),
        ("exec sleep 60", None),
    ],
)
def test_systemctl_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, found: Unit | None
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(unit_module, "SHOW_SECONDS", 0.5 if "sleep" in script else 30.0)
    assert installed() == found


def test_another_user_is_told_how_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = read(SHOWN, FILES)
    assert unit is not None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    finding = _service(unit, ["/opt/nvr-backup/bin/nvr-backup", "doctor", "--config", "/a b"])
    assert finding.level == "warn"
    assert finding.text.startswith("nvr-backup.service runs as nvr-backup, this as root")
    assert finding.do.endswith(
        "systemd-run --pty --wait --collect --quiet -p User=nvr-backup -p DynamicUser=yes"
        " -p StateDirectory=nvr-backup"
        f" -p {CREDENTIALS[0]} -p {CREDENTIALS[1]}"
        " -- /opt/nvr-backup/bin/nvr-backup doctor --config '/a b'"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert ": sudo systemd-run" in _service(unit, ["x"]).do


@pytest.mark.parametrize(
    ("properties", "environ", "ours"),
    [
        ((), {}, True),
        (CREDENTIALS, {"CREDENTIALS_DIRECTORY": "/run/credentials/x"}, True),
        (CREDENTIALS, {}, False),
    ],
)
def test_the_same_user_without_its_credentials_is_not_the_service(
    monkeypatch: pytest.MonkeyPatch,
    properties: tuple[str, ...],
    environ: dict[str, str],
    ours: bool,
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    unit = Unit(me(), properties)
    assert unit.ours() is ours
    assert (_service(unit, ["x"]).level == "ok") is ours
