"""The composition root: settings become sources, stores, checkpoint, scheduler and pool.

It lists (a cycle), lets the pool carry, and takes over new settings while transfers go on. It must
never let one source's trouble keep another from being listed, and never close anything that a
transfer still uses.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from nvr_backup.adapters import open_source, open_store
from nvr_backup.audit import Audits
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.clock import Clock
from nvr_backup.connections import Connection
from nvr_backup.cycle import Cycle, Listing, Request, every_camera
from nvr_backup.keys import DEFAULT_TEMPLATE, candidates
from nvr_backup.logs import Troubles, of_cycle
from nvr_backup.model import Camera, Clip
from nvr_backup.planner import Rules
from nvr_backup.pool import Pool, Routes
from nvr_backup.ports import ClipSource, ClipStore
from nvr_backup.pulse import Pulse
from nvr_backup.rows import Keys
from nvr_backup.safekeeping import Safekeeping
from nvr_backup.scheduler import Cron, Every, Rule, Scheduler
from nvr_backup.settings import Schedule, Settings, SourceSettings, StoreSettings
from nvr_backup.transfer import Drained, drained_by
from nvr_backup.uplink import Uplink

A = TypeVar("A")


class Engine:
    """Everything that works on one state folder. Made by `open_engine`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        group: asyncio.TaskGroup,
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        rng: random.Random,
        state_dir: Path,
    ) -> None:
        self.checkpoint = checkpoint
        self.uplink = Uplink(clock)
        self.pool = Pool(checkpoint, self._routes, clock=clock, log=log, rng=rng)
        self.sources: dict[str, Connection[ClipSource]] = {}
        self.stores: dict[str, Connection[ClipStore]] = {}
        self.scheduler: Scheduler | None = None
        self.cameras: list[Camera] = []  # of the latest listing
        self._group = group
        self._clock = clock
        self._log = log
        self._troubles = Troubles(clock)
        self._safekeeping = Safekeeping(state_dir, clock=clock, log=log, troubles=self._troubles)
        self._audits = Audits(checkpoint.database, clock=clock, log=log, troubles=self._troubles)
        self._listed: Cycle | None = None
        self._source_settings: dict[str, SourceSettings] = {}
        self._store_settings: dict[str, tuple[StoreSettings, int]] = {}
        self._watermarks: dict[tuple[str, str, str], datetime] = {}
        self._missed: set[str] = set()  # sources the latest cycle could not list

    @property
    def pulses(self) -> list[Pulse]:
        """The supervisors' signs of life."""
        return [self.pool.pulse, *([self.scheduler.pulse] if self.scheduler is not None else [])]

    # -- wiring -------------------------------------------------------------------------------

    async def apply(self, settings: Settings) -> None:
        """Take over settings: parts that did not change keep their connections."""
        self.settings = settings
        self.uplink.follow(settings.transfer.upload_limit, settings.upload_zone)
        before = (self._source_settings, self._store_settings)
        for name, new in settings.sources.items():
            if self._source_settings.get(name) != new:
                _retire(self.sources, name)
                self.sources[name] = self._connect_source(name, new)
        for name, store in settings.stores.items():
            wanted = (store, settings.transfer.chunk_size)
            if self._store_settings.get(name) != wanted:
                _retire(self.stores, name)
                used = await self.checkpoint.has_stored(name)
                self.stores[name] = self._connect_store(name, *wanted, used_before=used)
        for name in self.sources.keys() - settings.sources.keys():
            _retire(self.sources, name)
        for name in self.stores.keys() - settings.stores.keys():
            _retire(self.stores, name)
        self._source_settings = dict(settings.sources)
        self._store_settings = {
            name: (store, settings.transfer.chunk_size) for name, store in settings.stores.items()
        }
        if self.scheduler is not None:
            self.scheduler.reschedule(_rule(settings.schedule))
            if before != (self._source_settings, self._store_settings):
                self._cycle_soon()
        self.pool.wake()

    def _cycle_soon(self) -> None:
        """Something can be listed that could not be before; a cron's hours are respected."""
        if self.scheduler is not None and self.settings.schedule.every is not None:
            self.scheduler.trigger()

    def _connect_source(self, name: str, settings: SourceSettings) -> Connection[ClipSource]:
        connection: Connection[ClipSource] = Connection(
            f"sources.{name}",
            lambda: open_source(name, settings, self._clock),
            lambda source: source.cameras(),
            clock=self._clock,
            log=self._log,
            changed=lambda: self._source_changed(name),
        )
        self._group.create_task(connection.live(), name=connection.part)
        return connection

    def _source_changed(self, name: str) -> None:
        """It blocked or recovered; a cycle that it missed is caught up at once."""
        self.pool.wake()
        source = self.sources.get(name)
        if source is not None and source.blocked is None and name in self._missed:
            self._missed.discard(name)
            if self.scheduler is not None:
                self.scheduler.trigger()

    def _connect_store(
        self, name: str, settings: StoreSettings, chunk_size: int, *, used_before: bool
    ) -> Connection[ClipStore]:
        connection: Connection[ClipStore] = Connection(
            f"stores.{name}",
            lambda: open_store(
                name,
                settings,
                self._clock,
                chunk_size=chunk_size,
                used_before=used_before,
                allow=self.uplink,
            ),
            lambda store: store.probe(),
            clock=self._clock,
            log=self._log,
            changed=self.pool.wake,
            probe_first=True,
        )
        self._group.create_task(connection.live(), name=connection.part)
        return connection

    def _routes(self) -> Routes:
        return Routes(
            sources=dict(self.sources),
            stores=dict(self.stores),
            keys=self._keys(),
            chunk_size=self.settings.transfer.chunk_size,
            workers=self.settings.transfer.workers,
            spare_bytes=self.settings.transfer.chunk_size if self.uplink.unlimited else 0,
        )

    def _keys(self) -> Keys:
        """Object keys by the present templates, for as long as a survey or transfer needs them."""
        templates = {name: store.key_template for name, store in self.settings.stores.items()}

        def keys(store: str, clip: Clip) -> Iterator[str]:
            return candidates(templates.get(store, DEFAULT_TEMPLATE), clip)

        return keys

    def retire(self) -> None:
        """Close every connection as soon as nothing uses it."""
        self._safekeeping.stop()
        self._audits.stop()
        for name in list(self.sources):
            _retire(self.sources, name)
        for name in list(self.stores):
            _retire(self.stores, name)

    # -- listing ------------------------------------------------------------------------------

    async def list_all(
        self,
        *,
        since: datetime | None = None,
        wanted: Callable[[Camera], bool] = every_camera,
        dry_run: bool = False,
        whole: Collection[str] = (),
    ) -> Cycle:
        """List every wanted camera of every source and plan what is new.

        Of sources in `whole` all that is wanted, however much of it was listed before.
        A source or camera that cannot be listed is a failure of the cycle, not an error.
        """
        settings = self.settings
        routes = {name: settings.stores_of(name) for name in settings.sources}
        if not dry_run:
            pairs = [(name, store) for name, stores in routes.items() for store in stores]
            await self.checkpoint.note_pairs(pairs, self._clock.now())
        schedule = settings.schedule
        request = Request(
            rules=Rules(schedule.settle, schedule.lookback, schedule.backfill),
            keys=self._keys(),
            since=since,
            wanted=wanted,
            dry_run=dry_run,
            whole=whole,
        )
        listing = Listing(
            request,
            Cycle(self._clock.now(), missed=self._missed),
            self.checkpoint,
            clock=self._clock,
            log=self._log,
            troubles=self._troubles,
            found=self.pool.wake,
            step=self._listing_goes_on,
        )
        async with asyncio.TaskGroup() as group:
            for name, source in list(self.sources.items()):
                group.create_task(
                    listing.source(name, source, routes.get(name, ())), name=f"list {name}"
                )
        return listing.cycle

    def _listing_goes_on(self) -> None:
        if self.scheduler is not None:
            self.scheduler.alive()

    # -- the daemon ---------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, *, started: Callable[[], None] | None = None) -> None:
        """Cycle by the schedule and carry, until `stop` is set and the pool has drained.

        `started` is called once the scheduler runs, whether or not anything can be reached.
        """
        last = await self.checkpoint.last_cycle()
        rule = _rule(self.settings.schedule)
        self.scheduler = Scheduler(rule, self._clock, last, record=self.checkpoint.record_cycle)
        if isinstance(rule, Every):
            self.scheduler.trigger()  # a start may follow a repair or a new configuration
        async with asyncio.TaskGroup() as group:
            cycles = group.create_task(self.scheduler.run(self._cycle), name="scheduler")
            if started is not None:
                started()
            await self.pool.run(stop, idle=self._idle)
            cycles.cancel()

    async def _cycle(self) -> None:
        with of_cycle(self.pool.cycle):
            await self._conclude()  # the one before, if it never came to rest
        self.pool.cycle = self._clock.now()
        with of_cycle(self.pool.cycle):
            await self._list()

    async def _list(self) -> None:
        self._log.info("cycle started")
        cycle = await self.list_all(whole=await self._audits.listing_due(self.settings))
        await self._audits.listed(cycle.whole, cycle.started)
        self._log.info(
            "cycle listed",
            cameras=len(cycle.cameras),
            clips=cycle.listed,
            new=cycle.planned,
            failures=len(cycle.failures),
            **await self.checkpoint.counts(),
        )
        self._listed = cycle
        there = {camera.source for camera in cycle.cameras}
        unheard = [one for one in self.cameras if one.source in self.sources.keys() - there]
        self.cameras = cycle.cameras + unheard
        self.pool.wake()

    async def _idle(self) -> bool:
        """The pool has nothing to do: the cycle is complete."""
        if self._all_ready():
            with of_cycle(self.pool.cycle):
                await self._conclude()
        return False

    def _all_ready(self) -> bool:
        return all(store.ready for store in self.stores.values())

    async def _conclude(self) -> None:
        cycle, self._listed = self._listed, None
        if cycle is None:
            return
        outcomes = self.pool.take_outcomes()
        counts = await self.checkpoint.counts()
        self._log.info(
            "cycle finished",
            seconds=round((self._clock.now() - cycle.started).total_seconds(), 1),
            stored=outcomes.stored,
            bytes=outcomes.stored_bytes,
            failed=outcomes.failed,
            **counts,
        )
        names = {(camera.source, camera.id): camera.name for camera in self.cameras}
        for (source, camera, store), mark in (await self.checkpoint.watermarks()).items():
            if self._watermarks.get((source, camera, store)) != mark:
                self._watermarks[source, camera, store] = mark
                self._log.debug(
                    "watermark",
                    source=source,
                    camera=names.get((source, camera), camera),
                    store=store,
                    watermark=mark.isoformat(timespec="seconds"),
                )
        keeping = self._safekeeping.keep(self.settings, self.stores)
        self._group.create_task(keeping, name="snapshot")  # no clip waits for it
        self._group.create_task(self._audits.look(self.settings, dict(self.stores)), name="audit")

    # -- one cycle by hand --------------------------------------------------------------------

    async def once(
        self,
        stop: asyncio.Event,
        *,
        since: datetime | None = None,
        wanted: Callable[[Camera], bool] = every_camera,
    ) -> Cycle:
        """One cycle: list, then try every waiting clip of the wanted cameras once.

        A cycle for some cameras or another stretch than usual does not count as the schedule's.
        """
        self.pool.cameras = wanted
        listing = asyncio.Event()

        async def idle() -> bool:
            return listing.is_set() and self._all_ready()

        cycle = Cycle(self._clock.now())
        self.pool.cycle = cycle.started
        async with asyncio.TaskGroup() as group:
            carrying = group.create_task(self.pool.run(stop, idle=idle, patient=False))
            if wanted is every_camera and since is None:
                await self.checkpoint.record_cycle(cycle.started)
            with suppress(Drained), of_cycle(cycle.started):
                async with drained_by(stop):
                    cycle = await self.list_all(since=since, wanted=wanted)
            listing.set()
            self.pool.wake()
            await carrying
        await self._safekeeping.keep_unless(stop, self.settings, self.stores)
        return cycle


