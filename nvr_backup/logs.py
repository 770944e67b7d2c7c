"""Logging: one line for a person at a terminal, entries with fields for systemd's journal, one JSON
object for everything else.

Everything goes through the same pipeline, the libraries' own logging too: context (source, camera,
clip, store, object key), time in UTC, no secrets, no control characters. Logging must never raise,
never change the program's course, and never write a secret. Where a message is decided on is not
here: adapters raise, the one place that decides logs.

Loggers come from `structlog.get_logger()`; fields are keywords, never formatted into the message.
Context is bound for a stretch of work with `structlog.contextvars.bound_contextvars`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, NoReturn, TextIO

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import FilteringBoundLogger

from nvr_backup.clock import Clock, SystemClock
from nvr_backup.journal import SOCKET, Journal, is_journal
from nvr_backup.redaction import plain, text

Form = Literal["auto", "console", "json"]
"""How lines look; `auto` is the journal's own form where the stream ends in the journal."""

Level = Literal["debug", "info", "warning", "error"]

MAX_TROUBLES: Final = 1000
"""Kinds of trouble remembered at once; the one longest unheard of is forgotten first."""
LOUD_FAILURES: Final = 10
"""Failures of one kind at one place that are said aloud until something works there again."""
_MAX_TRACEBACK_FRAMES: Final = 50

# engineio adds a handler of its own, past this pipeline, to any of these without a level.
_SELF_HANDLING: Final = ("engineio.client", "engineio.server")

_Fields = Mapping[str, object]
_Renderer = Callable[[dict[str, Any]], str]
_Writer = Callable[[dict[str, Any]], None]


class _Pipeline:
    """From a logger's fields to a finished entry, and with it to whoever writes it."""

    def __init__(self, write: _Writer, clock: Clock) -> None:
        self._write = write
        self._clock = clock

    def log(self, level: str, fields: MutableMapping[str, Any], when: datetime | None) -> None:
        """Write one entry; never raises, whatever the fields are and wherever the stream goes."""
        try:
            self._write(_entry(level, fields, when or self._clock.now()))
        except Exception as error:  # noqa: BLE001 - a log line must not end a backup
            # Only a writer of ours can get here: the fields are harmless by then.
            with suppress(Exception):
                kind = type(error).__name__
                self._write({"time": "", "level": "error", "message": f"an entry was lost: {kind}"})

    # structlog calls this as its only processor; DropEvent tells it that the entry is done.
    def __call__(self, _logger: object, method: str, fields: MutableMapping[str, Any]) -> NoReturn:
        self.log(method, fields, None)
        raise structlog.DropEvent


class _Lines:
    """Entries as lines on a stream."""

    def __init__(self, renderer: _Renderer, stream: TextIO) -> None:
        self._renderer = renderer
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, entry: dict[str, Any]) -> None:
        """One entry; it is dropped when nobody reads the stream any more."""
        line = self._renderer(entry) + "\n"
        try:
            with self._lock:
                try:
                    self._stream.write(line)
                except UnicodeEncodeError:
                    self._stream.write(line.encode("ascii", "backslashreplace").decode("ascii"))
                self._stream.flush()
        except (OSError, ValueError):  # the reader is gone, or the stream is closed
            return


def _entry(level: str, fields: MutableMapping[str, Any], when: datetime) -> dict[str, Any]:
    """The finished fields: time, level, message, the caller's fields, an exception's text last."""
    given = dict(merge_contextvars(None, "", fields))
    message = given.pop("event", "")
    error = given.pop("exc_info", None)
    level = {"warn": "warning", "exception": "error", "fatal": "critical"}.get(level, level)
    entry: dict[str, Any] = {
        "time": when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "message": text(message, lines=True),
    }
    trace = _traceback(error)
    for name, value in given.items():
        own = text(name)
        shown = text(value, lines=True) if own == "stack" else plain(own, value)
        entry[f"{own}_" if own in (*entry, "exception") else own] = shown
    if trace:
        entry["exception"] = text(trace, lines=True)
    return entry


def _traceback(error: object) -> str:
    """The traceback as Python prints it: without the values of local variables."""
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if not isinstance(error, BaseException):
        return ""
    lines = traceback.format_exception(error, limit=-_MAX_TRACEBACK_FRAMES)
    return "".join(lines).rstrip("\n")


