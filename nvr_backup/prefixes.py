"""A store's listing of some days: the prefixes that the key template has for them, not all keys.

A template is walked part by part between its slashes. What the day decides is written down, what
it does not (a camera's name) is looked up as folders; where all days below a prefix are wanted the
walk ends and that prefix is listed. It must never leave out an object that the template would put
on a wanted day; it may show others, because a template can hide the day in its last part.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Final, TypeVar, cast

from nvr_backup.keys import PLACEHOLDERS, RESERVED, named, pattern_of
from nvr_backup.model import StoredObject
from nvr_backup.ports import ClipStore

_DAY: Final = timedelta(days=1)
_BY_DAY: Final = ("yyyy", "MM", "dd")
_PLACEHOLDER: Final = re.compile("{(" + "|".join(map(re.escape, PLACEHOLDERS)) + ")}")
_OF_DAY: Final = re.compile("{(yyyy|MM|dd)}")

T = TypeVar("T")
Days = Sequence[date]


def days(first: date, last: date) -> Days:
    """All days from the first to the last."""
    return [first + n * _DAY for n in range((last - first).days + 1)]


def lists_everything(template: str) -> bool:
    """Whether the days of this template cannot be listed but by listing everything."""
    return "/" not in template and not _head(template)


async def list_days(store: ClipStore, template: str, wanted: Days) -> AsyncGenerator[StoredObject]:
    """The objects whose keys the template made from clips that began on these days (UTC).

    Raises like `ClipStore.list`. Not in the order of their keys. Whoever may leave it before its
    end closes it: what the store holds open for it is then given back.
    """
    begin = _Node("", tuple(template.split("/")), wanted, {})
    async with aclosing(_prefixes(store, begin)) as prefixes:
        async for prefix in prefixes:
            async with aclosing(_closable(store.list(prefix))) as listing:
                async for found in listing:
                    if not found.key.startswith(RESERVED):
                        yield found


def _closable(of_the_store: AsyncIterator[T]) -> AsyncGenerator[T]:
    """A store's listing is an async generator, which its contract does not say."""
    return cast("AsyncGenerator[T]", of_the_store)


@dataclass(frozen=True, slots=True)
class _Node:
    """A prefix, the parts of the template that follow, and the days that can lie below.

    `told` has what the prefix says of the day.
    """

    prefix: str
    parts: tuple[str, ...]
    days: Days
    told: Mapping[str, str]

    @property
    def is_wanted_whole(self) -> bool:
        """Whether every day that can lie below is wanted."""
        if not all(name in self.told for name in ("yyyy", "MM")):
            return "yyyy" in self.told and len(self.days) == _length_of_year(self.days[0].year)
        if "dd" in self.told:
            return True
        return len(self.days) == monthrange(self.days[0].year, self.days[0].month)[1]

    def below(self, name: str, told: Mapping[str, str], left: Days) -> _Node:
        return _Node(f"{self.prefix}{name}/", self.parts[1:], left, {**self.told, **told})


async def _prefixes(store: ClipStore, node: _Node) -> AsyncGenerator[str]:
    """What is to be listed; no prefix lies below another."""
    if node.is_wanted_whole:
        yield node.prefix
        return
    part, is_last = node.parts[0], len(node.parts) == 1
    for head, left in _by_text(_head(part), node.days):
        if is_last:
            yield node.prefix + head
        elif head == _filled(part, left[0]):
            below = node.below(head, _told_by(part, left[0]), left)
            async with aclosing(_prefixes(store, below)) as prefixes:
                async for prefix in prefixes:
                    yield prefix
        else:
            async for name, told in _folders(store, node.prefix, head, part):
                there = [day for day in left if _agrees(told, day)]
                if there:
                    async with aclosing(_prefixes(store, node.below(name, told, there))) as within:
                        async for prefix in within:
                            yield prefix


async def _folders(
    store: ClipStore, prefix: str, head: str, part: str
) -> AsyncIterator[tuple[str, Mapping[str, str]]]:
    """Folders that this part of the template can have become, with what they say of the day."""
    pattern = re.compile(pattern_of(part))
    async for folder in store.folders(prefix + head):
        name = folder[len(prefix) :].removesuffix("/")
        match = pattern.fullmatch(name)
        if match is not None and folder != RESERVED:
            yield name, {key: text for key, text in named(match).items() if key in _BY_DAY}


def _head(part: str) -> str:
    """The part up to the first placeholder that the day does not decide."""
    for match in _PLACEHOLDER.finditer(part):
        if match[1] not in _BY_DAY:
            return part[: match.start()]
    return part


def _by_text(pattern: str, wanted: Days) -> Iterator[tuple[str, Days]]:
    """The different texts that these days make of the pattern, each with its days."""
    texts = sorted((_filled(pattern, day), day) for day in wanted)
    for text, of_it in groupby(texts, key=lambda pair: pair[0]):
        yield text, [day for _, day in of_it]


def _filled(text: str, day: date) -> str:
    return _OF_DAY.sub(lambda match: _digits(match[1], day), text)


def _told_by(part: str, day: date) -> Mapping[str, str]:
    return {name: _digits(name, day) for name in _OF_DAY.findall(part)}


def _agrees(told: Mapping[str, str], day: date) -> bool:
    return all(_digits(name, day) == text for name, text in told.items())


def _digits(name: str, day: date) -> str:
    number = {"yyyy": day.year, "MM": day.month, "dd": day.day}[name]
    return f"{number:04d}" if name == "yyyy" else f"{number:02d}"


def _length_of_year(year: int) -> int:
    return (date(year + 1, 1, 1) - date(year, 1, 1)).days if year < date.max.year else 365
