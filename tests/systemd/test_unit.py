"""The unit file and its companions: what systemd thinks of them, and that they do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Counted
from tests.systemd.image import SOURCES
from tests.systemd.site import CONFIG, DROP_INS, UNIT, Nvr, Site, Store

EXAMPLES: Final = f"{SOURCES}/deploy/systemd/examples"
UNITS: Final = "/etc/systemd/system"
WORST_SECURITY: Final = 1.5
"""Of `systemd-analyze security`: 0 is a prison, 10 is no protection at all."""


def bring(site: Site, name: str, to: str) -> None:
    """Install an example as its first lines say."""
    site.machine.run("install", "-D", "-m", "644", f"{EXAMPLES}/{name}", to)
    site.machine.systemctl("daemon-reload")


@pytest.mark.parametrize("drop_in", [None, "nas", "alert"])
def test_systemd_has_nothing_to_say_about_it(site: Site, drop_in: str | None) -> None:
    bring(site, "nvr-backup-alert@.service", f"{UNITS}/nvr-backup-alert@.service")
    if drop_in is not None:
        bring(site, f"{drop_in}.conf", f"{DROP_INS}/{drop_in}.conf")
    verified = site.machine.run("systemd-analyze", "verify", UNIT, code=None)
    # It ends with 0 even where it warns of keys that it does not know.
    about_us = [line for line in verified.stderr.splitlines() if "nvr-backup" in line]
    assert about_us == []
    judged = site.machine.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    level = re.search(r"exposure level for \S+: ([\d.]+)", judged)
    assert level is not None
    assert float(level[1]) <= WORST_SECURITY, judged


def test_the_examples_are_accepted(site: Site) -> None:
    for name in ("nvr-backup-alert@.service", "nvr-backup-status.service"):
        bring(site, name, f"{UNITS}/{name}")
    bring(site, "nvr-backup-status.timer", f"{UNITS}/nvr-backup-status.timer")
    for name in ("nvr-backup-alert@x.service", "nvr-backup-status.service"):
        said = site.machine.run("systemd-analyze", "verify", name, code=None).stderr
        assert [line for line in said.splitlines() if "nvr-backup" in line] == []
    site.machine.systemctl("enable", "--now", "nvr-backup-status.timer")
    assert site.machine.show("nvr-backup-status.timer", "ActiveState") == "active"
    site.machine.systemctl("disable", "--now", "nvr-backup-status.timer")


def mail(site: Site) -> Path:
    """A `mail` that keeps what it is to send in this folder: a file for each subject."""
    program = '#!/bin/sh\nmkdir -p /var/mail/kept\ncat >"/var/mail/kept/$2"\n'
    site.machine.write("/usr/local/bin/mail", program, 0o755)
    site.machine.run("rm", "-rf", "/var/mail/kept")
    return site.machine.path("/var/mail/kept")


def test_somebody_is_told_when_it_cannot_run(site: Site, counted: Counted) -> None:
    kept = mail(site)
    bring(site, "nvr-backup-alert@.service", f"{UNITS}/nvr-backup-alert@.service")
    bring(site, "alert.conf", f"{DROP_INS}/alert.conf")
    site.machine.write(CONFIG, "[schedul]\n")
    site.machine.run("systemctl", "start", UNIT, code=None)
    letter = kept / f"{UNIT} has failed"
    site.machine.until(lambda: letter.exists() and "schedul" in letter.read_text(), "the letter")
    counted("fault cases")


def test_somebody_is_told_when_the_backup_is_behind(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    kept = mail(site)
    bring(site, "nvr-backup-alert@.service", f"{UNITS}/nvr-backup-alert@.service")
    bring(site, "nvr-backup-status.service", f"{UNITS}/nvr-backup-status.service")
    site.start()
    site.until_stored(nvr, store)
    site.machine.until(lambda: site.said("cycle finished"), "the end of the cycle")
    site.machine.systemctl("start", "nvr-backup-status.service")
    assert not list(kept.glob("*")), "all is well"
    nvr.do("faults", name="html_page", times=None)
    nvr.add("Porch")
    site.configure(schedule={"settle": "0s", "every": "1s"})
    site.machine.systemctl("reload", UNIT)
    site.stop()  # its schedule is a second: two cycles were missed very soon
    letter = kept / "nvr-backup-status.service has failed"
    site.machine.until(
        lambda: (
            site.machine.run("systemctl", "start", "nvr-backup-status.service", code=None)
            and letter.exists()
        ),
        "the letter",
    )
    counted("fault cases")


def test_a_fixed_user_and_a_folder_of_a_nas(site: Site, store: Store, counted: Counted) -> None:
    """An installation that ran with DynamicUser gets a NAS that is not mounted yet."""
    machine = site.machine
    with site.nvr("--cameras", "1", "--clips", "2") as nvr:
        site.start()
        site.until_stored(nvr, store)
        site.stop()
        bring(site, "nas-user.conf", "/etc/sysusers.d/nvr-backup.conf")
        machine.run("systemd-sysusers")
        bring(site, "nas.conf", f"{DROP_INS}/nas.conf")
        machine.run("mkdir", "-p", "/mnt/nas")
        site.inject("hurry")
        nas = {"kind": "directory", "path": "/mnt/nas/footage"}
        site.configure(**{"stores.nas": nas})
        site.start()
        machine.until(lambda: "nas blocked" in site.status_text(), "the missing folder is named")
        user = machine.run("id", "-u", "nvr-backup").stdout.strip()
        assert f"Uid:\t{user}\t" in machine.path(f"/proc/{site.pid}/status").read_text()
        begun = store.uploads()
        machine.run("mount", "-t", "tmpfs", "tmpfs", "/mnt/nas")  # the disk is switched on
        try:
            made = "mkdir /mnt/nas/footage && chown nvr-backup: /mnt/nas/footage"
            machine.run("sh", "-c", made)
            folder = machine.path("/mnt/nas/footage")
            sizes = sorted(nvr.truth().values())
            machine.until(
                lambda: sorted(file.stat().st_size for file in folder.rglob("*.mp4")) == sizes,
                "the clips in the folder",
            )
            assert store.uploads() == begun, "what was stored is known although the user is new"
            site.stop()
        finally:
            machine.run("umount", "/mnt/nas")
    counted("fault cases")


def test_commands_of_root_do_not_lock_the_service_out(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    """They write beside the daemon's files: what they leave must be the service's."""
    site.start()
    site.until_stored(nvr, store)
    site.machine.run("nvr-backup", "status", code=None)
    site.stop()
    site.machine.run("nvr-backup", "status", code=None)
    site.machine.run("nvr-backup", "retry", "--all", code=None)
    site.machine.run("nvr-backup", "once")
    nvr.add("Porch")
    begun = store.uploads()
    site.start()
    site.until_stored(nvr, store)
    assert store.uploads() == begun + 1
    counted("fault cases")


def test_a_lost_checkpoint_waits_for_a_rebuild(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    """Begun anew by itself it would forget what is stored; a rebuild by root is for the service."""
    site.drop_in("soon", "RestartSec=100ms")
    site.start()
    site.until_stored(nvr, store)
    site.machine.until(lambda: site.said("cycle finished"), "the end of the cycle")
    site.stop()
    begun = store.uploads()
    state = "/var/lib/private/nvr-backup"
    site.machine.run(
        "sh", "-c", f"echo lost >{state}/checkpoint.sqlite3 && rm -r {state}/snapshots"
    )
    assert site.machine.run("systemctl", "start", UNIT, code=None).returncode != 0
    assert site.machine.show(UNIT, "ExecMainStatus") == "65"
    assert site.restarts() == 0
    site.machine.run("nvr-backup", "rebuild")
    site.start()
    site.machine.until(lambda: len(site.said("cycle finished")) == 2, "another cycle")
    assert store.uploads() == begun
    counted("fault cases")


def test_the_doctors_line_asks_as_the_service(site: Site, nvr: Nvr, store: Store) -> None:
    site.start()
    site.until_stored(nvr, store)
    as_root = site.machine.run("nvr-backup", "doctor", code=None)
    (line,) = [line.strip() for line in as_root.stdout.splitlines() if "systemd-run" in line]
    command = line[line.index("systemd-run") :]
    words = ["--pipe" if word == "--pty" else word for word in shlex.split(command)]
    asked = site.machine.run(*words)
    assert "systemd-run" not in asked.stdout
    assert "Porch" in asked.stdout
