"""One cycle by hand: progress, summary, exit code; and the same without doing it (`--dry-run`).

The dry run writes nothing and takes no lock. The summary names every clip that is not safe, up to
NAMED_AT_MOST of a kind, and what the reason is.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog
import typer
from rich.console import RenderableType

from nvr_backup import logs, report
from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.interrupts import draining
from nvr_backup.cli.options import remark
from nvr_backup.cli.progress import Tracker, drawing, shown
from nvr_backup.cli.terminal import console, print_json, print_table
from nvr_backup.cli.words import iso, local, number, short, size, span, zone
from nvr_backup.clock import Clock
from nvr_backup.connections import Connection
from nvr_backup.cycle import Cycle, every_camera
from nvr_backup.engine import Engine, open_engine
from nvr_backup.errors import Blocked
from nvr_backup.model import Camera, Clip
from nvr_backup.ports import ClipSource, ClipStore
from nvr_backup.report import Copy
from nvr_backup.settings import Settings

NAMED_AT_MOST: Final = 50
"""Clips of a kind that a summary names; JSON output names them all."""

DRAINING: Final = (
    "Finishing the chunks in flight; once more (Ctrl-C) to stop at once. "
    "The next time goes on from there."
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for: cameras (none: all) and from when on."""

    cameras: tuple[str, ...]
    since: datetime | None


