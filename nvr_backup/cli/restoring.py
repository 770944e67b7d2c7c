"""The course of a `restore`: look, fetch with progress, join, write the manifest, say what came.

What there is, the checkpoint knows, or the stores' listings tell; what of it could not be had is
named. An interrupt ends any of it, and the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Final

import structlog
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from nvr_backup import logs, report
from nvr_backup.adapters import open_store
from nvr_backup.arriving import Unwritable
from nvr_backup.cli.exits import Code, Misused, complain, say
from nvr_backup.cli.interrupts import draining
from nvr_backup.cli.options import remark
from nvr_backup.cli.progress import LINES_AT_MOST, Rate, row, shown
from nvr_backup.cli.restored import (
    Result,
    dry_json,
    missing_entries,
    result_json,
    show,
    show_dry,
)
from nvr_backup.cli.terminal import console, print_json
from nvr_backup.cli.words import number, short, size
from nvr_backup.clock import Clock
from nvr_backup.database import CheckpointError
from nvr_backup.evidence import Manifest
from nvr_backup.footage import Footage, Known, Shelf, ask_checkpoint, is_wanted, look
from nvr_backup.joining import Unjoinable, find_tools, join, to_join
from nvr_backup.landing import Landing
from nvr_backup.layout import Target, lay_out
from nvr_backup.model import Window
from nvr_backup.ports import ClipStore
from nvr_backup.restore import Progress, Restore, Running
from nvr_backup.settings import GcsStore, Settings, StoreSettings
from nvr_backup.transfer import Drained, drained_by

STOPPING: Final = (
    "Stopping; once more (Ctrl-C) to stop at once. The same command goes on from there."
)
NO_FFMPEG: Final = (
    "ffmpeg and ffprobe are not installed here (on Debian: apt install ffmpeg); with them the same "
    "command joins what is there, nothing is fetched twice"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for. `stores` in the order in which they are asked."""

    window: Window
    into: Path
    cameras: tuple[str, ...]
    stores: tuple[str, ...]
    concat: bool
    manifest: bool
    use_checkpoint: bool
    everything: bool
    dry_run: bool


async def bring_back(settings: Settings, wish: Wish, clock: Clock, *, as_json: bool) -> None:
    """All of it, then the summary on stdout; raises typer.Exit with the code."""
    logs.configure(_level(settings))
    remark(settings)
    known = await _known(settings, wish)
    async with _opened(settings, wish, known, clock) as stores:
        with _saying("Looking for clips"):
            found = await _found(settings, wish, known, stores)
        targets = lay_out(found.holdings)
        result = Result(wish.into, wish.window, wish.cameras, wish.stores, found)
        if targets and not wish.dry_run:
            stop = asyncio.Event()
            with _landed(wish.into, stop) as landing, draining(stop, STOPPING):
                await _carry_out(
                    settings,
                    wish,
                    clock,
                    stores=stores,
                    targets=targets,
                    landing=landing,
                    stop=stop,
                    result=result,
                )
                result.interrupted = stop.is_set()
    if wish.dry_run and as_json:
        print_json(dry_json(result, targets))
    elif wish.dry_run:
        show_dry(result, targets)
    elif as_json:
        print_json(result_json(result))
    else:
        show(result)
    raise typer.Exit(result.code)


async def _carry_out(
    settings: Settings,
    wish: Wish,
    clock: Clock,
    *,
    stores: Mapping[str, ClipStore],
    targets: Sequence[Target],
    landing: Landing,
    stop: asyncio.Event,
    result: Result,
) -> None:
    """Fetch, join, write the manifest; whatever comes of it is in `result`."""
    log = structlog.get_logger()
    workers, began = settings.transfer.workers, clock.monotonic()
    restore = Restore(stores, landing, workers=workers, clock=clock, log=log)
    result.progress = restore.progress
    if sys.stderr.isatty():
        await _with_progress(restore, targets, stop, settings, clock)
    else:
        await restore.run(targets, stop)
    result.seconds = clock.monotonic() - began
    result.away = restore.away
    if wish.concat:
        with suppress(Drained):
            async with drained_by(stop):
                await _join(landing, result)
    if wish.manifest and not stop.is_set():
        await asyncio.to_thread(_write_manifest, settings, wish, landing, result, clock)


# -- looking --------------------------------------------------------------------------------------


async def _known(settings: Settings, wish: Wish) -> Known | None:
    if not wish.use_checkpoint:
        return None
    try:
        return await ask_checkpoint(settings.state_dir, wish.window, wish.stores)
    except CheckpointError as err:
        say(f"nvr-backup: {err.message}\n  The stores are listed instead.")
        return None


@asynccontextmanager
async def _opened(
    settings: Settings, wish: Wish, known: Known | None, clock: Clock
) -> AsyncIterator[dict[str, ClipStore]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                open_store(
                    name,
                    settings.stores[name],
                    clock,
                    chunk_size=settings.transfer.chunk_size,
                    used_before=known is not None and name in known.used,
                )
            )
            for name in wish.stores
        }


