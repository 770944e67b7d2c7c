"""`rebuild`: the checkpoint made anew, or completed, from what the stores hold."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.options import ConfigOption, JsonOption, settings, wait_for
from nvr_backup.cli.terminal import console, print_json
from nvr_backup.cli.words import number, short, size
from nvr_backup.clock import SystemClock

if TYPE_CHECKING:
    from nvr_backup.rebuild import Inventory, Rebuilt, Tell
    from nvr_backup.settings import Settings

SAID_EVERY: Final = 10_000
"""Objects between two lines of progress where nobody watches."""


def rebuild(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done; changes nothing.")
    ] = False,
    snapshot: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            show_default=False,
            help="Begin with this snapshot or other copy of a checkpoint.",
        ),
    ] = None,
    ignore_snapshots: Annotated[
        bool, typer.Option("--no-snapshot", help="Begin with nothing but the stores.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="STORE",
            show_default=False,
            help="Leave this store out, because it cannot be reached; repeatable.",
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a lost or damaged checkpoint anew from the stores.

    Lists every store: an object whose metadata names its clip counts as stored.
    The others are matched with what the source still lists, by key and size. It
    begins with the latest sound snapshot, if there is one. Nothing is uploaded.

    \b
    A damaged checkpoint is kept beside the new one, under a dated name. A sound
    one is only added to. The daemon must not run; afterwards start it, or run
    `nvr-backup once`, which lists the source again from the oldest clip found.

    \b
    Exit code 0: every store was read; 1: one could not be listed (the text says
    what follows); 69: one cannot be reached, nothing was changed; 75: a daemon
    runs.

    \b
    Examples:
      nvr-backup rebuild
      nvr-backup rebuild --dry-run --json
      nvr-backup rebuild --without nas
      nvr-backup rebuild --from /mnt/usb/checkpoint.sqlite3
    """
    from nvr_backup.rebuild import rebuild as work  # noqa: PLC0415 - all adapters: slow
    from nvr_backup.workplace import Wish  # noqa: PLC0415

    loaded = settings(config)
    if snapshot is not None and ignore_snapshots:
        raise Misused("--from and --no-snapshot exclude each other.")
    left_out = frozenset(without or ())
    if unknown := sorted(left_out - loaded.stores.keys()):
        raise Misused(
            f"There is no store {unknown[0]!r}. There are: {', '.join(sorted(loaded.stores))}."
        )
    wish = Wish(dry_run, snapshot, not ignore_snapshots, left_out)
    with _progress(console("stderr")) as tell:
        rebuilt = wait_for(work(loaded, wish, SystemClock(), tell))
    if as_json:
        print_json(_as_json(rebuilt, loaded, dry_run=dry_run))
    else:
        _show(console(), rebuilt, loaded, dry_run=dry_run)
    if any(one.unread for one in rebuilt.inventories):
        raise typer.Exit(Code.NOT_ALL)


@contextmanager
def _progress(err: Console) -> Iterator[Tell]:
    """How many objects were listed: a line that changes, or now and then a line."""
    if sys.stderr.isatty():
        with err.status("Looking at the checkpoint") as line:

            def draw(inventory: Inventory) -> None:
                line.update(f"{inventory.store}: {number(inventory.objects, 'object')} listed")

            yield draw
        return

    def say(inventory: Inventory) -> None:
        if inventory.objects % SAID_EVERY == 0 and inventory.objects:
            err.print(f"{inventory.store}: {number(inventory.objects, 'object')} listed")

    yield say


_BASIS: Final = {
    "checkpoint": "The checkpoint is sound; it was added to.",
    "nothing": "It begins with nothing but the stores.",
}


def _show(out: Console, rebuilt: Rebuilt, loaded: Settings, *, dry_run: bool) -> None:
    start = rebuilt.start
    if start.damage:
        out.print(short(start.damage, 500))
    out.print(_BASIS.get(start.basis, f"It begins with a snapshot: {start.snapshot}."))
    for one in rebuilt.inventories:
        _show_inventory(out, one)
    for source, why in rebuilt.unasked.items():
        out.print(f"sources.{source} could not be asked about them: {short(why, 300)}")
    for path in rebuilt.kept:
        out.print(f"Kept: {path}")
    if dry_run:
        out.print("Nothing was changed.")
        return
    out.print(f"The checkpoint in {loaded.state_dir} is complete as far as the stores tell.")
    out.print("Now start the daemon (`systemctl start nvr-backup`), or run `nvr-backup once`.")


def _show_inventory(out: Console, one: Inventory) -> None:
    name = f"stores.{one.store}"
    if one.unread:
        out.print(f"{name} was not listed: {short(one.unread, 500)}")
        out.print(
            "  What it holds is not known. Its clips are planned again and sent again; one whose "
            "key is taken counts as stored, by a look at the object or, without permission, "
            "unverified. To save that: give its key permission to list, and run this again."
        )
        return
    parts = [f"{one.new:,} added", f"{one.known:,} known"]
    if one.settled:
        parts.append(f"{one.settled:,} were waiting or set aside")
    if one.matched:
        parts.append(f"{one.matched:,} added by key and size")
    if one.twice:
        parts.append(f"{one.twice:,} stored twice under different keys")
    out.print(f"{name}: {number(one.objects, 'object')} ({size(one.bytes)}): {', '.join(parts)}.")
    if one.unmatched:
        out.print(
            f"  {number(one.unmatched, 'object')} without metadata that no listed clip matches: "
            "left alone; when a clip is to get such a key, its bytes are compared."
        )
    if not one.objects:
        out.print("  It holds nothing. If that is wrong, look whether its disk is mounted.")


def _as_json(rebuilt: Rebuilt, loaded: Settings, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "state_dir": str(loaded.state_dir),
        "basis": rebuilt.start.basis,
        "snapshot": rebuilt.start.snapshot or None,
        "damage": rebuilt.start.damage or None,
        "kept": rebuilt.kept,
        "stores": [
            {
                "store": one.store,
                "objects": one.objects,
                "bytes": one.bytes,
                "added": one.new,
                "known": one.known,
                "settled": one.settled,
                "matched": one.matched,
                "unmatched": one.unmatched,
                "twice": one.twice,
                "not_listed": one.unread or None,
            }
            for one in rebuilt.inventories
        ],
        "not_asked": [{"source": source, "reason": why} for source, why in rebuilt.unasked.items()],
    }
