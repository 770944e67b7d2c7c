"""`verify` on a folder, with the recorder away: what is said, what is put back, how it ends."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from nvr_backup.cli.exits import Code
from nvr_backup.cli.verify import SHOWN
from nvr_backup.inquiry import Answer
from nvr_backup.model import StoredObject, Window, to_ms
from nvr_backup.verification import STRAYS_KEPT
from nvr_backup.verify import NOT_ASKED, NOWHERE
from tests.cli.kit import CONFIG, GARDEN, TALLY, Desk

OLD = 30 * 24.0
"""Hours: a clip that the default range does not reach."""


def sql(desk: Desk, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(desk.state / "checkpoint.sqlite3")) as db, db:
        return db.execute(statement, values).fetchall()


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A store that was used before, by its marker."""
    (desk.folder / "nas" / ".nvr-backup").mkdir()
    (desk.folder / "nas" / ".nvr-backup" / "store.json").touch()
    return desk


def found_by_an_audit(desk: Desk, what: str = "missing") -> None:
    """Every stored copy was found wrong a while ago."""
    at = to_ms(desk.ago(48))
    sql(desk, f"INSERT INTO finding SELECT id, {at}, '{what}', 'was looked at', NULL FROM copy")


def test_what_is_missing_is_named_and_put_back(desk: Desk) -> None:
    desk.clip(5)
    desk.store()
    answer = desk("verify")
    assert answer.code == Code.NOT_ALL
    assert "stores.nas: 0 right, 1 wrong" in answer.out
    assert "sources.home could not be asked" in answer.out
    fixed = desk("verify", "--fix", "--json")
    assert fixed.code == Code.UNREACHABLE  # the recorder, and nothing is wrong any more
    (one,) = fixed.json["wrong"]
    assert (one["what"], one["source"], one["planned_again"], one["left"]) == (
        "missing",
        "home",
        True,
        None,
    )
    assert sql(desk, "SELECT state FROM copy") == [("waiting",)]


def test_what_an_audit_found_in_old_footage_needs_no_since(desk: Desk) -> None:
    desk.clip(OLD)
    desk.store()
    found_by_an_audit(desk)
    desk.cycle()
    assert "`nvr-backup verify --fix` stores them anew" in desk("status").out
    answer = desk("verify", "--fix")
    assert "1 clip back in the backlog" in answer.out
    assert sql(desk, "SELECT state FROM copy") == [("waiting",)]
    assert "Found wrong" not in desk("status").out


def test_what_was_put_right_by_hand_is_right(desk: Desk) -> None:
    clip = desk.clip(OLD)
    desk.store()
    found_by_an_audit(desk)
    there = desk.folder / "nas" / "Porch"
    there.mkdir()
    with (there / f"{to_ms(clip.start)}.mp4").open("wb") as file:
        file.truncate(1_500_000)
    answer = desk("verify", "--json")
    assert (answer.code, answer.json["wrong"]) == (Code.UNREACHABLE, [])
    assert sql(desk, "SELECT * FROM finding") == []


def test_nothing_is_put_back_for_a_store_that_cannot_be_asked(desk: Desk) -> None:
    """What was found there once may be right by now, and the clip gone at the recorder."""
    desk.clip(5)
    desk.store()
    found_by_an_audit(desk)
    (desk.folder / "nas" / ".nvr-backup" / "store.json").unlink()
    answer = desk("verify", "--fix")
    assert answer.code == Code.NOT_ALL
    assert f"1 clip left as found: {NOT_ASKED}." in answer.out
    assert sql(desk, "SELECT state FROM copy") == [("stored",)]


def test_nothing_is_put_back_that_nobody_would_carry(desk: Desk) -> None:
    desk.clip(5)
    desk.store()
    desk.clip(4, GARDEN)
    desk.store()
    sql(desk, "UPDATE camera SET source = 'attic' WHERE name = 'Porch'")
    answer = desk("verify", "--fix", "--json")
    assert answer.code == Code.NOT_ALL
    assert {one["source"]: one["left"] for one in answer.json["wrong"]} == {
        "attic": NOWHERE,
        "home": None,
    }
    assert sorted(sql(desk, "SELECT state FROM copy")) == [("stored",), ("waiting",)]


