"""Durations, sizes and rates as people write them in the configuration ("1h30m", "8MiB").

Text in, exact values out, and back again for messages. A number without a unit is refused: whether
`every = 60` meant seconds or minutes must never be a guess. Refusals never repeat what was
written, because a secret may have been pasted into the wrong line.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction
from typing import Final

LONGEST_DURATION: Final = timedelta(days=36_500)
"""A hundred years: long enough for every backfill, short enough for date arithmetic."""

DURATION_EXAMPLES: Final = '"30s", "15m", "1h30m", "24h" or "7d"'
SIZE_EXAMPLES: Final = '"256KiB", "8MiB" or "1GB"'
RATE_EXAMPLES: Final = '"256kbit/s", "10Mbit/s" or "1.5MB/s"'

_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION: Final = re.compile(
    r"(?:(?P<d>[0-9]{1,9})d)?\s*(?:(?P<h>[0-9]{1,9})h)?\s*"
    r"(?:(?P<m>[0-9]{1,9})m)?\s*(?:(?P<s>[0-9]{1,9})s)?"
)
_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,15})\s*(?P<unit>[kmgt]?i?b)", re.IGNORECASE)
_RATE: Final = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,3})?)\s*(?P<unit>[kMG]?(bit|B)/s)")
_BITS: Final = {
    "bit/s": 1,
    "kbit/s": 10**3,
    "Mbit/s": 10**6,
    "Gbit/s": 10**9,
    "B/s": 8,
    "kB/s": 8 * 10**3,
    "MB/s": 8 * 10**6,
    "GB/s": 8 * 10**9,
}
_BYTES: Final = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_duration(text: str) -> timedelta:
    """Days, hours, minutes and seconds in this order, whole numbers; ValueError otherwise."""
    written = text.strip()
    match = _DURATION.fullmatch(written)
    if not written or match is None:
        raise ValueError(f"is not a duration; expected text such as {DURATION_EXAMPLES}")
    seconds = sum(int(number) * _SECONDS[unit] for unit, number in match.groupdict("0").items())
    if seconds > LONGEST_DURATION.total_seconds():
        raise ValueError(f"is longer than {format_duration(LONGEST_DURATION)}")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads as the same whole number of seconds."""
    left = int(duration.total_seconds())
    parts: list[str] = []
    for unit, seconds in _SECONDS.items():
        count, left = divmod(left, seconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(text: str) -> int:
    """Bytes from a whole number with a decimal (kB, MB) or binary (KiB, MiB) unit; ValueError."""
    match = _SIZE.fullmatch(text.strip())
    factor = _BYTES.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"is not a size; expected text such as {SIZE_EXAMPLES}")
    return int(match["number"]) * factor


def parse_rate(text: str) -> int:
    """Bytes per second from bits or bytes per second, in thousands, millions, ...; ValueError."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is not a rate; expected text such as {RATE_EXAMPLES}")
    return round(Fraction(match["number"]) * _BITS[match["unit"]] / 8)


def format_rate(rate: int) -> str:
    """In the largest unit of bits that needs at most three decimals; `parse_rate` reads it back."""
    bits = Fraction(rate * 8)
    for unit in ("Gbit/s", "Mbit/s", "kbit/s"):
        count = bits / _BITS[unit]
        if count >= 1 and (count * 1000).denominator == 1:
            return f"{float(count):.12g}{unit}"
    return f"{bits}bit/s"


def format_size(size: int) -> str:
    """The largest binary unit that divides the size evenly; `parse_size` reads it back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _BYTES[unit.lower()]
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
