"""One look at everything a backup needs: recorder, cameras, stores, clocks, disk, checkpoint.

Each finding says what was seen and, where it is not well, what to do. It works beside a running
daemon: it takes no lock, writes nothing into the checkpoint and leaves nothing in a store. A part
that cannot be examined is a finding, never the end of the examination.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Literal

import aiohttp

from nvr_backup import report
from nvr_backup.adapters import open_source, open_store
from nvr_backup.clock import Clock
from nvr_backup.database import FILE_NAME, REBUILD, CheckpointError
from nvr_backup.errors import NvrBackupError
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.planner import CLOCK_TOLERANCE
from nvr_backup.ports import Capabilities, ClipSource
from nvr_backup.redaction import redacted, visible
from nvr_backup.settings import DirectoryStore, Settings
from nvr_backup.unit import UNIT, Unit, installed, me

RECENT: Final = (timedelta(days=1), timedelta(days=7))
"""How far back a camera's newest clip is looked for: first a day, then a week."""

CLOCK_LIMIT: Final = timedelta(seconds=5)
"""A recorder's clock that is off by more than this is worth a word."""

LITTLE_DISK_BYTES: Final = 256 * 1024**2
NO_DISK_BYTES: Final = 16 * 1024**2
"""Free space for the checkpoint: a warning below the first, a failure below the second."""

PART_SECONDS: Final = 120.0
"""How long one source or store may take before it counts as not answering."""

