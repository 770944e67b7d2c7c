"""Processes for end-to-end tests: the simulated NVR, the strict store double, and the program.

Each is started with `sys.executable`, listens on a loopback port of its own, and is ended by its
pid when the block is left. What they print is kept for the message of a failing test.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 120.0
"""A hang fails the test after this long; nothing that works comes near it."""

Lines = list[dict[str, Any]]


def call(
    url: str, body: dict[str, Any] | None = None, *, timeout_seconds: float = PATIENCE_SECONDS
) -> Any:
    """GET, or POST with a JSON body, of a control surface."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as err:
        raise AssertionError(f"{url}: {err.code} {err.read().decode()}") from err


@contextmanager
def process(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m ARGUMENTS`, ended by SIGTERM (then SIGKILL) when the block is left."""
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environ,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        try:
            running.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()


def first_line(running: subprocess.Popen[str]) -> str:
    """The first line of standard output."""
    assert running.stdout is not None
    line = running.stdout.readline()
    if not line:
        _, errors = running.communicate()
        raise AssertionError(f"it ended before it was ready:\n{errors}")
    return line.strip()


@dataclass
class Nvr:
    """A simulated NVR in a process of its own."""

    url: str
    fingerprint: str
    username: str
    password: str
    control: str

    def ask(self, name: str) -> Any:
        return call(f"{self.control}{name}")

    def wait_until_up(self) -> None:
        """Until a restart is over: it answers first and closes its port afterwards."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if self.ask("state")["restarts"]:
                    return
            except urllib.error.URLError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError("the simulated NVR did not come back")
            time.sleep(0.05)

    def happened(self, fault: str) -> int:
        """How often a fault has struck."""
        return int(self.ask("faults")["happened"].get(fault, 0))

    def do(self, name: str, /, **body: Any) -> Any:
        return call(f"{self.control}{name}", body)


@contextmanager
def simulated_nvr(*arguments: str) -> Iterator[Nvr]:
    with process("nvr_backup.simulator", *arguments) as running:
        facts = json.loads(first_line(running))
        if facts["url"].startswith("https"):
            # The control surface is asked in the clear by nobody: trust exactly this certificate.
            _trust_any_loopback_certificate()
        yield Nvr(**facts)


def _trust_any_loopback_certificate() -> None:
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    urllib.request.install_opener(opener)


@dataclass
class Store:
    """The strict double of Google Cloud Storage in a process of its own."""

    url: str

    def objects(self) -> dict[str, dict[str, Any]]:
        return {item["name"]: item for item in call(f"{self.url}/_double/objects")}

    def journal(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(f"{self.url}/_double/journal")
        return found

    def fault(self, **fault: Any) -> None:
        call(f"{self.url}/_double/faults", fault)


@contextmanager
def gcs_double(*arguments: str) -> Iterator[Store]:
    with process("tests.support.gcs_double", "--bucket", "footage", *arguments) as running:
        yield Store(first_line(running))


@dataclass
class Backup:
    """The program under test with a configuration of its own."""

    folder: Path
    nvr: Nvr
    store_url: str = ""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    credentials: Path | None = None
    state_dir: Path | None = None

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def footage(self) -> Path:
        return self.folder / "footage"

    def write(self) -> None:
        """(Re)write the configuration file."""
        self.footage.mkdir(parents=True, exist_ok=True)
        store: dict[str, Any] = {"kind": "directory", "path": str(self.footage)}
        if self.store_url:
            store = {"kind": "gcs", "bucket": "footage", "endpoint": self.store_url}
            if self.credentials is not None:
                store["credentials_file"] = str(self.credentials)
        source: dict[str, Any] = {
            "kind": "scrypted",
            "url": self.nvr.url,
            "username": self.nvr.username,
            "password": self.nvr.password,
        }
        if self.nvr.fingerprint:
            source["tls_fingerprint"] = f"sha256:{self.nvr.fingerprint}"
        tables = {
            "schedule": {"every": "1h", "settle": "0s", "lookback": "2h", "backfill": "25h"},
            "sources.home": source,
            "stores.offsite": store,
        }
        for name, changes in self.tables.items():
            tables[name] = {**tables.get(name, {}), **changes}
        lines = [f"state_dir = {json.dumps(str(self.state_dir or self.folder / 'state'))}"]
        for name, table in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{k} = {json.dumps(v)}" for k, v in table.items() if v is not None]
        self.config.write_text("\n".join(lines))
        self.config.chmod(0o600)

    def command(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "nvr_backup", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env=os.environ | environ,
            check=False,
        )

    def once(self, *arguments: str, code: int = 0) -> tuple[dict[str, Any], Lines]:
        """One cycle; its result as JSON and its log lines."""
        self.write()
        done = self.command("once", "--json", *arguments)
        assert done.returncode == code, done.stderr + done.stdout
        return json.loads(done.stdout), log_lines(done.stderr)

    @contextmanager
    def daemon(self) -> Iterator[Daemon]:
        self.write()
        with process("nvr_backup", "run", "--config", str(self.config)) as running:
            yield Daemon(running)


def log_lines(text: str) -> Lines:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@dataclass
class Daemon:
    """A running `nvr-backup run` whose log is read as it comes."""

    running: subprocess.Popen[str]
    lines: Lines = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    _rest: str = ""

    def signal(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Read log lines until `happened`; the log is shown if it never does."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: never seen in\n{''.join(self.raw)}")
            if not self._read() and not happened():
                raise AssertionError(f"{what}: ended without it\n{''.join(self.raw)}")

    def until_said(self, message: str, times: int = 1) -> dict[str, Any]:
        self.until(lambda: len(self.said(message)) >= times, message)
        return self.said(message)[times - 1]

    def said(self, message: str) -> Lines:
        return [line for line in self.lines if line["message"] == message]

    def end(self) -> int:
        """Wait for the end; returns the exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.running.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"still running after\n{''.join(self.raw)}")
            self._read()
        while self._read():
            pass
        return self.running.returncode

    def _read(self) -> bool:
        """Take what has been written, waiting a moment for it; False at the end."""
        assert self.running.stderr is not None
        descriptor = self.running.stderr.fileno()
        ready, _, _ = select.select([descriptor], [], [], 0.1)
        if not ready:
            return True
        data = os.read(descriptor, 65536)
        self._rest += data.decode()
        *lines, self._rest = self._rest.split("\n")
        for line in lines:
            self.raw.append(f"{line}\n")
            self.lines += log_lines(line)
        return bool(data)
