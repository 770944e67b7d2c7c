"""The product installed as its documentation says, in a folder that machines are booted over.

`deploy/install.sh` runs for real, in a machine without a network: what pip would fetch was fetched
before, by the same lock files, into a folder of the machine's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.systemd import foreign
from tests.systemd.machine import BELOW, Machine, booted

CHECKOUT: Final = Path(__file__).resolve().parents[2]
WHEELS: Final = "/srv/wheels"
SOURCES: Final = "/srv/nvr-backup"
INSTALL: Final = f"{SOURCES}/deploy/install.sh"
PIP: Final = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_CACHE_DIR": "1"}

INSTALL_SECONDS: Final = 900.0
"""What pip may take on a busy machine."""

_LOCKS: Final = ("requirements-build.lock", "requirements.lock")
_PARTS: Final = ("nvr_backup", "deploy", "docs", "pyproject.toml", "README.md", "LICENSE")
_PARTS_ALSO: Final = ("config.example.toml", *_LOCKS)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Only one of the processes that share the tests at a time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def system_python() -> str | None:
    """A Python that a service can see: 3.11 or newer and installed with the system."""
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3"):
        asked = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
        try:
            found = subprocess.run([candidate, "-c", asked], capture_output=True, check=False)
        except OSError:
            continue
        if found.returncode == 0:
            return candidate
    return None


def python() -> str:
    """The interpreter for the installation, as this machine has it."""
    return system_python() or sys.executable


def wheels(cache: Path, interpreter: str) -> Path:
    """An image folder with everything that pip needs in WHEELS; made once, kept in `cache`."""
    version = subprocess.run([interpreter, "-VV"], capture_output=True, check=True).stdout
    inputs = b"".join((CHECKOUT / name).read_bytes() for name in _LOCKS) + version
    image = cache / f"wheels-{hashlib.sha256(inputs).hexdigest()[:16]}"
    with alone(cache / "lock"):
        if not (image / "complete").exists():
            for old in cache.glob("wheels-*"):
                shutil.rmtree(old)
            _fetch(image, interpreter)
            (image / "complete").touch()
    return image


def _fetch(image: Path, interpreter: str) -> None:
    folder = image / WHEELS.lstrip("/")
    folder.mkdir(parents=True)
    venv = image.with_suffix(".venv")
    subprocess.run([interpreter, "-m", "venv", "--clear", str(venv)], check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "--quiet", "--no-input"]
    pip.append("--disable-pip-version-check")
    try:
        for lock in _LOCKS:
            file = str(CHECKOUT / lock)
            wanted = ["--no-deps", "--require-hashes", "--no-build-isolation", "-r", file]
            _run([*pip, "download", "-d", str(folder), *wanted])
            if lock == _LOCKS[0]:  # one package of the others is built to be looked at
                _run([*pip, "install", "--no-index", "--find-links", str(folder), *wanted])
    finally:
        shutil.rmtree(venv)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def copy_sources(to: Path) -> None:
    """What a checkout holds, without what has gathered in this one."""
    to.mkdir(parents=True)
    for name in (*_PARTS, *_PARTS_ALSO):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)


def why_not() -> str:
    """Why the product cannot be installed in a machine; empty when it can."""
    if (system_python() and BELOW.parts == ("/",)) or shutil.which("patchelf"):
        return ""
    return (
        "no Python 3.11 outside /root and /home (Debian: apt install python3 python3-venv), "
        "and no patchelf to bring this one along"
    )


def bring_python(machine: Machine) -> str:
    """The interpreter for the installation: the system's, else a copy of ours."""
    if BELOW.parts == ("/",) and (found := system_python()):
        return found
    return foreign.bring_python(machine.root, Path(python()))


def install(machine: Machine, *arguments: str, code: int | None = 0) -> str:
    """Run the installer of SOURCES; what it printed."""
    told = ["sh", INSTALL, *arguments]
    done = machine.run(*told, code=code, env=PIP, seconds=INSTALL_SECONDS)
    return done.stdout + done.stderr


def installed(cache: Path, shared: Path) -> Path:
    """The image of a machine on which the product is installed, and the wheels are.

    `cache` outlives the run, `shared` is of this run; both are shared between its processes.
    """
    below = wheels(cache, python())
    image = shared / "installed"
    with alone(shared / "lock"):
        if not (image / "complete").exists():
            shutil.rmtree(image, ignore_errors=True)
            with booted([below]) as machine:
                copy_sources(machine.path(SOURCES))
                install(machine, "--python", bring_python(machine))
                machine.save(image / "files")
            (image / "complete").touch()
    return image / "files"


def shared_folder(base: Path) -> Path:
    """One folder for all processes of a run, given pytest's base folder of this one."""
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
