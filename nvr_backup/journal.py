"""Entries for systemd's journal: one sentence for people, fields for `journalctl` to ask for.

Speaks the journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL), one datagram for
each entry. What the journal's socket does not take goes to stderr, every line with its priority;
what stderr does not take either is counted, and the count is said once it can be. It must never
wait for anybody (journald may hang), never raise, and never let a value, such as a camera's name,
become a field or an entry of its own.

Entries are those of `logs`: harmless by then, without secrets and control characters.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TextIO

SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "nvr-backup"
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3). An unknown level counts as an error."""

NAMES: Final = {"clip": "CLIP_ID", "key": "OBJECT_KEY"}
"""Fields that are not simply the upper-case of ours."""

LONGEST_NAME: Final = 64
LONGEST_LINE: Final = 8192
"""Characters of one line on stderr: journald cuts a line at 48 KiB, and the rest has no prefix."""

_DAEMON: Final = "3"  # the syslog facility, as systemd gives it to what a service prints
_RESERVED: Final = re.compile(
    r"(MESSAGE|MESSAGE_ID|PRIORITY|WHAT|UNIT|USER_UNIT|ERRNO|TID|DOCUMENTATION|(USER_)?INVOCATION_ID"
    r"|SYSLOG_.*|CODE_.*|COREDUMP.*|OBJECT_(?!KEY$).*)"
)
"""Names that journald or journalctl read something into (systemd.journal-fields(7)), and ours."""

# Not every Python has them in `fcntl`, and they are the kernel's for ever (fcntl(2)).
_ADD_SEALS: Final = getattr(fcntl, "F_ADD_SEALS", 1033)
_ALL_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8  # against sealing more, shrinking, growing, writing

_Entry = Mapping[str, Any]

