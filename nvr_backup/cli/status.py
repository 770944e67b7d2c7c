"""`status`: what is safe off-site, what is not, why, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nvr_backup import report
from nvr_backup.cli.concerns import Concern, Picture
from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.options import ConfigOption, JsonOption, Whereabouts, whereabouts
from nvr_backup.cli.terminal import console, print_json, print_table
from nvr_backup.cli.words import ago, iso, local, number, short, size, span, zone
from nvr_backup.clock import SystemClock
from nvr_backup.findings import Audited

WATCH_SECONDS: Final = 2.0


def status(
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Keep it live, until Ctrl-C; exit code 0."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is safe off-site, what is not, why, and what to do.

    \b
    Exit code 1 means "behind": a clip was set aside in the last 7 days, or has
    waited for more than 2 hours; a camera could not be listed; the last cycle is
    older than twice the schedule; an object was found missing or corrupt.

    \b
    Examples:
      nvr-backup status
      nvr-backup status --watch
      nvr-backup status --json | jq '.cameras[] | {camera, safe_until}'
    """
    where = whereabouts(config)
    if watch:
        if as_json:
            raise Misused("--watch is for people; call `status --json` as often as you like.")
        _watch(where)
        return
    picture = _look(where)
    concerns = picture.concerns()
    behind = any(concern.behind for concern in concerns)
    if as_json:
        print_json(_status_json(picture, concerns, behind=behind))
    else:
        _show_status(console(), picture, concerns)
    if behind:
        raise typer.Exit(Code.NOT_ALL)


def _look(where: Whereabouts) -> Picture:
    now = SystemClock().now()
    return Picture(
        where=where,
        status=asyncio.run(report.ask(where.state_dir, lambda db: report.status(db, now=now))),
        process=report.engine_process(where.state_dir),
        now=now,
    )


def _watch(where: Whereabouts) -> None:
    """Show it again and again: in place on a terminal, one below the other in a pipe."""
    out = console()
    shown = Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext()
    with suppress(KeyboardInterrupt), shown as live:
        while True:
            picture = _look(where)
            if live is None:
                out.print(f"{local(picture.now)} ({zone(picture.now)})")
                _show_status(out, picture, picture.concerns())
                out.print()
            else:
                with out.capture() as drawn:
                    _show_status(out, picture, picture.concerns())
                live.update(Text.from_ansi(drawn.get()), refresh=True)
            asyncio.run(SystemClock().sleep(WATCH_SECONDS))


def _show_status(out: Console, picture: Picture, concerns: Sequence[Concern]) -> None:
    now, found = picture.now, picture.status
    runs = "not running" if picture.process is None else f"running (process {picture.process})"
    last = found.last_cycle
    cycle = "no cycle yet" if last is None else f"last cycle {ago(last, now)}"
    due = picture.next_cycle
    if due is not None and picture.process is not None:
        cycle += ", the next is due now" if due <= now else f", the next {ago(due, now)}"
    out.print(f"Engine   {runs}; {cycle}")
    waiting = sum(account.waiting for account in found.accounts)
    oldest = min((a.oldest_waiting for a in found.accounts if a.oldest_waiting), default=None)
    lag = "nothing waits" if oldest is None else f"the oldest began {ago(oldest, now)}"
    out.print(f"Backlog  {number(waiting, 'clip')} waiting; {lag}")
    out.print(f"Pace     {_pace(picture, waiting)}")
    for store, audited in found.audits.items():
        if store in picture.where.stores:
            out.print(f"Audit    {_audit(store, audited, now)}")
    if found.accounts:
        out.print()
        _show_accounts(out, picture)
    if uploading := picture.uploading():
        out.print("\nUnder way")
        for copy in uploading:
            sent = f"{size(copy.sent)} confirmed" if copy.sent is not None else "just begun"
            out.print(f"  {short(copy.key, 48)} → {copy.store}: {sent}")
    if concerns:
        out.print("\nNeeds a person")
        for concern in concerns:
            out.print(f"  {short(concern.text, 500)}\n    {concern.do}")


