"""Checks of how long, how much and how many: durations, sizes and counts within their limits.

Like all checks of the configuration it must never repeat a value that it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

from nvr_backup.settings.fields import FromEnvironment
from nvr_backup.settings.quantities import (
    DURATION_EXAMPLES,
    LONGEST_DURATION,
    SIZE_EXAMPLES,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

CHUNK_QUANTUM: Final = 256 * 1024
"""Chunks of a resumable upload are multiples of this (Google Cloud Storage)."""
LARGEST_CHUNK: Final = 256 * 1024 * 1024
MAX_WORKERS: Final = 32
MAX_SNAPSHOTS: Final = 100
LARGEST_SAMPLE: Final = 1024**4


def _duration(shortest: timedelta, longest: timedelta) -> Callable[[object], timedelta]:
    def check(value: object) -> timedelta:
        if isinstance(value, timedelta):
            duration = value
        elif isinstance(value, str):
            duration = parse_duration(value)
        else:
            raise ValueError(f"must be a duration in quotes such as {DURATION_EXAMPLES}")  # noqa: TRY004
        if not shortest <= duration <= longest:
            raise ValueError(
                f"must be between {format_duration(shortest)} and {format_duration(longest)}"
            )
        return duration

    return check


_SECOND: Final = timedelta(seconds=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)

Every = Annotated[timedelta, BeforeValidator(_duration(_SECOND, 366 * _DAY))]
Settle = Annotated[timedelta, BeforeValidator(_duration(timedelta(), _DAY))]
Lookback = Annotated[timedelta, BeforeValidator(_duration(timedelta(), 366 * _DAY))]


def _duration_or(
    shortest: timedelta, longest: timedelta, *words: str
) -> Callable[[object], object]:
    check = _duration(shortest, longest)
    others = ", ".join(f'or "{word}"' for word in words)

    def check_both(value: object) -> object:
        if value in words:
            return str(value)
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f"{error}; {others}") from None

    return check_both


Backfill = Annotated[
    timedelta | Literal["all", "none"],
    BeforeValidator(_duration_or(_SECOND, LONGEST_DURATION, "all", "none")),
]
AuditEvery = Annotated[
    timedelta | Literal["never"],
    BeforeValidator(_duration_or(timedelta(hours=1), 366 * _DAY, "never")),
]


def _size(value: object) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"must be a size in quotes such as {SIZE_EXAMPLES}")


def _sample(value: object) -> int:
    if not 0 <= (size := _size(value)) <= LARGEST_SAMPLE:
        raise ValueError(f"must be from 0B to {format_size(LARGEST_SAMPLE)}")
    return size


Sample = Annotated[int, BeforeValidator(_sample)]


def _chunk_size(value: object) -> int:
    size = _size(value)
    if size % CHUNK_QUANTUM or not CHUNK_QUANTUM <= size <= LARGEST_CHUNK:
        raise ValueError(
            f"must be a multiple of {format_size(CHUNK_QUANTUM)}, "
            f"from {format_size(CHUNK_QUANTUM)} to {format_size(LARGEST_CHUNK)}"
        )
    return size


ChunkSize = Annotated[int, BeforeValidator(_chunk_size)]


def _whole(lowest: int, highest: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, FromEnvironment) and re.fullmatch(r"[0-9]{1,4}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}")
        return value

    return check


Workers = Annotated[int, BeforeValidator(_whole(1, MAX_WORKERS))]
Snapshots = Annotated[int, BeforeValidator(_whole(0, MAX_SNAPSHOTS))]
