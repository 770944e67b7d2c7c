"""The bounded worker pool: claims the due clip most in need, carries it, records the outcome.

The one place that decides what an error means for a clip, and the one that logs it. A failing clip,
camera, source or store never stops the others; nothing runs when nothing is due. Must never leave
an outcome unrecorded: a transfer that ends without one belongs to a process that is ending, and its
claim is void when the checkpoint is opened again.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from structlog.typing import FilteringBoundLogger

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.clock import Clock
from nvr_backup.connections import Connection
from nvr_backup.errors import Blocked, Suspect, Transient, Unfit
from nvr_backup.inflight import Outcomes, Running, room
from nvr_backup.ledger import RowLedger
from nvr_backup.logs import Floods, of_cycle
from nvr_backup.manners import Guests, Visit
from nvr_backup.model import Camera
from nvr_backup.polite import PoliteSource
from nvr_backup.ports import ClipSource, ClipStore
from nvr_backup.pulse import Pulse
from nvr_backup.rows import Claim, Keys, Tally, is_lost
from nvr_backup.transfer import Activity, Carried, Drained, Transfer

FIRST_DELAY: Final = timedelta(seconds=30)
LONGEST_DELAY: Final = timedelta(hours=6)
"""A failed clip waits 30 s, then twice as long each time, at most 6 h, give or take a fifth."""

JITTER: Final = 0.2

LONGEST_NAP_SECONDS: Final = 60.0
"""The backlog is looked at this often: `retry` works beside us, and clocks jump."""

PATIENCE: Final = 10
"""A body found not to be a whole video this often in a row, the same way, is set aside (≈ 8 h)."""

STEP_SECONDS: Final = 180.0
"""No step between two naps takes longer, on the slowest disk; see `pulse`."""

REASONS_KEPT: Final = 1000
"""Failures remembered by name for the summary of a cycle; all are in the checkpoint."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Routes:
    """The connections new transfers may use, by configured name.

    So many bytes may be held besides by clips that wait for their last answer: `spare_bytes`.
    """

    sources: Mapping[str, Connection[ClipSource]]
    stores: Mapping[str, Connection[ClipStore]]
    keys: Keys
    chunk_size: int
    workers: int
    spare_bytes: int