def _pace(picture: Picture, waiting: int) -> str:
    """How fast it goes, and when the backlog will be empty if it goes on so."""
    pace = picture.status.pace
    if not pace.clips:
        return f"nothing stored in the last {span(report.PACE_OVER)}"
    seconds = pace.over.total_seconds()
    text = (
        f"{number(pace.clips, 'clip')} in {span(pace.over)}, {size(round(pace.size / seconds))}/s"
    )
    if waiting:
        text += f"; the backlog is empty in about {span(waiting * pace.over / pace.clips)}"
    return text


def _audit(store: str, audited: Audited, now: datetime) -> str:
    text = f"{store} {ago(audited.at, now)}: {number(audited.right, 'object')} right"
    if audited.wrong:
        text += f", {audited.wrong:,} wrong"
    if audited.read:
        text += f"; {audited.read:,} read back ({size(audited.read_bytes)})"
    return text


def _show_accounts(out: Console, picture: Picture) -> None:
    now = picture.now
    several = len({account.source for account in picture.status.accounts}) > 1
    rows = []
    for account in picture.status.accounts:
        name = f"{account.source}/{account.camera}" if several else account.camera
        stored = f"{account.stored:,} ({size(account.stored_bytes)})" if account.stored else "0"
        rows.append(
            (
                short(name, 18),
                short(account.store, 12),
                local(account.safe_until) if account.safe_until else "never listed",
                stored,
                f"{account.waiting:,}",
                f"{account.set_aside:,}",
            )
        )
    headings = ("Camera", "Store", f"Safe until ({zone(now)})", "Stored", "Waiting", "Set aside")
    print_table(out, headings, rows, right=("Stored", "Waiting", "Set aside"))


def _status_json(
    picture: Picture, concerns: Sequence[Concern], *, behind: bool
) -> dict[str, object]:
    found = picture.status
    oldest = min((a.oldest_waiting for a in found.accounts if a.oldest_waiting), default=None)
    return {
        "time": iso(picture.now),
        "behind": behind,
        "concerns": [{"text": c.text, "do": c.do, "behind": c.behind} for c in concerns],
        "state_dir": str(picture.where.state_dir),
        "engine": {"running": picture.process is not None, "process": picture.process},
        "last_cycle": iso(found.last_cycle),
        "next_cycle": iso(picture.next_cycle),
        "waiting": sum(account.waiting for account in found.accounts),
        "oldest_waiting": iso(oldest),
        "lag_seconds": None if oldest is None else _seconds(oldest, picture.now),
        "set_aside": sum(account.set_aside for account in found.accounts),
        "findings": [
            {"store": store, "what": what.value, "copies": copies}
            for (store, what), copies in sorted(found.findings.items())
        ],
        "audits": [
            {
                "store": store,
                "time": iso(audited.at),
                "right": audited.right,
                "wrong": audited.wrong,
                "read_back": audited.read,
                "read_back_bytes": audited.read_bytes,
            }
            for store, audited in found.audits.items()
        ],
        "pace": {
            "clips": found.pace.clips,
            "bytes": found.pace.size,
            "seconds": round(found.pace.over.total_seconds(), 1),
        },
        "danger": None
        if found.danger is None
        else {
            "camera": found.danger.camera,
            "seconds_left": round(found.danger.left.total_seconds()),
            "seconds_needed": None
            if found.danger.needed is None
            else round(found.danger.needed.total_seconds()),
        },
        "cameras": [
            {
                "source": account.source,
                "camera": account.camera,
                "camera_id": account.camera_id,
                "store": account.store,
                "configured": picture.configured(account),
                "safe_until": iso(account.safe_until),
                "listed": iso(account.listed),
                "stored": account.stored,
                "stored_bytes": account.stored_bytes,
                "waiting": account.waiting,
                "oldest_waiting": iso(account.oldest_waiting),
                "set_aside": account.set_aside,
            }
            for account in found.accounts
        ],
        "uploading": [
            {
                "source": copy.source,
                "camera": copy.camera,
                "clip": copy.clip,
                "start": iso(copy.start),
                "store": copy.store,
                "key": copy.key,
                "confirmed_bytes": copy.sent,
            }
            for copy in picture.uploading()
        ],
    }


def _seconds(begin: datetime, end: datetime) -> float:
    return max(0.0, round((end - begin).total_seconds(), 1))
