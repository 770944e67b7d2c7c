"""The daemon's own verification: now and then everything is listed again, and a sample read back.

A cycle reaches back a little; an audit lists the source as far back as clips are wanted, so that
whatever a listing once left out is planned after all. Then, beside the transfers, the objects of
the last days are compared and a few are read back, in turn. What is found is said and stays on
record; it must never change an object or plan a stored clip again by itself: an operator who
deletes footage, or lets the bucket do it, must not have it back the next day.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from structlog.typing import FilteringBoundLogger

from nvr_backup.clock import Clock
from nvr_backup.connections import Connection
from nvr_backup.database import CheckpointError, Database, transaction
from nvr_backup.errors import NvrBackupError
from nvr_backup.findings import Audited, Finding, note_audit
from nvr_backup.logs import Troubles
from nvr_backup.model import EPOCH, to_ms
from nvr_backup.ports import ClipStore
from nvr_backup.settings import Settings
from nvr_backup.transfer import Drained, drained_by
from nvr_backup.verification import Outcome, Verification

COMPARED: Final = timedelta(days=7)
"""Objects of clips that began so lately are compared in each audit."""

NAMED: Final = 20
"""New findings that are logged one by one; `verify` names the rest."""

_LISTED: Final = "audit listed SOURCE "
_STORE: Final = "audit due STORE "


class Audits:
    """Decides when an audit is due, and holds the stores against the checkpoint. `stop` ends it."""

    def __init__(
        self, database: Database, *, clock: Clock, log: FilteringBoundLogger, troubles: Troubles
    ) -> None:
        self._database = database
        self._clock = clock
        self._log = log
        self._troubles = troubles
        self._busy = asyncio.Lock()
        self._stopping = asyncio.Event()

    async def listing_due(self, settings: Settings) -> set[str]:
        """The sources of which this cycle is to list everything; `listed` says that it was done.

        The first time is an interval after a source's first cycle: before, all is new anyway.
        """
        return {name for name in settings.sources if await self._is_due(settings, _LISTED + name)}

    async def listed(self, sources: Iterable[str], started: datetime) -> None:
        """All of these was listed, as far as it could be; one that could not be asked is due."""
        values = [(_LISTED + name, str(to_ms(started))) for name in sources]

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

        await self._database.run(work)

    async def look(self, settings: Settings, stores: Mapping[str, Connection[ClipStore]]) -> None:
        """Compare and read back in every store that is due and can be asked.

        Nothing while another call is at work. A store whose audit was cut short is still due.
        """
        if self._busy.locked() or self._stopping.is_set():
            return
        async with self._busy:
            with suppress(Drained):
                async with drained_by(self._stopping):
                    for name, connection in stores.items():
                        if await self._is_due(settings, _STORE + name):
                            await self._store(name, settings, connection)

    async def _is_due(self, settings: Settings, name: str) -> bool:
        """Whether an interval has passed since what `name` stands for, or since it was first asked.

        A time in the future is that of a clock that was ahead: due.
        """
        every, now = settings.audit.interval, self._clock.now()
        if every is None:
            return False

        def work(db: sqlite3.Connection) -> int:
            with transaction(db, durable=False):
                db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, str(to_ms(now))))
            row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
            return int(row[0])

        return not to_ms(now - every) < await self._database.run(work) <= to_ms(now)

    def stop(self) -> None:
        """Give up what is under way: the program is ending."""
        self._stopping.set()

    async def _store(
        self, name: str, settings: Settings, connection: Connection[ClipStore]
    ) -> None:
        place = settings.stores.get(name)
        if place is None or connection.retired or connection.blocked is not None:
            return
        part = connection.part
        now = self._clock.now()
        try:
            with connection.lease():
                store = await connection.adapter()
                outcome = await self._verify(
                    name, store, place.key_template, now, settings.audit.sample
                )
        except CheckpointError:
            raise  # nothing can be carried safely: that is not the store's
        except NvrBackupError as err:
            self._troubles.failed(
                ("audit", name),
                self._log,
                "store not audited",
                part=part,
                reason=err.message,
                hint=err.hint,
            )
            return
        self._troubles.recovered(("audit", name), self._log, "store audited again", part=part)
        for one in outcome.new[:NAMED]:
            self._say(one)
        for key, why in islice(outcome.unread.items(), NAMED):
            self._log.warning(
                "object not read",
                store=name,
                key=key,
                reason=why,
                hint="Others could be read: look at the disk (dmesg), or at the store's status.",
            )
        self._log.info(
            "store audited",
            store=name,
            compared=outcome.right,
            wrong=len(outcome.found),
            read=outcome.read,
            bytes=outcome.read_bytes,
            limits=outcome.limits,
        )
        await self._remember_result(name, outcome, now)

    async def _verify(
        self, name: str, store: ClipStore, template: str, now: datetime, sample: int
    ) -> Outcome:
        """Compare the last days, then read back from everything there is."""

        def nothing(_: Outcome) -> None:
            pass

        def since(begin: datetime) -> Verification:
            return Verification(
                name,
                store,
                template,
                self._database,
                begin=begin,
                end=now,
                clock=self._clock,
                step=nothing,
            )

        late = since(now - COMPARED)
        await late.compare()
        if not sample:
            return late.outcome
        everything = since(EPOCH)
        everything.outcome = late.outcome
        await everything.read_back(sample)
        return late.outcome

    def _say(self, one: Finding) -> None:
        self._log.error(
            "object found wrong",
            store=one.store,
            camera=one.camera,
            key=one.key,
            found=one.what.value,
            reason=one.detail,
            hint="`nvr-backup verify --fix` stores it anew, if the recorder still has the clip.",
        )

    async def _remember_result(self, name: str, outcome: Outcome, now: datetime) -> None:
        result = Audited(now, outcome.right, len(outcome.found), outcome.read, outcome.read_bytes)

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, durable=False):
                note_audit(db, name, result)
                values = (_STORE + name, str(to_ms(now)))
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

        await self._database.run(work)
