"""What the order of the backlog saves while the recorder's retention shrinks: a simulation.

A disk shared by cameras fills ever faster (a new camera, a longer pre-roll: the retention falls),
after an outage in which nothing could be carried. Some cameras have a small share of the disk. One
clip after the other goes out over a line that is too slow for all. Each order picks the next clip;
what the recorder deletes before its turn is lost. The danger-first order is the real one: the
checkpoint's own statement on a real database (`backlog.most_wanted`), told only what a look at the
recorder's oldest clips would tell.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from benchmarks.tables import table
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.model import Camera, Clip, StoredObject
from nvr_backup.planner import Addition, Plan
from nvr_backup.retention import first_life, looked_again
from nvr_backup.rows import Tally

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
LOOK: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Place:
    """A camera: a clip every `every`, kept for `kept` at first and for `shrunk` in the end."""

    name: str
    every: timedelta
    kept: timedelta
    shrunk: timedelta

    @property
    def camera(self) -> Camera:
        return Camera("home", self.name, self.name)


@dataclass(frozen=True, slots=True)
class Scene:
    """`outage` at the beginning; then a clip takes `carrying`, until `lasting` has passed.

    The retention shrinks evenly from the beginning to `shrunk_by`, and then stays.
    """

    places: tuple[Place, ...]
    outage: timedelta
    carrying: timedelta
    lasting: timedelta
    shrunk_by: timedelta

    def horizon(self, place: Place, now: datetime) -> datetime:
        """Clips that began before are deleted."""
        part = min(1.0, max(0.0, (now - BEGIN) / self.shrunk_by))
        return now - (place.kept + part * (place.shrunk - place.kept))

    def recorded(self, place: Place, begin: datetime, end: datetime) -> list[Clip]:
        """Clips that began in [begin, end)."""
        first = -((BEGIN - begin) // place.every)
        found = []
        while (start := BEGIN + first * place.every) < end:
            if start >= begin:
                clip = f"{place.name}-{first}"
                found.append(Clip(place.camera, clip, start, start + timedelta(seconds=30)))
            first += 1
        return found


HOUR: Final = timedelta(hours=1)
SCENES: Final = {
    "two of four cameras on a small share": Scene(
        places=(
            Place("door", timedelta(minutes=6), 48 * HOUR, 18 * HOUR),
            Place("yard", timedelta(minutes=6), 48 * HOUR, 18 * HOUR),
            Place("hall", timedelta(minutes=6), 240 * HOUR, 120 * HOUR),
            Place("roof", timedelta(minutes=6), 240 * HOUR, 120 * HOUR),
        ),
        outage=36 * HOUR,
        carrying=timedelta(minutes=1),
        lasting=96 * HOUR,
        shrunk_by=60 * HOUR,
    ),
    "one retention for all": Scene(
        places=tuple(
            Place(name, timedelta(minutes=4 + 2 * n), 60 * HOUR, 30 * HOUR)
            for n, name in enumerate(("door", "yard", "hall", "roof"))
        ),
        outage=24 * HOUR,
        carrying=timedelta(seconds=75),
        lasting=96 * HOUR,
        shrunk_by=48 * HOUR,
    ),
    "one camera that records more than the line carries": Scene(
        places=(
            Place("street", timedelta(seconds=50), 12 * HOUR, 6 * HOUR),
            Place("hall", timedelta(minutes=6), 240 * HOUR, 120 * HOUR),
            Place("roof", timedelta(minutes=6), 240 * HOUR, 120 * HOUR),
        ),
        outage=12 * HOUR,
        carrying=timedelta(minutes=1),
        lasting=72 * HOUR,
        shrunk_by=48 * HOUR,
    ),
}


@dataclass(slots=True)
class Saved:
    """What became of the clips: stored, lost, and still at the recorder in the end."""

    stored: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    waiting: int = 0

    @property
    def safe(self) -> int:
        return sum(self.stored.values())

    @property
    def gone(self) -> int:
        return sum(self.lost.values())


Pick = Callable[[Sequence[Clip]], Clip]

PICKS: Final[dict[str, Pick]] = {
    "oldest first": lambda clips: min(clips, key=lambda clip: clip.start),
    "newest first": lambda clips: max(clips, key=lambda clip: clip.start),
}
DANGER_FIRST: Final = "danger first"


def simple(scene: Scene, pick: Pick) -> Saved:
    """The scene with an order that looks at the clips' times alone."""
    saved, backlog = Saved(), dict[str, Clip]()
    listed, now, end = BEGIN - timedelta(), BEGIN, BEGIN + scene.lasting
    while now < end:
        for place in scene.places:
            backlog |= {clip.id: clip for clip in scene.recorded(place, listed, now)}
        listed = now
        _delete(scene, now, backlog, saved)
        if now >= BEGIN + scene.outage and backlog:
            clip = pick(list(backlog.values()))
            del backlog[clip.id]
            if _still_there(scene, clip, now + scene.carrying):
                saved.stored[clip.camera.name] = saved.stored.get(clip.camera.name, 0) + 1
            else:
                saved.lost[clip.camera.name] = saved.lost.get(clip.camera.name, 0) + 1
        now += scene.carrying
    saved.waiting = len(backlog)
    return saved


