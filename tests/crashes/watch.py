"""Every durable step of the program, counted and named; at one of them it dies, or is refused.

`Watch.install` wraps the lowest calls the program makes: SQLite's transactions, the calls that
change files below one folder, and the requests to the store. Each step has a name that does not
depend on chance (random names become `*`), so that the same step is met again in another run:

    before COMMIT (UPDATE copy SET state)      nothing of the transaction is in the file
    after COMMIT (UPDATE copy SET state) #2    the second such transaction is
    before link footage/…, during pwritev …    not yet; half of the bytes
    before, during, after PUT …                not sent; a part of the body; answered

What lies between two steps of one thread changes nothing on disk, so "before the next" is "after
the last"; commits and answers have an "after" of their own because other threads may go on in
between. It must never act on anything outside its folder, and never swallow what it wraps.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from nvr_backup.stores.gcs.body import PiecesBody

How = Literal["kill", "fill", "ENOSPC", "EIO"]

_RANDOM: Final = re.compile(
    r"(?<=/objects/)[0-9a-f]{2}(?:/[0-9a-f]{62})?|[0-9a-f]{32}|\d{8}T\d{6}(?:\.\d+)?Z"
)
"""Random names, digests, and the times in the names of snapshots and of what is kept aside."""
FILLER: Final = "filler"
FILLED_AGAIN: Final = 20
_WAL: Final = "checkpoint.sqlite3-wal"
_STATEMENTS: Final = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE")
_SQL_ERRORS: Final[Mapping[str, tuple[str, str, int]]] = {
    "ENOSPC": ("database or disk is full", "SQLITE_FULL", sqlite3.SQLITE_FULL),
    "EIO": ("disk I/O error", "SQLITE_IOERR_WRITE", sqlite3.SQLITE_IOERR),
}
_NAMES_CHANGE: Final = frozenset({"mkdir", "open", "link", "replace", "rename", "unlink", "rmdir"})

_REAL: Final[Mapping[str, Callable[..., Any]]] = {
    name: getattr(os, name)
    for name in (
        *("open", "write", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate"),
        *("mkdir", "link", "replace", "rename", "unlink", "rmdir", "listdir", "stat"),
    )
}


@dataclass(frozen=True)
class Fate:
    """What happens at which step, once; `step` is the name as the journal gives it.

    `fill` leaves no byte free on the file system of `disk`, a folder of its own.
    """

    step: str
    how: How
    disk: str = ""

    def fill(self) -> None:
        """The disk is full from now on."""
        filler = _REAL["open"](f"{self.disk}/{FILLER}", os.O_WRONLY | os.O_CREAT, 0o600)
        filled = 0
        for _ in range(FILLED_AGAIN):  # another thread may take of what was free a moment ago
            free = os.statvfs(filler)
            with suppress(OSError):
                room = free.f_bavail * free.f_frsize
                os.posix_fallocate(filler, filled, room)
                filled += room
        os.close(filler)


class Watch:
    """Names the steps of this process and lets its fate happen.

    The journal is a file of JSON lines, written before anything else happens: `step` (a name), and
    for a power cut `wrote`, `renamed` and `synced` (files by inode), `names` (a folder's durable
    content) and `wal` (how much of the write-ahead log is on the disk).
    """

    def __init__(self, root: str, journal: str, fate: Fate | None) -> None:
        self._root = os.path.realpath(root)
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._fate = fate
        self._seen: Counter[str] = Counter()
        self._folders: set[str] = set()
        self._lock = threading.RLock()

    def install(self) -> None:
        """Wrap everything; there is no way back, this is for a process of its own."""
        for name in ("mkdir", "unlink", "rmdir", "link", "replace", "rename"):
            setattr(os, name, self._naming(name))
        for name in ("write", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate"):
            setattr(os, name, self._touching(name))
        setattr(os, "open", self._open)  # noqa: B010 - mypy forbids the assignment
        self._watch_sqlite()
        self._watch_requests()

    def step(self, when: str, what: str) -> None:
        """A step is reached: it is noted, and if it is the one, fate strikes."""
        with self._lock:
            name = f"{when} {_RANDOM.sub('*', what)}"
            self._seen[name] += 1
            if self._seen[name] > 1:
                name += f" #{self._seen[name]}"
            self.note(step=name)
            if self._fate is None or self._fate.step != name:
                return
            if self._fate.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
        if self._fate.how == "fill":
            self._fate.fill()
            return
        self._refuse(what, self._fate.how)

    def note(self, **entry: Any) -> None:
        """Add to the journal, which a kill cannot take back."""
        _REAL["write"](self._journal, json.dumps(entry).encode() + b"\n")

    def _refuse(self, what: str, how: How) -> None:
        if "COMMIT" in what or what.startswith("sql "):
            text, name, code = _SQL_ERRORS[how]
            error = sqlite3.OperationalError(text)
            error.sqlite_errorname, error.sqlite_errorcode = name, code
            raise error
        number = getattr(errno, how)
        raise OSError(number, os.strerror(number))

    # -- files --------------------------------------------------------------------------------

    def _below(self, path: str) -> str | None:
        """`path` relative to the watched folder; None outside of it."""
        if path != self._root and not path.startswith(f"{self._root}/"):
            return None
        return os.path.relpath(path, self._root)

    def _path(self, name: Any, folder: int | None) -> str:
        text = os.fsdecode(name)
        above = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        return os.path.normpath(os.path.join(above, text))

    def _naming(self, name: str) -> Callable[..., Any]:
        real = _REAL[name]
        last = "dst_dir_fd" if name in ("link", "replace", "rename") else "dir_fd"

        def call(*args: Any, **options: Any) -> Any:
            path = self._path(args[-1] if last == "dst_dir_fd" else args[0], options.get(last))
            below = self._below(path)
            if below is None:
                return real(*args, **options)
            self._remember(os.path.dirname(path))
            if last == "dst_dir_fd":
                self._remember(os.path.dirname(self._path(args[0], options.get("src_dir_fd"))))
            self.step("before", f"{name} {below}")
            result = real(*args, **options)
            if name == "rename":
                old = self._path(args[0], options.get("src_dir_fd"))
                self.note(renamed=_REAL["stat"](path).st_ino, old=old, new=path)
            return result

        return call

    def _open(self, path: Any, flags: int, *args: Any, **options: Any) -> int:
        if not flags & os.O_CREAT:
            return int(_REAL["open"](path, flags, *args, **options))
        whole = self._path(path, options.get("dir_fd"))
        below = self._below(whole)
        if below is not None and not os.path.exists(whole):
            self._remember(os.path.dirname(whole))
            self.step("before", f"create {below}")
            created = int(_REAL["open"](path, flags, *args, **options))
            self.note(wrote=os.fstat(created).st_ino)
            return created
        return int(_REAL["open"](path, flags, *args, **options))

    def _touching(self, name: str) -> Callable[..., Any]:
        real = _REAL[name]

        def call(fd: int, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
            below = self._below(path)
            if below is None:
                return real(fd, *args)
            self.step("before", f"{name} {below}")
            if name in ("write", "pwrite", "pwritev"):
                self.note(wrote=os.fstat(fd).st_ino)
                self._half(name, fd, below, *args)
            result = real(fd, *args)
            if name in ("fsync", "fdatasync"):
                self._synced(fd, path, below)
            return result

        return call

    def _half(self, name: str, fd: int, below: str, *args: Any) -> None:
        """Half of the bytes are in the file when the process dies."""
        fate = self._fate
        what = f"{name} {below}"
        label = f"during {_RANDOM.sub('*', what)}"
        if fate is not None and fate.how == "kill" and fate.step.startswith(label):
            count = self._seen[label] + 1
            if fate.step == (label if count == 1 else f"{label} #{count}"):
                data = b"".join(args[0]) if name == "pwritev" else bytes(args[0])
                half = data[: len(data) // 2]
                if name == "write":
                    _REAL["write"](fd, half)
                else:
                    _REAL["pwrite"](fd, half, args[1])
        self.step("during", what)

    # -- what a power cut would leave ------------------------------------------------------------

    def _remember(self, folder: str) -> None:
        """Before its first change all names in a folder count as durable."""
        with self._lock:
            if folder not in self._folders:
                self._folders.add(folder)
                if os.path.isdir(folder):
                    self._names(folder)

    def _names(self, folder: str) -> None:
        names = {}
        for name in _REAL["listdir"](folder):
            try:
                names[name] = _REAL["stat"](f"{folder}/{name}", follow_symlinks=False).st_ino
            except FileNotFoundError:
                continue
        self.note(names=folder, content=names)

    def _synced(self, fd: int, path: str, below: str) -> None:
        if os.path.isdir(path):
            self._names(path)
        elif below.endswith(_WAL):
            self.note(wal=os.fstat(fd).st_size, of=path)
        else:
            self.note(synced=os.fstat(fd).st_ino, size=os.fstat(fd).st_size)

    # -- SQLite -------------------------------------------------------------------------------

    def _watch_sqlite(self) -> None:
        watch = self
        real_connect = sqlite3.connect

        class Watched(sqlite3.Connection):
            path = ""
            durable = False
            first = ""

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                self._before(sql)
                result = super().execute(sql, *args)
                self._after(sql)
                return result

            def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
                self._before(sql)
                return super().executemany(sql, *args)

            def executescript(self, sql: str) -> sqlite3.Cursor:
                if not self.path:
                    return super().executescript(sql)  # in memory: a model to compare with
                watch.step("before", "COMMIT (migration)")
                result = super().executescript(sql)
                self._wal()
                watch.step("after", "COMMIT (migration)")
                return result

            def backup(self, *args: Any, **options: Any) -> None:
                watch.step("before", "sql backup")
                super().backup(*args, **options)
                watch.step("after", "sql backup")

            def close(self) -> None:
                name = os.path.basename(self.path)
                if name:
                    watch.step("before", f"close {name}")
                super().close()
                if name:
                    watch.step("after", f"close {name}")

            def _before(self, sql: str) -> None:
                if sql.startswith("PRAGMA synchronous"):
                    self.durable = sql.endswith("FULL")
                elif sql.startswith("BEGIN"):
                    self.first = ""
                elif sql.startswith(_STATEMENTS) and not self.first:
                    self.first = _head(sql)
                    watch.step("before", f"sql {self.first}")
                elif sql.startswith("COMMIT"):
                    watch.step("before", f"COMMIT ({self.first})")

            def _after(self, sql: str) -> None:
                if sql.startswith("COMMIT"):
                    if self.durable:
                        self._wal()
                    watch.step("after", f"COMMIT ({self.first})")

            def _wal(self) -> None:
                wal = f"{self.path}-wal"
                if wal.endswith(_WAL) and os.path.exists(wal):
                    watch.note(wal=os.path.getsize(wal), of=wal)

        def connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
            connection = real_connect(database, *args, factory=Watched, **options)
            assert isinstance(connection, Watched)
            if watch._below(os.path.realpath(str(database))) is not None:
                connection.path = os.path.realpath(str(database))
                connection._wal()
            return connection

        setattr(sqlite3, "connect", connect)  # noqa: B010 - mypy forbids the assignment

    # -- requests -----------------------------------------------------------------------------

    def _watch_requests(self) -> None:
        watch = self
        real_request = aiohttp.ClientSession._request
        real_write = PiecesBody.write_with_length

        async def request(self: Any, method: str, url: Any, **options: Any) -> Any:
            what = _named(method, str(url), options.get("headers") or {})
            if what is None:
                return await real_request(self, method, url, **options)
            body = options.get("data")
            if isinstance(body, PiecesBody):
                body.__dict__["watched"] = what
            watch.step("before", what)
            answer = await real_request(self, method, url, **options)
            watch.step("after", what)
            return answer

        async def write(
            self: PiecesBody, writer: AbstractStreamWriter, content_length: int | None
        ) -> None:
            what = self.__dict__.get("watched")
            halved: Any = writer if what is None else _Half(watch, what, writer)
            await real_write(self, halved, content_length)

        setattr(aiohttp.ClientSession, "_request", request)  # noqa: B010
        setattr(PiecesBody, "write_with_length", write)  # noqa: B010


class _Half:
    """A connection to which a part of the body has been given when the process dies."""

    def __init__(self, watch: Watch, what: str, writer: AbstractStreamWriter) -> None:
        self._watch = watch
        self._what = what
        self._writer = writer
        self._begun = False

    async def write(self, piece: Any) -> None:
        half = len(piece) // 2
        if not self._begun and half:
            self._begun = True
            await self._writer.write(piece[:half])
            self._watch.step("during", self._what)
            piece = piece[half:]
        await self._writer.write(piece)


def _head(sql: str) -> str:
    """A statement by its first words, and the first column that it sets."""
    words = re.sub(r"\s+", " ", sql).split(" ")
    until = 4 if words[0] == "UPDATE" else 3
    return " ".join(words[:until]).rstrip("(,")


def _named(method: str, url: str, headers: Mapping[str, str]) -> str | None:
    """A request to the store without what is random in it; None for any other."""
    split = urlsplit(url)
    if "/storage/v1/" not in split.path:
        return None
    kind = parse_qs(split.query).get("uploadType", [""])[0]
    span = headers.get("Content-Range", "")
    name = unquote(split.path.partition("/o/")[2])
    words = [method, kind or split.path.rpartition("/v1/")[2].partition("/o/")[0], name, span]
    return " ".join(word for word in words if word)
