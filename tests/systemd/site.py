"""A site: a machine with the service installed, a simulated NVR and a store on its loopback.

The NVR and the store are processes of the tests' own interpreter that have joined the machine's
network and nothing else of it; the service sees them as it would see servers elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.process.parts import call
from tests.systemd.image import CHECKOUT
from tests.systemd.machine import PATIENCE_SECONDS, Machine

UNIT: Final = "nvr-backup.service"
DROP_INS: Final = f"/etc/systemd/system/{UNIT}.d"
CONFIG: Final = "/etc/nvr-backup/config.toml"
CREDENTIALS: Final = "/etc/nvr-backup/credentials"
RUN: Final = "/run/nvr-backup"
INJECTIONS: Final = "/opt/nvr-backup-tests"
NVR_PORT: Final = 11080
STORE_PORT: Final = 11081
USERNAME: Final = "backup"
PASSWORD: Final = "correct horse battery staple 5519"
MIB: Final = 1024 * 1024
CHUNK: Final = 8 * MIB

Table = Mapping[str, Any]


@dataclass
class Remote:
    """A server on the machine's loopback with a control surface for the test."""

    machine: Machine
    control: str

    def ask(self, name: str) -> Any:
        return self.machine.in_its_network(lambda: call(f"{self.control}{name}"))

    def do(self, name: str, /, **body: Any) -> Any:
        return self.machine.in_its_network(lambda: call(f"{self.control}{name}", body))


class Nvr(Remote):
    """The simulated NVR."""

    def add(self, camera: str, **clip: Any) -> None:
        self.do("clips", camera=camera, **clip)

    def truth(self) -> dict[str, int]:
        """SHA-256 and size of every clip there is."""
        return {clip["sha256"]: clip["size"] for clip in self.ask("oracle")}


class Store(Remote):
    """The strict double of Google Cloud Storage."""

    def objects(self) -> dict[str, int]:
        """SHA-256 and size of every object."""
        return {found["sha256"]: found["size"] for found in self.ask("objects")}

    def journal(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("journal")
        return found

    def received(self) -> int:
        """Bytes that reached it, in whatever requests of an upload."""
        kinds = ("chunk", "last", "single")
        return sum(one["body_bytes"] for one in self.journal() if one["where"] in kinds)

    def uploads(self) -> int:
        """How many uploads were begun."""
        return len([one for one in self.journal() if one["where"] in ("initiate", "single")])

    def slow_down(self, seconds: float) -> None:
        """From now on every chunk is answered so much later."""
        self.do("faults", where="chunk", what="Delay", times=None, **{"with": {"seconds": seconds}})

    def full_speed(self) -> None:
        self.machine.in_its_network(lambda: _delete(f"{self.control}faults"))


def _delete(url: str) -> None:
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60):
        pass


