"""`transfer.upload_limit`: one rate, or a table of rates by the time of day.

Checks what is written and makes a `Timetable` of it. Like all checks of the configuration it must
never repeat a value that it refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

from nvr_backup.settings.fields import FromEnvironment
from nvr_backup.settings.quantities import RATE_EXAMPLES, format_rate, parse_rate
from nvr_backup.uplink import DAY_MINUTES, Span, Timetable

SLOWEST: Final = 8_000
"""Bytes per second, 64 kbit/s: at less, a clip of a GB takes longer than an upload may (6 days)."""

MAX_SPANS: Final = 48
UNLIMITED_WORD: Final = "unlimited"
OTHERWISE: Final = "otherwise"

_SPAN: Final = re.compile(r"(\d\d):(\d\d)\s*-\s*(\d\d):(\d\d)")


def _rate(value: object) -> int | None:
    if not isinstance(value, str):
        raise ValueError(f"must be a rate in quotes such as {RATE_EXAMPLES}")  # noqa: TRY004
    if value.strip() == UNLIMITED_WORD:
        return None
    rate = parse_rate(value)
    if rate < SLOWEST:
        raise ValueError(f"must be at least {format_rate(SLOWEST)}")
    return rate


def _span(name: object, value: object) -> Span:
    match = _SPAN.fullmatch(name.strip()) if isinstance(name, str) else None
    if match is None:
        raise ValueError('has a time of day that is not like "08:00-23:00"')
    hours, minutes, end_hours, end_minutes = map(int, match.groups())
    begin, end = hours * 60 + minutes, end_hours * 60 + end_minutes
    if max(minutes, end_minutes) > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES:
        raise ValueError("has a time of day that no clock shows (00:00 to 24:00)")
    if begin == end:
        raise ValueError('has a time of day that ends where it begins; all day is "00:00-24:00"')
    return Span(begin, end, _rate(value))


def _timetable(value: object) -> Timetable:
    if isinstance(value, Timetable):
        return value
    if isinstance(value, FromEnvironment) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError('is not a table; expected {"08:00-23:00": "10Mbit/s"}') from None
    if not isinstance(value, Mapping):
        return Timetable(otherwise=_rate(value))
    spans = [_span(name, rate) for name, rate in value.items() if name != OTHERWISE]
    if len(spans) > MAX_SPANS:
        raise ValueError(f"must not have more than {MAX_SPANS} times of day")
    if any(one.overlaps(other) for one, other in combinations(spans, 2)):
        raise ValueError("has two times of day that overlap")
    otherwise = _rate(value[OTHERWISE]) if OTHERWISE in value else None
    return Timetable(tuple(sorted(spans, key=lambda span: span.begin)), otherwise)


UploadLimit = Annotated[
    Timetable,
    BeforeValidator(_timetable),
    # As it is written, not as it is kept: one value, whatever its form.
    WithJsonSchema({"type": ["string", "object"]}),
]


def format_limit(limit: Timetable) -> str:
    """The limit in words: "10Mbit/s", or "08:00-23:00 10Mbit/s, otherwise unlimited"."""
    return ", ".join(_words(limit))


def _words(limit: Timetable) -> Iterator[str]:
    for span in limit.spans:
        yield f"{_clock(span.begin)}-{_clock(span.end)} {_rate_text(span.rate)}"
    rest = _rate_text(limit.otherwise)
    yield f"{OTHERWISE} {rest}" if limit.spans else rest


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _rate_text(rate: int | None) -> str:
    return UNLIMITED_WORD if rate is None else format_rate(rate)
