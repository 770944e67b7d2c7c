"""This machine's own systemd, booted as PID 1 of private namespaces over a copy-on-write view of /.

For tests that only the real thing can answer. Nothing on the machine changes: files are written to
an overlay in memory, processes, network, host name and cgroups are private, and all of it is gone
when the block is left. With TESTS_SYSTEMD_ROOT in the environment it is another system, unpacked in
that folder (tests/systemd/matrix.sh). It must never report a success where it could not boot:
`why_not` says why, and everything after that is a failure.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

BELOW: Final = Path(os.environ.get("TESTS_SYSTEMD_ROOT", "/"))
BOOT_SCRIPT: Final = Path(__file__).with_name("boot.sh")
WRITTEN: Final = "/.written"
"""Where the overlay's upper folder is seen inside."""
CGROUPS: Final = Path("/sys/fs/cgroup")
PATIENCE_SECONDS: Final = 120.0
"""A hang fails the test after this long; nothing that works comes near it."""

_JOIN: Final = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
"""A shell's program: joins cgroups, then becomes what comes after `--`."""
_NAMESPACES: Final = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net")
_CLONE_NEWNET: Final = 0x40000000
_HALT: Final = signal.SIGRTMIN + 4
_PROGRAMS: Final = ("unshare", "nsenter", "setpriv", "pivot_root", "mount", "bash", "systemctl")

T = TypeVar("T")


def init_path() -> Path | None:
    """Where systemd is, if it is installed."""
    for place in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd"):
        if os.access(place, os.X_OK):
            return Path(place)
    return None


def why_not() -> str:
    """Why no systemd can be booted here; empty when it can."""
    if os.geteuid() != 0:
        return "not root: namespaces and mounts are refused"
    if init_path() is None:
        return "systemd is not installed (Debian, Ubuntu: apt install systemd dbus)"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"programs are missing: {', '.join(missing)} (util-linux, systemd)"
    with tempfile.TemporaryDirectory() as folder:
        trial = (
            f"mount --make-rprivate / && mount -t tmpfs t {folder} && cd {folder} "
            "&& mkdir u w r && mount -t overlay o -o lowerdir=/,upperdir=u,workdir=w r "
            "&& mount -t proc proc r/proc && mkdir d && mknod d/null c 1 3"
        )
        tried = subprocess.run(
            ["unshare", *_NAMESPACES, "--cgroup", "sh", "-c", trial],
            capture_output=True,
            text=True,
            check=False,
        )
    if tried.returncode:
        return f"namespaces or overlays are refused: {tried.stderr.strip()}"
    return ""


# cgroups


def _own_cgroups() -> list[Path]:
    """Where this process is, in every mounted hierarchy."""
    unified = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "unified"
    places = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = CGROUPS / controllers.removeprefix("name=") if controllers else unified
        places.append(folder / path.lstrip("/"))
    return [place for place in places if place.is_dir()]


def _make_cgroups(name: str) -> list[Path]:
    """A cgroup below ours in every hierarchy."""
    made = []
    for place in _own_cgroups():
        new = place / name
        new.mkdir()
        made.append(new)
        for file in ("cpuset.cpus", "cpuset.mems"):  # v1: empty ones admit no process
            if (place / file).exists() and (place / "cgroup.clone_children").exists():
                (new / file).write_text((place / file).read_text())
    return made


