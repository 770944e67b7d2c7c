"""What must hold all the time, and when everything has come to rest; told from outside.

The oracle is the world's own record of what was recorded, listed and said, never the program's
word. Only the checkpoint is read, because the promises are about it.

1. A stored copy has a whole object: the store's bytes are those of that very version of the clip.
2. Every known clip is exactly one of waiting, stored, set aside; set aside only for a true reason.
3. No watermark passes a clip that the source had shown, unless it is stored or set aside.
4. No duplicates, nothing overwritten, nothing deleted; what was announced as stored stays so.
5. At rest: everything that can be stored is stored.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from nvr_backup.model import from_ms, to_ms
from nvr_backup.pool import PATIENCE
from nvr_backup.rows import WATERMARKS
from tests.simulation.recorder import SourceSite
from tests.simulation.storage import StoreSite
from tests.simulation.world import SimulatedClock, Truth, Version, World

Key = tuple[str, str, str]
"""Source, camera id, store."""

_STORED = (
    "SELECT copy.id, store, object_key, size, copy.crc32c, camera.source, camera.source_id,"
    " clip.source_id, clip.start_ms, clip.end_ms FROM copy JOIN clip ON clip.id = copy.clip"
    " JOIN camera ON camera.id = clip.camera"
)


class Violated(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The listing pass that moved a reach to where it is: its number, and when it began (true)."""

    listed_until: int
    run: int
    began: datetime