class _Bridge(logging.Handler):
    """Takes what libraries log with the standard library into the pipeline."""

    def __init__(self, pipeline: _Pipeline) -> None:
        super().__init__(logging.WARNING)
        self._pipeline = pipeline

    def emit(self, record: logging.LogRecord) -> None:
        """One record as one entry; its logger's name is the field `logger`."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's format string does not fit its arguments
            message = str(record.msg)
        fields: dict[str, Any] = {"event": message, "logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        when = datetime.fromtimestamp(record.created, UTC)
        self._pipeline.log(record.levelname.lower(), fields, when)


def _json(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False)


def _ascii_json(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=True)


def _renderer(form: Form, stream: TextIO, environ: Mapping[str, str]) -> _Renderer:
    is_terminal = _is_terminal(stream)
    if form == "json" or (form == "auto" and not is_terminal):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        return _json if encoding.lower().replace("-", "") == "utf8" else _ascii_json
    coloured = is_terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    # An exception arrives here as text; rich's formatter, the default, would show local variables.
    console = structlog.dev.ConsoleRenderer(
        colors=coloured,
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
        event_key="message",
        timestamp_key="time",
    )

    def render(entry: dict[str, Any]) -> str:
        for name in ("message", "exception", "stack"):
            if name in entry:  # a text with several lines cannot pass for several entries
                entry[name] = entry[name].replace("\n", "\n    ")
        return str(console(None, entry["level"], entry))

    return render


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False


def configure(
    level: Level = "info",
    stream: TextIO | None = None,
    form: Form = "auto",
    *,
    clock: Clock | None = None,
    environ: Mapping[str, str] | None = None,
    journal: str = SOCKET,
) -> None:
    """Send all logging to `stream` (default: stderr); may be called again, as on a reload.

    `auto` is systemd's journal, at its socket `journal`, when the stream ends there; a readable
    line with colours (not with NO_COLOR, not on a dumb terminal) when it is a terminal; else JSON
    lines. Entries below `level` cost next to nothing; libraries
    are heard from WARNING on, or from `level` where that is higher. A logger that was bound
    (`log.bind(...)`) before keeps its old level: bind context instead.
    """
    out = sys.stderr if stream is None else stream
    around = os.environ if environ is None else environ
    writer = (
        Journal(out, journal)
        if form == "auto" and is_journal(out, around)
        else _Lines(_renderer(form, out, around), out)
    )
    pipeline = _Pipeline(writer.write, clock or SystemClock())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[pipeline],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        context_class=dict,
        logger_factory=_nothing,
        cache_logger_on_first_use=False,
    )
    _route_libraries(pipeline, max(logging.WARNING, threshold))


def _nothing(*_args: object) -> None:
    """The wrapped logger: never called, because the pipeline itself writes."""


def _route_libraries(pipeline: _Pipeline, level: int) -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge(pipeline))
    root.setLevel(level)
    for name in _SELF_HANDLING:
        logging.getLogger(name).setLevel(level)


def of_cycle(began: datetime | None) -> AbstractContextManager[object]:
    """What is logged within belongs to the cycle that began then; to none if that is None."""
    if began is None:
        return nullcontext()
    moment = began.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return bound_contextvars(cycle=moment)


class Troubles:
    """First failure of a kind WARNING, repeats DEBUG, recovery once INFO.

    A kind is whatever the caller names by `key`, such as ("stores.offsite", "Blocked"). Bounded;
    used from one thread.
    """

    def __init__(self, clock: Clock, *, limit: int = MAX_TROUBLES) -> None:
        self._clock = clock
        self._limit = limit
        self._open: OrderedDict[object, tuple[float, int]] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def failed(
        self, key: object, log: FilteringBoundLogger, message: str, /, **fields: object
    ) -> bool:
        """Note a failure: the first of its kind is a WARNING (True), a repeat DEBUG (False)."""
        since, failures = self._open.get(key, (self._clock.monotonic(), 0))
        self._open[key] = (since, failures + 1)
        self._open.move_to_end(key)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)
        if failures:
            log.debug(message, failures=failures + 1, **fields)
        else:
            log.warning(message, **fields)
        return failures == 0

    def recovered(
        self, key: object, log: FilteringBoundLogger, message: str, /, **fields: object
    ) -> bool:
        """Note that it works: INFO (True) after a failure of this kind, else nothing (False)."""
        if key not in self._open:
            return False
        since, failures = self._open.pop(key)
        lasted = round(self._clock.monotonic() - since, 1)
        log.info(message, failures=failures, lasted_seconds=lasted, **fields)
        return True


class Floods:
    """Keeps thousands of failures alike (a backlog, and a recorder that refuses every clip) from
    drowning the log: journald drops whatever comes after 10,000 entries in 30 s.

    A place is where work is done, such as a camera and a store. Bounded; used from one thread.
    """

    def __init__(self, *, limit: int = LOUD_FAILURES) -> None:
        self._limit = limit
        self._counts: OrderedDict[object, Counter[object]] = OrderedDict()

    def failed(self, place: object, kind: object) -> bool:
        """Note a failure; whether it is to be said aloud."""
        counts = self._counts.setdefault(place, Counter())
        self._counts.move_to_end(place)
        if len(self._counts) > MAX_TROUBLES:
            self._counts.popitem(last=False)
        if kind in counts or len(counts) < MAX_TROUBLES:
            counts[kind] += 1
        return counts[kind] <= self._limit

    def worked(self, place: object) -> None:
        """Something has succeeded there: the next failure is news."""
        self._counts.pop(place, None)

    def at(self, place: object) -> bool:
        """Whether failures of some kind are not said aloud there any more."""
        return any(count > self._limit for count in self._counts.get(place, {}).values())
