"""After a cycle: a snapshot of the checkpoint, and one a day into the stores that are to have one.

Works beside the transfers. It must never hold up a clip or end a run because a snapshot could not
be kept: that is said once. Only a checkpoint found to be damaged ends the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from nvr_backup.clock import Clock
from nvr_backup.connections import Connection
from nvr_backup.database import CheckpointError, RebuildNeeded, hand_over
from nvr_backup.deposits import deposit
from nvr_backup.errors import NvrBackupError
from nvr_backup.logs import Troubles
from nvr_backup.ports import ClipStore
from nvr_backup.settings import Settings
from nvr_backup.snapshots import Snapshots, all_snapshots, taken_at
from nvr_backup.soundness import SNAPSHOTS_FOLDER, SQLITE_ERRORS
from nvr_backup.transfer import Drained, drained_by

DEPOSIT_EVERY: Final = timedelta(days=1)
"""A store's key may not be allowed to delete: deposits stay there, so they are few."""


class Safekeeping:
    """Keeps the checkpoint of one state folder safe. One at a time works; `stop` ends it."""

    def __init__(
        self, state_dir: Path, *, clock: Clock, log: FilteringBoundLogger, troubles: Troubles
    ) -> None:
        self._state_dir = state_dir
        self._snapshots = Snapshots(state_dir, clock)
        self._clock = clock
        self._log = log
        self._troubles = troubles
        self._busy = asyncio.Lock()
        self._stopping = asyncio.Event()

    async def keep(self, settings: Settings, stores: Mapping[str, Connection[ClipStore]]) -> None:
        """Take a snapshot if something happened since the last; RebuildNeeded when damaged.

        While another call is at work this one does nothing: the next cycle comes.
        """
        if self._busy.locked() or self._stopping.is_set():
            return
        async with self._busy:
            await self._take(settings.checkpoint.snapshots)
            with suppress(Drained):
                async with drained_by(self._stopping):
                    for name in settings.checkpoint.stores:
                        await self._deposit(name, stores.get(name), settings.transfer.chunk_size)

    async def keep_unless(
        self,
        stop: asyncio.Event,
        settings: Settings,
        stores: Mapping[str, Connection[ClipStore]],
    ) -> None:
        """Like `keep`, and given up as soon as `stop` is set."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        stopping.add_done_callback(lambda done: None if done.cancelled() else self.stop())
        try:
            if not stop.is_set():
                await self.keep(settings, stores)
        finally:
            stopping.cancel()
            await asyncio.wait({stopping})

    def stop(self) -> None:
        """Give up what is under way: the program is ending."""
        self._snapshots.stop()
        self._stopping.set()

    async def _take(self, keep: int) -> None:
        try:
            taken = await self._snapshots.take(keep)
        except RebuildNeeded:
            raise
        except CheckpointError as err:
            self._troubles.failed(
                "snapshot", self._log, "snapshot not taken", reason=err.message, hint=err.hint
            )
            return
        self._troubles.recovered("snapshot", self._log, "snapshots are taken again")
        if taken is not None:
            self._log.debug("snapshot taken", file=str(taken))

    async def _deposit(
        self, name: str, store: Connection[ClipStore] | None, chunk_size: int
    ) -> None:
        """Bring the latest snapshot into a store, unless one went there less than a day ago."""
        if store is None or store.retired or store.blocked is not None:
            return
        note = self._state_dir / SNAPSHOTS_FOLDER / f"deposited-{name}"
        part = f"stores.{name}"
        try:
            latest = self._due(note)
            if latest is None or not await self._bring(latest, store, chunk_size):
                return
            note.write_text(latest.name)
            hand_over(note)
        except NvrBackupError as err:
            reason, hint = err.message, err.hint
        except (OSError, *SQLITE_ERRORS) as err:
            reason, hint = str(err), f"Look for a full or failing disk below {self._state_dir}."
        else:
            self._troubles.recovered(note, self._log, "snapshots reach the store again", part=part)
            self._log.info("snapshot brought to the store", part=part, file=latest.name)
            return
        self._troubles.failed(
            note,
            self._log,
            "snapshot not brought to the store",
            part=part,
            reason=reason,
            hint=hint,
        )

    async def _bring(self, snapshot: Path, store: Connection[ClipStore], chunk_size: int) -> bool:
        """Whether it is there now; False when the program is stopping."""
        bare = await self._snapshots.bare_copy(snapshot)
        if bare is None:
            return False
        try:
            with store.lease():
                await deposit(await store.adapter(), snapshot, bare, chunk_size=chunk_size)
        finally:
            bare.unlink(missing_ok=True)
        return True

    def _due(self, note: Path) -> Path | None:
        """The latest snapshot, unless it or one of the same day is there; OSError."""
        now = self._clock.now()
        latest = next(iter(all_snapshots(self._state_dir, now)), None)
        with suppress(FileNotFoundError):
            brought = note.read_text(errors="replace")  # whatever a crash has left of it
            since = now - taken_at(Path(brought))
            if timedelta() <= since < DEPOSIT_EVERY or (latest and brought == latest.name):
                return None
        return latest
