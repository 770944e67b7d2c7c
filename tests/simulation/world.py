"""The truth: cameras, recordings as they come, grow and go, and the time at which they do.

A recording has versions, because recorders list clips while they still grow; every version has
bytes that nothing else has. What a source of the fakes (`FakeSource.recordings`) holds now is
brought up to the true time by `World.advance`. It must never know what the program does.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from nvr_backup.model import Camera, Clip, from_ms, to_ms
from tests.simulation.loop import SimulatedLoop
from tests.support.fakes import FakeSource, Recording, box

Bad = Literal["", "html", "cut", "empty"]
"""A recording that is no video and never becomes one."""

SMALLEST = 80
MOST_CLIPS = 600
"""A machine that sleeps for days would otherwise make one seed as long as ten others."""


class SimulatedClock:
    """`nvr_backup.clock.Clock`: our machine's, with its errors. `true` is what God's clock says."""

    def __init__(self, loop: SimulatedLoop, start: datetime) -> None:
        self.error = timedelta(0)
        self.longest_error = timedelta(0)
        self._loop = loop
        self._base = start

    def now(self) -> datetime:
        return self.true() + self.error

    def true(self) -> datetime:
        return self._base + timedelta(seconds=self._loop.time())

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def suspend(self, duration: timedelta) -> None:
        """The machine sleeps: the world goes on, elapsed time stands still."""
        self._base += duration

    def set_wrong(self, error: timedelta) -> None:
        """Our wall clock is wrong by so much from now on."""
        self.error = error
        self.longest_error = max(self.longest_error, abs(error))


@dataclass(frozen=True, slots=True)
class Version:
    """A recording as it is listed from `since` (true time) on."""

    since: datetime
    clip: Clip
    data: bytes


@dataclass(slots=True)
class Truth:
    """One recording of one camera, oldest version first; gone for good since `gone`."""

    camera: SimulatedCamera
    bad: Bad
    versions: list[Version] = field(default_factory=list)
    gone: datetime | None = None

    @property
    def final(self) -> Version:
        return self.versions[-1]

    def at(self, moment: datetime) -> Version | None:
        """The version that is listed at that time."""
        if self.gone is not None and moment >= self.gone:
            return None
        number = bisect_right(self.versions, moment, key=lambda version: version.since)
        return self.versions[number - 1] if number else None


@dataclass(slots=True)
class SimulatedCamera:
    """A camera and its habits. `ids`: "telling" ones change while a clip grows."""

    source: str
    id: str
    name: str
    ids: Literal["plain", "telling"] = "plain"
    has_ends: bool = True
    mean_gap: timedelta = timedelta(minutes=20)
    grows: float = 0.0
    late: float = 0.0
    bad: float = 0.0
    twins: float = 0.0
    since: datetime | None = None
    present: bool = True

    @property
    def camera(self) -> Camera:
        return Camera(self.source, self.id, self.name)


@dataclass(frozen=True, slots=True)
class Habits:
    """What recordings of this world are like."""

    largest: int
    longest_late: timedelta
    retention: timedelta | None


class World:
    """All recordings. `advance` before looking; `sources` hold what is listed now."""

    def __init__(
        self,
        rng: random.Random,
        clock: SimulatedClock,
        sources: dict[str, FakeSource],
        habits: Habits,
    ) -> None:
        self.cameras: list[SimulatedCamera] = []
        self.truths: list[Truth] = []
        self.of_camera: dict[tuple[str, str], list[Truth]] = defaultdict(list)
        self._by_id: dict[tuple[str, str, str, datetime, datetime | None], Truth] = {}
        self.nvr_error: dict[str, timedelta] = dict.fromkeys(sources, timedelta(0))
        self.recording = True
        self.sources = sources
        self._rng = rng
        self._clock = clock
        self._habits = habits
        self._order = itertools.count()
        self._due: list[tuple[datetime, int, Truth]] = []
        self._next: list[tuple[datetime, int, SimulatedCamera]] = []
        self._serial = itertools.count(1)

    # -- cameras ------------------------------------------------------------------------------

    def add_camera(self, camera: SimulatedCamera, *, history: timedelta = timedelta(0)) -> None:
        """A camera with so much past."""
        now = self._clock.true()
        camera.since = now
        self.cameras.append(camera)
        self.sources[camera.source].extra_cameras.append(camera.camera)
        heapq.heappush(self._next, (now - history, next(self._order), camera))

    def rename(self, camera: SimulatedCamera, name: str) -> None:
        """It has another name; clips are listed under it from now on."""
        self._hide(camera)
        camera.name = name
        self._show(camera)

    def remove(self, camera: SimulatedCamera) -> None:
        """It is not at the NVR any more, nor are its clips."""
        self._hide(camera)
        camera.present = False

    def bring_back(self, camera: SimulatedCamera, *, id: str | None = None) -> None:
        """It is there again with its clips, under its old id or as a new camera."""
        now = self._clock.true()
        camera.present = True
        if id is not None and id != camera.id:
            for truth in self.truths:
                if truth.camera is camera and (truth.gone is None or truth.gone > now):
                    truth.gone = now
            renewed = SimulatedCamera(
                camera.source,
                id,
                camera.name,
                camera.ids,
                camera.has_ends,
                camera.mean_gap,
                camera.grows,
                camera.late,
                camera.bad,
                camera.twins,
            )
            camera.present = False
            self.cameras.remove(camera)
            self.add_camera(renewed)
            self._move(camera, renewed)
            return
        self._show(camera)

    def _move(self, old: SimulatedCamera, new: SimulatedCamera) -> None:
        """The recordings that were the old camera's are listed as the new one's."""
        now = self._clock.true()
        for truth in [one for one in self.truths if one.camera is old and one.gone == now]:
            moved = Truth(new, truth.bad)
            for version in truth.versions:
                clip = Clip(
                    new.camera, version.clip.id, version.clip.start, version.clip.end, ("motion",)
                )
                moved.versions.append(Version(max(now, version.since), clip, version.data))
            self._know(moved)

    def _hide(self, camera: SimulatedCamera) -> None:
        source = self.sources[camera.source]
        source.extra_cameras = [c for c in source.extra_cameras if c.id != camera.id]
        for id_ in [i for i, r in source.recordings.items() if r.clip.camera.id == camera.id]:
            source.remove(id_)

    def _show(self, camera: SimulatedCamera) -> None:
        source = self.sources[camera.source]
        source.extra_cameras.append(camera.camera)
        for truth in self.truths:
            if truth.camera is camera:
                self._put(truth)

    # -- recordings ---------------------------------------------------------------------------

    def advance(self) -> None:
        """Everything that has happened by the true time."""
        now = self._clock.true()
        while self._next and self._next[0][0] <= now:
            moment, _, camera = heapq.heappop(self._next)
            if camera not in self.cameras:
                continue
            if self.recording and camera.present and len(self.truths) < MOST_CLIPS:
                self._record(camera, moment)
            gap = camera.mean_gap * min(self._rng.expovariate(1.0), 6.0) + timedelta(seconds=12)
            heapq.heappush(self._next, (moment + gap, next(self._order), camera))
        while self._due and self._due[0][0] <= now:
            _, _, truth = heapq.heappop(self._due)
            self._put(truth)

    def find(
        self, source: str, camera: str, clip: str, start: datetime, end: datetime | None
    ) -> Truth | None:
        """The recording that was ever listed like that."""
        return self._by_id.get((source, camera, clip, start, end))

    def _know(self, truth: Truth) -> None:
        self.truths.append(truth)
        self.of_camera[truth.camera.source, truth.camera.id].append(truth)
        for version in truth.versions:
            heapq.heappush(self._due, (version.since, next(self._order), truth))
            # An id that stays may be on record with the end of a later version.
            for other in truth.versions:
                key = (truth.camera.source, truth.camera.id, version.clip.id)
                self._by_id[*key, version.clip.start, other.clip.end] = truth

    def listed(self, truth: Truth) -> Version | None:
        """What its source lists of it now."""
        return truth.at(self._clock.true()) if truth.camera.present else None

    def forget_oldest(self, camera: SimulatedCamera, share: float) -> None:
        """The NVR's retention takes the oldest clips of a camera."""
        mine = [truth for truth in self.truths if truth.camera is camera and truth.gone is None]
        for truth in mine[: int(len(mine) * share)]:
            truth.gone = self._clock.true()
            self._put(truth)

    def _record(self, camera: SimulatedCamera, began: datetime) -> None:
        """A clip that begins now (true time), with all that becomes of it."""
        rng, error = self._rng, self.nvr_error[camera.source]
        began -= timedelta(microseconds=began.microsecond % 1000)
        bad: Bad = rng.choice(("html", "cut", "empty")) if rng.random() < camera.bad else ""
        for _ in range(2 if rng.random() < camera.twins else 1):
            truth = Truth(camera, bad)
            length = timedelta(seconds=round(rng.uniform(2, 45), 3))
            steps = rng.randint(1, 3) if rng.random() < camera.grows else 0
            for step in range(steps + 1):
                end = began + length
                since = end
                if step == 0 and not steps and rng.random() < camera.late:
                    since += self._habits.longest_late * rng.random()
                clip = self._clip(camera, began + error, end + error, truth)
                truth.versions.append(Version(since, clip, self._bytes(bad)))
                length += timedelta(seconds=round(rng.uniform(5, 400), 3))
            if self._habits.retention is not None:
                truth.gone = truth.final.since + self._habits.retention
                heapq.heappush(self._due, (truth.gone, next(self._order), truth))
            self._know(truth)

    def _clip(self, camera: SimulatedCamera, start: datetime, end: datetime, truth: Truth) -> Clip:
        start_ms, end_ms = to_ms(start), to_ms(end)
        if camera.ids == "telling":
            id_ = f"{camera.id}:{start_ms}-{end_ms - start_ms}"
        elif truth.versions:
            id_ = truth.versions[0].clip.id
        else:
            id_ = f"{camera.id}/clip-{next(self._serial)}"
        told_end = from_ms(end_ms) if camera.has_ends else None
        return Clip(camera.camera, id_, from_ms(start_ms), told_end, ("motion",))

    def _bytes(self, bad: Bad) -> bytes:
        rng = self._rng
        mark = next(self._serial).to_bytes(8, "big")
        size = SMALLEST + int((self._habits.largest - SMALLEST) * rng.random() ** 2)
        if bad == "empty":
            return b""
        if bad == "html":
            return b"<html>" + mark.hex().encode() + b"no such clip" * 10
        whole = (
            box(b"ftyp", b"isom\0\0\0\0isom")
            + box(b"mdat", mark + rng.randbytes(size))
            + box(b"moov", mark)
        )
        return whole[: rng.randrange(30, len(whole))] if bad == "cut" else whole

    def _put(self, truth: Truth) -> None:
        """Let the source hold what is true now of one recording."""
        source = self.sources[truth.camera.source]
        version = self.listed(truth)
        for other in truth.versions:
            held = source.recordings.get(other.clip.id)
            if held is not None and held.clip.camera.id == truth.camera.id:
                source.remove(other.clip.id)
        if version is not None:
            clip = Clip(
                truth.camera.camera,
                version.clip.id,
                version.clip.start,
                version.clip.end,
                version.clip.classes,
            )
            source.recordings[clip.id] = Recording(clip, version.data)