@dataclass
class Invariants:
    """Checks a world, its stores and a checkpoint against each other."""

    world: World
    clock: SimulatedClock
    sources: Mapping[str, SourceSite]
    stores: Mapping[str, StoreSite]
    checked: int = 0  # latest entry of the history that was looked at
    announced: set[tuple[str, str]] = field(default_factory=set)
    _passes: dict[Key, Pass] = field(default_factory=dict)
    _reached: int | None = None
    _changes: int = -1
    _sizes: dict[str, int] = field(default_factory=dict)
    checks: int = 0

    # -- after every transaction --------------------------------------------------------------

    def watch(self, db: sqlite3.Connection) -> None:
        """Cheap: every copy that has been recorded as stored since the last call."""
        if db.total_changes == self._changes:
            return
        self._changes = db.total_changes
        rows = db.execute("SELECT id, copy, outcome FROM attempt WHERE id > ?", (self.checked,))
        for number, copy, outcome in rows.fetchall():
            self.checked = number
            if outcome == "stored":
                self._whole(db.execute(f"{_STORED} WHERE copy.id = ?", (copy,)).fetchone())
        total = db.execute("SELECT sum(listed_until_ms) FROM reach").fetchone()[0]
        if total != self._reached:
            self._reached = total
            self._watermarks(db, self._note_passes(db))

    def recovered(self, db: sqlite3.Connection) -> None:
        """The checkpoint was opened again after a crash: numbers may have gone back."""
        self.checked = db.execute("SELECT ifnull(max(id), 0) FROM attempt").fetchone()[0]

    def _whole(self, row: tuple[Any, ...]) -> None:
        copy, store, key, size, crc, source, camera, clip, start, end = row
        site = self.stores[store]
        held = site.shelf.get(key)
        what = f"copy {copy} ({camera} {clip} at {start}) in {store} under {key}"
        if held is None:
            raise Violated(f"{what} is recorded as stored, but there is no such object")
        stored, data = held
        truth = self._truth(source, camera, clip, start, end)
        if truth is None:
            raise Violated(f"{what} is stored, but there never was such a clip")
        if truth.bad:
            raise Violated(f"{what} is stored, but it is no video ({truth.bad})")
        first = next((i for i, v in enumerate(truth.versions) if _end(v.clip.end) == end), 0)
        if data not in [version.data for version in truth.versions[first:]]:
            raise Violated(f"{what} is stored with other bytes ({len(data)}) than the clip has")
        if (size, crc) != (stored.size, stored.crc32c) or size != len(data):
            raise Violated(f"{what} is recorded with {size} bytes, CRC {crc}: not the object's")

    def _truth(
        self, source: str, camera: str, clip: str, start: int, end: int | None
    ) -> Truth | None:
        """The recording a row is about."""
        ended = None if end is None else from_ms(end)
        return self.world.find(source, camera, clip, from_ms(start), ended)

    # -- now and then -------------------------------------------------------------------------

    def check(self, db: sqlite3.Connection) -> None:
        """Everything but the state of rest."""
        self.checks += 1
        self._states(db)
        self._stored(db)
        self._note_passes(db)
        self._watermarks(db, self._passes.keys())
        self._objects()

    def _objects(self) -> None:
        for site in self.stores.values():
            if site.shelf.broken:
                raise Violated(f"{site.name}: {site.shelf.broken[0]}")
            for key, data in site.foreign.items():
                if site.shelf[key][1] != data:
                    raise Violated(f"{site.name}: somebody else's {key} was changed")
            if len(site.shelf) != self._sizes.get(site.name):
                self._sizes[site.name] = len(site.shelf)
                self._once(site)

    def _once(self, site: StoreSite) -> None:
        seen: dict[tuple[object, ...], str] = {}
        for key, (stored, data) in site.shelf.items():
            if key in site.foreign or key in site.spoilt:
                continue
            fields = ("source", "camera-id", "clip-id", "start", "end")
            identity = (*(stored.metadata.get(field) for field in fields), data)
            if identity in seen:
                raise Violated(f"{site.name} holds one clip twice: {seen[identity]} and {key}")
            seen[identity] = key

    def _states(self, db: sqlite3.Connection) -> None:
        lost = db.execute(
            "SELECT source_id, start_ms FROM clip WHERE id NOT IN (SELECT clip FROM copy) LIMIT 1"
        ).fetchone()
        if lost is not None:
            raise Violated(
                f"the clip {lost[0]} at {lost[1]} is neither waiting, stored nor set aside"
            )
        odd = db.execute(
            "SELECT copy.id, state FROM copy LEFT JOIN upload ON upload.copy = copy.id"
            " WHERE state NOT IN ('waiting', 'stored', 'set_aside')"
            " OR state != 'waiting' AND (claim IS NOT NULL OR upload.copy IS NOT NULL)"
            " OR state = 'set_aside' AND reason IS NULL"
            " OR state = 'stored' AND (size IS NULL OR finished_ms IS NULL) LIMIT 1"
        ).fetchone()
        if odd is not None:
            raise Violated(f"copy {odd[0]} is {odd[1]} and something else besides")
        rows = db.execute(
            "SELECT store, camera.source, camera.source_id, clip.source_id, clip.start_ms,"
            " clip.end_ms, reason FROM copy JOIN clip ON clip.id = copy.clip"
            " JOIN camera ON camera.id = clip.camera WHERE state = 'set_aside'"
        )
        for store, source, camera, clip, start, end, reason in rows.fetchall():
            truth = self._truth(source, camera, clip, start, end)
            if truth is None or not self._true(reason, source, store, truth):
                raise Violated(f"{camera} {clip} is set aside in {store}, and not truly: {reason}")

    def _true(self, reason: str, source: str, store: str, truth: Truth) -> bool:
        site = self.sources[source]
        ids = [(truth.camera.id, version.clip.id) for version in truth.versions]
        if match := re.fullmatch(r"The clip (.*) is gone\.", reason):
            return (truth.camera.id, match[1]) in site.gone
        if "object key" in reason:
            return bool(self.stores[store].foreign or self.stores[store].spoilt)
        return bool(truth.bad) or sum(site.bad_bodies[one] for one in ids) >= PATIENCE

    def _stored(self, db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT store, object_key FROM copy WHERE state = 'stored'").fetchall()
        if missing := self.announced - set(rows):
            raise Violated(f"{min(missing)} was announced as stored and is not any more")
        for store, key in rows:
            if key not in self.stores[store].shelf:
                raise Violated(f"{key} is recorded as stored in {store} and is not there")

    def _watermarks(self, db: sqlite3.Connection, of: Collection[Key]) -> None:
        if not of:
            return
        known = {camera: self._accounted(db, camera) for _, camera, _ in of}
        begins = _begins(db)
        for source, camera, store, mark in db.execute(WATERMARKS).fetchall():
            if (source, camera, store) not in of:
                continue
            begin, moved = begins[source, camera, store], self._passes[source, camera, store]
            for truth in self.world.of_camera[source, camera]:
                version = truth.at(moved.began)
                if version is None or (store, truth_id(truth)) in known[camera]:
                    continue
                end = to_ms(version.clip.end or version.clip.start + timedelta(minutes=5))
                listable = to_ms(version.clip.end or version.clip.start) > begin
                if listable and end < mark and self._must_be_known(truth, version, moved):
                    raise Violated(
                        f"the watermark of {camera} for {store} is {from_ms(mark)}, but"
                        f" {version.clip.id} (until {from_ms(end)}) is not accounted for"
                    )

    def _note_passes(self, db: sqlite3.Connection) -> set[Key]:
        """When the pass began that moved a reach to where it is (true time). Those that moved."""
        moved = set()
        for source, camera, store, listed_until in db.execute(
            "SELECT source, source_id, store, listed_until_ms FROM reach"
            " JOIN camera ON camera.id = reach.camera"
        ).fetchall():
            key = (source, camera, store)
            before = self._passes.get(key)
            if before is None or before.listed_until < listed_until:
                shown = self.sources[source].shown[camera]
                run = shown[-1].run if shown else 0
                began = (one.moment for one in shown if one.run == run)
                moment = next(began, datetime.min.replace(tzinfo=UTC))
                self._passes[key] = Pass(listed_until, run, moment)
                moved.add(key)
            elif before.listed_until > listed_until:
                self._passes[key] = replace(before, listed_until=listed_until)
        return moved

    def _must_be_known(self, truth: Truth, version: Version, moved: Pass) -> bool:
        """Whether there is no excuse: the latest listing that should have shown it left it out.

        If none should have although it was there, the watermark has passed what nobody asked for.
        """
        listings = self.sources[truth.camera.source].shown[truth.camera.id]
        for shown in reversed(listings):
            if shown.run > moved.run:
                continue
            if shown.moment < version.since:
                break
            if shown.window.start <= (version.clip.end or version.clip.start) and (
                version.clip.start < shown.window.end
            ):
                if truth.at(shown.moment) is None:  # deleted while the pass went on
                    return False
                if shown.empty:
                    if all(one.empty for one in listings if one.run == shown.run):
                        continue  # a pass that showed nothing at all counts for nothing
                    return False
                return version.clip.id not in shown.hidden
        return True

    def _accounted(self, db: sqlite3.Connection, camera: str) -> set[tuple[str, int]]:
        """(store, recording) of all copies of a camera that are stored or set aside."""
        found = set()
        sql = f"{_STORED} WHERE state != 'waiting' AND camera.source_id = ?"
        for _, store, _, _, _, source, _, clip, start, end in db.execute(sql, (camera,)).fetchall():
            truth = self._truth(source, camera, clip, start, end)
            if truth is not None:
                found.add((store, truth_id(truth)))
        return found

    # -- at rest ------------------------------------------------------------------------------

    def waiting(self, db: sqlite3.Connection, *, videos: bool) -> list[int]:
        """Copies that wait; with `videos` without those of clips that are none."""
        found = []
        for row in db.execute(f"{_STORED} WHERE state = 'waiting'").fetchall():
            copy, _, _, _, _, source, camera, clip, start, end = row
            truth = self._truth(source, camera, clip, start, end)
            if truth is None or not (videos and truth.bad):
                found.append(copy)
        return found

    def missing(self, db: sqlite3.Connection, routes: Mapping[str, tuple[str, ...]]) -> list[str]:
        """What could be stored and is not, in words; `routes`: the stores of each source."""
        stored: set[tuple[str, int, int | None]] = set()
        for row in db.execute(f"{_STORED} WHERE state = 'stored'").fetchall():
            _, store, _, _, _, source, camera, clip, start, end = row
            truth = self._truth(source, camera, clip, start, end)
            if truth is not None:
                stored.add((store, truth_id(truth), end))
        begins = _begins(db)
        absent = []
        for truth in self.world.truths:
            version = self.world.listed(truth)
            if version is None or truth.bad:
                continue
            source, camera = truth.camera.source, truth.camera.id
            for store in routes[source]:
                begin = begins.get((source, camera, store))
                end = version.clip.end
                ended = to_ms(end or version.clip.start)
                if begin is not None and ended <= begin:
                    continue
                if (store, truth_id(truth), _end(end)) not in stored:
                    absent.append(f"{camera} {version.clip.id} ({end}) in {store}")
        return absent


def truth_id(truth: Truth) -> int:
    """A recording's own number."""
    return id(truth)


def _begins(db: sqlite3.Connection) -> dict[Key, int]:
    """Where listings begin."""
    rows = db.execute(
        "SELECT source, source_id, store, begin_ms FROM reach JOIN camera ON camera.id = camera"
    )
    return {(source, camera, store): begin for source, camera, store, begin in rows}


def _end(end: datetime | None) -> int | None:
    return None if end is None else to_ms(end)
