"""`rebuild` as a person sees it: what it says, and what a script can rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nvr_backup.errors import Blocked
from nvr_backup.rebuild import Inventory, Rebuilt
from nvr_backup.workplace import Basis, Start, Wish
from tests.cli.kit import Desk

KEY = "Porch/2026/03/01/17-20-05.mp4"


def footage(desk: Desk, key: str = KEY) -> None:
    path = desk.folder / "nas" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 5000)


def comes(monkeypatch: pytest.MonkeyPatch, rebuilt: Rebuilt) -> list[Wish]:
    """What the work itself comes to; returns what it was asked for."""
    asked: list[Wish] = []

    async def work(_settings: object, wish: Wish, _clock: object, tell: Any) -> Rebuilt:
        asked.append(wish)
        for inventory in rebuilt.inventories:
            tell(inventory)
        return rebuilt

    monkeypatch.setattr("nvr_backup.rebuild.rebuild", work)
    return asked


def test_a_lost_checkpoint_is_made_anew_and_the_next_step_named(desk: Desk) -> None:
    footage(desk)
    answer = desk("rebuild")
    assert answer.code == 0, answer.err
    assert "It begins with nothing but the stores." in answer.out
    assert "stores.nas: 1 object (0 B): 0 added, 0 known." in answer.out
    assert "1 object without metadata that no listed clip matches: left alone" in answer.out
    assert "sources.home could not be asked about them" in answer.out
    assert "systemctl start nvr-backup" in answer.out
    assert (desk.state / "checkpoint.sqlite3").exists()
    assert (desk.folder / "nas" / KEY).read_bytes() == b"x" * 5000


def test_an_empty_store_is_asked_about(desk: Desk) -> None:
    answer = desk("rebuild")
    assert answer.code == 0
    assert "It holds nothing. If that is wrong, look whether its disk is mounted." in answer.out


def test_a_dry_run_changes_nothing_and_says_so(desk: Desk) -> None:
    footage(desk)
    answer = desk("rebuild", "--dry-run")
    assert answer.code == 0
    assert answer.out.endswith("Nothing was changed.\n")
    assert not desk.state.exists()


def test_a_sound_checkpoint_is_said_to_be_one(desk: Desk) -> None:
    desk.clip(5)
    answer = desk("rebuild")
    assert answer.code == 0
    assert "The checkpoint is sound; it was added to." in answer.out


def test_a_damaged_one_is_named_with_where_it_is_now(desk: Desk) -> None:
    desk.state.mkdir()
    (desk.state / "checkpoint.sqlite3").write_bytes(b"no database" * 100)
    for command in ("status", "clips"):
        refused = desk(command)
        assert refused.code == 65
        assert "nvr-backup rebuild" in refused.err
    answer = desk("rebuild", "--json")
    assert answer.code == 0
    found = answer.json
    assert "damaged" in found["damage"]
    assert found["basis"] == "nothing"
    (kept,) = found["kept"]
    assert kept.startswith(str(desk.state / "checkpoint.sqlite3.damaged-"))
    assert desk("clips").code == 0


def test_a_store_that_cannot_be_reached_ends_it_with_69(desk: Desk) -> None:
    (desk.folder / "nas").rmdir()
    answer = desk("rebuild")
    assert answer.code == 69
    assert "--without nas" in answer.err
    left_out = desk("rebuild", "--without", "nas")
    assert left_out.code == 1
    assert "stores.nas was not listed: left out as asked" in left_out.out
    assert "run this again" in left_out.out


def test_misuse_is_told_before_anything_happens(desk: Desk) -> None:
    both = desk("rebuild", "--from", "x.sqlite3", "--no-snapshot")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    unknown = desk("rebuild", "--without", "nsa")
    assert unknown.code == 2
    assert "'nsa'" in unknown.err
    assert "nas" in unknown.err
    assert not desk.state.exists()


def test_options_are_what_is_asked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = comes(monkeypatch, Rebuilt(Start(Basis.NOTHING)))
    desk("rebuild", "--from", "x.sqlite3", "--dry-run")
    desk("rebuild", "--no-snapshot", "--without", "nas")
    assert [(w.dry_run, str(w.snapshot), w.use_snapshots, w.without) for w in asked] == [
        (True, "x.sqlite3", True, frozenset()),
        (False, "None", False, frozenset({"nas"})),
    ]


FULL = Rebuilt(
    Start(Basis.SNAPSHOT, "The checkpoint /x is damaged: y.", "/s/checkpoint-1.sqlite3"),
    ["/x.damaged"],
    [
        Inventory("nas", 1_234, 5_000_000, 1_000, 2, 200, 3, 29, 20),
        Inventory("cloud", unread="The key may not list."),
    ],
    {"home": "timeout"},
)


def test_everything_that_can_come_of_it_is_said(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    comes(monkeypatch, FULL)
    answer = desk("rebuild")
    assert answer.code == 1
    for text in (
        "The checkpoint /x is damaged: y.",
        "It begins with a snapshot: /s/checkpoint-1.sqlite3.",
        "stores.nas: 1,234 objects (",
        "): 1,000 added, 200 known, 2 were waiting or set aside, 20 added by key and size, ",
        " size, 3 stored twice under different keys.",
        "  9 objects without metadata that no listed clip matches: left alone",
        "stores.cloud was not listed: The key may not list.",
        "sources.home could not be asked about them: timeout",
        "Kept: /x.damaged",
    ):
        assert text in answer.out, text


def test_a_script_gets_all_of_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    comes(monkeypatch, FULL)
    answer = desk("rebuild", "--json")
    assert answer.code == 1
    assert json.loads(answer.out) == {
        "dry_run": False,
        "state_dir": str(desk.state),
        "basis": "snapshot",
        "snapshot": "/s/checkpoint-1.sqlite3",
        "damage": "The checkpoint /x is damaged: y.",
        "kept": ["/x.damaged"],
        "stores": [
            {
                "store": "nas",
                "objects": 1_234,
                "bytes": 5_000_000,
                "added": 1_000,
                "known": 200,
                "settled": 2,
                "matched": 20,
                "unmatched": 9,
                "twice": 3,
                "not_listed": None,
            },
            {
                "store": "cloud",
                "objects": 0,
                "bytes": 0,
                "added": 0,
                "known": 0,
                "settled": 0,
                "matched": 0,
                "unmatched": 0,
                "twice": 0,
                "not_listed": "The key may not list.",
            },
        ],
        "not_asked": [{"source": "home", "reason": "timeout"}],
    }


def test_a_long_listing_says_now_and_then_how_far_it_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [Inventory("nas", objects) for objects in (0, 1_000, 9_999, 10_000, 11_000, 20_000)]
    comes(monkeypatch, Rebuilt(Start(Basis.NOTHING), inventories=steps))
    said = desk("rebuild").err.splitlines()
    assert said == ["nas: 10,000 objects listed", "nas: 20,000 objects listed"]


def test_no_control_character_of_a_store_reaches_the_terminal(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(*_: object) -> Rebuilt:
        raise Blocked("bad \x1b[2J bucket", hint="x")

    monkeypatch.setattr("nvr_backup.rebuild.rebuild", work)
    answer = desk("rebuild")
    assert answer.code == 69
    assert "\x1b" not in answer.err


def test_what_a_rebuild_found_is_part_of_a_clips_history(desk: Desk) -> None:
    desk.clip(5)

    async def found(checkpoint: Any, claim: Any) -> None:
        from nvr_backup.found import take_in
        from nvr_backup.model import StoredObject

        each = StoredObject(claim.key, 10, 1)
        await checkpoint._database.run(
            lambda db: take_in(
                db, "nas", claim.clip, each, keys=lambda *_: iter(()), now=desk.ago(0.1)
            )
        )

    desk.outcome(found)
    assert "found in the store by a rebuild" in desk("explain", "porch-5").out