_NOTHING: Final = (None, "")
_TOLD_APART: Final = frozenset(
    {
        *("time", "level", "message", "exception", "stack", "cycle"),
        *("source", "camera", "clip", "key", "store", "part", "setting"),
        *("reason", "remark", "hint"),
    }
)
"""What a sentence says in its own place, or leaves to the fields."""


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream ends in the journal: $JOURNAL_STREAM is its device and inode.

    A child that inherits the variable and has its stderr elsewhere is not taken in
    (systemd.exec(5)).
    """
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Journal:
    """Writes entries to the journal; `stream` is the stderr that ends there too.

    Each entry has a socket of its own for the few microseconds it takes: nothing can grow stale
    when journald starts anew, and there is nothing to close.
    """

    def __init__(self, stream: TextIO, path: str = SOCKET) -> None:
        self._stream = stream
        self._path = path
        self._lock = threading.Lock()
        self._lost = 0
        self._torn = False  # stderr took only a part of the latest lines

    def write(self, entry: _Entry) -> None:
        """Write one finished entry of `logs`; returns at once, whatever happens."""
        with self._lock:
            if self._lost and self._deliver(_about_lost(self._lost)):
                self._lost = 0
            if not self._deliver(entry):
                self._lost += 1

    def _deliver(self, entry: _Entry) -> bool:
        fields = list(fields_of(entry))
        try:
            self._send(encoded(fields))
        except OSError:
            return self._print(dict(fields))
        return True

    def _send(self, data: bytes) -> None:
        """One datagram; a large entry as a sealed file in memory, with nothing beside it."""
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_UNIX, kind) as sender:
            try:
                sender.sendto(data, self._path)
            except OSError as err:
                if err.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                with open(_memory(), "wb", buffering=0) as file:
                    file.write(data)
                    fcntl.fcntl(file, _ADD_SEALS, _ALL_SEALS)
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fileno()]))
                    sender.sendmsg([b""], [rights], 0, self._path)

    def _print(self, fields: Mapping[str, str]) -> bool:
        """The message on stderr; False unless all of it was taken."""
        begun = "\n" if self._torn else ""
        said = begun + prefixed(fields["MESSAGE"], fields["PRIORITY"])
        data = said.encode("utf-8", "backslashreplace")
        try:
            stderr = socket.socket(fileno=self._stream.fileno())
        except (OSError, ValueError):
            return False
        try:
            sent = stderr.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        finally:
            stderr.detach()  # it was only lent
        self._torn = sent < len(data)
        return not self._torn


def prefixed(text: str, priority: int | str) -> str:
    """The text's lines, each with its priority, as systemd reads what a service prints.

    The prefix is that of sd-daemon(3); it counts for its own line only.
    """
    return "".join(
        f"<{priority}>{line[start : start + LONGEST_LINE]}\n"
        for line in text.split("\n")
        for start in range(0, max(len(line), 1), LONGEST_LINE)
    )


def _memory() -> int:
    return os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _about_lost(number: int) -> _Entry:
    return {"level": "warning", "message": "log entries lost", "entries": number}


def encoded(fields: Iterable[tuple[str, str]]) -> bytes:
    """Fields as the journal reads them: `NAME=value`, or the length first where there are lines."""
    parts = bytearray()
    for name, value in fields:
        raw = value.encode("utf-8", "backslashreplace")
        if b"\n" in raw:
            parts += b"%s\n%s%s\n" % (name.encode(), len(raw).to_bytes(8, "little"), raw)
        else:
            parts += b"%s=%s\n" % (name.encode(), raw)
    return bytes(parts)


def fields_of(entry: _Entry) -> Iterator[tuple[str, str]]:
    """An entry's fields for the journal, by names that it takes; what is empty is left out.

    WHAT is the fixed text by which docs/monitoring.md lists the message; the texts of libraries
    have none.
    """
    traces = [str(entry[name]) for name in ("exception", "stack") if entry.get(name)]
    yield "MESSAGE", "\n".join((sentence(entry), *traces))
    yield "PRIORITY", str(PRIORITIES.get(entry["level"], PRIORITIES["error"]))
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    yield "SYSLOG_FACILITY", _DAEMON
    if "logger" not in entry:
        yield "WHAT", str(entry["message"])
    for name, value in entry.items():
        if name in ("time", "level", "message", "exception", "stack") or value in _NOTHING:
            continue
        yield field_name(name), _value(value)


def field_name(name: str) -> str:
    """The journal's name for one of our fields.

    At most 64 of A to Z, 0 to 9 and `_`, a letter first; anything else makes journald drop the
    field without a word.
    """
    upper = NAMES.get(name) or re.sub(r"[^A-Z0-9]", "_", name.upper())
    upper = upper.lstrip("_0123456789") or "FIELD"
    return (f"X_{upper}" if _RESERVED.fullmatch(upper) else upper)[:LONGEST_NAME]


def _value(value: object) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sentence(entry: _Entry) -> str:
    """The entry as a person wants to read it: what happened, to what, why, what to do, how much.

    `clip failed: Porch/2026/03/01/18-20-05.mp4 → nas: The link was lost. (attempt 2, …)`
    """
    first, *more = str(entry["message"]).split("\n")
    parts = [first]
    if subject := _subject(entry):
        parts.append(subject)
    why = " ".join(str(entry[name]) for name in ("reason", "remark", "hint") if entry.get(name))
    if why:
        parts.append(why)
    amounts = [
        _amount(name, value)
        for name, value in entry.items()
        if name not in _TOLD_APART and value not in _NOTHING
    ]
    said = ": ".join(parts) + (f" ({', '.join(amounts)})" if amounts else "")
    return "\n".join((said, *more))


def _subject(entry: _Entry) -> str:
    camera, key = str(entry.get("camera") or ""), str(entry.get("key") or "")
    if not camera and not key:
        return str(entry.get("setting") or entry.get("part") or "")
    names = [camera] if camera and camera not in key else []
    subject = ", ".join([*names, key] if key else names)
    return f"{subject} → {entry['store']}" if entry.get("store") else subject


def _amount(name: str, value: object) -> str:
    """A field in a sentence: `3 cameras` would need grammar, `cameras 3` does not."""
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"not {words}"
    if isinstance(value, (int, float)):
        for unit, shown in (("bytes", _size), ("seconds", _time)):
            if words.endswith(unit):
                return f"{words.removesuffix(unit)}{shown(value)}"
        if name == "mb_per_s":
            return f"{value:.1f} MB/s"
    return f"{words} {_value(value)}"


def _size(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{round(seconds, 1):g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