def test_a_store_that_is_no_longer_configured_is_no_alarm(desk: Desk) -> None:
    desk.clip(5)
    desk.store()
    found_by_an_audit(desk)
    desk.cycle()
    desk.listed()
    assert desk("status").code == Code.NOT_ALL
    desk.configure(CONFIG.replace("[stores.nas]", "[stores.other]"))
    answer = desk("status")
    assert "Found wrong in nas, which is no longer configured: 1 missing" in answer.out
    assert answer.code == 0, answer.out


def test_what_is_not_shown_is_counted(desk: Desk) -> None:
    desk.clip(5)
    desk.store()
    day = desk.ago(5)
    folder = desk.folder / "nas" / "Porch" / f"{day:%Y/%m/%d}"
    folder.mkdir(parents=True)
    for number in range(STRAYS_KEPT + 1):
        (folder / f"{number}.txt").touch()
    answer = desk("verify")
    more = STRAYS_KEPT + 1 - SHOWN
    assert f"and {more:,} more; `--json` has the first {STRAYS_KEPT:,}" in answer.out
    (folder / "0.txt").unlink()
    answer = desk("verify")
    assert f"and {more - 1:,} more; `--json` has them" in answer.out


def test_a_time_to_come_is_a_mistake(desk: Desk) -> None:
    desk.clip(5)
    tomorrow = (desk.now + timedelta(days=1)).isoformat()
    answer = desk("verify", "--since", tomorrow)
    assert (answer.code, "future" in answer.err) == (Code.USAGE, True)


def test_a_recorder_is_not_asked_for_days_that_nobody_wants(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each day of each camera is a request."""
    asked: list[Window] = []

    async def inquire(_sources: object, window: Window, **_: object) -> Answer:
        asked.append(window)
        return Answer()

    monkeypatch.setattr("nvr_backup.verify.inquire", inquire)
    desk.clip(5)  # its camera is wanted from ten days ago on
    desk("verify", "--since", "365d")
    desk("verify", "--since", "24h")
    assert [window.end - window.start > timedelta(days=11) for window in asked] == [False, False]
    assert asked[0].start == desk.ago(240)
    assert asked[1].end - asked[1].start < timedelta(days=2)


def test_however_many_are_put_back_no_writer_waits_for_all(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that cannot write for 15 s ends."""
    monkeypatch.setattr("nvr_backup.verify.HEALED_AT_ONCE", 2)
    for hours in range(1, 6):
        desk.clip(hours)
        desk.store()
    assert "5 clips back in the backlog" in desk("verify", "--fix").out


def in_truth(desk: Desk, hours: float) -> Path:
    """A clip that is stored, with its bytes; its file."""
    clip = desk.clip(hours)
    data = f"the clip of {hours} hours ago".ljust(1000).encode()
    crc = google_crc32c.value(data)
    desk.outcome(
        lambda checkpoint, claim: checkpoint.commit_stored(
            claim.copy,
            StoredObject(claim.key, len(data), crc),
            verified=True,
            tally=TALLY,
            now=desk.ago(0.2),
        )
    )
    file = desk.folder / "nas" / "Porch" / f"{to_ms(clip.start)}.mp4"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def test_what_was_found_corrupt_is_read_again_without_being_asked_for(desk: Desk) -> None:
    in_truth(desk, 3)
    mended = in_truth(desk, OLD)
    rotten = in_truth(desk, OLD + 1)
    rotten.write_bytes(bytes(1000))
    names = {file.name for file in (mended, rotten)}
    sql(
        desk,
        "INSERT INTO finding SELECT id, 1, 'content', 'was looked at', NULL FROM copy"
        " WHERE object_key IN (?, ?)",
        *(f"Porch/{name}" for name in names),
    )
    answer = desk("verify", "--json")
    assert answer.code == Code.NOT_ALL
    assert [one["key"] for one in answer.json["wrong"]] == [f"Porch/{rotten.name}"]
    (store,) = answer.json["stores"]
    assert (store["right"], store["wrong"], store["read_back"]) == (2, 1, 2)


def test_what_is_read_again_counts_against_the_budget(desk: Desk) -> None:
    for hours in (3, 4, 5):
        in_truth(desk, hours)
    sql(desk, "INSERT INTO finding SELECT id, 1, 'content', '', NULL FROM copy WHERE id = 1")
    answer = desk("verify", "--json", "--deep", "--budget", "2000B")
    (store,) = answer.json["stores"]
    assert (store["read_back"], store["read_back_bytes"]) == (2, 2000)
