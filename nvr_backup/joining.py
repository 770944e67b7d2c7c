"""A camera's clips joined into one file by ffmpeg, without re-encoding.

Only clips of one shape can be joined so: what ffprobe says of their streams is compared first, and
the length of what came of it with that of its parts. It must never re-encode, never touch a clip,
and never leave a file under the joined name that is not all of them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from nvr_backup.arriving import PART
from nvr_backup.landing import Landing
from nvr_backup.layout import plain_name
from nvr_backup.restore import Restored

PROBE_SECONDS: Final = 60.0
"""A file whose streams are not told after this long cannot be joined."""

TOLERANCE: Final = 0.05
LEAST_TOLERANCE: Final = 2.0
"""Seconds, and part of the whole, by which a joined file may differ from its clips' length."""

SAID_BYTES: Final = 2000
"""Of what ffmpeg says, the end."""

_FORMATS: Final = {
    ".mp4": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
}
_SHAPE: Final = "codec_type,codec_name,profile,width,height,pix_fmt,sample_rate,channels,time_base"


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs, by their paths."""

    ffmpeg: str
    ffprobe: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A camera's clips in one file; `already`: a file of that name was there."""

    camera: str
    file: str
    clips: int
    size: int
    already: bool = False


class Unjoinable(Exception):
    """Why a camera's clips could not be joined; they are there one by one."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What ffprobe says of a file: its streams, and its length in seconds."""

    shape: tuple[tuple[tuple[str, str], ...], ...]
    seconds: float


def find_tools() -> Tools | None:
    """ffmpeg and ffprobe, if they are installed."""
    ffmpeg, ffprobe = shutil.which("ffmpeg"), shutil.which("ffprobe")
    return Tools(ffmpeg, ffprobe) if ffmpeg and ffprobe else None


def to_join(restored: Sequence[Restored]) -> dict[str, list[Restored]]:
    """The clips by camera folder, in the order of their starts, of several versions the longest."""
    found: dict[str, list[Restored]] = {}
    for one in sorted(restored, key=lambda one: (one.target.folder, one.target.file)):
        clips = found.setdefault(one.target.folder, [])
        if not clips or clips[-1].target.holding.clip.start != one.target.holding.clip.start:
            clips.append(one)
    return found


def joined_name(clips: Sequence[Restored]) -> str:
    """What a joined file is called: camera, first start, last end, and how many clips it has."""
    first, last = clips[0].target, clips[-1].target
    clip = last.holding.clip
    until = plain_name(clip.end or clip.start)
    begin = plain_name(first.holding.clip.start)
    many = f"{len(clips)} clip{'s' if len(clips) != 1 else ''}"
    return f"{first.folder}_{begin}_to_{until} ({many}){Path(first.file).suffix}"


async def join(landing: Landing, tools: Tools, clips: Sequence[Restored]) -> Joined:
    """One camera's clips, in this order, in one file; Unjoinable with the reason."""
    name, camera = joined_name(clips), clips[0].target.holding.clip.camera.name
    if landing.has(name):
        size = (landing.path / name).lstat().st_size
        return Joined(camera, name, len(clips), size, already=True)
    kinds = {Path(one.target.file).suffix for one in clips}
    if len(kinds) > 1 or not kinds <= _FORMATS.keys():
        raise Unjoinable(f"its clips are of different kinds ({', '.join(sorted(kinds))})")
    total = sum(one.size for one in clips)
    if landing.free_bytes() < total:
        raise Unjoinable(f"the disk of {landing.path} has no room for {total:,} bytes more")
    seconds = await _length(landing, tools, clips)
    await _concatenate(landing, tools, clips, name)
    try:
        made = await _seen(landing, tools, name + PART)
        if abs(made.seconds - seconds) > max(LEAST_TOLERANCE, TOLERANCE * seconds):
            raise Unjoinable(
                f"what ffmpeg made of them lasts {timedelta(seconds=round(made.seconds))}, "
                f"they last {timedelta(seconds=round(seconds))}"
            )
        size = (landing.path / (name + PART)).lstat().st_size
        await asyncio.to_thread(landing.adopt, name)
    except BaseException:
        landing.discard(name)
        raise
    return Joined(camera, name, len(clips), size)