def _rule(schedule: Schedule) -> Rule:
    if schedule.every is not None:
        return Every(schedule.every)
    if schedule.cron is None:
        raise ValueError("a schedule has `every` or `cron`")
    return Cron(schedule.cron, schedule.timezone)


def _retire(connections: dict[str, Connection[A]], name: str) -> None:
    connection = connections.pop(name, None)
    if connection is not None:
        connection.retire()


@asynccontextmanager
async def open_engine(
    settings: Settings,
    *,
    clock: Clock,
    log: FilteringBoundLogger,
    rng: random.Random,
    peek: bool = False,
) -> AsyncIterator[Engine]:
    """An engine on the settings' state folder, which it holds alone.

    With `peek` it holds nothing and may only be asked to `list_all(dry_run=True)`.
    Raises EngineRunningError, CheckpointError or ConfigError. Errors of parts that live with it
    reach the caller as an ExceptionGroup.
    """
    if peek:
        checkpoint = await Checkpoint.peek(settings.state_dir)
    else:
        checkpoint = await Checkpoint.open(settings.state_dir, now=clock.now())
    try:
        async with asyncio.TaskGroup() as group:
            engine = Engine(
                checkpoint, group, clock=clock, log=log, rng=rng, state_dir=settings.state_dir
            )
            await engine.apply(settings)
            try:
                yield engine
            finally:
                engine.retire()
    finally:
        checkpoint.close()
