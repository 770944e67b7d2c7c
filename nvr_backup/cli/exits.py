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
from typing import NoReturn

import typer

from nvr_backup.database import CheckpointError, EngineRunningError
from nvr_backup.errors import Blocked, ConfigError, NvrBackupError, Transient
from nvr_backup.redaction import redacted, visible


class Misused(NvrBackupError):
    """The command line cannot be meant so: exit 2."""


class Code(IntEnum):
    """What a script can rely on; the numbers above 63 are those of sysexits.h."""

    OK = 0
    NOT_ALL = 1
    USAGE = 2
    UNREACHABLE = 69
    BUG = 70
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
  69   a source or store cannot be used (unreachable, refused, full)
  70   a bug in nvr-backup; the traceback belongs into a report
  74   the checkpoint cannot be read or written
  75   another nvr-backup works on this state folder
  78   the configuration cannot be used
  130  interrupted; what was under way goes on next time
  141  whoever read the output has closed it (`| head`)
"""


def code_of(error: NvrBackupError) -> Code:
    """The exit code that stands for this error."""
    match error:
        case Misused():
            return Code.USAGE
        case ConfigError():
            return Code.CONFIGURATION
        case EngineRunningError():
            return Code.ENGINE_RUNNING
        case CheckpointError():
            return Code.CHECKPOINT
        case Blocked() | Transient():
            return Code.UNREACHABLE
        case _:
            return Code.NOT_ALL


def known_error(error: BaseException) -> NvrBackupError | None:
    """The first foreseen error in `error`, or None if any part of it was not foreseen."""
    if isinstance(error, NvrBackupError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [known_error(part) for part in error.exceptions]
    return None if None in found else found[0]


def say(text: str) -> None:
    """One message on stderr; never raises because nobody reads it."""
    with suppress(OSError, ValueError):
        print(visible(redacted(text), lines=True), file=sys.stderr, flush=True)  # noqa: T201


def complain(error: NvrBackupError) -> None:
    """An error as the operator sees it: what happened, and what to do."""
    say(f"nvr-backup: {error.message}" + (f"\n  {error.hint}" if error.hint else ""))


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


def report_bug() -> NoReturn:
    """The exception being handled was not foreseen: show all of it."""
    say(traceback.format_exc())
    say("nvr-backup: this is a bug. Clips that were recorded as stored are safe; please report it.")
    sys.exit(Code.BUG)
