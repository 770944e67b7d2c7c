"""What a power cut leaves of a killed program's files: only what had been synced.

A kill leaves every write in the kernel; a power cut takes those that no sync followed. What a POSIX
file system may do at worst is done to the directory store's folder and to the snapshots: names that
their folder was not synced with vanish or come back, or stay without what they were to name; bytes
that their file was not synced with are cut off or read as zeros. The checkpoint's write-ahead log
ends where it ended at the last sync; the database itself is written by SQLite alone, which syncs
it, unless a rebuild put it there. It must never take anything that was synced: a loss would then
prove nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

POWER_CUTS = 4
"""Variants of what a power cut does."""


def cut_power(
    journal: Iterable[Mapping[str, Any]], footage: Path, database: Path, variant: int
) -> int:
    """Take what was not durable when the process died; how many names and files it changed.

    `variant`: with its lowest bit bytes become zeros, with the next the names stay.
    """
    names: dict[str, dict[str, int]] = {}
    written: set[int] = set()
    renamed: set[int] = set()
    synced: dict[int, int] = {}
    logged: int | None = None  # what was there before this process was durable
    log = Path(f"{database}-wal")
    for entry in journal:
        if "names" in entry:
            names[entry["names"]] = entry["content"]
        elif "wrote" in entry:
            written.add(entry["wrote"])
        elif "renamed" in entry:
            renamed.add(entry["renamed"])
        elif "synced" in entry:
            synced[entry["synced"]] = entry["size"]
        elif entry.get("of") == str(log):
            logged = entry["wal"]
    changed = 0 if logged is None else _cut(log, logged, zeros=False)
    Path(f"{database}-shm").unlink(missing_ok=True)
    for path in (*footage.rglob("*"), *database.parent.rglob("*")):
        inode = path.stat().st_ino
        if not path.is_file() or inode not in written:
            continue
        if path != database or inode in renamed:
            changed += _cut(path, synced.get(inode, 0), zeros=bool(variant & 1))
    if variant & 2:
        return changed
    for root in filter(Path.is_dir, (footage, database.parent / "snapshots")):
        changed += _restore(names, root)
    return changed


def renames_in_doubt(
    journal: Iterable[Mapping[str, Any]], folder: Path
) -> Iterator[tuple[Path, Path]]:
    """Old and new names in a folder that no sync of it followed: a power cut may undo any one."""
    found: list[tuple[Path, Path]] = []
    for entry in journal:
        if entry.get("names") == str(folder):
            found.clear()
        elif "renamed" in entry and str(folder) in map(
            os.path.dirname, (entry["old"], entry["new"])
        ):
            found.append((Path(entry["old"]), Path(entry["new"])))
    return ((old, new) for old, new in found if not old.exists())


def _cut(path: Path, size: int, *, zeros: bool) -> int:
    if not path.exists() or path.stat().st_size <= size:
        return 0
    before = path.stat().st_size
    os.truncate(path, size)
    if zeros:
        os.truncate(path, before)
    return 1


def _restore(names: Mapping[str, Mapping[str, int]], root: Path) -> int:
    """Give every folder below that was changed its durable names again."""
    aside = root.with_name("inodes")
    aside.mkdir()
    for path in root.rglob("*"):
        kept = aside / str(path.stat().st_ino)
        if path.is_file() and not kept.exists():
            os.link(path, kept)
    changed = 0
    for folder in sorted(map(Path, names)):
        if root not in (folder, *folder.parents) or not folder.is_dir():
            continue
        durable = names[str(folder)]
        for path in folder.iterdir():
            if path.name not in durable:
                changed += 1
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for name, inode in durable.items():
            if not (folder / name).exists():
                changed += 1
                if (aside / str(inode)).exists():
                    os.link(aside / str(inode), folder / name)
                else:
                    (folder / name).touch()  # whatever it held, nothing links to it any more
    shutil.rmtree(aside)
    return changed
