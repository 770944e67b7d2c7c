"""Sizes, times and names as a person reads them, in 80 columns and without surprises.

Times are shown in the local time zone of the machine; JSON output has them in UTC. A name that
comes from a recorder may hold anything, so no text goes to a terminal but through `visible`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from nvr_backup.redaction import visible

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB")
_STEPS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def size(count: int) -> str:
    """Bytes in decimal units: `12.3 MB`."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1000
        if value < 999.95 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def number(count: int, one: str, many: str | None = None) -> str:
    """`1 clip`, `1,234 clips`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def span(duration: timedelta) -> str:
    """The two largest units of a duration: `2 h 5 min`; never negative."""
    left = max(0, round(duration.total_seconds()))
    for at, (unit, seconds) in enumerate(_STEPS):
        if left >= seconds:
            count, left = divmod(left, seconds)
            text = f"{count} {unit}"
            if at + 1 < len(_STEPS):
                smaller, step = _STEPS[at + 1]
                if left // step and at < 2:
                    text += f" {left // step} {smaller}"
            return text
    return "0 s"


def ago(moment: datetime, now: datetime) -> str:
    """`5 min ago`, or `in 5 min`."""
    if moment > now:
        return f"in {span(moment - now)}"
    return f"{span(now - moment)} ago"


def local(moment: datetime) -> str:
    """Date and time to the second, in the local time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def zone(moment: datetime) -> str:
    """The local time zone's name at that moment."""
    return moment.astimezone().strftime("%Z") or "local time"


def iso(moment: datetime | None) -> str | None:
    """For JSON: UTC, milliseconds, `Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def short(text: str, width: int) -> str:
    """Visible characters, cut in the middle with an ellipsis where there are too many."""
    shown = visible(text)
    if len(shown) <= width:
        return shown
    head = (width - 1) // 2
    return f"{shown[:head]}…{shown[len(shown) - (width - 1 - head) :]}"
