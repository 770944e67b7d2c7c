"""A cycle's listing: every wanted camera of every source, each trouble kept to itself.

A source that is blocked or cannot be reached, or a camera whose listing fails, is noted and said
once; the others are listed all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.clock import Clock
from nvr_backup.connections import Connection
from nvr_backup.errors import Blocked, Transient
from nvr_backup.logs import Troubles
from nvr_backup.lookout import Lookout, judge, look_at
from nvr_backup.model import Camera, Clip
from nvr_backup.planner import Rules
from nvr_backup.ports import ClipSource
from nvr_backup.rows import Keys
from nvr_backup.survey import Survey


def every_camera(_camera: Camera) -> bool:
    """All cameras are wanted."""
    return True


@dataclass(slots=True)
class Cycle:
    """What one cycle's listing found.

    `whole` are sources of which all was listed, as far as it could be; `missed` those that could
    not be listed, in this cycle or an earlier one; `failures` are (part or camera, reason).
    """

    started: datetime
    whole: set[str] = field(default_factory=set)
    cameras: list[Camera] = field(default_factory=list)
    listed: int = 0
    planned: int = 0
    ahead: int = 0
    missed: set[str] = field(default_factory=set)
    failures: list[tuple[str, str]] = field(default_factory=list)
    additions: list[Clip] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Request:
    """What to list: `since` asks for another stretch than usual.

    `whole`: sources to be asked for all that is wanted, however much was listed before.
    """

    rules: Rules
    keys: Keys
    since: datetime | None
    wanted: Callable[[Camera], bool]
    dry_run: bool
    whole: Collection[str] = ()


class Listing:
    """Lists sources into `cycle`.

    `found` is called when the backlog has grown, `step` before each part of a listing.
    """

    def __init__(
        self,
        request: Request,
        cycle: Cycle,
        checkpoint: Checkpoint,
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        troubles: Troubles,
        found: Callable[[], None],
        step: Callable[[], None],
    ) -> None:
        self.cycle = cycle
        self._request = request
        self._checkpoint = checkpoint
        self._clock = clock
        self._log = log
        self._troubles = troubles
        self._found = found
        self._step = step

    async def source(
        self, name: str, connection: Connection[ClipSource], stores: Sequence[str]
    ) -> None:
        """List the wanted cameras of one source for `stores`."""
        cycle, request = self.cycle, self._request
        if connection.retired:
            return  # replaced while this cycle began; the reload starts another
        if connection.blocked is not None:
            cycle.missed.add(name)
            cycle.failures.append((connection.part, connection.blocked.message))
            return
        with connection.lease():
            source = await connection.adapter()
            survey = Survey(
                source=source,
                stores=stores,
                checkpoint=self._checkpoint,
                rules=request.rules,
                keys=request.keys,
                dry_run=request.dry_run,
                step=self._step,
            )
            try:
                there = await source.cameras()
                await survey.begin(there, now=self._clock.now())
                cameras = [camera for camera in there if request.wanted(camera)]
                cycle.cameras += cameras
                lookout = Lookout(source, self._checkpoint, self._step)
                for camera in cameras:
                    await self._camera(survey, lookout, camera)
            except Blocked as err:
                cycle.missed.add(name)
                connection.block(err)
                cycle.failures.append((connection.part, str(err)))
            except Transient as err:
                self._troubles.failed(
                    connection.part,
                    self._log,
                    "source not listed",
                    source=name,
                    part=connection.part,
                    reason=err.message,
                    hint=err.hint,
                )
                cycle.failures.append((connection.part, str(err)))
            else:
                cycle.missed.discard(name)
                if name in request.whole:
                    cycle.whole.add(name)
                connection.worked()
                if not request.dry_run:
                    now = self._clock.now()
                    await judge(self._checkpoint, now, troubles=self._troubles, log=self._log)
                self._troubles.recovered(
                    connection.part,
                    self._log,
                    "source listed again",
                    source=name,
                    part=connection.part,
                )

    async def _camera(self, survey: Survey, lookout: Lookout, camera: Camera) -> None:
        cycle = self.cycle
        log = self._log.bind(source=camera.source, camera=camera.name)
        trouble = f"{camera.source}/{camera.id}"
        try:
            found = await survey.camera(
                camera,
                now=self._clock.now(),
                since=self._request.since,
                whole=camera.source in self._request.whole,
            )
        except Transient as err:
            self._troubles.failed(
                trouble, log, "camera not listed", reason=err.message, hint=err.hint
            )
            cycle.failures.append((f"camera {camera.name}", str(err)))
            return
        self._troubles.recovered(trouble, log, "camera listed again")
        if not self._request.dry_run:
            await look_at(lookout, camera, self._clock.now(), log)
        cycle.listed += found.listed
        cycle.planned += found.planned
        cycle.ahead += found.ahead or 0
        cycle.additions += found.additions
        if found.ahead:
            self._troubles.failed(
                f"{trouble}/ahead",
                log,
                "clips from the future",
                clips=found.ahead,
                hint="Compare the clocks of the recorder and of this machine (NTP).",
            )
        elif found.ahead is not None:
            self._troubles.recovered(f"{trouble}/ahead", log, "clocks agree again")
        if found.planned:
            self._found()
