"""Exit codes, and how an error becomes two lines on stderr and one of these codes.

A foreseen error never shows a traceback, an unforeseen one always does. Nothing here may repeat a
secret: texts pass through the same redaction as the log.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Final, NoReturn

import structlog
import typer

from nvr_backup import logs
from nvr_backup.database import CheckpointError, EngineRunningError, RebuildNeeded
from nvr_backup.errors import Blocked, ConfigError, NvrBackupError, Transient
from nvr_backup.journal import PRIORITIES, is_journal, prefixed
from nvr_backup.redaction import redacted, visible


class Misused(NvrBackupError):
    """The command line cannot be meant so: exit 2."""


class Code(IntEnum):
    """What a script can rely on; the numbers above 63 are those of sysexits.h."""

    OK = 0
    NOT_ALL = 1
    USAGE = 2
    DAMAGED = 65
    UNREACHABLE = 69
    BUG = 70
    UNWRITABLE = 73
    CHECKPOINT = 74
    ENGINE_RUNNING = 75
    CONFIGURATION = 78
    INTERRUPTED = 130
    PIPE_CLOSED = 141


CODES = """\
\b
Exit codes:
  0    all is well
  1    something is not: clips not stored, a check failed, backup behind
  2    the command line was not understood
  65   the checkpoint is damaged or lost: run `nvr-backup rebuild`
  69   a source or store cannot be used (unreachable, refused, full)
  70   a bug in nvr-backup; the traceback belongs into a report
  73   the folder to restore into cannot be written
  74   the checkpoint cannot be read or written
  75   another nvr-backup works on this state folder
  78   the configuration cannot be used
  130  interrupted; what was under way goes on next time
  141  whoever read the output has closed it (`| head`)
"""


_CODE_OF: Final[tuple[tuple[type[NvrBackupError], Code], ...]] = (
    (Misused, Code.USAGE),
    (ConfigError, Code.CONFIGURATION),
    (EngineRunningError, Code.ENGINE_RUNNING),
    (RebuildNeeded, Code.DAMAGED),
    (CheckpointError, Code.CHECKPOINT),
    (Blocked, Code.UNREACHABLE),
    (Transient, Code.UNREACHABLE),
)
"""The first that fits counts."""


def code_of(error: NvrBackupError) -> Code:
    """The exit code that stands for this error."""
    return next((code for kind, code in _CODE_OF if isinstance(error, kind)), Code.NOT_ALL)


def known_error(error: BaseException) -> NvrBackupError | None:
    """The first foreseen error in `error`, or None if any part of it was not foreseen."""
    if isinstance(error, NvrBackupError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [known_error(part) for part in error.exceptions]
    return None if None in found else found[0]


def say(text: str, level: str = "info") -> None:
    """One message on stderr; never raises because nobody reads it.

    In systemd's journal each line has its priority. They go by stderr, not as entries of `journal`:
    journald knows which unit a line on stderr is from even when the process is gone by the time it
    looks, and these are often a process's only words.
    """
    shown = visible(redacted(text), lines=True)
    with suppress(OSError, ValueError):
        if is_journal(sys.stderr, os.environ):
            shown = prefixed(shown.rstrip("\n"), PRIORITIES[level]).rstrip("\n")
        print(shown, file=sys.stderr, flush=True)  # noqa: T201


def complain(error: NvrBackupError) -> None:
    """An error as the operator sees it: what happened, and what to do."""
    say(f"nvr-backup: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), "error")


@contextmanager
def reported() -> Iterator[None]:
    """Turn what a command raises into messages and exit codes; bugs pass through."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _read_no_more()
        raise typer.Exit(Code.PIPE_CLOSED) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(Code.INTERRUPTED) from None
    except (NvrBackupError, BaseExceptionGroup) as error:
        known = known_error(error)
        if known is None:
            raise
        complain(known)
        raise typer.Exit(code_of(known)) from None


def _read_no_more() -> None:
    """Python flushes stdout once more at its end: into nothing, else it complains."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


_SAFE: Final = "Clips that were recorded as stored are safe; please report it."


def report_bug() -> NoReturn:
    """The exception being handled was not foreseen: show all of it."""
    if is_journal(sys.stderr, os.environ):
        if not structlog.is_configured():  # it did not come so far
            logs.configure()
        structlog.get_logger().critical("ended by a bug", hint=_SAFE, exc_info=True)
    else:
        say(traceback.format_exc())
        say(f"nvr-backup: this is a bug. {_SAFE}")
    sys.exit(Code.BUG)
