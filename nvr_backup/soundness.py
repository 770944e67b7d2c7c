"""Whether a checkpoint's file can be relied on: not lost, not damaged, of our making.

Looks and says what is wrong, in words that complete "The checkpoint … is …". It must never change,
move or remove anything: the file that looks hopeless may be all that is left.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Final
from urllib.parse import quote

SNAPSHOTS_FOLDER: Final = "snapshots"
SNAPSHOT_PATTERN: Final = "checkpoint-*.sqlite3"
"""Below the state folder: online copies of the checkpoint (see `snapshots`)."""

DAMAGE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Results of SQLite that say that the file itself is wrong (sqlite.org/rescode.html)."""

BUSY_SECONDS: Final = 15.0
"""How long one writer waits for another process's (`retry` beside a running daemon)."""

_READ_BYTES: Final = 1 << 20

SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""Python cannot even make an error of a message that quotes a garbled schema."""


def is_damage(error: Exception) -> bool:
    """Whether an error of SQLite says that the file is damaged, not that it cannot be reached."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)  # absent where Python itself raised
    return code is not None and (code & 0xFF) in DAMAGE_CODES


def lost(path: Path) -> str | None:
    """Why an absent or empty file is not the beginning of a new checkpoint; None if it may be.

    To be asked before SQLite is: it removes the write-ahead log of an empty database, which is then
    all that is left. OSError when the folder cannot be looked at.
    """
    if _size(path):
        return None
    if traces := sorted(trace.name for trace in _traces(path)):
        what = "empty" if path.exists() else "gone"
        more = f" and {len(traces) - 1} more" if len(traces) > 1 else ""
        return f"{what}, but there was one ({traces[0]}{more} beside it)"
    return None


def _traces(path: Path) -> Iterator[Path]:
    """What only a checkpoint that was in use leaves behind."""
    journal = path.with_name(f"{path.name}-wal")
    if _size(journal):
        yield journal
    yield from path.parent.glob(f"{path.name}.*")  # kept aside by a rebuild, or half rebuilt
    yield from (path.parent / SNAPSHOTS_FOLDER).glob(SNAPSHOT_PATTERN)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def examine(path: Path, migrations: Sequence[str]) -> str | None:
    """What is wrong with a checkpoint's file, every page looked at; None when it is sound.

    Through a connection that cannot write: the last one to be closed would otherwise move the
    write-ahead log into a damaged file. OSError or sqlite3.Error when it cannot be looked at.
    """
    with closing(look_at(path)) as connection:
        if what := damage(connection, path):
            return what
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            return foreign(connection)
        if version > len(migrations):
            return None  # a newer program's: whoever opens it says so
        return misshapen(connection, migrations[:version])


def look_at(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; FileNotFoundError without the file."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def damage(connection: sqlite3.Connection, path: Path) -> str | None:
    """What SQLite finds wrong with the file; None when it is sound.

    `integrity_check` visits every page and compares each index with its table, which `quick_check`
    does not: through an index that lost its entries every clip would look new and be stored again.
    About 2.5 s for a million clips (480 MB), after the file was read once from end to end, without
    which a cold disk takes six times as long.
    """
    try:
        _read_through(path)
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(1)")]
    except SQLITE_ERRORS as err:
        if not is_damage(err):
            raise
        return f"damaged: {err}"
    return None if found == ["ok"] else f"damaged: {' '.join(found[0].split())}"


def _read_through(path: Path) -> None:
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while file.readinto(buffer):
            pass


def foreign(connection: sqlite3.Connection) -> str | None:
    """Why a database without our version number is not an empty one; None if it is."""
    row = connection.execute("SELECT name FROM sqlite_schema LIMIT 1").fetchone()
    return None if row is None else f"damaged: it has no version but {row[0]!r} in it"


def misshapen(connection: sqlite3.Connection, migrations: Sequence[str]) -> str | None:
    """What of the schema that `migrations` make is missing; None when all is there."""
    wanted = _shape_of(migrations)
    found = _shape(connection)
    for name in sorted(wanted.keys() - found.keys()):
        return f"damaged: it has no {name}"
    for name in sorted(wanted):
        if missing := wanted[name] - found[name]:
            return f"damaged: {name} has no {min(missing)}"
    return None


def _shape_of(migrations: Sequence[str]) -> dict[str, frozenset[str]]:
    model = sqlite3.connect(":memory:")
    try:
        for name in migrations:
            model.executescript(files("nvr_backup").joinpath(name).read_text("utf-8"))
        return _shape(model)
    finally:
        model.close()


def _shape(connection: sqlite3.Connection) -> dict[str, frozenset[str]]:
    """Tables with their columns, indexes with none."""
    names = connection.execute("SELECT type, name FROM sqlite_schema").fetchall()
    return {
        f"{kind} {name}": frozenset(
            row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))
        )
        if kind == "table"
        else frozenset()
        for kind, name in names
    }
