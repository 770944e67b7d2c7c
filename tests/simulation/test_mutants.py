"""The simulation can see: each fault put into the program on purpose breaks a seed, by its name.

A mutant is a way in which the program could really be wrong. It is tried on a few seeds in turn;
one must fail, and say what the mutant does. Without the mutant the same seeds hold (`test_seeds`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from nvr_backup import backlog, pool, rows, transfer
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import Database
from nvr_backup.model import StoredObject
from nvr_backup.mp4 import ClipInspector
from nvr_backup.survey import Survey
from nvr_backup.transfer import Carried, Transfer
from tests.simulation.script import Failed, play

SEEDS_TRIED = 30


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is wrong, how that is brought about, and what the simulation says of it.

    `first` is the first seed to try: one that is known to find it, which saves time.
    """

    name: str
    apply: Callable[[pytest.MonkeyPatch], None]
    says: str
    first: int = 0


def _recorded_before_it_is_whole(patch: pytest.MonkeyPatch) -> None:
    async def finish(_self: Transfer, _upload: Any, chunk: Any) -> Carried:
        crc = chunk.after.crc32c
        return Carried(StoredObject(_self.key, chunk.end, crc), verified=True)

    patch.setattr(Transfer, "_finish", finish)


def _the_stores_word_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    def confirmed(stored: StoredObject, _total: Any, _crc: Any) -> Carried:
        return Carried(stored, verified=True)

    patch.setattr(transfer, "_confirmed", confirmed)


def _content_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClipInspector, "finish", lambda _: None)


def _nothing_reaches_the_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Database, "run_durably", Database.run)


def _a_clip_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    insert = rows.insert_copy

    def forgetful(db: sqlite3.Connection, row: int, **rest: Any) -> None:
        if row % 7:
            insert(db, row, **rest)

    patch.setattr(backlog, "insert_copy", forgetful)


def _the_watermark_ignores_the_backlog(patch: pytest.MonkeyPatch) -> None:
    sql = (
        "SELECT source, source_id, store, listed_until_ms FROM reach JOIN camera ON camera.id ="
        " camera"
    )
    patch.setattr("nvr_backup.checkpoint.WATERMARKS", sql)
    patch.setattr("tests.simulation.invariants.WATERMARKS", sql)


def _a_failed_listing_counts(patch: pytest.MonkeyPatch) -> None:
    advance = Survey._advance

    async def eager(self: Survey, camera: Any, bearings: Any, shown: Any, now: Any) -> None:
        await advance(self, camera, bearings, replace(shown, complete=True), now)

    patch.setattr(Survey, "_advance", eager)


def _claims_outlive_the_process(patch: pytest.MonkeyPatch) -> None:
    wanted = backlog._oldest

    def cautious(db: sqlite3.Connection, *args: Any, **options: Any) -> Any:
        found = wanted(db, *args, **options)
        if found is None:
            return None
        held = db.execute("SELECT claim FROM copy WHERE id = ?", (found[1],)).fetchone()[0]
        return found if held is None else None

    patch.setattr(backlog, "_oldest", cautious)


def _one_failure_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pool, "PATIENCE", 1)


def _an_error_leaves_the_claim(patch: pytest.MonkeyPatch) -> None:
    async def release(_self: Checkpoint, _copy: int, _reason: str | None = None) -> None:
        return

    patch.setattr(Checkpoint, "release", release)


MUTANTS = (
    Mutant("recorded before it is whole", _recorded_before_it_is_whole, "no such object"),
    Mutant(
        "the store's word is not checked",
        _the_stores_word_is_not_checked,
        "with other bytes|not the object's",
    ),
    Mutant("content is not checked", _content_is_not_checked, "it is no video|other bytes"),
    Mutant("nothing reaches the disk", _nothing_reaches_the_disk, "was announced as stored", 6),
    Mutant("a clip is forgotten", _a_clip_is_forgotten, "neither waiting|not accounted for"),
    Mutant(
        "the watermark ignores the backlog",
        _the_watermark_ignores_the_backlog,
        "the watermark .* is not accounted for",
    ),
    Mutant("a failed listing counts", _a_failed_listing_counts, "is not accounted for", 66),
    Mutant("claims outlive the process", _claims_outlive_the_process, "no rest", 4),
    Mutant("one failure is enough", _one_failure_is_enough, "set aside in .* and not truly"),
    Mutant("an error leaves the claim", _an_error_leaves_the_claim, "no rest", 15),
)


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_of_the_program_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.apply(monkeypatch)
    with pytest.raises(Failed, match=mutant.says):
        for seed in range(mutant.first, mutant.first + SEEDS_TRIED):
            play(seed)