def _delete(scene: Scene, now: datetime, backlog: dict[str, Clip], saved: Saved) -> None:
    for clip in [clip for clip in backlog.values() if not _still_there(scene, clip, now)]:
        del backlog[clip.id]
        saved.lost[clip.camera.name] = saved.lost.get(clip.camera.name, 0) + 1


def _still_there(scene: Scene, clip: Clip, now: datetime) -> bool:
    place = next(place for place in scene.places if place.name == clip.camera.name)
    return clip.start >= scene.horizon(place, now)


async def real(scene: Scene, folder: Path) -> Saved:
    """The scene with the checkpoint's own order; what vanished is found out when it is tried."""
    saved, now, end = Saved(), BEGIN, BEGIN + scene.lasting
    checkpoint = await Checkpoint.open(folder, now=now)
    gone: set[str] = set()
    try:
        listed, looked = now, now - LOOK
        while now < end:
            if now - looked >= LOOK:
                looked = now
                for place in scene.places:
                    clips = scene.recorded(place, listed, now)
                    if clips:
                        await _plan(checkpoint, place.camera, clips, now)
                    await _look(checkpoint, scene, place, now)
                listed = now
            if now < BEGIN + scene.outage:
                now = min(BEGIN + scene.outage, now + LOOK)
                continue
            claim = await checkpoint.claim(
                sources=["home"], stores=["s"], cameras=lambda _: True, busy={}, due=now
            )
            if claim is None:
                now += scene.carrying
                continue
            clip, name = claim.clip, claim.clip.camera.name
            if not _still_there(scene, clip, now):
                # Costs a question: a few of them a second, and no upload.
                tally = Tally(0, 0.5)
                await checkpoint.set_aside(claim.copy, "gone", tally=tally, now=now)
                gone.add(clip.id)
                saved.lost[name] = saved.lost.get(name, 0) + 1
                now += timedelta(seconds=0.5)
                continue
            now += scene.carrying
            if _still_there(scene, clip, now):
                saved.stored[name] = saved.stored.get(name, 0) + 1
                stored = StoredObject(claim.key, 1, 0)
                tally = Tally(1, scene.carrying.total_seconds())
                await checkpoint.commit_stored(
                    claim.copy, stored, verified=True, tally=tally, now=now
                )
            else:
                saved.lost[name] = saved.lost.get(name, 0) + 1
                tally = Tally(0, scene.carrying.total_seconds())
                await checkpoint.set_aside(claim.copy, "gone", tally=tally, now=now)
        for place in scene.places:
            for start in await checkpoint.lives.waiting(place.camera):
                if start < scene.horizon(place, now):
                    saved.lost[place.name] = saved.lost.get(place.name, 0) + 1
                else:
                    saved.waiting += 1
    finally:
        checkpoint.close()
    return saved


async def _plan(
    checkpoint: Checkpoint, camera: Camera, clips: Sequence[Clip], now: datetime
) -> None:
    additions = tuple(Addition(clip, frozenset({"s"})) for clip in clips)
    plan = Plan(additions, (), len(clips), 0, None, None)
    await checkpoint.apply(
        camera, plan, keys=lambda _store, clip: iter([f"{clip.id}.mp4"]), now=now
    )


async def _look(checkpoint: Checkpoint, scene: Scene, place: Place, now: datetime) -> None:
    """What `lookout` finds out, by asking the scene."""
    horizon = scene.horizon(place, now)
    known = await checkpoint.lives.starts(place.camera, horizon, skip=0, limit=1)
    if known:
        life = await checkpoint.lives.of(place.camera)
        again = first_life(known[0], now) if life is None else looked_again(life, known[0], now)
        await checkpoint.lives.note(place.camera, again)


def compare(scene: Scene) -> dict[str, Saved]:
    """The three orders in one scene."""
    with tempfile.TemporaryDirectory(prefix="order-") as folder:
        found = {DANGER_FIRST: asyncio.run(real(scene, Path(folder)))}
    return found | {name: simple(scene, pick) for name, pick in PICKS.items()}


def measure() -> str:
    """A table for each scene."""
    parts = []
    for name, scene in SCENES.items():
        rows = []
        for order, saved in compare(scene).items():
            by_camera = ", ".join(f"{camera} {n}" for camera, n in sorted(saved.lost.items()))
            rows.append(
                [order, f"{saved.safe:,}", f"{saved.gone:,}", f"{saved.waiting:,}", by_camera]
            )
        head = [name, "stored", "lost", "still to come", "lost of"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(f"{measure()}\n")
