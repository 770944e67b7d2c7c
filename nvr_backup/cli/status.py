"""`status`: what is safe off-site, what is not, why, and what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nvr_backup import report
from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.options import ConfigOption, JsonOption, Whereabouts, rule_of, whereabouts
from nvr_backup.cli.terminal import console, print_json, print_table
from nvr_backup.cli.words import ago, iso, local, number, short, size, span, zone
from nvr_backup.clock import SystemClock
from nvr_backup.planner import TAIL, WHOLE_EVERY
from nvr_backup.report import Account, Copy, Status

WATCH_SECONDS: Final = 2.0

NAMED_AT_MOST: Final = 5
"""Cameras that a concern names; the rest is a number."""


@dataclass(frozen=True, slots=True)
class Concern:
    """Something a person should know or do. `behind` makes the exit code 1."""

    text: str
    do: str
    behind: bool = True


@dataclass(frozen=True, slots=True)
class Picture:
    """A status with what is known around it."""

    where: Whereabouts
    status: Status
    process: int | None
    now: datetime

    @property
    def next_cycle(self) -> datetime | None:
        """When the next cycle is due, if a daemon runs."""
        last = self.status.last_cycle
        return rule_of(self.where.schedule).next_after(last) if last is not None else None

    def uploading(self) -> tuple[Copy, ...]:
        """Claims of the latest opening are alive only while an engine is."""
        return self.status.uploading if self.process is not None else ()

    def configured(self, account: Account) -> bool:
        """Whether the configuration still names this source and store."""
        return account.source in self.where.cameras and account.store in self.where.stores

    def wanted(self, account: Account) -> bool:
        """Whether this camera is still to be listed for this store."""
        return self.configured(account) and self.where.wants(
            account.source, account.camera, account.camera_id
        )

    def concerns(self) -> list[Concern]:
        """What is wrong, the worst first."""
        return [
            *self._cycle_concerns(),
            *self._unlisted(),
            *self._overdue(),
            *self._set_aside(),
            *self._orphans(),
        ]

    def _cycle_concerns(self) -> list[Concern]:
        start = "Start the daemon (`systemctl start nvr-backup`), or run `nvr-backup once`."
        last = self.status.last_cycle
        if last is None:
            return [Concern("No cycle has run yet.", start)]
        rule = rule_of(self.where.schedule)
        if rule.next_after(rule.next_after(last)) >= self.now:
            return []
        if self.process is None:
            return [Concern(f"The last cycle began {ago(last, self.now)} and nothing runs.", start)]
        return [
            Concern(
                f"The last cycle began {ago(last, self.now)}, two are overdue.",
                "Look into the daemon's log: `journalctl -u nvr-backup -n 50`.",
            )
        ]

    def _unlisted(self) -> list[Concern]:
        """Cycles ran without a camera; one that is gone for long is left in peace."""
        do = "`nvr-backup doctor` says why. A camera that the recorder no longer has needs nothing."
        last = self.status.last_cycle
        if last is None:
            return []
        begun = {account.source for account in self.status.accounts}
        found = [
            Concern(f"No camera of {source} was ever listed.", "`nvr-backup doctor` says why.")
            for source in sorted(self.where.cameras.keys() - begun)
        ]
        behind: dict[tuple[str, str], list[Account]] = {}
        for account in filter(self.wanted, self.status.accounts):
            if account.listed is None or self._listing_due(account, account.listed) < last:
                behind.setdefault((account.source, account.store), []).append(account)
        for (source, store), accounts in behind.items():
            times = [account.listed for account in accounts if account.listed is not None]
            since = f"since {local(max(times))}" if times else "yet"
            names = ", ".join(account.camera for account in accounts[:NAMED_AT_MOST])
            more = f" and {len(accounts) - NAMED_AT_MOST} more" if accounts[NAMED_AT_MOST:] else ""
            fresh = not times or self.now - max(times) < report.FRESH
            found.append(
                Concern(f"Not listed {since} ({source} → {store}): {names}{more}", do, behind=fresh)
            )
        return found

    def _listing_due(self, account: Account, listed: datetime) -> datetime:
        """When a camera listed then must have been listed again, one failure granted.

        A camera without clips for long is listed as a whole only now and then.
        """
        schedule = self.where.schedule
        rule = rule_of(schedule)
        proven = account.proven or listed
        quiet = listed - proven + schedule.lookback > TAIL
        return rule.next_after(rule.next_after(listed + (WHOLE_EVERY if quiet else timedelta())))

    def _overdue(self) -> list[Concern]:
        found = []
        for grounds in self.status.overdue:
            why = grounds.reason or "not tried yet"
            found.append(
                Concern(
                    f"{number(grounds.copies, 'clip')} waiting for more than "
                    f"{span(report.OVERDUE)} (oldest from {local(grounds.oldest)}): {why}",
                    "`nvr-backup doctor` finds out what does not work; "
                    "`nvr-backup clips --state waiting` names the clips.",
                )
            )
        return found

    def _set_aside(self) -> list[Concern]:
        old = f" (none of them in the last {report.FRESH.days} days)"
        return [
            Concern(
                f"{number(grounds.copies, 'clip')} set aside: {grounds.reason}"
                + ("" if grounds.fresh else old),
                "`nvr-backup clips --state set-aside` names them; "
                "`nvr-backup retry --all` tries them again.",
                behind=grounds.fresh > 0,
            )
            for grounds in self.status.set_aside
        ]

    def _orphans(self) -> list[Concern]:
        return [
            Concern(
                f"{number(account.waiting, 'clip')} of {account.camera} for "
                f"{account.source} → {account.store}, which is no longer configured.",
                "Put that source and store back, or leave the clips where they are.",
                behind=False,
            )
            for account in self.status.accounts
            if account.waiting and not self.configured(account)
        ]


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
    older than twice the schedule.

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
            time.sleep(WATCH_SECONDS)


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
        "pace": {
            "clips": found.pace.clips,
            "bytes": found.pace.size,
            "seconds": round(found.pace.over.total_seconds(), 1),
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