CLOCK_SECONDS: Final = 5.0

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination. `part` is a path in the configuration or a subject."""

    level: Level
    part: str
    text: str
    do: str = ""


async def examine(
    settings: Settings, clock: Clock, *, asked_by: Sequence[str] | None = None
) -> AsyncIterator[Finding]:
    """Every finding, as it is made. Raises only what is a bug.

    `asked_by` is the command that asks, where the configuration is that of the installed service.
    """
    if asked_by is not None and (unit := await asyncio.to_thread(installed)) is not None:
        yield _service(unit, asked_by)
    for warning in settings.warnings:
        yield Finding("warn", "configuration", visible(redacted(warning)))
    for finding in await asyncio.to_thread(_disk, settings.state_dir):
        yield finding
    async for finding in _checkpoint(settings, clock.now()):
        yield finding
    for name in settings.sources:
        async for finding in _source(name, settings, clock):
            yield finding
    for name in settings.stores:
        async for finding in _store(name, settings, clock):
            yield finding


def failed(part: str, error: NvrBackupError) -> Finding:
    """What an error means for the part that raised it."""
    return Finding("fail", part, visible(redacted(error.message)), visible(redacted(error.hint)))


def _service(unit: Unit, asked_by: Sequence[str]) -> Finding:
    if unit.ours():
        return Finding("ok", "service", f"this looks as the service does ({unit.user})")
    return Finding(
        "warn",
        "service",
        f"{UNIT} runs as {unit.user}, this as {me()}: rights and credentials may differ",
        f"To look as the service does: {unit.command(asked_by)}",
    )


# -- this machine ---------------------------------------------------------------------------------


def _disk(state_dir: Path) -> list[Finding]:
    part = "state_dir"
    there = next((path for path in (state_dir, *state_dir.parents) if path.exists()), Path("/"))
    try:
        free = shutil.disk_usage(there).free
    except OSError as err:
        return [Finding("fail", part, f"{there} cannot be looked at: {err.strerror}.")]
    text = f"{state_dir}: {free / 1e9:.1f} GB free"
    if there != state_dir:
        text += "; the folder does not exist yet, the first start makes it"
    if free < NO_DISK_BYTES:
        return [Finding("fail", part, text, "Free some space: nothing can be recorded.")]
    if free < LITTLE_DISK_BYTES:
        return [Finding("warn", part, text, "Free some space before the checkpoint needs it.")]
    return [Finding("ok", part, text)]


async def _checkpoint(settings: Settings, now: datetime) -> AsyncIterator[Finding]:
    part = "checkpoint"
    try:
        if not (settings.state_dir / FILE_NAME).exists():
            yield Finding("ok", part, "none yet; the first cycle makes it")
            return
        wrong = await report.ask(settings.state_dir, report.sound)
        status = await report.ask(settings.state_dir, lambda db: report.status(db, now=now))
    except PermissionError:
        yield Finding(
            "fail", part, f"{settings.state_dir} may not be looked into.", "Use sudo for this."
        )
        return
    except CheckpointError as err:
        yield failed(part, err)
        return
    if wrong:
        yield Finding(
            "fail",
            part,
            f"The database is damaged: {'; '.join(wrong)}",
            REBUILD,
        )
        return
    stored = sum(account.stored for account in status.accounts)
    process = report.engine_process(settings.state_dir)
    runs = "no engine runs" if process is None else f"an engine runs (process {process})"
    yield Finding("ok", part, f"sound, {stored:,} clips stored; {runs}")
    for account in status.accounts:
        behind = account.waiting or account.set_aside
        until = account.safe_until.astimezone() if account.safe_until else None
        text = f"safe until {until:%Y-%m-%d %H:%M:%S}" if until else "never listed"
        if account.waiting:
            text += f", {account.waiting:,} waiting"
        if account.set_aside:
            text += f", {account.set_aside:,} set aside"
        yield Finding(
            "warn" if account.set_aside else "ok",
            f"{visible(account.camera)} → {account.store}",
            text,
            "`nvr-backup status` says why." if behind and account.set_aside else "",
        )


# -- sources --------------------------------------------------------------------------------------


async def _source(name: str, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    part = f"sources.{name}"
    findings: list[Finding] = []
    try:
        async with (
            asyncio.timeout(PART_SECONDS),
            open_source(name, settings.sources[name], clock) as source,
        ):
            await _recorder(part, source, clock, findings)
    except NvrBackupError as err:
        findings.append(failed(part, err))
    except TimeoutError:
        findings.append(_silent(part))
    if difference := await clock_difference(settings.sources[name].url, clock):
        findings.append(difference_finding(part, difference))
    for finding in findings:
        yield finding


async def _recorder(part: str, source: ClipSource, clock: Clock, findings: list[Finding]) -> None:
    cameras = await source.cameras()
    if not cameras:
        findings.append(
            Finding(
                "warn",
                part,
                "logged in, but it lists no camera with clips",
                "Give the user access to the cameras, and check cameras.include and .exclude.",
            )
        )
        return
    findings.append(Finding("ok", part, f"logged in, {len(cameras)} cameras with clips"))
    findings += [await _camera(part, source, camera, clock) for camera in cameras]


async def _camera(part: str, source: ClipSource, camera: Camera, clock: Clock) -> Finding:
    where = f"{part}, {visible(camera.name)}"
    now = clock.now()
    try:
        for reach in RECENT:
            # A little into the future: clips from there tell of a clock that is wrong.
            window = Window(now - reach, now + timedelta(days=1))
            listed = [clip async for clip in source.clips(camera, window)]
            if listed:
                return _newest(where, listed, reach, now)
    except NvrBackupError as err:
        return failed(where, err)
    return Finding(
        "warn",
        where,
        f"no clip in the last {RECENT[-1].days} days",
        "Check in the recorder that it still records this camera.",
    )


def _newest(where: str, listed: Sequence[Clip], reach: timedelta, now: datetime) -> Finding:
    newest = max(listed, key=lambda clip: clip.start)
    if newest.start > now + CLOCK_TOLERANCE:
        return Finding(
            "warn",
            where,
            f"its newest clip begins in the future, {newest.start.astimezone():%Y-%m-%d %H:%M:%S}",
            "Compare the clocks of the recorder and of this machine (NTP).",
        )
    days = "the last 24 hours" if reach == RECENT[0] else f"the last {reach.days} days"
    return Finding(
        "ok",
        where,
        f"newest clip {newest.start.astimezone():%Y-%m-%d %H:%M:%S}, {len(listed):,} in {days}",
    )


async def clock_difference(url: str, clock: Clock) -> timedelta | None:
    """How far the server's clock is ahead, by the Date of any answer; None when it shows none.

    Nothing is sent but a request for the start page, so its certificate does not matter here.
    """
    limit = aiohttp.ClientTimeout(total=CLOCK_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.head(url, ssl=False, allow_redirects=False) as answer,
        ):
            date = parsedate_to_datetime(answer.headers.get("Date", ""))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, TypeError):
        return None
    if date.tzinfo is None:
        return None
    return date - clock.now()


def difference_finding(part: str, difference: timedelta) -> Finding:
    """The Date header has whole seconds and took a moment to arrive."""
    seconds = difference.total_seconds()
    if abs(difference) <= CLOCK_LIMIT:
        return Finding("ok", part, "its clock agrees with ours")
    way = "ahead of" if seconds > 0 else "behind"
    return Finding(
        "warn",
        part,
        f"its clock is {abs(seconds):.0f} s {way} ours",
        "Let both machines set their clocks by NTP: times of clips come from the recorder.",
    )


def _silent(part: str) -> Finding:
    return Finding(
        "fail",
        part,
        f"no answer within {PART_SECONDS:.0f} s",
        "Check that it is up and not overloaded, and the network in between.",
    )


# -- stores ---------------------------------------------------------------------------------------

_WITHOUT: Final = {
    "stat": "an object that is already there cannot be looked at",
    "list": "later checks of what is stored cannot list it",
    "read": "what is stored cannot be read back",
    "delete": "what is stored cannot be deleted from here (good against ransomware)",
    "resume": "an interrupted upload begins again at its start",
}


async def _store(name: str, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    part = f"stores.{name}"
    try:
        used = await _used_before(settings.state_dir, name)
        async with (
            asyncio.timeout(PART_SECONDS),
            open_store(
                name,
                settings.stores[name],
                clock,
                chunk_size=settings.transfer.chunk_size,
                used_before=used,
            ) as store,
        ):
            able = await store.probe()
    except NvrBackupError as err:
        yield failed(part, err)
        return
    except TimeoutError:
        yield _silent(part)
        return
    yield Finding("ok", part, capabilities_text(able))
    place = settings.stores[name]
    if isinstance(place, DirectoryStore):
        free = (await asyncio.to_thread(shutil.disk_usage, place.path)).free
        yield Finding("ok", part, f"{free / 1e9:.1f} GB free")


def capabilities_text(able: Capabilities) -> str:
    """What the store's key may do, and what follows from what it may not."""
    may = [name for name in _WITHOUT if getattr(able, name)]
    text = f"objects can be created; also: {', '.join(may) or 'nothing else'}"
    lacking = [f"no {name} ({_WITHOUT[name]})" for name in _WITHOUT if not getattr(able, name)]
    return f"{text}; {'; '.join(lacking)}" if lacking else text


async def _used_before(state_dir: Path, store: str) -> bool:
    try:
        accounts = await report.ask(state_dir, report.accounts)
    except CheckpointError:
        return False
    return any(account.stored for account in accounts if account.store == store)
