"""`clips`, `explain` and `retry`: single clips, what happened to them, and another try."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from nvr_backup import report
from nvr_backup.cli.exits import Code, Misused, say
from nvr_backup.cli.options import ConfigOption, JsonOption, moments, whereabouts
from nvr_backup.cli.terminal import console, print_json, print_table
from nvr_backup.cli.words import iso, local, number, short, size, span, zone
from nvr_backup.clock import SystemClock
from nvr_backup.report import Copy

FOUND_AT_MOST: Final = 100
"""Clips that one CAMERA@TIME can stand for."""


class StateChoice(StrEnum):
    """States of a clip as they are written on the command line."""

    WAITING = "waiting"
    STORED = "stored"
    SET_ASIDE = "set-aside"

    @property
    def state(self) -> report.State:
        """The same in the checkpoint's words."""
        match self:
            case StateChoice.WAITING:
                return "waiting"
            case StateChoice.STORED:
                return "stored"
            case StateChoice.SET_ASIDE:
                return "set_aside"


# -- clips ----------------------------------------------------------------------------------------


def clips(
    state: Annotated[
        StateChoice | None, typer.Option("--state", help="Only clips in this state.")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option("--camera", metavar="NAME", help="Only this camera (name or id); repeatable."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="How many, the newest first.")
    ] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the clips on record, the newest first.

    A clip has a line for each store it goes to.

    \b
    Examples:
      nvr-backup clips --state set-aside
      nvr-backup clips --camera "Front door" --limit 10
      nvr-backup clips --state waiting --json | jq -r '.[].key'
    """
    where = whereabouts(config)
    wanted = None if state is None else state.state

    def question(db: sqlite3.Connection) -> tuple[list[Copy], int]:
        rows = _camera_rows(db, camera) if camera else None
        return report.clips(db, state=wanted, camera_rows=rows, limit=limit)

    found, total = asyncio.run(report.ask(where.state_dir, question))
    now = SystemClock().now()
    if as_json:
        print_json([_copy_json(copy) for copy in found])
        return
    out = console()
    if not found:
        out.print("No such clip is on record.")
        return
    rows = []
    for copy in found:
        length = size(copy.size) if copy.size is not None else ""
        why = copy.reason if copy.state != "stored" and copy.reason else ""
        rows.append(
            (local(copy.start), _state_word(copy), copy.store, length, short(copy.key, 200))
        )
        if why:
            rows.append(("", "", "", "", f"  {short(why, 400)}"))
    headings = (f"Began ({zone(now)})", "State", "Store", "Size", "Object key")
    print_table(out, headings, rows, right=("Size",))
    if total > len(found):
        say(f"{len(found):,} of {total:,} shown: --limit shows more.")


def _camera_rows(db: sqlite3.Connection, names: Sequence[str]) -> list[int]:
    found = report.cameras(db, names)
    unknown = [name for name, rows in found.items() if not rows]
    if unknown:
        there = ", ".join(report.camera_names(db)) or "none yet"
        raise Misused(f"No camera {unknown[0]!r} is on record. There are: {there}.")
    return [row for rows in found.values() for row in rows]


def _state_word(copy: Copy) -> str:
    return copy.state.replace("_", "-")


def _copy_json(copy: Copy) -> dict[str, Any]:
    return {
        "source": copy.source,
        "camera": copy.camera,
        "camera_id": copy.camera_id,
        "clip": copy.clip,
        "start": iso(copy.start),
        "end": iso(copy.end),
        "classes": list(copy.classes),
        "planned": iso(copy.listed),
        "store": copy.store,
        "key": copy.key,
        "state": _state_word(copy),
        "reason": copy.reason,
        "attempts": copy.attempts,
        "not_before": iso(copy.not_before) if copy.state == "waiting" and _put_off(copy) else None,
        "finished": iso(copy.finished),
        "size": copy.size,
        "crc32c": copy.crc32c,
        "generation": copy.generation,
        "verified": copy.verified if copy.state == "stored" else None,
        "proven": iso(copy.proven),
        "found_wrong": copy.wrong,
    }


def _put_off(copy: Copy) -> bool:
    return copy.not_before > copy.start


# -- explain --------------------------------------------------------------------------------------

ClipArgument = Annotated[
    str,
    typer.Argument(
        metavar="CLIP",
        show_default=False,
        help="An object key, a clip id, or CAMERA@TIME (local time, or with Z or an offset).",
    ),
]


def explain(clip: ClipArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """One clip's history, attempt by attempt.

    \b
    Examples:
      nvr-backup explain "Front door/2026/03/01/17-20-05.mp4"
      nvr-backup explain "Front door@2026-03-01 18:20"
      nvr-backup explain "Front door@2026-03-01T17:20:05Z" --json
    """
    where = whereabouts(config)

    def question(db: sqlite3.Connection) -> list[tuple[Copy, list[report.Attempt]]]:
        return [(copy, report.attempts(db, copy.row)) for copy in _find(db, clip)]

    found = asyncio.run(report.ask(where.state_dir, question))
    if as_json:
        print_json([_explained_json(copy, history) for copy, history in found])
    else:
        _show_explained(console(), found, alive=report.engine_process(where.state_dir) is not None)
    if not found:
        if not as_json:
            say(_not_on_record(clip))
        raise typer.Exit(Code.NOT_ALL)


def _find(db: sqlite3.Connection, text: str) -> list[Copy]:
    """The copies a person means by `text`; by id or key first, then by camera and time."""
    found = report.find(db, text)
    if found:
        return found
    camera, at, time = text.rpartition("@")
    stretch = moments(time) if at else None
    if stretch is None:
        return []
    return report.find_at(db, _camera_rows(db, [camera]), *stretch, limit=FOUND_AT_MOST)


def _not_on_record(text: str) -> str:
    return (
        f"nvr-backup: no clip {text!r} is on record.\n"
        "  It is named by its object key, its id, or CAMERA@TIME, as `nvr-backup clips` lists them."
        " A clip the recorder listed is on record from the next cycle on."
    )


def _show_explained(
    out: Console, found: Sequence[tuple[Copy, list[report.Attempt]]], *, alive: bool
) -> None:
    shown: int | None = None
    for copy, history in found:
        if copy.clip_row != shown:
            if shown is not None:
                out.print()
            shown = copy.clip_row
            lasted = "length unknown" if copy.end is None else span(copy.end - copy.start)
            out.print(
                f"{short(copy.camera, 60)}  {local(copy.start)} ({zone(copy.start)}), {lasted}"
            )
            out.print(f"  source    {copy.source}, clip id {short(copy.clip, 300)}")
            if copy.classes:
                out.print(f"  detected  {short(', '.join(copy.classes), 200)}")
            out.print(f"  planned   {local(copy.listed)}")
        out.print(f"  in {copy.store}: {_where_it_is(copy, alive=alive)}")
        out.print(f"    key {short(copy.key, 300)}")
        for attempt in history:
            out.print(f"    {local(attempt.at)}  {_happened(attempt)}")


def _where_it_is(copy: Copy, *, alive: bool) -> str:
    match copy.state:
        case "stored":
            checked = (
                "the store's size and checksum compared with ours"
                if copy.verified
                else "created by us, its checksum could not be read back"
            )
            found = f"stored, {size(copy.size or 0)}, {checked}"
            if copy.proven is not None:
                found += f"\n    last read back and right {local(copy.proven)}"
            if copy.wrong is not None:
                found += f"\n    found wrong: {copy.wrong} (`nvr-backup verify --fix`)"
            return found
        case "set_aside":
            return f"set aside: {short(copy.reason or '', 400)}\n    `nvr-backup retry` tries again"
        case "waiting":
            if copy.claimed and alive:
                sent = "" if copy.sent is None else f", {size(copy.sent)} confirmed"
                return f"under way{sent}"
            parts = ["waiting"]
            if copy.sent:
                parts.append(f"{size(copy.sent)} confirmed, goes on from there")
            if copy.attempts:
                parts.append(f"{number(copy.attempts, 'failed attempt')}")
            if _put_off(copy):
                parts.append(f"not before {local(copy.not_before)}")
            return ", ".join(parts)


def _happened(attempt: report.Attempt) -> str:
    word = attempt.outcome.replace("_", " ")
    if attempt.outcome == "retried":
        return "put back by hand"
    if attempt.outcome == "found":
        return "found in the store by a rebuild"
    if attempt.outcome == "found":
        return "found in the store while the checkpoint was rebuilt"
    if attempt.outcome == "found_wrong":
        return f"found wrong in the store, planned again: {short(attempt.reason, 400)}"
    cost = f"{size(attempt.received)} received in {attempt.seconds:.1f} s"
    reason = f": {short(attempt.reason, 400)}" if attempt.reason else ""
    return f"{word} ({cost}){reason}"


def _explained_json(copy: Copy, history: Sequence[report.Attempt]) -> dict[str, Any]:
    return {
        **_copy_json(copy),
        "confirmed_bytes": copy.sent,
        "history": [
            {
                "time": iso(attempt.at),
                "outcome": attempt.outcome.replace("_", "-"),
                "reason": attempt.reason,
                "received_bytes": attempt.received,
                "seconds": round(attempt.seconds, 3),
            }
            for attempt in history
        ],
    }


# -- retry ----------------------------------------------------------------------------------------


def retry(
    clip: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CLIP",
            show_default=False,
            help="Object keys, clip ids, or CAMERA@TIME, as for `explain`.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every clip that is set aside or put off.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Put set-aside clips back into the backlog.

    Clips that wait for their next attempt are tried at once. Works beside a
    running daemon. A stored clip is never touched.

    \b
    Examples:
      nvr-backup retry "Front door/2026/03/01/17-20-05.mp4"
      nvr-backup retry "Front door@2026-03-01"
      nvr-backup retry --all
    """
    if every == bool(clip):
        raise Misused("Name the clips to retry, or give --all (not both).")
    where = whereabouts(config)
    missing: list[str] = []

    def work(db: sqlite3.Connection) -> list[Copy]:
        rows: list[int] | None = None
        if clip:
            rows = []
            for text in clip:
                found = _find(db, text)
                rows += [copy.row for copy in found]
                if not found:
                    missing.append(text)
        return report.retry(db, rows, now=SystemClock().now())

    changed = asyncio.run(report.change(where.state_dir, work))
    _tell_retried(console(), changed, where.state_dir)
    for text in missing:
        say(_not_on_record(text))
    if missing:
        raise typer.Exit(Code.NOT_ALL)


def _tell_retried(out: Console, changed: Sequence[Copy], state_dir: Path) -> None:
    for copy in changed[:FOUND_AT_MOST]:
        out.print(f"{short(copy.key, 300)} → {copy.store}: was {_state_word(copy)}, to be tried")
    if len(changed) > FOUND_AT_MOST:
        out.print(f"and {len(changed) - FOUND_AT_MOST:,} more")
    if not changed:
        out.print("Nothing to retry: no such clip is set aside or waiting.")
        return
    process = report.engine_process(state_dir)
    if process is None:
        out.print("No daemon runs now: the next one, or `nvr-backup once`, takes them up.")
    else:
        out.print(
            "The running daemon takes them up within a minute. To have it now: "
            f"`systemctl kill -s SIGUSR1 nvr-backup`, or `kill -USR1 {process}`."
        )
