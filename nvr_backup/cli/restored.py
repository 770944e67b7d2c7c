"""What a `restore` says at its end: as text, and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from nvr_backup import report
from nvr_backup.cli.exits import Code
from nvr_backup.cli.terminal import console, print_table
from nvr_backup.cli.words import iso, local, number, short, size, zone
from nvr_backup.errors import NvrBackupError
from nvr_backup.evidence import missing_entry
from nvr_backup.footage import Footage
from nvr_backup.joining import Joined
from nvr_backup.layout import Target
from nvr_backup.model import Window
from nvr_backup.restore import Missing, Progress

NAMED_AT_MOST: Final = 50
"""Clips of a kind that the text names; JSON has them all."""

_ABSENT: Final = {"waiting": "not stored yet", "set_aside": "set aside", "stored": "not there"}


@dataclass(slots=True)
class Result:
    """What came of it. `away` are stores that failed on the way, `unjoined` cameras with why."""

    into: Path
    window: Window
    cameras: Sequence[str]
    stores: Sequence[str]
    found: Footage
    progress: Progress = field(default_factory=Progress)
    seconds: float = 0.0
    away: Mapping[str, NvrBackupError] = field(default_factory=dict)
    joined: list[Joined] = field(default_factory=list)
    unjoined: dict[str, str] = field(default_factory=dict)
    manifest: str | None = None
    no_manifest: str = ""
    interrupted: bool = False

    @property
    def code(self) -> Code:
        """0 only if everything that there was at that time is here."""
        if self.interrupted:
            return Code.INTERRUPTED
        found = self.found
        unusable = {*self.away, *found.unlisted}
        if unusable.issuperset(self.stores) and not self.progress.restored:
            return Code.UNREACHABLE
        lacking = self.progress.missing or found.absent or found.unlisted or not found.holdings
        return Code.NOT_ALL if lacking or self.unjoined or self.no_manifest else Code.OK


# -- as text --------------------------------------------------------------------------------------


def show(result: Result) -> None:
    """The whole summary on stdout."""
    out, progress = console(), result.progress
    if not result.found.holdings and not result.found.absent:
        _say_nothing_there(out, result)
    else:
        _say_what_is_there(out, result)
        _table(out, [one.target for one in progress.restored], result.window)
    for name, err in {**result.away, **result.found.unlisted}.items():
        what = "could not be listed" if name in result.found.unlisted else "cannot be used"
        out.print(f"stores.{name} {what}: {short(err.message, 500)}")
        if err.hint:
            out.print(f"  {err.hint}")
    _name_missing(out, progress.missing)
    _name_absent(out, result.found.absent)
    _say_silent(out, result.found)
    for one in result.joined:
        there = " was there already" if one.already else ""
        out.print(f"Joined{there}: {short(one.file, 250)} ({size(one.size)})")
    for camera, why in result.unjoined.items():
        out.print(f"Not joined: {short(camera, 60)}: {short(why, 500)}")
    if result.manifest is not None:
        out.print(f"Manifest: {result.manifest}.json, and .sha256 for sha256sum -c")
    if result.no_manifest:
        out.print(f"No manifest: {short(result.no_manifest, 500)}")
    if result.interrupted:
        out.print("Interrupted; the same command goes on from here.")


def _say_nothing_there(out: Console, result: Result) -> None:
    window = result.window
    whose = f" of {', '.join(short(name, 60) for name in result.cameras)}" if result.cameras else ""
    out.print(
        f"There is no clip{whose} from {local(window.start)} to {local(window.end)} "
        f"({zone(window.start)})."
    )
    if result.cameras and result.found.cameras:
        names = ", ".join(short(name, 60) for name in result.found.cameras)
        out.print(f"At that time there are clips of: {names}")
    if result.found.from_checkpoint:
        out.print("Going by the checkpoint; with --no-checkpoint the stores are listed.")


def _say_what_is_there(out: Console, result: Result) -> None:
    progress = result.progress
    fresh = [one for one in progress.restored if not one.already]
    already = len(progress.restored) - len(fresh)
    fresh_bytes = sum(one.size for one in fresh)
    rate = fresh_bytes / 1e6 / result.seconds if result.seconds > 0 else 0.0
    text = f"{number(len(fresh), 'clip')} restored into {result.into}"
    if fresh:
        text += f" ({size(fresh_bytes)} in {result.seconds:.1f} s, {rate:.1f} MB/s)"
    if already:
        text += f", {already:,} {'was' if already == 1 else 'were'} there already"
    out.print(f"{text}.")
    unproven = sum(not one.checked for one in progress.restored)
    if unproven:
        out.print(
            f"{number(unproven, 'clip')} without a known checksum: whole videos, as far as can be "
            "told. All others have the checksum they were stored with."
        )
    elif progress.restored:
        out.print("Each has the checksum it was stored with.")


def _table(out: Console, targets: Iterable[Target], window: Window) -> None:
    by_folder: dict[str, list[Target]] = defaultdict(list)
    for target in targets:
        by_folder[target.folder].append(target)
    rows = []
    for folder, clips in sorted(by_folder.items(), key=lambda item: item[0].casefold()):
        starts = sorted(one.holding.clip.start for one in clips)
        total = sum(one.size for one in clips)
        first, last = local(starts[0]), local(starts[-1])
        rows.append((short(folder, 30), f"{len(clips):,}", size(total), first, last))
    if rows:
        headings = ("Folder", "Clips", "Size", f"First ({zone(window.start)})", "Last")
        print_table(out, headings, rows, right=("Clips", "Size"))


def _name_missing(out: Console, missing: Sequence[Missing]) -> None:
    if not missing:
        return
    are = "is" if len(missing) == 1 else "are"
    out.print(f"{number(len(missing), 'clip')} {are} missing:")
    hints: dict[str, None] = {}
    for one in missing[:NAMED_AT_MOST]:
        out.print(f"  {short(one.target.path, 200)}: {short(one.reason, 500)}")
        if one.damaged:
            out.print(f"    What came of it is kept: {short(one.damaged, 200)}")
        if one.hint:
            hints[one.hint] = None
    if len(missing) > NAMED_AT_MOST:
        out.print(f"  and {len(missing) - NAMED_AT_MOST:,} more (--json names all)")
    for hint in hints:
        out.print(f"  {hint}")


def _name_absent(out: Console, absent: Sequence[report.Copy]) -> None:
    if not absent:
        return
    are = "is" if len(absent) == 1 else "are"
    out.print(f"{number(len(absent), 'clip')} of that time {are} in no store:")
    for copy in absent[:NAMED_AT_MOST]:
        out.print(f"  {short(copy.key, 200)} → {copy.store}: {short(_why_absent(copy), 500)}")
    if len(absent) > NAMED_AT_MOST:
        out.print(f"  and {len(absent) - NAMED_AT_MOST:,} more (--json names all)")


def _why_absent(copy: report.Copy) -> str:
    return _ABSENT[copy.state] + (f": {copy.reason}" if copy.reason else "")


def _say_silent(out: Console, found: Footage) -> None:
    if found.silent:
        out.print(
            f"{number(found.silent, 'object')} in the stores tell neither camera nor time, and "
            "stay there."
        )


# -- the dry run ----------------------------------------------------------------------------------


def show_dry(result: Result, targets: Sequence[Target]) -> None:
    """What would be restored."""
    out = console()
    if not targets and not result.found.absent:
        _say_nothing_there(out, result)
    else:
        total = sum(one.size for one in targets)
        out.print(f"{number(len(targets), 'clip')} ({size(total)}) would be restored.")
        _table(out, targets, result.window)
    for name, err in result.found.unlisted.items():
        out.print(f"stores.{name} could not be listed: {short(err.message, 500)}")
    _name_absent(out, result.found.absent)
    _say_silent(out, result.found)


def dry_json(result: Result, targets: Sequence[Target]) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "dry_run": True,
        **_common(result),
        "clips": [
            {
                "source": one.holding.clip.camera.source,
                "camera": one.holding.clip.camera.name,
                "start": iso(one.holding.clip.start),
                "end": iso(one.holding.clip.end),
                "file": one.path,
                "size": one.size,
                "stores": [place.store for place in one.holding.places],
                "key": one.holding.places[0].key,
            }
            for one in targets
        ],
        "missing": missing_entries(result),
    }


# -- as JSON --------------------------------------------------------------------------------------


def result_json(result: Result) -> dict[str, Any]:
    """The whole result for scripts."""
    restored = result.progress.restored
    fresh = [one for one in restored if not one.already]
    return {
        **_common(result),
        "restored": len(fresh),
        "restored_bytes": sum(one.size for one in fresh),
        "already_there": len(restored) - len(fresh),
        "unproven": sum(not one.checked for one in restored),
        "seconds": round(result.seconds, 3),
        "missing": missing_entries(result),
        "unusable": _errors(result.away),
        "joined": [
            {"camera": one.camera, "file": one.file, "clips": one.clips, "size": one.size}
            for one in result.joined
        ],
        "not_joined": [
            {"camera": camera, "reason": why} for camera, why in result.unjoined.items()
        ],
        "manifest": result.manifest and f"{result.manifest}.json",
        "interrupted": result.interrupted,
    }


def missing_entries(result: Result) -> list[dict[str, Any]]:
    """Every clip of that time that is not here, those that were never stored included."""
    return [
        *(missing_entry(one) for one in result.progress.missing),
        *(_absent_entry(copy) for copy in result.found.absent),
    ]


def _absent_entry(copy: report.Copy) -> dict[str, Any]:
    return {
        "source": copy.source,
        "camera": copy.camera,
        "start": iso(copy.start),
        "store": copy.store,
        "key": copy.key,
        "file": None,
        "damaged": None,
        "reason": _why_absent(copy),
        "hint": "",
    }


def _common(result: Result) -> dict[str, Any]:
    return {
        "into": str(result.into),
        "from": iso(result.window.start),
        "to": iso(result.window.end),
        "from_checkpoint": result.found.from_checkpoint,
        "not_listed": _errors(result.found.unlisted),
        "untold": result.found.silent,
    }


def _errors(errors: Mapping[str, NvrBackupError]) -> list[dict[str, str]]:
    return [
        {"part": f"stores.{name}", "reason": err.message, "hint": err.hint}
        for name, err in errors.items()
    ]
