"""The whole thing on one machine: a simulated NVR, backed up into a folder, every byte compared.

The simulated NVR remembers what it recorded in a diary, so that the same folder can be used again
and again: its clips keep their ids and bytes, nothing is stored twice, new clips are added. What is
stored is compared with the simulator's own digests, file by file, not with our checkpoint. It must
never write outside its folder, and never believe the engine's word for what it verifies.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

import structlog

from nvr_backup import report
from nvr_backup.clock import Clock
from nvr_backup.engine import Engine, open_engine
from nvr_backup.errors import ConfigError
from nvr_backup.model import from_ms, to_ms
from nvr_backup.report import Copy
from nvr_backup.settings import Settings, format_duration
from nvr_backup.simulator import DEMO_CAMERAS, SimClip, Simulator, SimulatorSettings

DIARY_NAME: Final = "simulated-nvr.jsonl"
CONFIG_NAME: Final = "config.toml"
FOOTAGE: Final = "footage"
STATE: Final = "state"
STORE: Final = "folder"

BACKLOG_PER_CAMERA: Final = 24
"""One clip somewhere in each hour of the day before."""
BACKLOG: Final = timedelta(hours=24)
CLIP_SECONDS: Final = 10.0
SMALLEST_CLIP: Final = 150_000
LARGEST_CLIP: Final = 800_000
"""Bytes; the clips stay playable, the rest is padding."""
LIVE_SECONDS: Final = 10.0
"""A new clip so often."""
CYCLE: Final = timedelta(seconds=5)
SETTLE: Final = timedelta(seconds=1)
RECORDINGS_KEPT: Final = 3000
"""The simulated NVR's disk is full then: no new clips, for the sake of yours (about 1.5 GB)."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A clip as the diary has it; `size` in bytes."""

    camera: str
    start_ms: int
    size: int


class Diary:
    """What the simulated NVR has recorded, in order: it makes ids and bytes the same every time."""

    def __init__(self, path: Path, seed: int, recordings: Iterable[Recording]) -> None:
        self._path = path
        self._seed = seed
        self.recordings = list(recordings)

    @classmethod
    def read(cls, folder: Path, seed: int | None) -> Self | None:
        """The diary of this folder, None in an empty or absent one.

        ConfigError where it belongs to another seed, or the folder to somebody else.
        """
        path = folder / DIARY_NAME
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            if folder.exists() and any(folder.iterdir()):
                raise ConfigError(
                    f"{folder} is not empty and was not made by the demo.",
                    hint="Name another folder with --dir.",
                ) from None
            return None
        lines = text.splitlines()
        known = _seed_of(lines[0] if lines else "")
        if known is None:
            raise ConfigError(f"{path} is not the diary of a demo.", hint="Name another --dir.")
        if seed not in (None, known):
            raise ConfigError(
                f"{folder} was made with --seed {known}.", hint="Name another folder with --dir."
            )
        return cls(path, known, _recordings(lines[1:]))

    @classmethod
    def begin(cls, folder: Path, seed: int, now: datetime) -> Self:
        """A day of recordings that ended just now."""
        rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        part = BACKLOG / BACKLOG_PER_CAMERA
        room = part - timedelta(seconds=CLIP_SECONDS) - 2 * SETTLE
        made = [
            Recording(
                camera=_native_id(camera.name),
                start_ms=to_ms(now - BACKLOG + hour * part + room * rng.random()),
                size=rng.randrange(SMALLEST_CLIP, LARGEST_CLIP),
            )
            for hour in range(BACKLOG_PER_CAMERA)
            for camera in DEMO_CAMERAS
        ]
        return cls(folder / DIARY_NAME, seed, made)

    def write(self) -> None:
        """All of it anew: also mends a last line that was cut off."""
        new = self._path.with_suffix(".new")
        lines = [json.dumps({"demo": 1, "seed": self._seed}), *map(_line, self.recordings)]
        new.write_text("\n".join(lines) + "\n", "utf-8")
        new.replace(self._path)

    def add(self, recording: Recording) -> None:
        """One more; written before anyone can list it."""
        self.recordings.append(recording)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(recording) + "\n")

    @property
    def oldest(self) -> datetime:
        """When its first recording began."""
        return from_ms(min(recording.start_ms for recording in self.recordings))


