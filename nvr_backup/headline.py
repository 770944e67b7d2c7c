"""The daemon's state in one line, for `systemctl status`.

    3 cameras safe to 14:00; 12 clips waiting; uploading 2 at 4.1 MB/s; next cycle 15:00

What keeps footage from being stored comes first. Times are those of the machine's time zone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from nvr_backup.connections import Connection
from nvr_backup.engine import Engine


@dataclass(frozen=True, slots=True)
class View:
    """What the line says. `safe_until` is that of the camera and store that are least far."""

    cameras: int
    safe_until: datetime | None
    waiting: int
    set_aside: int
    uploading: int
    bytes_per_second: float
    blocked: Sequence[tuple[str, str]]
    next_cycle: datetime | None


async def view(engine: Engine, bytes_per_second: float) -> View:
    """The present state of a running engine; raises CheckpointError when it cannot be read."""
    counts = await engine.checkpoint.counts()
    marks = await engine.checkpoint.watermarks()
    routes = {name: engine.settings.stores_of(name) for name in engine.settings.sources}
    wanted = [
        (camera.source, camera.id, store)
        for camera in engine.cameras
        for store in routes.get(camera.source, ())
    ]
    parts: list[Connection[Any]] = [*engine.sources.values(), *engine.stores.values()]
    known = [mark for pair in wanted if (mark := marks.get(pair)) is not None]
    return View(
        cameras=len(engine.cameras),
        safe_until=min(known) if known and len(known) == len(wanted) else None,
        waiting=counts["waiting"],
        set_aside=counts["set_aside"],
        uploading=len(engine.pool.running),
        bytes_per_second=bytes_per_second,
        blocked=[(part.part, part.blocked.message) for part in parts if part.blocked is not None],
        next_cycle=engine.scheduler.next_due if engine.scheduler is not None else None,
    )


def headline(view: View, *, now: datetime, zone: tzinfo | None = None) -> str:
    """The line, in the time zone given or the machine's."""
    parts = [f"{part} blocked: {reason.rstrip('.')}" for part, reason in view.blocked]
    if view.cameras:
        cameras = "1 camera" if view.cameras == 1 else f"{view.cameras} cameras"
        parts.append(
            f"{cameras} not yet safe"
            if view.safe_until is None
            else f"{cameras} safe to {_moment(view.safe_until, now, zone)}"
        )
    else:
        parts.append("no camera listed yet")
    parts.append(f"{view.waiting} clip{'' if view.waiting == 1 else 's'} waiting")
    if view.set_aside:
        parts.append(f"{view.set_aside} set aside")
    if view.uploading:
        parts.append(f"uploading {view.uploading} at {view.bytes_per_second / 1e6:.1f} MB/s")
    if view.next_cycle is not None:
        due = "now" if view.next_cycle <= now else _moment(view.next_cycle, now, zone)
        parts.append(f"next cycle {due}")
    return "; ".join(parts)


def _moment(moment: datetime, now: datetime, zone: tzinfo | None) -> str:
    local, today = moment.astimezone(zone), now.astimezone(zone).date()
    return local.strftime("%H:%M" if local.date() == today else "%Y-%m-%d %H:%M")
