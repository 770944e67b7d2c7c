"""Objects that a store turned out to hold, against the rows of a real checkpoint."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvr_backup import found
from nvr_backup.backlog import begin_reaches
from nvr_backup.database import MIGRATIONS, CheckpointError
from nvr_backup.found import Hints, Verdict
from nvr_backup.keys import candidates
from nvr_backup.metadata import clip_of, describe
from nvr_backup.model import Camera, Clip, StoredObject, UploadState, to_ms
from nvr_backup.planner import ALL_REACH, Reach, Rules
from nvr_backup.rows import (
    Tally,
    camera_row,
    clip_row,
    insert_copy,
    note_attempt,
    read_claim,
    read_reach,
    write_reach,
    write_upload,
)
from tests.support.fakes import EPOCH, PORCH, clip_at

NOW = EPOCH + timedelta(hours=24)
GARDEN = Camera("home", "garden", "Garden")
TEMPLATE = "{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4"


def keys(_store: str, clip: Clip) -> Iterator[str]:
    return candidates(TEMPLATE, clip)


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for name in MIGRATIONS:
            db.executescript(files("nvr_backup").joinpath(name).read_text("utf-8"))
        db.execute("PRAGMA foreign_keys=ON")
        db.execute(found.LOOSE)
        yield db


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with database() as db:
        yield db


def planned(
    db: sqlite3.Connection, clip: Clip, state: str = "waiting", *, store: str = "nas", key: str = ""
) -> int:
    """Put a clip on record in this state; returns its copy."""
    camera = camera_row(db, clip.camera)
    row = clip_row(db, camera, clip, NOW)
    insert_copy(db, row, camera=camera, clip=clip, store=store, keys=keys)
    copy = db.execute("SELECT id FROM copy WHERE clip = ? AND store = ?", (row, store)).fetchone()[
        0
    ]
    db.execute("UPDATE copy SET state = ? WHERE id = ?", (state, copy))
    if state == "stored":
        db.execute(
            "UPDATE copy SET size = 5, crc32c = 6, verified = 1, finished_ms = 7 WHERE id = ?",
            (copy,),
        )
    if key:
        db.execute("UPDATE copy SET object_key = ? WHERE id = ?", (key, copy))
    return int(copy)


def lying(clip: Clip, key: str = "", *, size: int = 100) -> StoredObject:
    key = key or next(keys("nas", clip))
    return StoredObject(key, size, 17, "g1", "video/mp4", describe(clip))


def take_in(
    db: sqlite3.Connection, each: StoredObject, *, store: str = "nas", of: Clip | None = None
) -> Verdict:
    clip = of or clip_of(each.metadata)
    assert clip is not None
    return found.take_in(db, store, clip, each, keys=keys, now=NOW)


COPIES = (
    "SELECT clip.source_id, clip.start_ms, clip.end_ms, store, object_key, state, size, crc32c,"
    " generation, verified, copy.finished_ms FROM copy JOIN clip ON clip.id = clip ORDER BY 1, 2, 3"
)


def copies(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    return db.execute(COPIES).fetchall()


def test_a_clip_that_nobody_knew_is_stored(db: sqlite3.Connection) -> None:
    clip = replace(clip_at(5), classes=("person", "car"))
    assert take_in(db, lying(clip)) is Verdict.NEW
    (row,) = copies(db)
    key = "Porch/2026/01/01/00-05-00.mp4"
    assert row[3:] == ("nas", key, "stored", 100, 17, "g1", 0, to_ms(NOW))
    assert read_claim(db, 1).clip == clip
    assert db.execute("SELECT outcome, bytes FROM attempt").fetchall() == [("found", 0)]
    assert take_in(db, lying(clip)) is Verdict.KNOWN
    assert copies(db) == [row]


@pytest.mark.parametrize("state", ["waiting", "set_aside"])
def test_what_was_waiting_or_given_up_is_stored_in_truth(
    db: sqlite3.Connection, state: str
) -> None:
    copy = planned(db, clip_at(5), state)
    db.execute("UPDATE copy SET reason = 'x', claim = 3 WHERE id = ?", (copy,))
    write_upload(db, copy, UploadState("s", "k", "video/mp4", NOW))
    assert take_in(db, lying(clip_at(5))) is Verdict.SETTLED
    assert copies(db)[0][5] == "stored"
    assert db.execute("SELECT claim, reason FROM copy").fetchall() == [(None, None)]
    assert db.execute("SELECT * FROM upload").fetchall() == []


def test_an_object_that_was_found_corrupt_is_not_believed_by_a_rebuild(
    db: sqlite3.Connection,
) -> None:
    clip = clip_at(5)
    copy = planned(db, clip)
    there = lying(clip)
    db.execute("UPDATE copy SET replaces = ? WHERE id = ?", (there.generation, copy))
    before = copies(db)
    assert take_in(db, there) is Verdict.KNOWN
    assert copies(db) == before
    # Stored anew before the checkpoint was lost: another generation.
    assert take_in(db, replace(there, generation="g2")) is Verdict.SETTLED


def test_a_settled_copy_is_where_its_object_is(db: sqlite3.Connection) -> None:
    """It had got another key since (the template changed), the object lies under the old one."""
    planned(db, clip_at(5))
    assert take_in(db, lying(clip_at(5), "old/key.mp4")) is Verdict.SETTLED
    assert copies(db)[0][4] == "old/key.mp4"


def test_what_is_recorded_as_stored_is_never_changed(db: sqlite3.Connection) -> None:
    planned(db, clip_at(5), "stored")
    before = copies(db)
    assert take_in(db, lying(clip_at(5), size=999)) is Verdict.KNOWN
    assert take_in(db, lying(clip_at(5), "elsewhere.mp4")) is Verdict.TWICE
    other = lying(clip_at(7), next(keys("nas", clip_at(5))))  # says it is another clip
    assert take_in(db, other) is Verdict.KNOWN
    assert copies(db) == before
    assert db.execute("SELECT count(*) FROM clip").fetchone() == (1,)  # nothing is left of it


def test_a_clip_that_waits_under_a_key_that_is_taken_gets_its_next_one(
    db: sqlite3.Connection,
) -> None:
    one, other = clip_at(5, id="a"), clip_at(5, id="b", seconds=20)
    waiting = planned(db, one)
    moved = planned(db, other)
    write_upload(db, waiting, UploadState("s", "k", "video/mp4", NOW))
    first, second = (row[4] for row in copies(db))
    assert take_in(db, lying(other, str(first))) is Verdict.SETTLED
    assert db.execute("SELECT * FROM upload").fetchall() == []  # it was for that key
    rows = {row[0]: row for row in copies(db)}
    assert (rows["b"][4], rows["b"][5]) == (first, "stored")
    assert rows["a"][5] == "waiting"
    assert rows["a"][4] not in {first}
    assert rows["a"][4] in {*keys("nas", one), second}
    assert moved != waiting


def test_another_camera_at_the_same_moment_is_another_clip(db: sqlite3.Connection) -> None:
    mine, theirs = clip_at(5), clip_at(5, camera=GARDEN, id="porch-5")
    planned(db, mine)
    assert take_in(db, lying(theirs, next(keys("nas", mine)))) is Verdict.NEW
    states = {(row[0], row[5]) for row in copies(db)}
    assert len(copies(db)) == 2
    assert states == {("porch-5", "waiting"), ("porch-5", "stored")}


def test_a_longer_version_that_waits_under_the_key_becomes_the_stored_one(
    db: sqlite3.Connection,
) -> None:
    """It grew while it waited; the lost checkpoint had already stored the shorter one."""
    planned(db, clip_at(5, seconds=20))
    assert take_in(db, lying(clip_at(5, seconds=10))) is Verdict.SETTLED
    (row,) = copies(db)
    assert (row[2], row[5]) == (to_ms(clip_at(5, seconds=10).end or NOW), "stored")
    assert db.execute("SELECT count(*) FROM clip").fetchone() == (1,)  # the listing brings it back


def test_both_versions_of_a_clip_are_known(db: sqlite3.Connection) -> None:
    short, long = clip_at(5, seconds=10), clip_at(5, seconds=20)
    assert take_in(db, lying(short)) is Verdict.NEW
    assert take_in(db, lying(long, "Porch/long.mp4")) is Verdict.NEW
    assert [row[5] for row in copies(db)] == ["stored", "stored"]


def test_a_clip_in_two_stores_is_one_clip(db: sqlite3.Connection) -> None:
    planned(db, clip_at(5), store="cloud")
    assert take_in(db, lying(clip_at(5)), store="nas") is Verdict.NEW
    assert [(row[3], row[5]) for row in sorted(copies(db), key=str)] == [
        ("cloud", "waiting"),
        ("nas", "stored"),
    ]
    assert db.execute("SELECT count(*) FROM clip").fetchone() == (1,)


def test_an_id_too_long_for_metadata_is_known_again_by_its_hash(db: sqlite3.Connection) -> None:
    long = clip_at(5, id="x" * 3000)
    planned(db, long)
    each = lying(long)
    assert each.metadata["clip-id"].startswith("sha256:")
    assert take_in(db, each) is Verdict.SETTLED
    assert db.execute("SELECT source_id FROM clip").fetchall() == [("x" * 3000,)]


def test_a_renamed_camera_keeps_its_latest_name(db: sqlite3.Connection) -> None:
    planned(db, clip_at(5))
    take_in(db, lying(replace(clip_at(4), camera=replace(PORCH, name="Old porch"))))
    assert db.execute("SELECT name FROM camera").fetchall() == [("Porch",)]


def test_cameras_that_only_objects_told_of_are_called_as_their_latest_clip_says(
    db: sqlite3.Connection,
) -> None:
    for minute, name in ((4, "New"), (2, "Old")):
        take_in(db, lying(replace(clip_at(minute), camera=replace(PORCH, name=name))))
    listed = camera_row(db, GARDEN)
    begin = Reach(EPOCH, EPOCH, EPOCH, EPOCH)
    write_reach(db, listed, "nas", begin)
    take_in(db, lying(replace(clip_at(3), camera=replace(GARDEN, name="Garden once"))))
    found.name_cameras(db)
    assert db.execute("SELECT name FROM camera ORDER BY name").fetchall() == [
        ("Garden",),
        ("New",),
    ]


def test_a_clip_without_any_free_key_is_one_clear_error(db: sqlite3.Connection) -> None:
    copy = planned(db, clip_at(5), key="taken.mp4")
    db.execute("UPDATE copy SET state = 'waiting'")
    planned(db, clip_at(6), "stored", key=f"{copy}-nas.mp4")

    def none(_store: str, _clip: Clip) -> Iterator[str]:
        return iter(["taken.mp4"])

    other = lying(clip_at(9), "taken.mp4")
    with pytest.raises(CheckpointError, match="free"):
        found.take_in(db, "nas", clip_at(9), other, keys=none, now=NOW)


def test_the_history_of_a_found_clip_is_kept(db: sqlite3.Connection) -> None:
    copy = planned(db, clip_at(5), "set_aside")
    note_attempt(db, copy, "set_aside", "gone", tally=Tally(1, 1.0), now=NOW)
    take_in(db, lying(clip_at(5)))
    assert db.execute("SELECT outcome FROM attempt ORDER BY id").fetchall() == [
        ("set_aside",),
        ("found",),
    ]


# -- anything a checkpoint and a store can have come to ---------------------------------------


@dataclass(frozen=True)
class Scene:
    """Rows on record, and objects in the store: pairs of a clip's number and a key's."""

    recorded: tuple[tuple[int, str, int | None], ...]
    objects: tuple[tuple[int, int], ...]


CLIPS = [
    clip_at(minute, seconds=seconds, camera=camera, id=id_)
    for camera in (PORCH, GARDEN)
    for minute in (1, 2)
    for seconds in (10, 20)
    for id_ in ("a", "b")
]
KEYS = sorted({key for clip in CLIPS for key in list(keys("nas", clip))[:2]} | {"x.mp4", "y.mp4"})
STATES = ["waiting", "stored", "set_aside"]
numbers = st.integers(0, len(CLIPS) - 1)
scenes = st.builds(
    Scene,
    st.lists(
        st.tuples(
            numbers,
            st.sampled_from(STATES),
            st.none() | st.integers(0, len(KEYS) - 1),
        ),
        max_size=8,
        unique_by=lambda row: row[0],
    ).map(tuple),
    st.lists(
        st.tuples(numbers, st.integers(0, len(KEYS) - 1)),
        max_size=10,
        unique_by=lambda pair: pair[1],
    ).map(tuple),
)


@settings(max_examples=400, deadline=None)
@given(scenes)
def test_nothing_is_lost_or_believed_wrongly(scene: Scene) -> None:
    with database() as db:
        for number, state, key in scene.recorded:
            copy = planned(db, CLIPS[number], state)
            if key is not None:
                db.execute(
                    "UPDATE OR IGNORE copy SET object_key = ? WHERE id = ?", (KEYS[key], copy)
                )
        before = copies(db)
        objects = [lying(CLIPS[number], KEYS[key]) for number, key in scene.objects]
        objects.sort(key=lambda each: each.key)
        verdicts = [take_in(db, each) for each in objects]
        after = copies(db)

        was_stored = [row for row in before if row[5] == "stored"]
        assert all(row in after for row in was_stored)
        assert len(after) == len(before) + verdicts.count(Verdict.NEW)
        assert sum(row[5] == "stored" for row in after) == len(was_stored) + verdicts.count(
            Verdict.NEW
        ) + verdicts.count(Verdict.SETTLED)
        truth = {each.key: each for each in objects}
        for row in set(after) - set(was_stored):
            if row[5] == "stored":  # then its object is there, and is this clip's
                clip = clip_of(truth[str(row[4])].metadata)
                assert clip is not None
                assert (clip.id, to_ms(clip.start), to_ms(clip.end or NOW)) == row[:3]
        by_clip = {row[:3] for row in after if row[5] == "stored"}
        by_key = {row[4] for row in after if row[5] == "stored"}
        for each in objects:  # none of them is sent again
            clip = clip_of(each.metadata)
            assert clip is not None
            identity = (clip.id, to_ms(clip.start), to_ms(clip.end or NOW))
            assert identity in by_clip or each.key in by_key
        bare = "SELECT count(*) FROM clip WHERE id NOT IN (SELECT clip FROM copy)"
        assert db.execute(bare).fetchone() == (0,)

        again = {take_in(db, each) for each in objects}
        assert again <= {Verdict.KNOWN, Verdict.TWICE}
        assert copies(db) == after


# -- objects that do not say which clip they are ----------------------------------------------


def test_loose_objects_are_remembered_until_somebody_knows_more(db: sqlite3.Connection) -> None:
    plain = StoredObject("k.mp4", 5, 6, "g")
    planned(db, clip_at(5), "stored", key="known.mp4")
    planned(db, clip_at(6), "waiting", key="k.mp4")
    assert not found.keep_loose(db, "nas", StoredObject("known.mp4", 5))
    assert found.keep_loose(db, "cloud", StoredObject("known.mp4", 5))  # another store's
    assert found.keep_loose(db, "nas", plain)
    assert found.keep_loose(db, "nas", plain)  # listed twice
    assert found.loose_keys(db, "nas") == ["k.mp4"]
    assert found.loose_at(db, "nas", ["a", "k.mp4", "b"]) == [plain]
    assert found.loose_at(db, "cloud", ["k.mp4"]) == []
    found.no_longer_loose(db, "cloud", "k.mp4")
    assert found.loose_keys(db, "nas") == ["k.mp4"]
    found.no_longer_loose(db, "nas", "k.mp4")
    assert found.loose_keys(db, "nas") == []


# -- what follows for the listings -----------------------------------------------------------

RULES = Rules(timedelta(seconds=30), timedelta(hours=2), timedelta(hours=24))
FRESH = NOW - RULES.settle - timedelta(hours=24)


def begins(db: sqlite3.Connection, camera: Camera = PORCH) -> dict[str, datetime]:
    return {store: reach.begin for store, reach in read_reach(db, camera).items()}


def hints(*unread: str, **loose: datetime) -> Hints:
    return Hints(fresh=FRESH, unread=unread, loose=loose)


def old(days: float, camera: Camera = PORCH) -> Clip:
    return clip_at(-days * 1440, camera=camera)


def test_listings_begin_where_the_oldest_found_clip_ended(db: sqlite3.Connection) -> None:
    for clip in (old(3), old(2), old(5, camera=GARDEN)):
        take_in(db, lying(clip))
    planned(db, old(9))  # waits: it is on record, and must be found in a listing again
    found.begin_listings(db, "home", ["nas"], hints=hints(), now=NOW)
    end = old(5).end
    assert end is not None
    assert begins(db) == begins(db, GARDEN) == {"nas": end}
    reach = read_reach(db, PORCH)["nas"]
    assert reach == Reach(end, end, end, end)  # nothing of it counts as listed


def test_a_young_store_begins_no_later_than_a_new_one(db: sqlite3.Connection) -> None:
    take_in(db, lying(clip_at(23 * 60)))
    found.begin_listings(db, "home", ["nas"], hints=hints(), now=NOW)
    assert begins(db) == {"nas": FRESH}


def test_a_store_that_told_nothing_begins_with_the_others(db: sqlite3.Connection) -> None:
    take_in(db, lying(old(5)))
    stores = ["nas", "silent", "empty"]
    found.begin_listings(db, "home", stores, hints=hints("silent"), now=NOW)
    assert begins(db) == {"nas": old(5).end, "silent": old(5).end}
    found.begin_listings(db, "away", stores, hints=hints("silent"), now=NOW)
    assert begins(db, replace(PORCH, source="away")) == {}


def test_objects_without_a_clip_are_reached_back_to(db: sqlite3.Connection) -> None:
    take_in(db, lying(old(5)))
    day = EPOCH - timedelta(days=9)
    found.begin_listings(db, "home", ["nas"], hints=hints(nas=day), now=NOW)
    assert begins(db) == {"nas": day}


def test_no_listing_begins_in_antiquity(db: sqlite3.Connection) -> None:
    """One clip recorded under a wrong clock must not cost thousands of listings."""
    take_in(db, lying(old(20_000)))
    found.begin_listings(db, "home", ["nas"], hints=hints(), now=NOW)
    assert begins(db) == {"nas": NOW - ALL_REACH}


def test_a_clip_without_an_end_counts_as_five_minutes(db: sqlite3.Connection) -> None:
    clip = replace(old(5), end=None)
    take_in(db, lying(clip))
    found.begin_listings(db, "home", ["nas"], hints=hints(), now=NOW)
    assert begins(db) == {"nas": clip.start + timedelta(minutes=5)}


def test_listings_on_record_stay_as_they_are(db: sqlite3.Connection) -> None:
    reach = Reach(EPOCH, NOW, NOW, NOW)
    write_reach(db, camera_row(db, PORCH), "nas", reach)
    take_in(db, lying(old(5)))
    take_in(db, lying(old(4, camera=GARDEN)))
    found.begin_listings(db, "home", ["nas"], hints=hints(), now=NOW)
    assert read_reach(db, PORCH)["nas"] == reach
    assert begins(db, GARDEN) == {"nas": old(5).end}  # it was not listed yet
    assert db.execute("SELECT * FROM meta").fetchall() == []


def test_the_first_cameras_shown_begin_where_a_rebuild_says(db: sqlite3.Connection) -> None:
    """They may be others than those that were found: the recorder was replaced meanwhile."""
    take_in(db, lying(old(5)))
    found.begin_listings(db, "home", ["nas"], hints=hints(), now=NOW)
    new, later = Camera("home", "new", "New"), Camera("home", "later", "Later")
    other = Camera("other", "other", "Other")
    begin_reaches(db, [PORCH, new, other], ["nas"], rules=RULES, now=NOW)
    assert begins(db, new) == begins(db) == {"nas": old(5).end}
    assert begins(db, other) == {"nas": FRESH}
    begin_reaches(db, [later], ["nas"], rules=RULES, now=NOW)
    assert begins(db, later) == {"nas": FRESH}  # it came with an old installation


def test_what_a_rebuild_found_shortens_no_backfill(db: sqlite3.Connection) -> None:
    take_in(db, lying(clip_at(12 * 60)))
    found.begin_listings(db, "home", ["nas"], hints=replace(hints(), fresh=NOW), now=NOW)
    new = Camera("home", "new", "New")
    begin_reaches(db, [new], ["nas"], rules=RULES, now=NOW)
    assert begins(db, new) == {"nas": FRESH}


def test_marks_of_a_store(db: sqlite3.Connection) -> None:
    planned(db, clip_at(1), "waiting", store="cloud")
    planned(db, clip_at(1), "stored", store="nas")
    for store in ("cloud", "nas"):
        found.note_stored(db, store)
    assert db.execute("SELECT * FROM meta").fetchall() == [("stored in nas", "1")]
    found.note_unread(db, "cloud", NOW)
    before, after = clip_at(24 * 60 - 1), clip_at(24 * 60)
    claims = [read_claim(db, planned(db, clip, store="cloud")) for clip in (before, after)]
    assert [claim.maybe_there for claim in claims] == [True, False]
    assert not read_claim(db, planned(db, before, store="nas")).maybe_there
    found.note_read(db, "nas")
    assert read_claim(db, claims[0].copy).maybe_there
    found.note_read(db, "cloud")
    assert not read_claim(db, claims[0].copy).maybe_there
