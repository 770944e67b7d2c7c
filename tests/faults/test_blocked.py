"""Whole parts that do not work: NVR or store unreachable, wrong password, no room, no permission.

Each is said once, asked rarely, and said to be over once; what does not need the part goes on
meanwhile; afterwards the backlog is carried oldest first. What an operator reads at start is held
by tests/process/test_bad_setups.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Counted
from tests.faults.conftest import Rigs
from tests.faults.rig import CHUNK, RANGED, STREAM, Kind, Rig, Told, call_delete, rig
from tests.process.parts import call

pytestmark = [pytest.mark.process, pytest.mark.long]

MIB = 1024 * 1024
SMALL = CHUNK - 1000
FIRST_PROBE_SECONDS = 0.2
"""As `hurried` has it."""

CYCLES = 4
"""So often a cycle is asked for while the part does not work."""

Trouble = Callable[[Rig], AbstractContextManager[object]]
BLOCKED: Told = {"blocked": 1}
EVERYTHING = [f"storage.objects.{what}" for what in ("create", "delete", "get", "list", "update")]


@contextmanager
def nvr_unreachable(rig: Rig) -> Iterator[None]:
    rig.nvr_wire.refuse()
    yield
    rig.nvr_wire.accept()


@contextmanager
def password_changed(rig: Rig) -> Iterator[None]:
    rig.nvr.do("password", password="another one")
    rig.nvr.do("expire")
    rig.nvr.do("drop-links")
    before = rig.nvr.ask("state")["logins"].get("wrong password", 0)
    began = time.monotonic()
    yield
    wrong = rig.nvr.ask("state")["logins"]["wrong password"] - before
    assert 1 <= wrong <= 2 + 2 * (time.monotonic() - began) / FIRST_PROBE_SECONDS
    rig.nvr.do("password", password=rig.nvr.password)


@contextmanager
def store_unreachable(rig: Rig) -> Iterator[None]:
    assert rig.store_wire is not None
    rig.store_wire.refuse()
    yield
    rig.store_wire.accept()


@contextmanager
def permission_revoked(rig: Rig) -> Iterator[None]:
    assert rig.store is not None
    call(f"{rig.store.url}/_double/permissions", {"permissions": ["storage.objects.get"]})
    before, began = len(rig.journal()), time.monotonic()
    yield
    seen = rig.journal()[before:]
    refused = [entry for entry in seen if entry["status"] == 403]
    assert refused
    assert len(refused) <= 2 + 4 * (time.monotonic() - began) / FIRST_PROBE_SECONDS
    assert not any(entry["body_bytes"] > CHUNK // 2 for entry in seen[len(rig.filmed) + 4 :])
    call(f"{rig.store.url}/_double/permissions", {"permissions": EVERYTHING})


@contextmanager
def key_revoked(rig: Rig) -> Iterator[None]:
    """The account is gone: no token is given out any more."""
    assert rig.store is not None
    call(f"{rig.store.url}/_double/expire-tokens", {})
    rig.store_fault("token", "Status", times=None, code=400, reason="invalid_grant")
    yield
    assert rig.store_faults_happened()
    rig.end_store_faults()


@contextmanager
def folder_gone(rig: Rig) -> Iterator[None]:
    """The disk is not mounted: the folder is not there."""
    away = rig.folder / "away"
    rig.backup.footage.rename(away)
    yield
    assert not rig.backup.footage.exists()
    away.rename(rig.backup.footage)


@contextmanager
def disk_not_mounted(rig: Rig) -> Iterator[None]:
    """The empty mount point is there, and is not taken for the store."""
    away = rig.folder / "away"
    rig.backup.footage.rename(away)
    rig.backup.footage.mkdir()
    yield
    assert list(rig.backup.footage.iterdir()) == []
    rig.backup.footage.rmdir()
    away.rename(rig.backup.footage)


TROUBLES: tuple[tuple[Kind, Trouble], ...] = (
    ("directory", nvr_unreachable),
    ("directory", password_changed),
    ("directory", folder_gone),
    ("directory", disk_not_mounted),
    ("gcs", store_unreachable),
    ("gcs", permission_revoked),
    ("gcs", key_revoked),
)


@pytest.mark.parametrize(
    ("kind", "trouble"), TROUBLES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_part_that_does_not_work(
    rigs: Rigs, kind: Kind, trouble: Trouble, counted: Counted
) -> None:
    rig = rigs(kind)
    with trouble(rig):
        wait_out(rig)
    recovered(rig)
    counted("fault cases")


def wait_out(rig: Rig) -> None:
    """A backlog grows, cycles come and go, and the operator is told one thing once."""
    for _ in range(3):
        for camera in (RANGED, STREAM):
            rig.film(camera, size=SMALL)
    rig.nudge(at_once=True)
    rig.until(lambda: rig.said("blocked"), "blocked")
    for _ in range(CYCLES):
        rig.cycle()
    (blocked,) = rig.said("blocked")
    assert blocked["reason"]
    assert blocked["hint"]
    assert not rig.said("recovered")


def recovered(rig: Rig, told: Told = BLOCKED) -> None:
    """The backlog is carried, each camera's oldest first."""
    rig.until(lambda: rig.said("recovered"), "recovered")
    at = rig.lines.index(rig.said("recovered")[0])
    rig.settle()
    for camera in (RANGED, STREAM):
        carried = dict.fromkeys(
            line["key"]
            for line in rig.lines[at:]
            if line["message"] == "clip started" and line["camera"] == camera
        )
        assert len(carried) >= 2
        assert list(carried) == [clip.key for clip in rig.filmed if clip.key in carried]
    rig.settled(told={"camera not listed": (0, 2), "source not listed": (0, 1), **told})


