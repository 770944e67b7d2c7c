"""docs/install.md, followed to the letter on a machine that has never seen the program.

What it has people type is taken from it; only what needs a person or the network is done in another
way. `sudo` is a program that simply does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Counted
from tests.systemd import foreign, image
from tests.systemd.image import INSTALL_SECONDS, PIP, SOURCES
from tests.systemd.machine import Machine, booted
from tests.systemd.site import CONFIG, CREDENTIALS, DROP_INS, UNIT, Site, fresh

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "install.md"
PLACES: Final = ("/opt", "/etc/nvr-backup", "/etc/systemd/system", "/usr/local")
UNIT_FILE: Final = f"/etc/systemd/system/{UNIT}"
CURRENT: Final = "/opt/nvr-backup/current"
EDITORS: Final = ("sudoedit ", "sudo cp ~", "sudo apt ")
"""Lines for a person, and for the network."""


def typed(section: str) -> list[str]:
    """The commands of a section, without their remarks."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.M | re.S)
    assert found is not None, f"docs/install.md has no section {section}"
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", found[1], re.M | re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(EDITORS)]


def do(machine: Machine, line: str, *, code: int | None = 0, python: str = "") -> str:
    """Type a line of the document in the checkout; what was printed."""
    told = line.replace("install.sh", f"install.sh --python {python}") if python else line
    typed_in = ["sh", "-c", f"cd {SOURCES} && {told}"]
    done = machine.run(*typed_in, code=code, env=PIP, seconds=INSTALL_SECONDS)
    return done.stdout + done.stderr


def files(machine: Machine, *places: str) -> set[str]:
    """What is there, with what shows a change."""
    told = "-type d -printf '%p %m %U\\n' -o -printf '%p %m %U %s %T@ %l\\n'"
    there = f'for place; do if [ -e "$place" ]; then find "$place" {told}; fi; done'
    found = machine.run("sh", "-c", there, "sh", *(places or PLACES)).stdout.splitlines()
    return {line for line in found if not line.startswith(f"{foreign.HOME}/")}


def names(found: set[str]) -> set[str]:
    return {line.partition(" ")[0] for line in found}


def prepared(machine: Machine) -> str:
    """A checkout and a `sudo`; the Python that will do."""
    if not machine.path(SOURCES).exists():
        image.copy_sources(machine.path(SOURCES))
    machine.write("/usr/bin/sudo", '#!/bin/sh\nexec "$@"\n', 0o755)
    return image.bring_python(machine)


@pytest.fixture(scope="module")
def bare(cache: Path, shared: Path) -> Iterator[Machine]:
    """A machine without the program; what pip would fetch is in a folder."""
    with booted([image.wheels(cache, image.python())]) as machine:
        yield machine


def test_from_nothing_to_the_first_clips_and_back(bare: Machine, counted: Counted) -> None:
    python = prepared(bare)
    bare.write("/etc/nvr-backup/.keep", "")  # so that this folder can be compared
    before = files(bare)
    dry, install = typed("Install")
    nobody = "setpriv --reuid 65534 --clear-groups"
    said = do(bare, f"{nobody} {dry}", python=python)
    assert "would: Installing" in said
    assert said.endswith("Nothing was changed.\n")
    refused = do(bare, f"{nobody} deploy/install.sh", python=python, code=1)
    assert "run it as root" in refused
    assert files(bare) == before, "neither changed anything"
    do(bare, install, python=python)
    assert bare.run("nvr-backup", "--version").stdout.startswith("nvr-backup ")
    assert bare.run("stat", "-c", "%a %U", CREDENTIALS).stdout == "700 root\n"
    assert bare.show(UNIT, "LoadState") == "loaded"
    assert bare.show(UNIT, "ActiveState") == "inactive"
    assert bare.show(UNIT, "UnitFileState") == "disabled"
    assert bare.run("nvr-backup", "check-config", code=None).returncode == 78, "no password yet"

    doctor, enable, status = typed("Set up")
    site = Site(bare)
    with site.store() as store, site.nvr("--cameras", "1", "--clips", "2") as nvr:
        site.configure()  # where the person edits the two files
        site.password()
        assert "Porch" in do(bare, doctor)
        do(bare, enable)
        assert bare.show(UNIT, "UnitFileState") == "enabled"
        site.until_stored(nvr, store)
        assert "Status: " in do(bare, status)
        bare.until(lambda: site.said("cycle finished"), "the end of the cycle")
        (looks, reload, restart, cycle, _warnings) = typed("From day to day")
        for line in (looks, reload, restart, cycle):
            do(bare, line)
        nvr.add("Porch")
        do(bare, cycle)
        site.until_stored(nvr, store)
        begun = store.uploads()

        keeping, purging = typed("Uninstall")
        do(bare, keeping)
        assert bare.run("sh", "-c", "command -v nvr-backup", code=None).returncode != 0
        assert bare.show(UNIT, "LoadState") == "not-found"
        left = names(files(bare)) - names(before)
        assert left and all(name.startswith("/etc/nvr-backup/") for name in left)
        assert bare.path(CONFIG).exists()
        state = bare.path("/var/lib/private/nvr-backup/checkpoint.sqlite3")
        assert state.exists()

        do(bare, install, python=python)  # a later installation goes on where this one ended
        do(bare, enable)
        bare.until(lambda: len(site.said("cycle finished")) >= 2, "a cycle")
        assert store.uploads() == begun
        site.stop()
    do(bare, purging)
    assert not state.exists()
    assert not bare.path("/etc/nvr-backup").exists()
    assert not bare.path("/opt/nvr-backup").exists()
    there = {name for name in names(before) if not name.startswith("/etc/nvr-backup")}
    assert names(files(bare, *(place for place in PLACES if "nvr" not in place))) == there
    counted("fault cases")