@dataclass
class Site:
    """The service on `machine`, and what is around it."""

    machine: Machine
    since: int = 0
    """Older entries of the journal are another test's: microseconds since 1970."""

    # what is around it

    @contextmanager
    def nvr(self, *arguments: str) -> Iterator[Nvr]:
        """The simulated NVR is up within the block."""
        told = ("--port", str(NVR_PORT), "--username", USERNAME, "--password", PASSWORD)
        with self._beside("nvr_backup.simulator", *told, *arguments) as line:
            yield Nvr(self.machine, json.loads(line)["control"])

    @contextmanager
    def store(self, *arguments: str) -> Iterator[Store]:
        """The store is up within the block; its key file is the service's credential."""
        key = self.machine.path(f"{CREDENTIALS}/stores.offsite.credentials_file")
        told = ["--port", str(STORE_PORT), "--bucket", "footage", "--auth"]
        told += ["--service-account", str(key)]
        with self._beside("tests.support.gcs_double", *told, *arguments) as line:
            yield Store(self.machine, f"{line}/_double/")

    @contextmanager
    def _beside(self, module: str, *arguments: str) -> Iterator[str]:
        """A Python program of ours in the machine's network; gives its first line."""
        command = ["setpriv", "--pdeathsig", "KILL", "nsenter", "-t", str(self.machine.pid), "-n"]
        running = subprocess.Popen(
            [*command, sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            assert running.stdout is not None
            line = running.stdout.readline().strip()
            assert line, f"{module} ended before it was ready"
            yield line
        finally:
            running.terminate()
            try:
                running.communicate(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()
                running.communicate()

    # how it is set up

    def configure(self, **tables: Table) -> None:
        """Write the configuration: a working one, with `tables` merged into it."""
        base: dict[str, dict[str, Any]] = {
            "schedule": {"every": "1h", "settle": "0s", "backfill": "25h"},
            "log": {"level": "info"},
            "sources.home": {
                "kind": "scrypted",
                "url": f"http://127.0.0.1:{NVR_PORT}",
                "username": USERNAME,
            },
            "stores.offsite": {
                "kind": "gcs",
                "bucket": "footage",
                "endpoint": f"http://127.0.0.1:{STORE_PORT}",
            },
        }
        lines = []
        for name in {**base, **tables}:
            values = {**base.get(name, {}), **tables.get(name, {})}
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.machine.write(CONFIG, "\n".join(lines) + "\n")

    def text(self) -> str:
        """The configuration file."""
        return self.machine.path(CONFIG).read_text()

    def password(self, text: str = PASSWORD) -> None:
        self.machine.write(f"{CREDENTIALS}/sources.home.password", text, 0o600)

    def drop_in(self, name: str, *lines: str) -> None:
        """Lines for [Service] (or after a section of their own)."""
        self.machine.write(f"{DROP_INS}/{name}.conf", "\n".join(["[Service]", *lines, ""]))
        self.machine.systemctl("daemon-reload")

    def inject(self, name: str) -> None:
        """Let a module of `injections` stand in for the daemon's program from the next start on."""
        source = Path(__file__).with_name("injections") / f"{name}.py"
        self.machine.write(f"{INJECTIONS}/{name}.py", source.read_text())
        program = f"/opt/nvr-backup/current/bin/python {INJECTIONS}/{name}.py"
        self.drop_in("injection", "ExecStart=", f"ExecStart={program} run --config {CONFIG}")

    def tell_injection(self, name: str) -> Path:
        """Make the file in /run/nvr-backup that it waits for; where it is, seen from outside."""
        self.machine.run("touch", f"{RUN}/{name}")
        return self.machine.path(f"{RUN}/{name}")

    # how it is

    def start(self) -> None:
        self.machine.systemctl("start", UNIT)

    def stop(self) -> None:
        self.machine.systemctl("stop", UNIT)

    @property
    def pid(self) -> int:
        """The daemon's pid, as the machine numbers it."""
        return int(self.machine.show(UNIT, "MainPID"))

    def is_active(self) -> bool:
        return self.machine.show(UNIT, "ActiveState") == "active"

    def status_text(self) -> str:
        return self.machine.show(UNIT, "StatusText")

    def restarts(self) -> int:
        return int(self.machine.show(UNIT, "NRestarts"))

    def moment(self, name: str) -> float:
        """When this last happened to the unit, such as ActiveEnter; 0 if never (see `uptime`)."""
        return int(self.machine.show(UNIT, f"{name}TimestampMonotonic")) / 1e6

    def uptime(self) -> float:
        """Seconds, on the clock of `moment`."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    def messages(self, *arguments: str) -> list[str]:
        """What was said about the unit in this test, by systemd too."""
        return [str(entry["MESSAGE"]) for entry in self.journal("-u", UNIT, *arguments)]

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """The journal's entries of this test.

        Not by --after-cursor: before systemd 255 that skips the first entry that fits the rest.
        """
        found = self.machine.journal(*arguments)
        return [entry for entry in found if int(entry["__REALTIME_TIMESTAMP"]) > self.since]

    def of_daemon(self, *arguments: str) -> list[dict[str, Any]]:
        """The entries that the daemon itself made, natively or on stderr."""
        found = self.journal("-u", UNIT, *arguments)
        return [entry for entry in found if entry.get("_SYSTEMD_UNIT") == UNIT]

    def said(self, text: str) -> list[dict[str, Any]]:
        """The daemon's entries with this in their message."""
        return [entry for entry in self.of_daemon() if text in str(entry.get("MESSAGE", ""))]

    def until_stored(self, nvr: Nvr, store: Store) -> None:
        """Until the store holds exactly the NVR's clips, byte for byte."""
        truth = nvr.truth()
        self.machine.until(lambda: store.objects() == truth, f"{len(truth)} clips stored")


@contextmanager
def fresh(machine: Machine) -> Iterator[Site]:
    """A site on a machine that other tests have used: nothing of theirs is left."""
    machine.systemctl("stop", UNIT)
    machine.systemctl("reset-failed", code=None)
    state = ("/var/lib/private/nvr-backup", "/var/lib/nvr-backup")
    machine.run("rm", "-rf", DROP_INS, INJECTIONS, *state)
    machine.systemctl("daemon-reload")
    (latest,) = machine.journal("--lines=1")
    site = Site(machine, since=int(latest["__REALTIME_TIMESTAMP"]))
    site.configure()
    site.password()
    with ExitStack() as stack:
        stack.callback(_end, machine)
        yield site


def _end(machine: Machine) -> None:
    """A test that failed may leave a daemon that cannot stop by itself."""
    machine.systemctl("kill", "--signal=KILL", UNIT, code=None)
    machine.systemctl("stop", UNIT, code=None)
