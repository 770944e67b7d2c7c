"""`coverage`: per camera and hour, what the recorder had and what of it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from nvr_backup import report
from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.options import (
    ConfigOption,
    JsonOption,
    settings,
    since_moment,
    wait_for,
    whereabouts,
)
from nvr_backup.cli.terminal import console, print_json
from nvr_backup.cli.words import iso, local, number, short, size, zone
from nvr_backup.clock import SystemClock
from nvr_backup.coverage import Coverage, Gap, State, judge, records
from nvr_backup.model import Camera, Window

if TYPE_CHECKING:
    from nvr_backup.inquiry import Answer

DEFAULT_SINCE: Final = "7d"

GAPS_SHOWN: Final = 10

_LOOK: Final = {
    State.NOTHING: ("·", "dim", "nothing there"),
    State.SAFE: ("#", "green", "safe"),
    State.UNVERIFIED: ("+", "cyan", "stored, not verified"),
    State.UNASKED: ("?", "yellow", "not listed so far"),
    State.WAITING: ("w", "yellow", "waiting"),
    State.UNPLANNED: ("!", "magenta", "not planned"),
    State.SET_ASIDE: ("A", "red", "set aside"),
    State.WRONG: ("E", "red", "found wrong in the store"),
    State.LOST: ("X", "bold red", "lost"),
}
"""A state's character, its colour where there are colours, and its name."""