async def _found(
    settings: Settings, wish: Wish, known: Known | None, stores: Mapping[str, ClipStore]
) -> Footage:
    shelves = {
        name: Shelf(store, settings.stores[name].key_template) for name, store in stores.items()
    }
    found = await look(shelves, wish.window, known=known, wanted=wish.cameras, full=wish.everything)
    if known is None:
        return found
    on_record = await report.ask(settings.state_dir, lambda db: report.cameras(db, wish.cameras))
    for name, rows in on_record.items():
        if not rows and not any(is_wanted(one.clip.camera, [name]) for one in found.holdings):
            names = await report.ask(settings.state_dir, report.camera_names)
            listed = ", ".join(short(each, 60) for each in names)
            raise Misused(f"There is no camera {name!r}. There are: {listed or 'none'}.")
    return found


@contextmanager
def _saying(text: str) -> Iterator[None]:
    """What is going on, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with console("stderr").status(text):
        yield


# -- fetching -------------------------------------------------------------------------------------


def _level(settings: Settings) -> logs.Level:
    """On a terminal the progress takes the place of the routine, the summary that of warnings."""
    if sys.stderr.isatty() and settings.log.level in {"info", "warning"}:
        return "error"
    return settings.log.level


@contextmanager
def _landed(into: Path, stop: asyncio.Event) -> Iterator[Landing]:
    """The folder; exit 73 when it cannot be used at all."""
    landing = Landing(into, stop.is_set)
    try:
        try:
            landing.open()
        except Unwritable as err:
            complain(err)
            raise typer.Exit(Code.UNWRITABLE) from None
        yield landing
    finally:
        landing.close()


async def _with_progress(
    restore: Restore,
    targets: Sequence[Target],
    stop: asyncio.Event,
    settings: Settings,
    clock: Clock,
) -> None:
    rate = Rate(clock)

    def draw() -> RenderableType:
        rate.look(restore.progress.received)
        headline = "Stopping" if stop.is_set() else "Restoring"
        return drawing(restore.progress, headline, rate.per_second)

    async def nothing() -> None:
        """All numbers are at hand."""

    async with shown(console("stderr"), draw, each_second=nothing, clock=clock) as stream:
        logs.configure(_level(settings), stream, "console")
        try:
            await restore.run(targets, stop)
        finally:
            logs.configure(_level(settings))


def drawing(progress: Progress, headline: str, rate: float) -> RenderableType:
    """A restore at this moment, in at most LINES_AT_MOST + 2 lines."""
    numbers = f"{progress.done:,} of {number(progress.total, 'clip')}, {size(progress.received)}"
    overall = row(
        Text(headline, style="bold"),
        (progress.done, max(progress.total, 1)),
        f"{numbers}, {rate / 1e6:.1f} MB/s",
    )
    running = sorted(progress.running.values(), key=lambda one: one.began)
    lines = [_line(one) for one in running[:LINES_AT_MOST]]
    if len(running) > LINES_AT_MOST:
        lines.append(Text(f"  and {len(running) - LINES_AT_MOST} more", style="dim"))
    return Group(overall, *lines)


def _line(running: Running) -> RenderableType:
    clip = running.target.holding.clip
    position = min(running.received, running.target.size)
    return row(
        Text(f"  {short(clip.camera.name, 14)}"),
        (position, max(running.target.size, 1)),
        f"{clip.start.astimezone():%m-%d %H:%M:%S}, {size(position)} of "
        f"{size(running.target.size)}",
    )


# -- what is made of it ---------------------------------------------------------------------------


async def _join(landing: Landing, result: Result) -> None:
    """Join what is there, camera by camera."""
    by_folder = to_join(result.progress.restored)
    tools = find_tools()
    if tools is None:
        result.unjoined["all cameras"] = NO_FFMPEG
        return
    for clips in by_folder.values():
        camera = clips[0].target.holding.clip.camera.name
        try:
            with _saying(f"Joining {number(len(clips), 'clip')} of {short(camera, 40)}"):
                joined = await join(landing, tools, clips)
        except Unjoinable as err:
            result.unjoined[clips[0].target.folder] = f"{err}."
        except Unwritable as err:
            result.unjoined[clips[0].target.folder] = err.message
        else:
            structlog.get_logger().info("clips joined", file=joined.file, clips=joined.clips)
            result.joined.append(joined)


def _write_manifest(
    settings: Settings, wish: Wish, landing: Landing, result: Result, clock: Clock
) -> None:
    """Both files under names that are not taken; why not is in `result`."""
    for second in count():
        manifest = Manifest(
            made=clock.now() + timedelta(seconds=second),
            window=wish.window,
            stores={name: _place(settings.stores[name]) for name in wish.stores},
            restored=result.progress.restored,
            missing=missing_entries(result),
        )
        try:
            landing.write_new(f"{manifest.name}.json", manifest.pieces())
            landing.write_new(f"{manifest.name}.sha256", manifest.checksums())
        except FileExistsError:
            continue
        except Unwritable as err:
            result.no_manifest = err.message
            return
        result.manifest = manifest.name
        return


def _place(store: StoreSettings) -> str:
    if isinstance(store, GcsStore):
        return f"gs://{store.bucket}/{store.prefix}"
    return str(store.path)
