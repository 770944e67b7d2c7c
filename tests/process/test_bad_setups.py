"""What an operator can get wrong, and what the program then says: one message, remedy, exit code.

Each row is run with `once` on real parts. Nothing may be lost: every clip still waits, and is
stored by the next cycle once the setup is mended.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.process.parts import Backup, Nvr, Store, gcs_double, simulated_nvr
from tests.process.test_end_to_end import held, in_folder, truth

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture(scope="module")
def secure_nvr() -> Iterator[Nvr]:
    with simulated_nvr("--tls", "--cameras", "1", "--clips", "2") as nvr:
        yield nvr


@pytest.fixture(scope="module")
def plain_nvr() -> Iterator[Nvr]:
    with simulated_nvr("--cameras", "1", "--clips", "2") as nvr:
        yield nvr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    key_file = tmp_path_factory.mktemp("key") / "gcs.json"
    with gcs_double("--auth", "--service-account", str(key_file)) as double:
        yield double, key_file


@dataclass(frozen=True)
class Row:
    """A mistake: what is changed in the configuration, and what must then be said."""

    name: str
    tables: dict[str, dict[str, Any]]
    code: int
    says: tuple[str, ...]
    to_gcs: bool = False
    tls: bool = False


ROWS = (
    Row(
        "wrong password",
        {"sources.home": {"password": "not the password"}},
        69,
        ("sources.home", "Incorrect password."),
    ),
    Row(
        "unknown user",
        {"sources.home": {"username": "nobody"}},
        69,
        ("sources.home", "User does not exist."),
    ),
    Row(
        "recorder switched off",
        {"sources.home": {"url": "http://127.0.0.1:9"}},
        69,
        ("sources.home", "cannot be reached"),
    ),
    Row(
        "certificate not trusted",
        {"sources.home": {"tls_fingerprint": None}},
        69,
        ("sources.home", 'tls = "insecure"', "tls_fingerprint", "sha256:"),
        tls=True,
    ),
    Row(
        "another certificate than the pinned one",
        {"sources.home": {"tls_fingerprint": "sha256:" + "ab" * 32}},
        69,
        ("sources.home", "sha256:"),
        tls=True,
    ),
    Row(
        "bucket that does not exist",
        {"stores.offsite": {"bucket": "no-such-bucket"}},
        69,
        ("stores.offsite", "no-such-bucket", "does not exist"),
        to_gcs=True,
    ),
    Row(
        "store switched off",
        {"stores.offsite": {"endpoint": "http://127.0.0.1:9"}},
        69,
        ("stores.offsite",),
        to_gcs=True,
    ),
    Row(
        "folder that does not exist",
        {"stores.offsite": {"path": "/nonexistent/footage"}},
        69,
        ("stores.offsite", "/nonexistent/footage"),
    ),
    Row("unknown key", {"schedule": {"evry": "1h"}}, 78, ("schedule.evry", "every")),
    Row("wrong type", {"transfer": {"workers": "many"}}, 78, ("transfer.workers",)),
    Row("no bucket", {"stores.offsite": {"kind": "gcs"}}, 78, ("stores.offsite.bucket",)),
    Row("every and cron", {"schedule": {"cron": "0 2 * * *"}}, 78, ("schedule", "cron", "every")),
    Row("bad cron", {"schedule": {"every": None, "cron": "61 2 * * *"}}, 78, ("schedule.cron",)),
    Row(
        "unreadable key file",
        {"stores.offsite": {"credentials_file": "/nonexistent/gcs.json"}},
        78,
        ("stores.offsite.credentials_file", "/nonexistent/gcs.json"),
        to_gcs=True,
    ),
)


def check(done: subprocess.CompletedProcess[str], row: Row, nvr: Nvr) -> None:
    said = done.stderr + done.stdout
    assert done.returncode == row.code, said
    for text in row.says:
        assert text in said.replace('\\"', '"'), f"{text!r} is missing in:\n{said}"
    assert "Traceback" not in said
    assert nvr.password not in said.replace("not the password", "")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_mistake_is_named_with_its_remedy_and_loses_nothing(
    row: Row,
    tmp_path: Path,
    plain_nvr: Nvr,
    secure_nvr: Nvr,
    store: tuple[Store, Path],
) -> None:
    nvr = secure_nvr if row.tls else plain_nvr
    double, key_file = store
    backup = Backup(tmp_path, nvr)
    if row.to_gcs:
        backup.store_url, backup.credentials = double.url, key_file
    backup.tables = row.tables
    backup.write()
    check(backup.command("once"), row, nvr)
    if row.code == 78:
        check(backup.command("check-config"), row, nvr)
        check(backup.command("run"), row, nvr)
    backup.tables = {}
    backup.once()
    stored = held(double.objects()) if row.to_gcs else in_folder(backup.footage)
    assert set(stored) >= set(truth(nvr))


def test_a_key_without_permission_is_named_with_what_it_lacks(
    tmp_path: Path, plain_nvr: Nvr
) -> None:
    key_file = tmp_path / "gcs.json"
    with gcs_double("--auth", "--service-account", str(key_file)) as double:
        backup = Backup(tmp_path, plain_nvr, double.url, credentials=key_file)
        lacks = "backup does not have storage.objects.create access"
        double.fault(
            where="single",
            what="Status",
            times=None,
            **{"with": {"code": 403, "reason": "forbidden", "message": lacks}},
        )
        row = Row("no permission", {}, 69, ("stores.offsite", "storage.objects.create"))
        backup.write()
        check(backup.command("once"), row, plain_nvr)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("full", ["store", "state"])
def test_a_full_disk_is_said_and_everything_is_stored_once_there_is_room(
    tmp_path: Path, full: str
) -> None:
    with (
        simulated_nvr("--cameras", "1", "--clips", "6", "--clip-size", "300K") as nvr,
        small_disk(tmp_path / "disk", "1M" if full == "store" else "200K"),
    ):
        folder = tmp_path / "disk"
        backup = Backup(tmp_path / "backup", nvr)
        backup.folder.mkdir()
        if full == "store":
            backup.tables = {"stores.offsite": {"path": str(folder)}}
            code, says = 69, "full"
        else:
            backup.state_dir = folder
            (folder / "filler").write_bytes(b"x" * 120 * 1024)
            code, says = 74, "full"
        backup.write()
        done = backup.command("once")
        assert done.returncode == code, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64M", str(folder)], check=True)
        backup.once()
        stored = in_folder(folder if full == "store" else backup.footage)
        assert stored == truth(nvr)
        status = json.loads(backup.command("status", "--json").stdout)
        assert status["set_aside"] in (0, [])
