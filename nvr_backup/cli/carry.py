"""`run` and `once`: the two commands that carry clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from nvr_backup import logs
from nvr_backup.cli.options import (
    ConfigOption,
    JsonOption,
    remark,
    settings,
    since_moment,
    wait_for,
)
from nvr_backup.clock import SystemClock

if TYPE_CHECKING:
    from nvr_backup.settings import Settings


def run(config: ConfigOption = None) -> None:
    """The daemon: a cycle by the schedule, for ever.

    \b
    SIGTERM, SIGINT  drain: chunks in flight are finished, then exit 0;
                     a second one ends it at once (what was in flight resumes)
    SIGHUP           read the configuration again; an invalid one changes nothing
    SIGUSR1          start a cycle now

    \b
    Examples:
      nvr-backup run --config /etc/nvr-backup/config.toml
      systemctl enable --now nvr-backup
      systemctl kill -s SIGUSR1 nvr-backup
    """
    from nvr_backup.notify import Notifier  # noqa: PLC0415 - so that other commands start fast
    from nvr_backup.service import Service  # noqa: PLC0415 - aiohttp and all adapters: slow

    loaded = settings(config)
    _configure(loaded)

    def load() -> Settings:
        """The same configuration again, for a reload; what it says of the log counts at once."""
        found = settings(config)
        _configure(found)
        return found

    with Notifier.from_environment() as notifier:
        log = structlog.get_logger()
        wait_for(Service(load, clock=SystemClock(), log=log, notifier=notifier).run(loaded))


def _configure(loaded: Settings) -> None:
    logs.configure(loaded.log.level)
    remark(loaded)


def once(
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            show_default=False,
            help="List from here on: 24h, 7d, or an ISO time (local, or with Z or an offset).",
        ),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            "--camera",
            metavar="NAME",
            show_default=False,
            help="Only this camera (name or id, in any case); repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be backed up; changes nothing."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One cycle now: list, then try every waiting clip.

    Clips that failed before are tried whether they are due or not, each once.

    \b
    On a terminal it shows its progress, else it logs JSON lines to stderr.
    Exit code 0: everything is stored; 1: something is not; 69: a source or store
    cannot be used; 75: a daemon runs (ask it instead: SIGUSR1). Ctrl-C finishes
    the chunks in flight, a second one ends it at once; either way the next time
    goes on from there.

    \b
    Examples:
      nvr-backup once
      nvr-backup once --since 7d --camera "Front door"
      nvr-backup once --since 2026-03-01T18:00 --dry-run
    """
    from nvr_backup.cli.once import Wish, cycle, look  # noqa: PLC0415 - aiohttp and all adapters

    clock = SystemClock()
    wish = Wish(tuple(camera or ()), since_moment(since, clock.now()))
    loaded = settings(config)
    wait_for((look if dry_run else cycle)(loaded, wish, clock, as_json=as_json))
