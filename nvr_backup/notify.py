"""What the service manager is told (sd_notify(3)), through the package `sdnotify`.

Without NOTIFY_SOCKET every call does nothing. The package encodes as Latin-1, blocks when nobody
reads and swallows what goes wrong: here the text reaches it as UTF-8 bytes in Latin-1's clothes,
the socket never blocks, and a message that was lost is counted for the one who asks. It must never
hold up or end the daemon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from sdnotify import SystemdNotifier

STATUS_BYTES: Final = 1024
"""A longer status is cut: it is one line for a person."""


class Notifier:
    """The service manager's socket, if there is one; open for the time of a `with` block.

    `lost` counts messages it did not take.
    """

    def __init__(
        self, notifier: SystemdNotifier | None, *, watchdog_seconds: float | None = None
    ) -> None:
        self.lost = 0
        self.watchdog_seconds = watchdog_seconds
        self._notifier = notifier

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID of sd_watchdog_enabled(3)."""
        if not environ.get("NOTIFY_SOCKET"):
            return cls(None)
        try:
            notifier = SystemdNotifier(debug=True)
        except OSError:
            return cls(None)
        notifier.socket.setblocking(False)
        return cls(notifier, watchdog_seconds=_watchdog_seconds(environ))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()

    @property
    def listening(self) -> bool:
        """Whether there is anybody to tell."""
        return self._notifier is not None

    def ready(self) -> None:
        """Started, or a reload is complete. Sent alone: nothing may make this one fail."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The watchdog's food."""
        self._send("WATCHDOG=1")

    def status(self, line: str) -> None:
        """One line for `systemctl status`; cut to STATUS_BYTES."""
        one = " ".join(line.split())
        cut = one.encode("utf-8", "replace")[:STATUS_BYTES].decode("utf-8", "ignore")
        self._send(f"STATUS={cut}")

    def extend(self, seconds: float) -> None:
        """The start or the stop may take `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if self._notifier is None:
            return
        try:
            self._notifier.notify(message.encode().decode("latin-1"))
        except OSError:  # nobody reads, or nobody is there any more
            self.lost += 1


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """The watchdog's limit, None if there is none or it is meant for another process."""
    limit, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not limit.isdecimal() or int(limit) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(limit) / 1e6