def _native_id(name: str) -> str:
    return name.lower()


def _line(recording: Recording) -> str:
    return json.dumps([recording.camera, recording.start_ms, recording.size])


def _seed_of(line: str) -> int | None:
    try:
        seed = json.loads(line)["seed"]
    except (ValueError, TypeError, KeyError):
        return None
    return seed if isinstance(seed, int) else None


def _recordings(lines: Iterable[str]) -> list[Recording]:
    found = []
    for line in lines:
        try:
            camera, start_ms, size = json.loads(line)
        except ValueError:
            break  # cut off by a crash: never listed either
        found.append(Recording(str(camera), int(start_ms), int(size)))
    return found


@dataclass(slots=True)
class Verdict:
    """What comparing the folder with the simulated NVR found; names are object keys."""

    recorded: int = 0
    identical: set[str] = field(default_factory=set)
    different: set[str] = field(default_factory=set)
    strays: list[str] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Clips that the checkpoint calls stored, as far as they were compared."""
        return len(self.identical) + len(self.different)

    @property
    def perfect(self) -> bool:
        """Every recording is there once, with its own bytes, and nothing else is."""
        return len(self.identical) == self.recorded > 0 and not self.different and not self.strays


@dataclass(frozen=True, slots=True)
class Compared:
    """One file and what came of comparing it; `size` in bytes."""

    key: str
    size: int
    identical: bool


class Demo:
    """A running simulated NVR and an engine that backs it up. Made by `open_demo`."""

    def __init__(
        self, folder: Path, nvr: Simulator, diary: Diary, engine: Engine, clock: Clock
    ) -> None:
        self.folder = folder
        self.footage = folder / FOOTAGE
        self.config = folder / CONFIG_NAME
        self.engine = engine
        self.nvr = nvr
        self.verdict = Verdict()
        self._diary = diary
        self._clock = clock
        self._rng = random.Random()  # noqa: S311 - sizes of clips

    async def record(self, stop: asyncio.Event) -> None:
        """Record a clip every LIVE_SECONDS, one camera after the other, until `stop`."""
        turn = len(self._diary.recordings)
        while not stop.is_set() and len(self._diary.recordings) < RECORDINGS_KEPT:
            await self._clock.sleep(LIVE_SECONDS)
            camera = _native_id(DEMO_CAMERAS[turn % len(DEMO_CAMERAS)].name)
            start = self._clock.now() - timedelta(seconds=CLIP_SECONDS)
            size = self._rng.randrange(SMALLEST_CLIP, LARGEST_CLIP)
            recording = Recording(camera, to_ms(start), size)
            self._diary.add(recording)
            _play(self.nvr, recording)
            turn += 1

    async def settled(self) -> None:
        """Wait until the latest recording is final: about a second, if at all."""
        latest = max(recording.start_ms for recording in self._diary.recordings)
        final = from_ms(latest) + timedelta(seconds=CLIP_SECONDS + 0.1) + SETTLE
        await self._clock.sleep((final - self._clock.now()).total_seconds())

    async def verify(self) -> AsyncIterator[Compared]:
        """Compare what is stored and was not compared yet, the oldest first."""
        self.verdict.recorded = len(self._diary.recordings)
        stored = await report.ask(self.folder / STATE, _stored)
        seen = self.verdict.identical | self.verdict.different
        truth = {(camera.name, clip.id): clip for camera, clip in self.nvr.catalogue.owned()}
        for copy in reversed([copy for copy in stored if copy.key not in seen]):
            clip = truth.get((copy.camera, copy.clip))
            same = await asyncio.to_thread(self._same, copy, clip)
            (self.verdict.identical if same else self.verdict.different).add(copy.key)
            yield Compared(copy.key, copy.size or 0, same)

    def _same(self, copy: Copy, clip: SimClip | None) -> bool:
        if clip is None:
            return False
        truth = clip.content.digest()
        try:
            with (self.footage / copy.key).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError:
            return False
        return (size, sha256) == (truth.size, truth.sha256)

    async def conclude(self) -> Verdict:
        """The last word, after `verify`: the folder is searched for what does not belong."""
        files = await asyncio.to_thread(_files, self.footage)
        self.verdict.strays = sorted(files - self.verdict.identical - self.verdict.different)
        return self.verdict


def _stored(db: sqlite3.Connection) -> list[Copy]:
    copies, _ = report.clips(db, state="stored", camera_rows=None, limit=2 * RECORDINGS_KEPT)
    return copies


def _files(footage: Path) -> set[str]:
    """Every file of the store but what it hides for itself."""
    return {
        path.relative_to(footage).as_posix()
        for path in footage.rglob("*")
        if path.is_file() and not path.relative_to(footage).parts[0].startswith(".")
    }


def _play(nvr: Simulator, recording: Recording) -> None:
    nvr.catalogue.add_clip(
        recording.camera,
        start=from_ms(recording.start_ms),
        seconds=CLIP_SECONDS,
        size=recording.size,
        content="sample",
    )


@asynccontextmanager
async def open_demo(
    folder: Path, *, seed: int | None, clock: Clock, told: Callable[[str], None]
) -> AsyncIterator[Demo]:
    """The simulated NVR, started, with an engine on the folder. `told` gets a line at the start.

    ConfigError when the folder cannot be used, EngineRunningError beside another demo.
    """
    now = clock.now()
    folder, diary = await asyncio.to_thread(_prepared, folder, seed, now)
    async with AsyncExitStack() as stack:
        nvr = await stack.enter_async_context(
            Simulator(SimulatorSettings(clips_per_camera=0), clock=clock)
        )
        for recording in diary.recordings:
            _play(nvr, recording)
        told(
            f"A simulated NVR with {len(DEMO_CAMERAS)} cameras and {len(diary.recordings):,} clips "
            f"listens at {nvr.url}."
        )
        engine = await stack.enter_async_context(
            open_engine(
                _settings(folder, nvr, diary.oldest, now),
                clock=clock,
                log=structlog.get_logger(),
                rng=random.SystemRandom(),
            )
        )
        diary.write()  # the engine's lock makes us its only writer
        config = folder / CONFIG_NAME
        config.touch(mode=0o600)
        config.write_text(_config(nvr), "utf-8")
        yield Demo(folder, nvr, diary, engine, clock)


def _prepared(folder: Path, seed: int | None, now: datetime) -> tuple[Path, Diary]:
    """The folder, made if need be, and its diary, an old or a new one."""
    folder = folder.absolute()
    try:
        diary = Diary.read(folder, seed) or Diary.begin(folder, 1 if seed is None else seed, now)
        for part in (FOOTAGE, STATE):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(
            f"The demo cannot use {folder}: {err.strerror}.", hint="Name another with --dir."
        ) from err
    return folder, diary


def _settings(folder: Path, nvr: Simulator, oldest: datetime, now: datetime) -> Settings:
    backfill = max(BACKLOG, now - oldest) + timedelta(hours=1)
    return Settings.model_validate(
        {
            "state_dir": folder / STATE,
            "schedule": {
                "every": format_duration(CYCLE),
                "settle": format_duration(SETTLE),
                "backfill": format_duration(backfill),
            },
            "sources": {
                "nvr": {
                    "kind": "scrypted",
                    "url": nvr.url,
                    "username": nvr.settings.username,
                    "password": nvr.settings.password,
                }
            },
            "stores": {STORE: {"kind": "directory", "path": folder / FOOTAGE}},
        }
    )


def _config(nvr: Simulator) -> str:
    """The same configuration as a file, to look around with other commands."""
    return f"""\
# Made by `nvr-backup demo`, anew at each start. The simulated NVR exists while the demo runs.
state_dir = "{STATE}"

[schedule]
every = "1h"
settle = "{format_duration(SETTLE)}"

[sources.nvr]
kind = "scrypted"
url = "{nvr.url}"
username = "{nvr.settings.username}"
password = "{nvr.settings.password}"

[stores.{STORE}]
kind = "directory"
path = "{FOOTAGE}"
"""
