"""What can be brought back: the clips of a stretch of time, and the objects that hold them.

    the checkpoint, where it reaches back far enough      fast, and the witness of every checksum
      └─ else the stores' own listings by day             an object's metadata names its clip
           └─ objects without metadata                    their key tells camera and time

One clip is one `Holding`, in however many stores it lies. It looks and changes nothing; it works
beside a daemon, and without a checkpoint on a machine that has never seen the recorder. It must
never take a checkpoint that begins later than the stretch for the whole truth.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from nvr_backup import report
from nvr_backup.errors import Blocked, NvrBackupError, Transient
from nvr_backup.keys import RESERVED, safe_name, start_of, told_by
from nvr_backup.metadata import clip_of, kept_id
from nvr_backup.model import Camera, Clip, StoredObject, Window, from_ms
from nvr_backup.planner import ended_by
from nvr_backup.ports import ClipStore
from nvr_backup.prefixes import days, list_days, lists_everything

LONGEST_CLIP: Final = timedelta(hours=12)
"""So long before the stretch listings begin: a clip may have begun before it and end within."""

MOST_CLIPS: Final = 500_000
"""At once; each costs about a kilobyte of memory until all are there."""

LIMIT: Final = "Choose a shorter time or a camera."

Witness = Literal["checkpoint", "store"]


@dataclass(frozen=True, slots=True)
class Place:
    """An object that holds a clip. `crc32c` is None where nobody knows what it must be.

    `witness` says whose word size and checksum are: the checkpoint recorded what left the
    recorder; a store says what it took in.
    """

    store: str
    key: str
    size: int
    crc32c: int | None
    generation: str | None
    witness: Witness


@dataclass(frozen=True, slots=True)
class Holding:
    """A clip and where it lies, the first choice first.

    Where only an object's key told of it, ids are "" and the end is None.
    """

    clip: Clip
    places: tuple[Place, ...]


@dataclass(slots=True)
class Footage:
    """What was found. `from_checkpoint` are the stores whose content the checkpoint told.

    `absent` are clips on record that lie in none of the stores asked; `unlisted` the stores that
    could not be listed, with the error; `silent` counts objects that tell neither their camera nor
    their time. `cameras` names all cameras that have clips there, whichever were wanted.
    """

    holdings: list[Holding] = field(default_factory=list)
    absent: list[report.Copy] = field(default_factory=list)
    from_checkpoint: list[str] = field(default_factory=list)
    unlisted: dict[str, NvrBackupError] = field(default_factory=dict)
    silent: int = 0
    cameras: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Known:
    """What the checkpoint has of a stretch. `whole` are stores of which it knows everything."""

    copies: Sequence[report.Copy]
    whole: frozenset[str]
    used: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shelf:
    """A store to look in: its adapter, and the template of its keys."""

    store: ClipStore
    template: str


# -- the checkpoint -------------------------------------------------------------------------------


async def ask_checkpoint(state_dir: Path, window: Window, stores: Collection[str]) -> Known:
    """What the checkpoint knows of the stretch in these stores; raises like `report.ask`."""

    def question(db: sqlite3.Connection) -> Known:
        cameras = [row for (row,) in db.execute("SELECT id FROM camera")]
        begin = window.start - LONGEST_CLIP
        found = report.find_at(db, cameras, begin, window.end, limit=MOST_CLIPS)
        if len(found) >= MOST_CLIPS:
            raise Transient(f"There are {MOST_CLIPS:,} clips or more in that time.", hint=LIMIT)
        return Known(
            [copy for copy in found if copy.store in stores and _touches(_clip(copy), window)],
            frozenset(name for name in stores if _reaches_back(db, name, window.start)),
            frozenset(name for name in stores if _fact(db, f"stored in {name}") is not None),
        )

    return await report.ask(state_dir, question)


def _reaches_back(db: sqlite3.Connection, store: str, start: datetime) -> bool:
    """Whether everything that the store holds from `start` on is on record."""
    oldest = db.execute(
        "SELECT min(start_ms) FROM copy WHERE store = ? AND state = 'stored'", (store,)
    ).fetchone()[0]
    unread = _fact(db, f"unread {store}")
    return (
        oldest is not None
        and from_ms(oldest) <= start
        and (unread is None or from_ms(int(unread)) <= start)
    )


def _fact(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _clip(copy: report.Copy) -> Clip:
    camera = Camera(copy.source, copy.camera_id, copy.camera)
    return Clip(camera, copy.clip, copy.start, copy.end, copy.classes)


# -- all of it ------------------------------------------------------------------------------------


async def look(
    shelves: Mapping[str, Shelf],
    window: Window,
    *,
    known: Known | None,
    wanted: Collection[str],
    full: bool,
) -> Footage:
    """The clips that touch `window` in these stores, by start; the first store is the first choice.

    `wanted` names cameras (names or ids in any case; empty: all). `full` looks at every object of
    the stores, whatever its key and whatever the checkpoint knows. A store that cannot be listed
    is left to the others, or to the checkpoint; its error is raised when nothing else is left.
    """
    found = Footage()
    gathered = _Gathered(window)
    if known is not None:
        gathered.take_copies(known.copies)
    for name, shelf in shelves.items():
        if known is not None and name in known.whole and not full:
            found.from_checkpoint.append(name)
            continue
        try:
            await gathered.take_listing(name, shelf, full=full)
        except (Blocked, Transient) as err:
            err.origin = err.origin or f"stores.{name}"
            found.unlisted[name] = err
    told = known is not None and bool(known.copies)
    if len(found.unlisted) == len(shelves) and not told:
        raise next(iter(found.unlisted.values()))
    order = list(shelves)
    holdings = gathered.holdings(order)
    found.holdings = [one for one in holdings if is_wanted(one.clip.camera, wanted)]
    found.cameras = sorted({one.clip.camera.name for one in holdings}, key=str.casefold)
    found.silent = gathered.silent
    held = {_identity(one.clip) for one in holdings}
    if known is not None:
        missing = {_identity(_clip(copy)): copy for copy in known.copies}
        found.absent = [
            copy
            for identity, copy in missing.items()
            if identity not in held and is_wanted(_clip(copy).camera, wanted)
        ]
    return found


def is_wanted(camera: Camera, wanted: Collection[str]) -> bool:
    """Whether one of these names or ids means the camera, in any case; none mean all."""
    if not wanted:
        return True
    labels = {camera.name.casefold(), camera.id.casefold()}
    if not camera.id:  # a key has the name as it was made safe
        return any(safe_name(name).casefold() == camera.name.casefold() for name in wanted)
    return any(name.casefold() in labels for name in wanted)


def _touches(clip: Clip, window: Window) -> bool:
    ended = max(ended_by(clip), clip.start + timedelta(milliseconds=1))
    return clip.start < window.end and ended > window.start


_Identity = tuple[str, str, str, datetime, datetime | None]


def _identity(clip: Clip) -> _Identity:
    """What two stores call the same clip; ids as an object's metadata has them."""
    camera = clip.camera
    return (camera.source, kept_id(camera.id), kept_id(clip.id), clip.start, clip.end)