def coverage(
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="TIME",
            help="From here on: 24h, 7d, or an ISO time (local, or with Z or an offset).",
        ),
    ] = DEFAULT_SINCE,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            "--camera",
            metavar="NAME",
            show_default=False,
            help="Only this camera (name or id, in any case); repeatable.",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Do not ask the recorders; go by the checkpoint alone."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hour by hour: what the recorder had, and what of it is safe.

    \b
    One character for each hour, a line for each day, the worst camera first:
      ·  the recorder has nothing      #  all of it is safe
      w  waiting to be stored          A  set aside by name
      X  lost: gone before stored      !  at the recorder, but never planned
      +  stored, could not be verified E  found wrong by `verify`
      ?  not listed for good, and the recorder could not be asked

    \b
    Exit code 0: all the recorder had is safe, or has waited less than 2 hours;
    1: something is not; 69: a recorder could not be asked, all else is safe.

    \b
    Examples:
      nvr-backup coverage
      nvr-backup coverage --since 30d --camera "Front door"
      nvr-backup coverage --json | jq '.cameras[] | {camera, store, totals}'
    """
    now = SystemClock().now()
    begin = since_moment(since, now)
    assert begin is not None  # noqa: S101 - it has a default
    where = whereabouts(config)

    rows = None
    if camera:
        by_name = asyncio.run(report.ask(where.state_dir, lambda db: report.cameras(db, camera)))
        if unknown := [name for name, found in by_name.items() if not found]:
            raise Misused(f"No camera is called {unknown[0]!r}; `nvr-backup status` names them.")
        rows = [row for found in by_name.values() for row in found]
    found = asyncio.run(
        report.ask(where.state_dir, lambda db: records(db, begin, now, cameras=rows))
    )
    answer = None
    if not offline:
        from nvr_backup.inquiry import inquire  # noqa: PLC0415 - aiohttp and all adapters: slow

        ids = {(record.pair.source, record.pair.camera_id) for record in found}

        def wanted(one: Camera) -> bool:
            return (one.source, one.id) in ids

        loaded = settings(config)
        window = Window(begin, now)
        answer = wait_for(inquire(loaded.sources, window, wanted=wanted, clock=SystemClock()))
    judged = [
        judge(
            record,
            answer.of(record.pair.source, record.pair.camera_id) if answer else None,
            begin=begin,
            end=now,
            settled=now - where.schedule.settle,
            zone=None,
        )
        for record in found
    ]
    judged.sort(key=lambda one: (one.badness, one.pair.camera.casefold()), reverse=True)
    if as_json:
        print_json(_json(judged, answer, begin, now))
    else:
        _show(console(), judged, answer, begin, now)
    _leave(judged, now)


def _leave(judged: Sequence[Coverage], now: datetime) -> None:
    worst = max((gap.state for one in judged for gap in _counting(one, now)), default=State.NOTHING)
    if worst > State.UNASKED:
        raise typer.Exit(Code.NOT_ALL)
    if worst is State.UNASKED:
        raise typer.Exit(Code.UNREACHABLE)


def _counting(one: Coverage, now: datetime) -> list[Gap]:
    """The gaps that a script should hear of: not what has merely not waited for long."""
    return [
        gap
        for gap in one.gaps()
        if gap.state > State.UNVERIFIED
        and not (gap.state is State.WAITING and gap.end > now - report.OVERDUE)
    ]


# -- showing --------------------------------------------------------------------------------------


def _show(
    out: Console, judged: Sequence[Coverage], answer: Answer | None, begin: datetime, now: datetime
) -> None:
    out.print(f"{local(begin)} to {local(now)} ({zone(now)}), an hour is one character")
    if answer is not None:
        for part, why in answer.unheard.items():
            out.print(f"{short(part, 60)} could not be asked: {short(why, 500)}")
    if not judged:
        out.print("No camera was ever listed.")
        return
    for one in judged:
        out.print()
        _show_pair(out, one)
    shown = {cell.state for one in judged for cell in one.cells}
    legend = Text("\n")
    for state, (character, style, name) in _LOOK.items():
        if state in shown:
            legend.append(character, style).append(f" {name}   ")
    out.print(legend)
    _show_gaps(out, judged, now)


def _show_pair(out: Console, one: Coverage) -> None:
    title = f"{short(one.pair.camera, 30)} → {short(one.pair.store, 15)}"
    counts = [number(sum(one.totals.values()), "clip")]
    counts += [f"{count:,} {_LOOK[state][2]}" for state, count in sorted(one.totals.items())]
    out.print(Text(title, "bold").append(f"  {', '.join(counts)} ({size(one.stored_bytes)})", ""))
    day: datetime | None = None
    line = Text()
    for cell in one.cells:
        start = cell.start.astimezone()
        if day is None or start.date() != day.date():
            if day is not None:
                out.print(line)
            line = Text(f"  {start:%a %Y-%m-%d}  ")
            if day is None:  # the first day may begin late
                line.append(" " * start.hour)
            day = start
        character, style, _ = _LOOK[cell.state]
        line.append(character, style)
    out.print(line)


def _show_gaps(out: Console, judged: Sequence[Coverage], now: datetime) -> None:
    gaps = [(one.pair, gap) for one in judged for gap in _counting(one, now)]
    gaps.sort(key=lambda found: (-found[1].state, found[1].start - found[1].end))
    if gaps:
        out.print("\nNot safe, the worst first")
    for pair, gap in gaps[:GAPS_SHOWN]:
        start, end = gap.start.astimezone(), gap.end.astimezone()
        until = f"{end:%H:%M}" if start.date() == end.date() else f"{end:%Y-%m-%d %H:%M}"
        out.print(
            f"  {start:%Y-%m-%d %H:%M} to {until}  {_LOOK[gap.state][2]}: "
            f"{short(pair.camera, 30)} → {short(pair.store, 15)}"
        )
    if (more := len(gaps) - GAPS_SHOWN) > 0:
        out.print(f"  and {more} more; `--json` has them all")


def _json(
    judged: Sequence[Coverage], answer: Answer | None, begin: datetime, now: datetime
) -> dict[str, object]:
    def name(state: State) -> str:
        return state.name.lower()

    return {
        "since": iso(begin),
        "until": iso(now),
        "asked": answer is not None,
        "unheard": answer.unheard if answer is not None else {},
        "cameras": [
            {
                "source": one.pair.source,
                "camera": one.pair.camera,
                "camera_id": one.pair.camera_id,
                "store": one.pair.store,
                "totals": {name(state): count for state, count in sorted(one.totals.items())},
                "stored_bytes": one.stored_bytes,
                "gaps": [
                    {"state": name(gap.state), "start": iso(gap.start), "end": iso(gap.end)}
                    for gap in one.gaps()
                ],
                "hours": [
                    {
                        "start": iso(cell.start),
                        "end": iso(cell.end),
                        "state": name(cell.state),
                        "clips": {name(state): count for state, count in cell.clips.items()},
                    }
                    for cell in one.cells
                ],
            }
            for one in judged
        ],
    }
