"""Footage back from the stores: interrupted, killed, with a damaged object, on an empty machine.

The oracle is the simulated NVR's own knowledge of every clip: its bytes, its camera, its start.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Counted
from tests.process.parts import (
    PATIENCE_SECONDS,
    Backup,
    Daemon,
    Store,
    call,
    gcs_double,
    process,
    simulated_nvr,
)
from tests.support.fake_gcs_server import binary, fake_gcs_server

pytestmark = [pytest.mark.process, pytest.mark.long]

CAMERAS, CLIPS, SIZE = 5, 100, 20_000
SMALLEST_PIPE = 4096
"""Bytes of log that a run may be ahead of its reader: about two dozen clips."""

Truth = dict[str, str]
"""The SHA-256 of every clip, by the file it must become."""


def named(clip: dict[str, Any]) -> str:
    start = datetime.fromtimestamp(clip["start_ms"] / 1000, UTC)
    return f"{clip['camera']}/{start:%Y-%m-%d_%H-%M-%S}Z.mp4"


def files(folder: Path) -> Truth:
    """Every file a player would take for a video, as it is."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.mp4")
    }


@dataclass
class Attic:
    """Stored footage, with the recorder gone; `store` is its table in a configuration."""

    folder: Path
    backup: Backup
    truth: Truth
    store: dict[str, str]
    double: Store | None = None
    clips: list[dict[str, Any]] = field(default_factory=list)

    @property
    def here(self) -> Path:
        return self.backup.config

    def elsewhere(self) -> Path:
        """The configuration of another machine: the store, and nothing else."""
        folder = self.folder / "elsewhere"
        folder.mkdir(exist_ok=True)
        lines = [f"state_dir = {json.dumps(str(folder / 'state'))}", "[stores.offsite]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.store.items()]
        (folder / "config.toml").write_text("\n".join(lines))
        return folder / "config.toml"

    def damage(self, clip: dict[str, Any]) -> str:
        """Another content under a clip's key; returns the file it would have become."""
        start = datetime.fromtimestamp(clip["start_ms"] / 1000, UTC)
        key = f"{clip['camera']}/{start:%Y/%m/%d/%H-%M-%S}.mp4"
        if self.double is not None:
            call(f"{self.double.url}/_double/harm", {"name": key, "at": SIZE // 2})
        elif "path" in self.store:
            path = Path(self.store["path"]) / key
            content = bytearray(path.read_bytes())
            content[SIZE // 2] ^= 0xFF
            path.write_bytes(content)
        else:  # this server takes whatever is put in an object's place
            place = f"{self.store['endpoint']}/upload/storage/v1/b/footage/o"
            query = urllib.parse.urlencode({"uploadType": "media", "name": key})
            whole = f"{self.store['endpoint']}/storage/v1/b/footage/o/{urllib.parse.quote(key, '')}"
            with urllib.request.urlopen(f"{whole}?alt=media") as answer:
                half = answer.read()[: SIZE // 2]
            with urllib.request.urlopen(urllib.request.Request(f"{place}?{query}", half)):
                pass
        return named(clip)

    def media_requests(self) -> int:
        assert self.double is not None
        return sum(seen["where"] == "media" for seen in self.double.journal())


@contextmanager
def server() -> Iterator[str]:
    if binary() is None:
        pytest.skip("fake-gcs-server is not installed")
    with asyncio.Runner() as runner:
        running = fake_gcs_server()
        found = runner.run(running.__aenter__())
        try:
            yield found.url
        finally:
            runner.run(running.__aexit__(None, None, None))


@contextmanager
def stored(
    folder: Path, kind: str, *, cameras: int = CAMERAS, clips: int = CLIPS
) -> Iterator[Attic]:
    with ExitStack() as stack:
        double = stack.enter_context(gcs_double("--keep", "all")) if kind == "gcs" else None
        url = double.url if double else ""
        if kind == "fake-gcs-server":
            url = stack.enter_context(server())
        sizes = ("--style", "href", "--clip-size", str(SIZE))
        with simulated_nvr("--cameras", str(cameras), "--clips", str(clips), *sizes) as nvr:
            tables = {"transfer": {"workers": 8}}
            backup = Backup(folder, nvr, url, tables=tables)
            result, _ = backup.once()
            assert result["stored"] == cameras * clips
            oracle = nvr.ask("oracle")
        truth = {named(clip): clip["sha256"] for clip in oracle}
        assert len(truth) == cameras * clips
        store = {"kind": "directory", "path": str(backup.footage)}
        if url:
            store = {"kind": "gcs", "bucket": "footage", "endpoint": url}
        yield Attic(folder, backup, truth, store, double, oracle)


def arguments(config: Path, into: Path, *more: str) -> list[str]:
    return ["restore", "--from", "7d", "--into", str(into), "--config", str(config), *more]


def restore(
    config: Path, into: Path, *more: str, code: int = 0, **environ: str
) -> tuple[dict[str, Any], str]:
    """A run to its end: its result, and what it said on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "nvr_backup", *arguments(config, into, "--json", *more)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=os.environ | environ,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout), done.stderr


def broken_off(config: Path, into: Path, since: str, number: signal.Signals, after: int) -> int:
    """A run that gets a signal once so many clips are there; its exit code."""
    with process("nvr_backup", *arguments(config, into, "--from", since)) as running:
        assert running.stderr is not None
        fcntl.fcntl(running.stderr.fileno(), fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
        run = Daemon(running)
        run.until_said("clip restored", times=after)
        run.signal(number)
        return run.end()


@pytest.mark.parametrize("kind", ["gcs", "fake-gcs-server", "directory"])
def test_500_clips_come_back_whatever_happens_on_the_way(
    tmp_path: Path, kind: str, counted: Counted
) -> None:
    with stored(tmp_path, kind) as attic:
        bad = attic.damage(attic.clips[250])
        come_back(attic, bad, attic.here, ["offsite"])
        come_back(attic, bad, attic.elsewhere(), [])
    counted("fault cases", 6)


def come_back(attic: Attic, bad: str, config: Path, from_checkpoint: list[str]) -> None:
    """All but the bad one, by three runs: one is interrupted, one killed."""
    good = {file: digest for file, digest in attic.truth.items() if file != bad}
    into, left = config.parent / "out", ".damaged.mp4"
    since = datetime.fromtimestamp(min(c["start_ms"] for c in attic.clips) / 1000, UTC).isoformat()
    assert broken_off(config, into, since, signal.SIGINT, after=120) == 130
    first = {file: sum_ for file, sum_ in files(into).items() if left not in file}
    assert 120 <= len(first) < 400
    assert first.items() <= good.items()
    assert broken_off(config, into, since, signal.SIGKILL, after=120) == -signal.SIGKILL
    second = {file: sum_ for file, sum_ in files(into).items() if left not in file}
    assert len(second) >= len(first) + 120
    assert second.items() <= good.items()

    before = attic.media_requests() if attic.double else 0
    result, _ = restore(config, into, "--from", since, "--manifest", code=1)
    assert (result["already_there"], result["restored"]) == (len(second), 499 - len(second))
    if attic.double:  # nothing is fetched twice, but the bad one to be sure
        assert attic.media_requests() - before == 499 - len(second) + 2
    (missing,) = result["missing"]
    assert missing["file"] == bad
    assert "damaged" in missing["reason"]
    found = files(into)
    assert found.pop(missing["damaged"]) != attic.truth[bad]
    assert found == good
    assert not list(into.rglob("*.part"))
    assert result["from_checkpoint"] == from_checkpoint
    assert result["unproven"] == 0

    manifest = json.loads((into / result["manifest"]).read_text())
    assert [(clip["file"], clip["sha256"]) for clip in manifest["clips"]] == sorted(good.items())
    assert [one["file"] for one in manifest["missing"]] == [bad]
    sums = (into / result["manifest"]).with_suffix(".sha256").name
    checked = subprocess.run(["sha256sum", "--quiet", "-c", sums], cwd=into, check=False)
    assert checked.returncode == 0


def test_one_camera_and_a_part_of_the_time(tmp_path: Path) -> None:
    with stored(tmp_path, "directory", cameras=2, clips=6) as attic:
        name = attic.clips[0]["camera"]
        own = sorted(
            (clip for clip in attic.clips if clip["camera"] == name),
            key=lambda clip: int(clip["start_ms"]),
        )
        begin = datetime.fromtimestamp(own[1]["end_ms"] / 1000 - 0.001, UTC)  # within the second
        end = datetime.fromtimestamp(own[4]["start_ms"] / 1000, UTC)
        times = ("--from", begin.isoformat(), "--to", end.isoformat(timespec="milliseconds"))
        expected = {named(clip): clip["sha256"] for clip in own[1:5]}
        for machine in (attic.here, attic.elsewhere()):
            into = tmp_path / machine.parent.name / "out"
            result, _ = restore(machine, into, "--camera", name.upper(), *times)
            assert result["restored"] == 4
            assert files(into) == expected


def test_what_was_never_stored_is_named(tmp_path: Path) -> None:
    with simulated_nvr("--cameras", "1", "--clips", "3", "--clip-size", "4096") as nvr:
        backup = Backup(tmp_path, nvr)
        nvr.do("faults", name="html_page", times=1)
        backup.once(code=1)
        result, _ = restore(backup.config, tmp_path / "out", code=1)
    assert result["restored"] == 2
    (missing,) = result["missing"]
    assert missing["file"] is None
    assert missing["reason"].startswith("not stored yet: ")


def test_a_daemon_is_not_disturbed(tmp_path: Path) -> None:
    """The checkpoint and the store are as before, byte for byte, beside a running daemon."""
    with simulated_nvr("--cameras", "2", "--clips", "5", "--clip-size", "4096") as nvr:
        backup = Backup(tmp_path, nvr)
        with backup.daemon() as daemon:
            daemon.until_said("cycle finished")
            held = {path: path.stat() for path in backup.footage.rglob("*")}
            state = (tmp_path / "state" / "checkpoint.sqlite3").read_bytes()
            result, _ = restore(backup.config, tmp_path / "out")
            assert result["restored"] == 10
            assert (tmp_path / "state" / "checkpoint.sqlite3").read_bytes() == state
            after = {path: path.stat() for path in backup.footage.rglob("*")}
            assert [(p, s.st_ino, s.st_mtime_ns) for p, s in held.items()] == [
                (p, s.st_ino, s.st_mtime_ns) for p, s in after.items()
            ]
            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
