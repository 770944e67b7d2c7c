"""This machine's Python for a system whose own is too old, or has another C library.

It gets its own C library and loader beside it, and its program file is told so (patchelf).
Everything else, such as virtual environments of it, works as with any Python.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

HOME: Final = Path("/opt/python")
LIBRARIES: Final = HOME / "lib" / "private"
WHEELS: Final = Path("/usr/share/python-wheels")
"""Where Debian's Python has what its ensurepip installs."""
FOR_WHEELS: Final = (
    *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1"),
    *("libresolv.so.2", "libgcc_s.so.1", "libstdc++.so.6"),
)
"""What compiled packages expect of any system (manylinux)."""


def bring_python(root: Path, python: Path) -> str:
    """Copy `python` into the system at `root`; its path there. Raises when patchelf is missing."""
    program = python.resolve()
    prefix, version = program.parent.parent, program.name
    home = root / HOME.relative_to("/")
    target = home / "bin" / version
    if not target.exists():
        target.parent.mkdir(parents=True)
        shutil.copy2(program, target)
        unwanted = shutil.ignore_patterns("__pycache__", "test", "*-packages", "config-*")
        library = home / "lib" / version
        shutil.copytree(prefix / "lib" / version, library, ignore=unwanted, symlinks=True)
        if WHEELS.is_dir():
            shutil.copytree(WHEELS, root / WHEELS.relative_to("/"), dirs_exist_ok=True)
        private = root / LIBRARIES.relative_to("/")
        private.mkdir(parents=True)
        for file in _libraries([program, *library.rglob("*.so")]):
            shutil.copy2(file.resolve(), private / file.name)
        (loader,) = private.glob("ld-linux*.so*")
        patch = ["patchelf", "--set-interpreter", str(LIBRARIES / loader.name), "--force-rpath"]
        subprocess.run([*patch, "--set-rpath", str(LIBRARIES), str(target)], check=True)
    return str(HOME / "bin" / version)


def _libraries(files: Iterable[Path]) -> set[Path]:
    """Every shared library that they need, by the name by which they ask for it; the loader too."""
    found: set[Path] = set()
    for file in files:
        told = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False)
        found.update(map(Path, re.findall(r"(/\S+) \(0x", told.stdout)))
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name in FOR_WHEELS:
        found.update(map(Path, re.findall(rf"{re.escape(name)} .*=> (/\S+)", known)[:1]))
    return found
