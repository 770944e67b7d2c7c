"""What a status means: which of it needs a person, why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from nvr_backup import report
from nvr_backup.cli.options import Whereabouts, rule_of
from nvr_backup.cli.words import ago, local, number, span
from nvr_backup.findings import What
from nvr_backup.planner import TAIL, WHOLE_EVERY
from nvr_backup.report import Account, Copy, Status

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
            *self._danger(),
            *self._unlisted(),
            *self._overdue(),
            *self._set_aside(),
            *self._found_wrong(),
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

    def _danger(self) -> list[Concern]:
        """What the recorder will delete before it is stored, at the present pace."""
        loss = self.status.danger
        if loss is None:
            return []
        needed = "nothing is stored" if loss.needed is None else f"it takes {span(loss.needed)}"
        return [
            Concern(
                f"In {span(loss.left)} the recorder deletes a clip of {loss.camera} that is not "
                f"stored: {number(loss.waiting, 'clip')} waiting, at the present pace {needed}.",
                "Raise `transfer.upload_limit`, mend the store, or give the recorder more room.",
            )
        ]

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

    def _found_wrong(self) -> list[Concern]:
        stores: dict[str, list[str]] = {}
        for (store, what), copies in sorted(self.status.findings.items()):
            stores.setdefault(store, []).append(f"{copies:,} {_WRONG[what]}")
        return [
            Concern(
                f"Found wrong in {store}: {', '.join(parts)}",
                "`nvr-backup verify` names them, `nvr-backup verify --fix` stores them anew.",
            )
            if store in self.where.stores
            else Concern(
                f"Found wrong in {store}, which is no longer configured: {', '.join(parts)}",
                "Put that store back, or leave it: nothing is read from it or brought there.",
                behind=False,
            )
            for store, parts in stores.items()
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


_WRONG: Final = {
    What.MISSING: "missing",
    What.SIZE: "of the wrong size",
    What.CHECKSUM: "with another checksum",
    What.CONTENT: "corrupt",
}