@dataclass(slots=True)
class Result:
    """What came of a cycle."""

    cycle: Cycle
    stored: int
    stored_bytes: int
    seconds: float
    failed: list[Copy] = field(default_factory=list)
    set_aside: list[Copy] = field(default_factory=list)
    waiting: int = 0
    set_aside_before: int = 0
    blocked: list[tuple[str, Blocked]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def code(self) -> Code:
        """The worst that can be said of it."""
        if self.interrupted:
            return Code.INTERRUPTED
        if self.blocked:
            return Code.UNREACHABLE
        if self.failed or self.set_aside or self.waiting or self.cycle.failures:
            return Code.NOT_ALL
        return Code.OK


# -- the cycle ------------------------------------------------------------------------------------


async def cycle(settings: Settings, wish: Wish, clock: Clock, *, as_json: bool) -> None:
    """One cycle, then the summary on stdout; raises typer.Exit with the code."""
    logs.configure(_level(settings))
    remark(settings)
    log = structlog.get_logger()
    stop = asyncio.Event()
    async with open_engine(settings, clock=clock, log=log, rng=random.SystemRandom()) as engine:
        with draining(stop, DRAINING):
            wanted = await _wanted(engine, wish)
            began = clock.monotonic()
            if sys.stderr.isatty():
                found = await _with_progress(
                    engine, stop, settings, since=wish.since, wanted=wanted, clock=clock
                )
            else:
                found = await engine.once(stop, since=wish.since, wanted=wanted)
            result = await _result(engine, found, settings, wanted, clock.monotonic() - began)
            result.interrupted = stop.is_set()
    if as_json:
        print_json(_result_json(result))
    else:
        _show(result)
    raise typer.Exit(result.code)


def _level(settings: Settings) -> logs.Level:
    """On a terminal the progress takes the place of the routine's lines."""
    if sys.stderr.isatty() and settings.log.level == "info":
        return "warning"
    return settings.log.level


async def _with_progress(
    engine: Engine,
    stop: asyncio.Event,
    settings: Settings,
    *,
    since: datetime | None,
    wanted: Callable[[Camera], bool],
    clock: Clock,
) -> Cycle:
    tracker = Tracker(engine.pool, clock)

    async def count() -> None:
        await tracker.count(lambda: _waiting(settings, wanted))

    def draw() -> RenderableType:
        return drawing(tracker, "Stopping" if stop.is_set() else "Backing up")

    async with shown(console("stderr"), draw, each_second=count, clock=clock) as stream:
        logs.configure(_level(settings), stream, "console")
        try:
            return await engine.once(stop, since=since, wanted=wanted)
        finally:
            logs.configure(_level(settings))


async def _wanted(engine: Engine, wish: Wish) -> Callable[[Camera], bool]:
    """Which cameras take part; exit 2 when the command line names one that there is not."""
    if not wish.cameras:
        return every_camera
    there: list[Camera] = []
    unreachable: Blocked | None = None
    for source in list(engine.sources.values()):
        try:
            there += await _cameras(source)
        except Blocked as err:
            source.block(err)
            unreachable = err
    chosen: set[tuple[str, str]] = set()
    for name in wish.cameras:
        meant = [c for c in there if name.casefold() in (c.name.casefold(), c.id.casefold())]
        if not meant and unreachable is not None:
            raise unreachable
        if not meant:
            names = ", ".join(sorted({short(c.name, 60) for c in there}, key=str.casefold))
            raise Misused(f"There is no camera {name!r}. There are: {names or 'none'}.")
        chosen.update((c.source, c.id) for c in meant)
    return lambda camera: (camera.source, camera.id) in chosen


async def _cameras(source: Connection[ClipSource]) -> Sequence[Camera]:
    with source.lease():
        return await (await source.adapter()).cameras()


async def _waiting(settings: Settings, wanted: Callable[[Camera], bool]) -> int:
    by_camera = await report.ask(settings.state_dir, report.waiting)
    return sum(n for (source, id_), n in by_camera.items() if wanted(Camera(source, id_, "")))


async def _result(
    engine: Engine,
    found: Cycle,
    settings: Settings,
    wanted: Callable[[Camera], bool],
    seconds: float,
) -> Result:
    outcomes = engine.pool.outcomes
    troubled = await report.ask(
        settings.state_dir, lambda db: report.copies(db, outcomes.reasons.keys())
    )
    counts = await engine.checkpoint.counts()
    set_aside = [copy for copy in troubled.values() if copy.state == "set_aside"]
    return Result(
        cycle=found,
        stored=outcomes.stored,
        stored_bytes=outcomes.stored_bytes,
        seconds=seconds,
        failed=[copy for copy in troubled.values() if copy.state == "waiting"],
        set_aside=set_aside,
        waiting=await _waiting(settings, wanted),
        set_aside_before=counts["set_aside"] - len(set_aside),
        blocked=_blocked([*engine.sources.values(), *engine.stores.values()]),
    )


def _blocked(
    connections: Collection[Connection[ClipSource] | Connection[ClipStore]],
) -> list[tuple[str, Blocked]]:
    return [(one.part, one.blocked) for one in connections if one.blocked is not None]


def _show(result: Result) -> None:
    out = console()
    rate = result.stored_bytes / 1e6 / result.seconds if result.seconds > 0 else 0.0
    stored = f"{number(result.stored, 'clip')} stored"
    if result.stored:
        stored += (
            f" ({size(result.stored_bytes)} in {result.seconds:.1f} s, {rate:.1f} MB/s),"
            " each confirmed by its store"
        )
    elif result.code == Code.OK:
        stored = "Nothing new: every clip listed is stored already"
    out.print(f"{stored}.")
    for part, reason in result.blocked:
        out.print(f"{part} cannot be used: {short(reason.message, 500)}")
        if reason.hint:
            out.print(f"  {reason.hint}")
    blocked = {part for part, _ in result.blocked}
    for part, why in result.cycle.failures:
        if part not in blocked:
            out.print(f"{short(part, 100)} not listed: {short(why, 500)}")
    _name(out.print, "failed, to be tried again", result.failed)
    _name(out.print, "set aside", result.set_aside)
    if result.waiting > len(result.failed):
        out.print(f"{number(result.waiting - len(result.failed), 'clip')} waiting, not tried.")
    if result.set_aside_before:
        out.print(
            f"{number(result.set_aside_before, 'clip')} set aside earlier: "
            "nvr-backup clips --state set-aside"
        )
    if result.interrupted:
        out.print("Interrupted; the next time goes on from here.")


def _name(tell: Callable[[str], None], what: str, copies: Sequence[Copy]) -> None:
    if not copies:
        return
    tell(f"{number(len(copies), 'clip')} {what}:")
    for copy in copies[:NAMED_AT_MOST]:
        tell(f"  {short(copy.key, 200)} → {copy.store}: {short(copy.reason or '', 400)}")
    if len(copies) > NAMED_AT_MOST:
        tell(f"  and {len(copies) - NAMED_AT_MOST:,} more: nvr-backup clips")


def _result_json(result: Result) -> dict[str, Any]:
    return {
        "stored": result.stored,
        "stored_bytes": result.stored_bytes,
        "seconds": round(result.seconds, 3),
        "listed": result.cycle.listed,
        "planned": result.cycle.planned,
        "failed": [_copy_json(copy) for copy in result.failed],
        "set_aside": [_copy_json(copy) for copy in result.set_aside],
        "set_aside_earlier": result.set_aside_before,
        "waiting": result.waiting,
        "blocked": [
            {"part": part, "reason": err.message, "hint": err.hint} for part, err in result.blocked
        ],
        "not_listed": [{"part": part, "reason": why} for part, why in result.cycle.failures],
        "interrupted": result.interrupted,
    }


def _copy_json(copy: Copy) -> dict[str, Any]:
    return {
        "source": copy.source,
        "camera": copy.camera,
        "clip": copy.clip,
        "start": iso(copy.start),
        "store": copy.store,
        "key": copy.key,
        "reason": copy.reason,
    }


# -- the dry run ----------------------------------------------------------------------------------


async def look(settings: Settings, wish: Wish, clock: Clock, *, as_json: bool) -> None:
    """Say what a cycle would do. Works beside a running daemon."""
    logs.configure(_level(settings))
    remark(settings)
    async with open_engine(
        settings,
        clock=clock,
        log=structlog.get_logger(),
        rng=random.SystemRandom(),
        peek=True,
    ) as engine:
        wanted = await _wanted(engine, wish)
        found = await engine.list_all(since=wish.since, wanted=wanted, dry_run=True)
        counts = await engine.checkpoint.counts()
        blocked = _blocked(list(engine.sources.values()))
    additions = sorted(found.additions, key=lambda clip: (clip.start, clip.camera.name))
    if as_json:
        print_json(_dry_json(found, additions, counts["waiting"], blocked))
    else:
        _show_dry(found, additions, counts["waiting"])
    if blocked:
        raise typer.Exit(Code.UNREACHABLE)
    if found.failures:
        raise typer.Exit(Code.NOT_ALL)


def _show_dry(found: Cycle, additions: Sequence[Clip], waiting: int) -> None:
    out = console()
    for part, why in found.failures:
        out.print(f"{short(part, 100)} not listed: {short(why, 500)}")
    out.print(
        f"{number(found.listed, 'clip')} listed, {number(len(additions), 'new clip')} "
        f"({number(found.planned, 'upload')}), {waiting:,} waiting already. Nothing was changed."
    )
    if not additions:
        return
    rows = [
        (
            local(clip.start),
            "?" if clip.end is None else span(clip.end - clip.start),
            short(clip.camera.name, 60),
        )
        for clip in additions[:NAMED_AT_MOST]
    ]
    begins = f"Begins ({zone(additions[0].start)})"
    print_table(out, (begins, "Length", "Camera"), rows, right=("Length",))
    if len(additions) > NAMED_AT_MOST:
        out.print(f"and {len(additions) - NAMED_AT_MOST:,} more (--json lists all)")


def _dry_json(
    found: Cycle, additions: Sequence[Clip], waiting: int, blocked: Sequence[tuple[str, Blocked]]
) -> dict[str, Any]:
    return {
        "dry_run": True,
        "listed": found.listed,
        "planned": found.planned,
        "waiting": waiting,
        "clips": [
            {
                "source": clip.camera.source,
                "camera": clip.camera.name,
                "camera_id": clip.camera.id,
                "clip": clip.id,
                "start": iso(clip.start),
                "end": iso(clip.end),
                "classes": list(clip.classes),
            }
            for clip in additions
        ],
        "blocked": [
            {"part": part, "reason": err.message, "hint": err.hint} for part, err in blocked
        ],
        "not_listed": [{"part": part, "reason": why} for part, why in found.failures],
    }