def test_a_bucket_that_is_missing(tmp_path: Path, counted: Counted) -> None:
    with rig("gcs", tmp_path) as made:
        assert made.store is not None
        made.begin()
        call_delete(f"{made.store.url}/_double/buckets?name=footage")
        wait_out(made)
        call(f"{made.store.url}/_double/buckets", {"name": "footage"})
        recovered(made)
    counted("fault cases")


def test_a_disk_that_is_full(tmp_path: Path, counted: Counted) -> None:
    """It fills up in the middle of a clip; what is half there goes on when there is room."""
    footage = tmp_path / "footage"
    footage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96M", "tmpfs", str(footage)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with rig("directory", tmp_path) as made:
            made.begin()
            made.film(RANGED, size=SMALL)
            made.settled()
            made.begin()
            filler = tmp_path / "footage" / ".nvr-backup" / "filler"
            space = os.statvfs(footage)
            filler.write_bytes(b"\0" * (space.f_bavail * space.f_frsize - CHUNK * 2))
            wait_out(made)
            assert "full" in made.said("blocked")[0]["reason"]
            filler.unlink()
            recovered(made, {"blocked": 1, "clip failed": (0, 6)})
    finally:
        subprocess.run(["umount", str(footage)], check=True)
    counted("fault cases")


def test_a_password_that_is_mended_in_the_configuration(tmp_path: Path, counted: Counted) -> None:
    """By a reload, without a restart."""
    with rig("directory", tmp_path) as made:
        assert made.daemon is not None
        made.begin()
        made.nvr.do("password", password="another one")
        made.nvr.do("expire")
        made.nvr.do("drop-links")
        made.film(RANGED, size=SMALL)
        made.nudge(at_once=True)
        made.until(lambda: made.said("blocked"), "blocked")
        made.backup.tables["sources.home"] = {"password": "another one"}
        made.backup.write()
        made.daemon.signal(signal.SIGHUP)
        made.settle()
        assert len(made.said("blocked")) == 1
        assert made.stored() == made.truth()
    counted("fault cases")


def test_one_store_that_is_blocked_does_not_hold_up_the_other(
    tmp_path: Path, counted: Counted
) -> None:
    nas = tmp_path / "nas"
    nas.mkdir()
    with rig(
        "gcs", tmp_path, tables={"stores.nas": {"kind": "directory", "path": str(nas)}}
    ) as made:
        assert made.store is not None
        made.begin()
        with store_unreachable(made):
            clips = [made.film(camera, size=SMALL) for camera in (RANGED, STREAM) * 3]
            made.nudge(at_once=True)
            made.until(lambda: made.said("blocked"), "blocked")
            made.until(lambda: in_folder(nas) == {clip.key for clip in clips}, "all in the other")
            assert made.store.objects() == {}
        made.until(lambda: len(made.stored()) == len(clips), "all in both")
        assert made.stored() == made.truth()
        assert len(made.said("blocked")) == len(made.said("recovered")) == 1
    counted("fault cases")


def in_folder(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.mp4")}
