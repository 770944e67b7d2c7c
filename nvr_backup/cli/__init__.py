"""The command line: `nvr-backup COMMAND`.

One module for each group of commands; this one puts them together and owns the way out. What is
slow to import (the engine, the simulator) is imported by the commands that need it, so that
`status` answers at once. It must never show a traceback for an error that was foreseen.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from nvr_backup import __version__
from nvr_backup.cli import carry, check, clips, coverage, play, rebuild, restore, status, verify
from nvr_backup.cli.exits import CODES, report_bug, reported

__all__ = ["app", "main"]

_WITH_H: Final = {"help_option_names": ["-h", "--help"]}


class _Commands(TyperGroup):
    """All commands, with their errors reported; in the order in which they were added."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with reported():
            return super().invoke(ctx)


app: Final = typer.Typer(
    name="nvr-backup",
    cls=_Commands,
    epilog=CODES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings=_WITH_H,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nvr-backup {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Carries every finished clip of an NVR off-site: verified, once.

    \b
    To see what it does:      nvr-backup demo
    To set it up:             nvr-backup check-config; nvr-backup doctor
    To look after it:         nvr-backup status
    """


for _name, _command in (
    ("run", carry.run),
    ("once", carry.once),
    ("check-config", check.check_config),
    ("doctor", check.doctor),
    ("status", status.status),
    ("coverage", coverage.coverage),
    ("verify", verify.verify),
    ("clips", clips.clips),
    ("explain", clips.explain),
    ("retry", clips.retry),
    ("rebuild", rebuild.rebuild),
    ("restore", restore.restore),
    ("demo", play.demo),
    ("simulate", play.simulate),
):
    app.command(_name, context_settings=_WITH_H)(_command)


def main() -> None:
    """The console script."""
    try:
        app(prog_name="nvr-backup")
    except Exception:  # noqa: BLE001 - whatever was not foreseen is shown in full
        report_bug()