@dataclass(slots=True)
class _Gathered:
    """Clips by identity, with their places in the order of discovery."""

    window: Window
    silent: int = 0
    _clips: dict[_Identity, Clip] = field(default_factory=dict)
    _places: dict[_Identity, list[Place]] = field(default_factory=dict)
    _alike: dict[tuple[object, ...], _Identity] = field(default_factory=dict)
    _keys: set[tuple[str, str]] = field(default_factory=set)
    _loose: list[tuple[Clip, Place]] = field(default_factory=list)

    def take_copies(self, copies: Iterable[report.Copy]) -> None:
        for copy in copies:
            if copy.state == "stored" and copy.size is not None:
                self._add(
                    _clip(copy),
                    Place(
                        copy.store, copy.key, copy.size, copy.crc32c, copy.generation, "checkpoint"
                    ),
                )

    async def take_listing(self, name: str, shelf: Shelf, *, full: bool) -> None:
        before, silent = self._count, self.silent
        if not full:
            await self._take(name, shelf, self._of_days(shelf))
            if self._count > before or lists_everything(shelf.template):
                return
        # Nothing lies where the template says: another one may have been in use.
        self.silent = silent
        await self._take(name, shelf, shelf.store.list(""))

    @property
    def _count(self) -> int:
        return len(self._keys)

    def _of_days(self, shelf: Shelf) -> AsyncIterator[StoredObject]:
        first = (self.window.start - LONGEST_CLIP).date()
        return list_days(shelf.store, shelf.template, days(first, self.window.end.date()))

    async def _take(self, name: str, shelf: Shelf, listing: AsyncIterator[StoredObject]) -> None:
        async for each in listing:
            if each.key.startswith(RESERVED) or (name, each.key) in self._keys:
                continue
            place = Place(name, each.key, each.size, each.crc32c, each.generation, "store")
            clip = clip_of(each.metadata)
            if clip is not None:
                if _touches(clip, self.window):
                    self._add(clip, place)
            elif (clip := _told_by_key(shelf.template, each.key)) is None:
                self.silent += 1
            elif _touches(clip, self.window):
                self._keys.add((name, each.key))
                self._loose.append((clip, place))
            if self._count >= MOST_CLIPS:
                raise Transient(f"There are {MOST_CLIPS:,} clips or more in that time.", hint=LIMIT)

    def _add(self, clip: Clip, place: Place) -> None:
        identity = _identity(clip)
        if place.crc32c is not None:
            # A clip's id may have changed after one of its objects was stored.
            alike = (*identity[:2], *identity[3:], place.size, place.crc32c)
            identity = self._alike.setdefault(alike, identity)
        self._clips.setdefault(identity, clip)
        self._places.setdefault(identity, []).append(place)
        self._keys.add((place.store, place.key))

    def holdings(self, order: Sequence[str]) -> list[Holding]:
        """All clips by start, the places of each by the order of the stores."""
        self._join_loose()
        found = [
            Holding(clip, tuple(sorted(self._places[identity], key=lambda p: order.index(p.store))))
            for identity, clip in self._clips.items()
        ]
        return sorted(found, key=lambda one: (one.clip.start, *map(str, _identity(one.clip))))

    def _join_loose(self) -> None:
        """Objects without metadata: copies of an object that has some, else clips of their own."""
        at: dict[tuple[str, int], list[_Identity]] = {}
        for identity, places in self._places.items():
            for place in places:
                at.setdefault((place.key, place.size), []).append(identity)
        for clip, place in self._loose:
            same = [
                identity
                for identity in at.get((place.key, place.size), ())
                if _may_be_same(place, self._places[identity])
            ]
            if same:
                self._places[same[0]].append(place)
                continue
            self._add(replace(clip, id=place.key), place)
            at.setdefault((place.key, place.size), []).append(
                _identity(replace(clip, id=place.key))
            )
        self._loose.clear()


def _may_be_same(place: Place, others: Sequence[Place]) -> bool:
    """Whether nothing is known that tells the object's bytes apart from the others'."""
    return all(
        place.crc32c is None or other.crc32c in {None, place.crc32c}
        for other in others
        if other.key == place.key
    )


def _told_by_key(template: str, key: str) -> Clip | None:
    """What a key alone tells of its clip: the camera's name and the second of its start."""
    told, start = told_by(template, key), start_of(template, key)
    if told is None or start is None:
        return None
    name = told.get("cameraName") or told.get("cameraId") or ""
    return Clip(Camera(told.get("source", ""), "", name), "", start)