class Pool:
    """Carries the backlog. `routes` is asked at each claim: a reload applies to the next clip."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        routes: Callable[[], Routes],
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        rng: random.Random,
    ) -> None:
        self.running: dict[int, Running] = {}
        self.outcomes = Outcomes()
        self.pulse = Pulse("the worker pool", clock)
        self.news = asyncio.Event()  # set at every change; whoever shows it clears it
        self.cameras: Callable[[Camera], bool] = lambda _: True
        self.cycle: datetime | None = None  # when the latest began: said by what is logged
        self._checkpoint = checkpoint
        self._routes = routes
        self._clock = clock
        self._log = log
        self._rng = rng
        self._stir = asyncio.Event()
        self._tried: set[int] = set()
        self._received = 0  # by transfers that have ended
        self._floods = Floods()
        self._guests = Guests(clock, changed=self.wake)

    @property
    def received(self) -> int:
        """Bytes received from all sources since the pool was made."""
        return self._received + sum(one.activity.received for one in self.running.values())

    def take_outcomes(self) -> Outcomes:
        """The counts since the last call; begins new ones."""
        taken, self.outcomes = self.outcomes, Outcomes()
        return taken

    def wake(self) -> None:
        """Something changed: new rows, a connection recovered, other limits."""
        self._stir.set()
        self.news.set()

    async def run(
        self,
        stop: asyncio.Event,
        *,
        idle: Callable[[], Awaitable[bool]],
        patient: bool = True,
    ) -> None:
        """Carry clips until `stop` is set, finishing the chunks in flight; then return.

        `idle` is asked whenever nothing is running and nothing can be claimed: True ends the pool.
        With `patient=False` each copy is tried once, whether due or not.
        """
        stopping = asyncio.create_task(self._wake_on(stop), name="stop")
        try:
            async with asyncio.TaskGroup() as group:
                while not stop.is_set():
                    self.pulse.promise(STEP_SECONDS)
                    self._stir.clear()
                    routes = self._routes()
                    self._guests.allow(routes.workers)
                    while self._room(routes) and not stop.is_set():
                        claim = await self._claim(routes, patient)
                        if claim is None:
                            break
                        if not self._begin(group, claim, routes, stop=stop, patient=patient):
                            await self._checkpoint.release(claim.copy)
                            break
                    # What ended while we looked for a claim may have made room for one.
                    if not self.running and not self._stir.is_set() and await idle():
                        break
                    await self._wait(routes, patient)
        finally:
            self.pulse.rest()
            stopping.cancel()

    def _room(self, routes: Routes) -> bool:
        running = self.running.values()
        return room(running, workers=routes.workers, spare_bytes=routes.spare_bytes)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.wake()

    async def _wait(self, routes: Routes, patient: bool) -> None:
        """Until something changes, the next copy is due, or LONGEST_NAP_SECONDS have passed."""
        seconds = LONGEST_NAP_SECONDS
        if patient and self._room(routes):
            now = self._clock.now()
            due = await self._checkpoint.next_due(_open(routes.stores), now)
            if due is not None:
                seconds = min(seconds, max(1.0, (due - now).total_seconds()))
        seconds = min(seconds, max(1.0, self._guests.next_chance()))
        self.pulse.promise(seconds + STEP_SECONDS)
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        stirring = asyncio.ensure_future(self._stir.wait())
        try:
            await asyncio.wait({sleeping, stirring}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stirring.cancel()
            await asyncio.wait({sleeping, stirring})

    async def _claim(self, routes: Routes, patient: bool) -> Claim | None:
        busy = Counter(
            (running.claim.clip.camera.source, running.claim.clip.camera.id)
            for running in self.running.values()
        )
        guests = self._guests

        def cameras(camera: Camera) -> bool:
            place = (camera.source, camera.id)
            rests = patient and guests.at(camera.source).rests(camera.id, busy=busy[place] > 0)
            return not rests and self.cameras(camera)

        return await self._checkpoint.claim(
            sources=[name for name in _open(routes.sources) if guests.at(name).free],
            stores=_open(routes.stores),
            cameras=cameras,
            busy=busy,
            due=self._clock.now() if patient else None,
            # An outcome frees its copy a moment before it is on the disk and the transfer ends.
            skip=self.running.keys() | self._tried,
        )

    def _begin(
        self,
        group: asyncio.TaskGroup,
        claim: Claim,
        routes: Routes,
        *,
        stop: asyncio.Event,
        patient: bool,
    ) -> bool:
        """Start a transfer; False if a reload took its source or store away meanwhile."""
        source = routes.sources[claim.clip.camera.source]
        store = routes.stores[claim.store]
        if source.retired or store.retired:
            self.wake()
            return False
        visit = self._guests.at(claim.clip.camera.source).visit()
        running = Running(claim, Activity(), self._clock.monotonic())
        self.running[claim.copy] = running
        self.news.set()
        if not patient:
            self._tried.add(claim.copy)
        leases = ExitStack()
        leases.enter_context(source.lease())
        leases.enter_context(store.lease())

        async def work() -> None:
            with leases, of_cycle(self.cycle):
                try:
                    await self._carry(running, source, store, routes, stop, visit=visit)
                finally:
                    visit.leave()
                    del self.running[claim.copy]
                    self._received += running.activity.received
                    self.wake()

        group.create_task(work(), name=f"carry {claim.copy}")
        return True

    async def _carry(
        self,
        running: Running,
        source: Connection[ClipSource],
        store: Connection[ClipStore],
        routes: Routes,
        stop: asyncio.Event,
        *,
        visit: Visit,
    ) -> None:
        claim, activity = running.claim, running.activity
        log = self._log.bind(
            source=claim.clip.camera.source,
            camera=claim.clip.camera.name,
            clip=claim.clip.id,
            store=claim.store,
        )
        adapters = await source.adapter(), await store.adapter()
        if source.blocked is not None or store.blocked is not None:
            await self._checkpoint.release(claim.copy)  # found out while it was being opened
            return
        say = log.debug if self._floods.at(_place(claim)) else log.info
        say("clip started", key=claim.key, attempt=claim.attempts + 1)
        transfer = Transfer(
            clip=claim.clip,
            key=claim.key,
            source=PoliteSource(adapters[0], visit, self._clock),
            store=adapters[1],
            store_name=claim.store,
            ledger=RowLedger(self._checkpoint, claim, routes.keys),
            activity=activity,
            finishing=self.wake,
            chunk_size=routes.chunk_size,
            stop=stop,
            maybe_there=claim.maybe_there,
            replaces=claim.replaces,
        )
        try:
            carried = await transfer.run(claim.upload)
        except Drained:
            await self._checkpoint.release(claim.copy)
            log.info("clip paused", key=transfer.key, confirmed_bytes=activity.confirmed)
        except Blocked as err:
            (source if err.origin == source.part else store).block(err)
            if _kind(claim.reason) != _kind(err.message):
                await self._checkpoint.release(claim.copy, err.message)
                log.debug("clip waits", key=transfer.key, reason=err.message)
            else:
                # The second time that this very clip blocks its store (one folder that may not be
                # written, a clip larger than the room left): the others go first.
                await self._put_off(running, err, log.bind(key=transfer.key))
        except (Unfit, Transient) as err:
            if isinstance(err, Transient) and err.origin == source.part:
                self._guests.failed(claim.clip.camera, err, log)
            await self._failed(running, err, log.bind(key=transfer.key))
        else:
            source.worked()
            store.worked()
            self._guests.worked(claim.clip.camera, log)
            await self._stored(running, carried, log)

    async def _stored(self, running: Running, carried: Carried, log: FilteringBoundLogger) -> None:
        tally = self._tally(running)
        await self._checkpoint.commit_stored(
            running.claim.copy,
            carried.stored,
            verified=carried.verified,
            tally=tally,
            now=self._clock.now(),
        )
        self._floods.worked(_place(running.claim))
        self.outcomes.stored += 1
        self.outcomes.stored_bytes += carried.stored.size
        log.info(
            "clip stored",
            key=carried.stored.key,
            bytes=carried.stored.size,
            seconds=round(tally.seconds, 3),
            mb_per_s=round(tally.received / 1e6 / max(tally.seconds, 1e-6), 2),
            verified=carried.verified,
        )

    async def _failed(
        self, running: Running, err: Unfit | Transient, log: FilteringBoundLogger
    ) -> None:
        claim = running.claim
        now = self._clock.now()
        tally = self._tally(running)
        if len(self.outcomes.reasons) < REASONS_KEPT:
            self.outcomes.reasons[claim.copy] = (claim.clip, str(err))
        again = claim.same_reason + 1 if _kind(claim.reason) == _kind(err.message) else 1
        if isinstance(err, Unfit) or (isinstance(err, Suspect) and again >= PATIENCE):
            await self._checkpoint.set_aside(claim.copy, err.message, tally=tally, now=now)
            self.outcomes.set_aside += 1
            lost = is_lost(err.message)
            log.warning(
                "clip set aside", reason=err.message, hint=err.hint, attempts=again, lost=lost
            )
            return
        self.outcomes.failed += 1
        await self._put_off(running, err, log)

    async def _put_off(
        self, running: Running, err: Transient | Blocked, log: FilteringBoundLogger
    ) -> None:
        claim = running.claim
        now = self._clock.now()
        again = claim.same_reason + 1 if _kind(claim.reason) == _kind(err.message) else 1
        asked = err.retry_after if isinstance(err, Transient) else None
        delay = self._delay(claim.attempts, asked)
        await self._checkpoint.put_off(
            claim.copy,
            err.message,
            again=again,
            not_before=now + delay,
            tally=self._tally(running),
            now=now,
        )
        loud = self._floods.failed(_place(claim), _kind(err.message))
        say = log.warning if loud else log.debug
        say(
            "clip failed",
            reason=err.message,
            hint=err.hint,
            attempt=claim.attempts + 1,
            retry_in_seconds=round(delay.total_seconds()),
        )

    def _delay(self, attempts: int, retry_after: float | None) -> timedelta:
        """Doubling from FIRST_DELAY to LONGEST_DELAY with jitter; never before `retry_after`."""
        doubled = FIRST_DELAY * 2 ** min(attempts, 20)
        jitter = self._rng.uniform(1 - JITTER, 1 + JITTER)
        delay: timedelta = min(doubled, LONGEST_DELAY) * jitter
        asked = timedelta(seconds=min(retry_after or 0.0, LONGEST_DELAY.total_seconds()))
        return max(delay, asked)

    def _tally(self, running: Running) -> Tally:
        return Tally(running.activity.received, self._clock.monotonic() - running.began)


def _place(claim: Claim) -> tuple[str, str, str]:
    return claim.clip.camera.source, claim.clip.camera.id, claim.store


def _kind(reason: str | None) -> str | None:
    """What a reason says, apart from its numbers: a cut that falls elsewhere is still a cut."""
    return None if reason is None else re.sub(r"\d+", "#", reason)


def _open(connections: Mapping[str, Connection[A]]) -> list[str]:
    """Names of the connections that take new work."""
    return [name for name, one in connections.items() if one.ready and one.blocked is None]