def _remove_cgroups(made: Sequence[Path]) -> None:
    """Them and all below them; the kernel needs a moment after the last process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for top in made:
        while top.exists():
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        raise
            time.sleep(0.01)


# The machine


@dataclass
class Machine:
    """A booted system. `pid` is its PID 1 as seen from outside; `log` is its console."""

    pid: int
    log: Path

    @property
    def root(self) -> Path:
        """Its files, from outside."""
        return Path(f"/proc/{self.pid}/root")

    def path(self, inside: str | Path) -> Path:
        """A file of it, from outside. Beware of absolute links: they lead back out."""
        return self.root / str(inside).lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """A file with this content; folders are made."""
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def save(self, folder: Path) -> None:
        """Copy all that was written in it: an image for other machines."""
        folder.mkdir(parents=True)
        command = ["cp", "-a", f"{self.path(WRITTEN)}/.", str(folder)]
        subprocess.run(command, check=True)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A process in it, as root, that belongs to no unit."""
        environ = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/root",
            "SYSTEMD_PAGER": "",
            "SYSTEMD_COLORS": "0",
        }
        return subprocess.Popen(
            ["nsenter", "-t", str(self.pid), "-a", *command],
            text=True,
            env=environ | options.pop("env", {}),
            stdin=subprocess.DEVNULL,
            **options,
        )

    def run(
        self,
        *command: str,
        code: int | None = 0,
        seconds: float = PATIENCE_SECONDS,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; it must exit with `code` (None: with any)."""
        running = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            out, err = running.communicate()
            raise AssertionError(f"{command} did not end\n{out}{err}\n{self.story()}") from None
        done = subprocess.CompletedProcess(command, running.returncode, out, err)
        if code is not None and done.returncode != code:
            raise AssertionError(
                f"{' '.join(command)}: exit code {done.returncode}\n{out}{err}\n{self.story()}"
            )
        return done

    def systemctl(self, *arguments: str, code: int | None = 0) -> str:
        """Its standard output."""
        return self.run("systemctl", *arguments, code=code).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit)

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """The journal's entries, oldest first, by `journalctl`'s own arguments."""
        self.run("journalctl", "--sync", code=None)
        found = self.run("journalctl", "--output=json", "--all", *arguments, code=None).stdout
        return [json.loads(line) for line in found.splitlines()]

    def messages(self, *arguments: str) -> list[str]:
        """The MESSAGEs alone."""
        return [str(entry.get("MESSAGE", "")) for entry in self.journal(*arguments)]

    def story(self) -> str:
        """What a failing test wants to show."""
        said = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", "journalctl", "--no-pager", "-n", "120"],
            capture_output=True,
            text=True,
            check=False,
        )
        return said.stdout or self.log.read_text(errors="replace")

    def until(self, happened: Callable[[], T], what: str, seconds: float = PATIENCE_SECONDS) -> T:
        """Ask until the answer is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (answer := happened()):
            if time.monotonic() > deadline:
                raise AssertionError(f"never seen: {what}\n{self.story()}")
            time.sleep(0.05)
        return answer

    def in_its_network(self, ask: Callable[[], T]) -> T:
        """Call `ask` in a thread that has joined its network: its loopback is ours there."""
        answers: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                descriptor = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
                try:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(descriptor, _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(descriptor)
                answers.append(ask())
            except BaseException as err:  # it is raised in the caller's thread
                errors.append(err)

        thread = threading.Thread(target=work)  # a thread keeps its network: never a pool's
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return answers[0]


@contextmanager
def booted(images: Sequence[Path] = ()) -> Iterator[Machine]:
    """Boot over the files of this machine and, over these, copies of what is in `images`.

    Everything below / outside is visible inside, read-only in effect; /tmp, /run and /dev are new
    and empty. The network is a loopback of its own.
    """
    name = f"nvr-backup-tests-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="nvr-backup-machine-") as folder:
        base, log = Path(folder) / "base", Path(folder) / "console"
        base.mkdir()
        made = _make_cgroups(name)
        try:
            with _process([str(base), str(BELOW), *map(str, images)], log, made) as running:
                machine = Machine(_first_process(running, log), log)
                _wait_until_up(machine)
                yield machine
        finally:
            _remove_cgroups(made)


@contextmanager
def _process(
    arguments: Sequence[str], log: Path, cgroups: Sequence[Path]
) -> Iterator[subprocess.Popen[bytes]]:
    """`unshare` with systemd as its child; both are gone when the block is left."""
    # --pdeathsig: should the tests be killed, nothing of it stays behind.
    joined = [str(place / "cgroup.procs") for place in cgroups]
    command = ["sh", "-c", _JOIN, "sh", *joined, "--"]
    command += ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--cgroup"]
    command += ["bash", str(BOOT_SCRIPT), *arguments]
    with log.open("wb") as console:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
    try:
        yield running
    finally:
        child = _child(running.pid)
        if child is not None and running.poll() is None:
            os.kill(child, _HALT)
        try:
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _first_process(running: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of what `unshare` started, once that is systemd."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        child = _child(running.pid)
        if child is not None and Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
            return child
        if running.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"systemd did not boot:\n{log.read_text(errors='replace')}")
        time.sleep(0.01)


def _wait_until_up(machine: Machine) -> None:
    """Until its target is reached and the system bus answers."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        asked = subprocess.run(
            ["nsenter", "-t", str(machine.pid), "-a", "systemctl", "is-system-running"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() in {"running", "degraded"}:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"systemd did not come up: {asked}\n{machine.story()}")
        time.sleep(0.02)
