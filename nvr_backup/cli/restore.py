"""`restore`: footage back from the stores, on any machine that may read them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from nvr_backup.cli.exits import Misused
from nvr_backup.cli.options import ConfigOption, JsonOption, moments, wait_for, without_sources
from nvr_backup.clock import SystemClock
from nvr_backup.model import Window
from nvr_backup.settings import DirectoryStore, Settings
from nvr_backup.settings.quantities import parse_duration


def restore(
    *,
    begin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="From here on: an ISO time (local, or with Z or an offset), or 24h, 7d.",
        ),
    ],
    end: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TIME",
            show_default=False,
            help="Up to here; a day or a minute counts as a whole. Without it: until now.",
        ),
    ] = None,
    into: Annotated[
        Path,
        typer.Option("--into", metavar="DIR", help="The folder for the footage; made if need be."),
    ],
    camera: Annotated[
        list[str] | None,
        typer.Option(
            "--camera",
            metavar="NAME",
            show_default=False,
            help="Only this camera (name or id, in any case); repeatable.",
        ),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            metavar="NAME",
            show_default=False,
            help="Only from this store; repeatable, the first is asked first.",
        ),
    ] = None,
    concat: Annotated[
        bool,
        typer.Option(
            "--concat", help="Also join each camera's clips into one file (needs ffmpeg)."
        ),
    ] = False,
    manifest: Annotated[
        bool,
        typer.Option("--manifest", help="Also write a list with SHA-256, times and generations."),
    ] = False,
    no_checkpoint: Annotated[
        bool,
        typer.Option("--no-checkpoint", help="Go by what the stores list, not by the checkpoint."),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--look-everywhere",
            help="List the whole store: also what has another key than key_template makes.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be restored.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring footage back from the stores, checked byte for byte.

    A folder for each camera, files named by their start in UTC. What is there
    already is checked and not fetched again, so an interrupted run goes on by
    the same command. Works on any machine: a configuration with the store alone
    will do. Stores and checkpoint are only read.

    \b
    Exit code 0: every clip is there, with the checksum it was stored with;
    1: one is missing (named, with the reason), or there is none; 69: no store
    can be reached; 73: the folder cannot be written; 130: interrupted.

    \b
    Examples:
      nvr-backup restore --from 2026-03-01 --to 2026-03-02 --into footage
      nvr-backup restore --from 24h --into evidence --camera Porch --manifest
      nvr-backup restore --from 7d --into week --store nas --concat
    """
    from nvr_backup.cli.restoring import Wish, bring_back  # noqa: PLC0415 - all adapters: slow

    clock = SystemClock()
    now = clock.now()
    window = _window(begin, end, now)
    loaded = without_sources(config)
    wish = Wish(
        window=window,
        into=into.absolute(),
        cameras=tuple(camera or ()),
        stores=_stores(store or (), loaded),
        concat=concat,
        manifest=manifest,
        use_checkpoint=not no_checkpoint,
        everything=everything,
        dry_run=dry_run,
    )
    _refuse_store_as_target(wish.into, loaded)
    wait_for(bring_back(loaded, wish, clock, as_json=as_json))


def _window(begin: str, end: str | None, now: datetime) -> Window:
    start = _moments(begin, now, "--from")[0]
    until = now if end is None else _moments(end, now, "--to")[1]
    if start >= until:
        raise Misused("--from must be before --to.")
    return Window(start, until)


def _moments(text: str, now: datetime, option: str) -> tuple[datetime, datetime]:
    """The stretch that a time on the command line stands for; a duration is a moment."""
    try:
        moment = now - parse_duration(text)
    except OverflowError:
        raise Misused(f"{option} {text!r} is too far back.") from None
    except ValueError:
        stretch = moments(text)
        if stretch is None:
            raise Misused(
                f'{option} {text!r} is neither a time such as "2026-03-01", "2026-03-01T18:00" or '
                '"2026-03-01T17:00Z" nor a duration such as "24h" or "7d".'
            ) from None
        return stretch
    return moment, moment


def _stores(names: list[str] | tuple[()], loaded: Settings) -> tuple[str, ...]:
    """The stores to ask, the first choice first: folders before buckets, unless some are named."""
    if unknown := [name for name in names if name not in loaded.stores]:
        raise Misused(
            f"There is no store {unknown[0]!r}. There are: {', '.join(sorted(loaded.stores))}."
        )
    if names:
        return tuple(dict.fromkeys(names))
    return tuple(
        sorted(loaded.stores, key=lambda name: not isinstance(loaded.stores[name], DirectoryStore))
    )


def _refuse_store_as_target(into: Path, loaded: Settings) -> None:
    for name, store in loaded.stores.items():
        if isinstance(store, DirectoryStore) and into.resolve().is_relative_to(
            store.path.resolve()
        ):
            raise Misused(f"--into {into} lies in the store {name!r}, which is only read.")