@pytest.fixture
def upgraded(installed: Path) -> Iterator[Site]:
    """An installed machine of its own: these tests change the installation."""
    with booted([installed]) as machine, fresh(machine) as site:
        yield site


def newer(machine: Machine) -> None:
    """The checkout is of the next version."""
    for name in ("pyproject.toml", "nvr_backup/__init__.py"):
        file = machine.path(f"{SOURCES}/{name}")
        text, found = re.subn(
            r'^((__)?version(__)?[^"]*)".*"', r'\1"99.0.0"', file.read_text(), flags=re.M
        )
        assert found == 1
        file.write_text(text)
    unit = machine.path(f"{SOURCES}/deploy/systemd/{UNIT}")
    unit.write_text(unit.read_text() + "# of the next version\n")


def test_an_upgrade_keeps_what_is_ours_and_what_was_edited(
    upgraded: Site, counted: Counted
) -> None:
    site, machine = upgraded, upgraded.machine
    python = prepared(machine)
    install = typed("Upgrade")[0]
    with site.store() as store, site.nvr("--cameras", "1", "--clips", "2") as nvr:
        site.start()
        site.until_stored(nvr, store)
        begun, pid = store.uploads(), site.pid

        # The same version again.
        before = files(machine)
        assert f"{UNIT} runs, and is up to date" in do(machine, install, python=python)
        assert (files(machine), site.pid) == (before, pid)

        # A newer one, whose packages cannot be had: the old one goes on.
        newer(machine)
        gone = install.replace("sudo ", "PIP_FIND_LINKS=/nowhere ")
        do(machine, gone, python=python, code=1)
        assert files(machine) == before
        assert site.pid == pid

        # Files of an administrator, and a configuration that the new version does not take.
        unit = machine.path(UNIT_FILE)
        unit.write_text(unit.read_text().replace("Nice=5", "Nice=6"))
        site.drop_in("ours", "CPUWeight=50")
        config = machine.path(CONFIG).read_text()
        machine.write(CONFIG, "[schedul]\n")
        said = do(machine, install, python=python, code=1)
        assert f"{UNIT_FILE} was edited and stays" in said
        assert "schedul" in said
        assert "the old version keeps running" in said
        assert site.pid == pid
        nvr.add("Porch")
        machine.systemctl("kill", "--signal=USR1", UNIT)
        site.until_stored(nvr, store)  # it does

        machine.write(CONFIG, config)
        do(machine, install, python=python)
        assert "Nice=6" in unit.read_text()
        assert machine.path(f"{UNIT_FILE}.new").read_text().endswith("# of the next version\n")
        assert machine.path(CONFIG).read_text() == config
        assert machine.show(UNIT, "CPUWeight") == "50"
        assert site.is_active()
        assert site.pid != pid
        assert machine.run("nvr-backup", "--version").stdout == "nvr-backup 99.0.0\n"
        releases = list(machine.path("/opt/nvr-backup/releases").iterdir())
        assert [release.name[:7] for release in releases] == ["99.0.0-"], "the old one is gone"
        nvr.add("Porch")
        machine.systemctl("kill", "--signal=USR1", UNIT)
        site.until_stored(nvr, store)
        assert store.uploads() == begun + 2

        # An edited unit outlives the uninstallation.
        said = do(machine, typed("Uninstall")[0])
        assert f"{UNIT_FILE} was edited and stays" in said
        assert f"{DROP_INS} holds changes of yours" in said
        assert unit.exists()
        assert not machine.path(f"{UNIT_FILE}.new").exists()
    counted("fault cases", 3)
