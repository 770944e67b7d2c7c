"""Real processes: the command line and a simulated NVR. Each is ended by who began it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PATIENCE = 120
"""Seconds after which a process that should have ended or spoken is a failure; ample."""

COMMAND = (sys.executable, "-m", "nvr_backup")
ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """Of a process that buffers its output as usual, whatever this one was told."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**kept, "PYTHONPATH": str(ROOT), "TZ": "UTC", **more}


def finish(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment(),
        **options,
    )


class Running:
    """A process whose standard error (or output) is read line by line."""

    def __init__(self, *arguments: str, module: str = "nvr_backup", read: str = "stderr") -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            text=True,
            env=environment(),
            stdout=subprocess.PIPE if read == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if read == "stderr" else None,
        )
        stream = self._process.stderr if read == "stderr" else self._process.stdout
        assert stream is not None
        self._stream: IO[str] = stream
        self._limit = threading.Timer(PATIENCE, self._process.kill)
        self._limit.daemon = True
        self._limit.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        """The next line; an error when the process has ended instead."""
        text = self._stream.readline()
        assert text, "the process has ended:\n" + "".join(self.lines[-20:])
        self.lines.append(text)
        return text

    def until(self, message: str) -> dict[str, Any]:
        """Read log lines up to the first with this message."""
        while True:
            entry: dict[str, Any] = json.loads(self.line())
            if entry["message"] == message:
                return entry

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Read to the end; the exit code."""
        self.lines += self._stream.readlines()
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._limit.cancel()
        if self._process.poll() is None:
            self._process.kill()
        self._stream.close()
        self._process.wait()


@contextmanager
def running(*arguments: str, **options: str) -> Iterator[Running]:
    process = Running(*arguments, **options)
    try:
        yield process
    finally:
        process.close()


class Nvr:
    """A simulated NVR as a process."""

    def __init__(self, facts: dict[str, str]) -> None:
        self.url = facts["url"]
        self._control = facts["control"]

    def ask(self, what: str) -> Any:
        with urllib.request.urlopen(self._control + what) as answer:
            return json.load(answer)

    def order(self, what: str, **options: Any) -> Any:
        body = json.dumps(options).encode()
        request = urllib.request.Request(self._control + what, body, method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def digests(self) -> set[str]:
        """SHA-256 of every clip it holds."""
        return {entry["sha256"] for entry in self.ask("oracle")}


@contextmanager
def simulated(*arguments: str) -> Iterator[Nvr]:
    with running(*arguments, module="nvr_backup.simulator", read="stdout") as process:
        yield Nvr(json.loads(process.line()))


def footage(folder: Path) -> dict[str, str]:
    """Key and SHA-256 of every object in a directory store."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def configuration(folder: Path, nvr: Nvr, **more: str) -> Path:
    """A configuration for this NVR and a folder; `more`: `workers`, `level`, `password`."""
    (folder / "footage").mkdir(exist_ok=True)
    path = folder / "config.toml"
    path.touch(mode=0o600)
    path.write_text(
        f"""\
state_dir = "state"
[schedule]
every = "1h"
settle = "1s"
[transfer]
workers = {more.get("workers", "2")}
chunk_size = "256KiB"
[log]
level = "{more.get("level", "info")}"
[sources.home]
kind = "scrypted"
url = "{nvr.url}"
username = "backup"
password = "{more.get("password", "secret")}"
[stores.nas]
kind = "directory"
path = "footage"
"""
    )
    return path