async def _length(landing: Landing, tools: Tools, clips: Sequence[Restored]) -> float:
    """Seconds of all clips; Unjoinable unless they are of one shape."""
    first: _Seen | None = None
    seconds = 0.0
    for one in clips:
        seen = await _seen(landing, tools, one.target.path)
        first = first or seen
        if seen.shape != first.shape:
            raise Unjoinable(
                f"{one.target.file} is {_words(seen)}, {clips[0].target.file} is {_words(first)}"
            )
        seconds += seen.seconds
    return seconds


async def _seen(landing: Landing, tools: Tools, file: str) -> _Seen:
    entries = f"stream={_SHAPE}:format=duration"
    probe = (tools.ffprobe, "-v", "error", "-show_entries", entries, "-of", "json", f"file:{file}")
    try:
        async with asyncio.timeout(PROBE_SECONDS), _started(landing, *probe) as running:
            out, said = await running.communicate()
    except TimeoutError:
        raise Unjoinable(f"ffprobe says nothing about {file}") from None
    try:
        told: dict[str, Any] = json.loads(out)
        streams = [one for one in told["streams"] if one.get("codec_type") in {"video", "audio"}]
        seconds = float(told["format"]["duration"])
    except (ValueError, KeyError, TypeError):
        raise Unjoinable(f"ffprobe cannot read {file}: {_end(said)}") from None
    if not streams:
        raise Unjoinable(f"{file} has neither video nor sound")
    shape = tuple(tuple(sorted((k, str(v)) for k, v in one.items())) for one in streams)
    return _Seen(shape, seconds)


async def _concatenate(
    landing: Landing, tools: Tools, clips: Sequence[Restored], name: str
) -> None:
    """Write NAME.part; Unjoinable, and nothing left, when ffmpeg fails."""
    landing.discard(name)
    listing = "".join(f"file '{_quoted(one.target.path)}'\n" for one in clips)
    start = clips[0].target.holding.clip.start.isoformat(timespec="seconds")
    copy = (
        *(tools.ffmpeg, "-hide_banner", "-v", "error", "-n"),
        *("-protocol_whitelist", "file,pipe,fd", "-f", "concat", "-safe", "0", "-i", "pipe:0"),
        *("-map", "0:v?", "-map", "0:a?", "-c", "copy", "-metadata", f"creation_time={start}"),
        *("-f", _FORMATS[Path(name).suffix], f"file:{name}{PART}"),
    )
    try:
        async with _started(landing, *copy) as running:
            _, said = await running.communicate(listing.encode())
        if running.returncode:
            raise Unjoinable(f"ffmpeg failed: {_end(said)}")
    except BaseException:
        landing.discard(name)
        raise


@asynccontextmanager
async def _started(landing: Landing, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program at work in the folder; ended, whatever happens, when the block is left.

    In a session of its own: a Ctrl-C is for us, and we end it.
    """
    running = await asyncio.create_subprocess_exec(
        *command,
        cwd=landing.path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            with suppress(ProcessLookupError):
                running.kill()
            await running.wait()


def _quoted(path: str) -> str:
    """For the concat demuxer; a protocol of its own keeps a name from being read as one."""
    return "file:" + path.replace("'", "'\\''")


def _words(seen: _Seen) -> str:
    """`h264 1920x1080, aac 16000 Hz`."""
    found = []
    for stream in map(dict, seen.shape):
        size = f" {stream['width']}x{stream['height']}" if "width" in stream else ""
        rate = f" {stream['sample_rate']} Hz" if "sample_rate" in stream else ""
        base = f" (time base {stream.get('time_base', '?')})"
        found.append(f"{stream.get('codec_name', 'unknown')}{size}{rate}{base}")
    return ", ".join(found)


def _end(said: bytes) -> str:
    lines = said[-SAID_BYTES:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it does not say why"
