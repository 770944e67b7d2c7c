"""The service manager's end of sd_notify(3): a datagram socket that keeps what it is told."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass
class NotifySocket:
    """Bound at `path` while the block runs; `said()` are all messages so far, one a datagram."""

    path: Path
    _socket: socket.socket = field(init=False)
    _messages: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    @property
    def environ(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path)}

    def said(self) -> list[str]:
        while True:
            try:
                self._messages.append(self._socket.recv(65536))
            except BlockingIOError:
                return [message.decode("utf-8") for message in self._messages]
