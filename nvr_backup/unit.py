"""The systemd unit that runs the daemon here, if there is one, as `systemctl` tells of it.

Whoever asks the doctor is seldom who the daemon is: another user, with other rights and without the
service's credentials. This says so, and how to ask as the service. It only looks; it must never
start anything but `systemctl show` and `systemctl cat`.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNIT: Final = "nvr-backup.service"
SHOW_SECONDS: Final = 10.0
"""A systemd that does not answer in this time is as good as none."""

_CARRIED: Final = ("User", "DynamicUser", "StateDirectory", "SupplementaryGroups")
"""What makes the service who it is; passed on to `systemd-run` as they are."""
_ASKED: Final = ("LoadState", *_CARRIED)


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit's user, and the properties that another command needs to be the same one."""

    user: str
    properties: tuple[str, ...]

    def ours(self) -> bool:
        """Whether we are that user already, with its credentials if it has any."""
        wants = any(line.startswith("LoadCredential=") for line in self.properties)
        return me() == self.user and not (wants and "CREDENTIALS_DIRECTORY" not in os.environ)

    def command(self, words: Sequence[str]) -> str:
        """The line to type that runs `words` as the service does, with its credentials."""
        given = [word for line in self.properties for word in ("-p", line)]
        run = ["systemd-run", "--pty", "--wait", "--collect", "--quiet", *given, "--", *words]
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        return shlex.join([*sudo, *run])


def me() -> str:
    """The name of the user we run as; a number where it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def installed() -> Unit | None:
    """The unit as it is loaded now; None without systemd, or without such a unit."""
    shown = _systemctl("show", UNIT, *(f"--property={name}" for name in _ASKED))
    # `show` has only "[unprintable]" for credentials (seen with 252): the files say it.
    return read(shown, _systemctl("cat", UNIT)) if shown else None


def _systemctl(*words: str) -> str:
    """Its standard output; nothing when it failed or did not answer."""
    try:
        return subprocess.run(  # noqa: S603 - words of ours
            ["systemctl", *words],  # noqa: S607 - PATH is the operator's
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SHOW_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def read(shown: str, files: str) -> Unit | None:
    """The unit by the output of `systemctl show`, its credentials by that of `systemctl cat`."""
    lines = [line.partition("=") for line in shown.splitlines()]
    single: Mapping[str, str] = {name: value for name, _, value in lines}
    if single.get("LoadState") != "loaded":
        return None
    carried = [f"{name}={single[name]}" for name in _CARRIED if single.get(name) not in ("", None)]
    carried = [line for line in carried if line != "DynamicUser=no"]
    return Unit(single.get("User") or "root", (*carried, *_credentials(files)))


def _credentials(files: str) -> list[str]:
    """The LoadCredential= lines of a unit's files in their order; an empty one takes back all."""
    found: list[str] = []
    for line in files.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "LoadCredential":
            found = [*found, f"LoadCredential={value.strip()}"] if value.strip() else []
    return found


def this_program() -> list[str]:
    """How to call this very program again: its console script, or the interpreter."""
    script = Path(sys.argv[0])
    if script.name == "nvr-backup" and script.is_file():
        return [str(script.absolute())]
    return [sys.executable, "-m", "nvr_backup"]
