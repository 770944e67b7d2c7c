"""What differs between two configurations, key by key: what a reload tells the operator.

A secret's value never appears; that it changed does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pydantic import BaseModel, SecretStr

from nvr_backup.settings.limits import format_limit
from nvr_backup.settings.model import Settings
from nvr_backup.settings.quantities import format_duration, format_size
from nvr_backup.uplink import Timetable

ABSENT: Final = "(absent)"
SECRET: Final = "(secret)"  # noqa: S105 - the mask, not a secret
CHANGED: Final = "(changed)"


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs; the texts are for people, `(absent)` where there is no value."""

    path: str
    old_text: str
    new_text: str


def changes(old: Settings, new: Settings) -> list[Change]:
    """Every key whose value differs, ordered by path; empty when nothing changed."""
    before, after = dict(_leaves("", old)), dict(_leaves("", new))
    return [
        Change(path, *_texts(path, before.get(path), after.get(path)))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(f"{path}.{name}" if path else name, getattr(value, name))
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}", part)
    else:
        yield path, value


def _texts(path: str, old: object, new: object) -> tuple[str, str]:
    if isinstance(old, SecretStr) and isinstance(new, SecretStr):
        return SECRET, CHANGED
    return _text(path, old), _text(path, new)


def _text(path: str, value: object) -> str:
    match value:
        case None:
            return ABSENT
        case SecretStr():
            return SECRET
        case timedelta():
            text = format_duration(value)
        case int() if path in {"transfer.chunk_size", "audit.sample"}:
            text = format_size(value)
        case Timetable():
            text = format_limit(value)
        case tuple():
            text = ", ".join(map(str, value)) or "(none)"
        case _:
            text = str(value) or "(empty)"
    return text
