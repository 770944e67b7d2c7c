"""Objects that do not say which clip they are, and recorders that are asked about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, date, timedelta
from pathlib import Path

import pytest

from nvr_backup import found
from nvr_backup.database import Database, transaction
from nvr_backup.errors import Blocked, Transient, Unfit
from nvr_backup.keys import candidates
from nvr_backup.matching import Match, Matching
from nvr_backup.model import Camera, Clip, StoredObject
from nvr_backup.settings import Settings
from tests.support.fakes import EPOCH, PORCH, FakeSource, clip_at, mp4
from tests.support.ruins import Ruins

CABIN = Camera("cabin", "door", "Door")
SIZE = 400


class Desk:
    """Loose objects in a database, and recorders to be asked."""

    def __init__(self, ruins: Ruins, database: Database) -> None:
        self.ruins = ruins
        self.database = database

    async def lies(
        self, key: str, size: int = SIZE, *, store: str = "nas", crc: int | None = 7
    ) -> None:
        each = StoredObject(key, size, crc, "g")
        await self.database.run(lambda db: found.keep_loose(db, store, each))

    async def run(
        self, *stores: str, settings: Settings | None = None
    ) -> tuple[list[Match], dict[str, str]]:
        chosen = settings or self.ruins.settings()
        matching = Matching(
            chosen,
            self.ruins.clock,
            self.database,
            lambda store, clip: candidates(chosen.stores[store].key_template, clip),
        )
        return await matching.run(stores or ("nas",))

    async def keys(self) -> list[str]:
        matches, _ = await self.run()
        return [match.key for match in matches]

    async def rows(self, sql: str) -> list[tuple[object, ...]]:
        return await self.database.run(lambda db: db.execute(sql).fetchall())


@contextmanager
def desk_of(ruins: Ruins, folder: Path) -> Iterator[Desk]:
    folder.mkdir()
    with closing(Database(folder)) as database:
        yield Desk(ruins, database)


@pytest.fixture
def ruins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ruins:
    return Ruins(tmp_path, monkeypatch)


@pytest.fixture
async def desk(ruins: Ruins, tmp_path: Path) -> Iterator[Desk]:  # type: ignore[misc]
    with desk_of(ruins, tmp_path / "desk") as desk:
        await desk.database.run(lambda db: db.execute(found.LOOSE))
        yield desk


def shown(source: FakeSource, clip: Clip, size: int = SIZE) -> Clip:
    return source.add(clip, mp4(size))


PORCH_AT_5 = "Porch/2026/01/01/00-05-00.mp4"


async def test_the_key_and_the_size_make_it_that_clips_object(desk: Desk) -> None:
    clip = shown(desk.ruins.source, replace(clip_at(5), classes=("person",)))
    shown(desk.ruins.source, clip_at(7))
    await desk.lies(PORCH_AT_5)
    await desk.lies("Porch/2026/01/01/00-06-00.mp4")
    assert await desk.run() == ([Match("nas", PORCH_AT_5, SIZE)], {})
    sql = "SELECT object_key, state, size, crc32c, generation, verified FROM copy"
    assert await desk.rows(sql) == [(PORCH_AT_5, "stored", SIZE, 7, "g", 0)]
    sql = "SELECT source_id, classes, camera_name FROM clip"
    assert await desk.rows(sql) == [(clip.id, '["person"]', "Porch")]
    assert await desk.rows("SELECT object_key FROM loose") == [("Porch/2026/01/01/00-06-00.mp4",)]
    assert desk.ruins.source.opened == [(clip.id, 0)]  # one look at its size; others not asked


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0])
async def test_another_size_is_another_object(desk: Desk, size: int) -> None:
    shown(desk.ruins.source, clip_at(5))
    await desk.lies(PORCH_AT_5, size)
    assert await desk.keys() == []
    assert await desk.rows("SELECT * FROM copy") == []
    assert await desk.rows("SELECT * FROM clip") == []


async def test_a_recorder_that_announces_no_size_proves_nothing(desk: Desk) -> None:
    shown(desk.ruins.source, clip_at(5))
    desk.ruins.source.announce_size = False
    await desk.lies(PORCH_AT_5)
    assert await desk.keys() == []


async def test_every_key_the_clip_may_have_got_is_looked_at(desk: Desk) -> None:
    """Another container's extension, and the key of a clip that was not the first to want one."""
    shown(desk.ruins.source, clip_at(5))
    second = shown(desk.ruins.source, clip_at(6))
    hashed = list(candidates("{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4", second))[1]
    await desk.lies(PORCH_AT_5.replace(".mp4", ".mkv"))
    await desk.lies(hashed)
    assert sorted(await desk.keys()) == sorted([PORCH_AT_5.replace(".mp4", ".mkv"), hashed])


async def test_of_several_objects_the_one_of_its_size_is_taken(desk: Desk) -> None:
    clip = shown(desk.ruins.source, clip_at(5))
    hashed = list(candidates("{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4", clip))[1]
    await desk.lies(PORCH_AT_5, 3)
    await desk.lies(hashed)
    assert await desk.keys() == [hashed]


async def test_two_clips_of_one_second_share_no_object(desk: Desk) -> None:
    shown(desk.ruins.source, clip_at(5, id="a"))
    shown(desk.ruins.source, clip_at(5, id="b"))
    await desk.lies(PORCH_AT_5)
    assert await desk.keys() == [PORCH_AT_5]
    assert await desk.rows("SELECT count(*) FROM copy") == [(1,)]


async def test_a_clip_that_is_stored_elsewhere_leaves_the_object_alone(desk: Desk) -> None:
    clip = shown(desk.ruins.source, clip_at(5))
    other = StoredObject("elsewhere.mp4", SIZE, 7)

    def keys(_store: str, _clip: Clip) -> Iterator[str]:
        return iter(())

    await desk.database.run(lambda db: found.take_in(db, "nas", clip, other, keys=keys, now=EPOCH))
    await desk.lies(PORCH_AT_5)
    assert await desk.keys() == []
    assert await desk.rows("SELECT object_key FROM loose") == [(PORCH_AT_5,)]


async def test_a_clip_that_waits_is_stored_in_truth(desk: Desk) -> None:
    clip = shown(desk.ruins.source, clip_at(5))

    def wait(db: object) -> None:
        from nvr_backup.backlog import add
        from nvr_backup.planner import Addition

        with transaction(db, durable=False):  # type: ignore[arg-type]
            add(
                db,  # type: ignore[arg-type]
                PORCH,
                [Addition(clip, frozenset({"nas"}))],
                keys=lambda _s, c: candidates("{clipId}.mp4", c),
                now=EPOCH,
                opening=0,
            )

    await desk.database.run(wait)
    await desk.lies(PORCH_AT_5)
    assert await desk.keys() == [PORCH_AT_5]
    assert await desk.rows("SELECT state, object_key FROM copy") == [("stored", PORCH_AT_5)]


async def test_a_clip_that_may_still_grow_is_not_judged(desk: Desk) -> None:
    """Its object may be that of a shorter version of the same size by chance; it is carried."""
    now = desk.ruins.clock.now()
    minutes = (now - EPOCH) / timedelta(minutes=1)
    settle = desk.ruins.settings().schedule.settle
    for ago, id_ in ((timedelta(0), "a, late"), (timedelta(seconds=1), "b, final")):
        end = now - settle + timedelta(seconds=1) - ago
        shown(desk.ruins.source, replace(clip_at(minutes - 2, id=id_), end=end))
    key = next(candidates("{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4", clip_at(minutes - 2)))
    await desk.lies(key)
    await desk.run()
    assert await desk.rows("SELECT source_id FROM clip") == [("b, final",)]


async def test_only_days_that_a_key_names_are_listed(desk: Desk) -> None:
    await desk.ruins.clock.advance(20 * 86400)
    for day in (1, 2, 3):
        shown(desk.ruins.source, clip_at(1440 * day + 5))
    shown(desk.ruins.source, replace(clip_at(1440 * 3 - 1), end=EPOCH + timedelta(days=3, hours=1)))
    await desk.lies("Porch/2026/01/02/00-05-00.mp4")
    await desk.lies("Porch/2026/01/04/00-05-00.mp4")
    await desk.lies("Porch/2026/01/03/23-59-00.mp4", store="cloud")
    await desk.lies("notes.txt")
    assert len(await desk.keys()) == 2
    asked = {window.start.date() for _, window in desk.ruins.source.windows}
    assert asked == {date(2026, 1, 2), date(2026, 1, 4)}
    assert all(
        window.end - window.start == timedelta(days=1) for _, window in desk.ruins.source.windows
    )
    assert all(window.start.tzinfo is UTC for _, window in desk.ruins.source.windows)


async def test_a_clip_over_midnight_is_asked_about_once(desk: Desk) -> None:
    await desk.ruins.clock.advance(20 * 86400)
    shown(desk.ruins.source, replace(clip_at(1439), end=EPOCH + timedelta(days=1, hours=1)))
    await desk.lies("Porch/2026/01/01/23-59-00.mp4", SIZE - 1)
    await desk.lies("Porch/2026/01/02/00-05-00.mp4")
    assert await desk.keys() == []
    assert len(desk.ruins.source.windows) == 2
    assert len(desk.ruins.source.opened) == 1


async def test_nothing_is_asked_about_nothing(desk: Desk) -> None:
    await desk.lies("notes.txt")
    desk.ruins.source.faults.arm("cameras", Transient("it must not be asked"))
    assert await desk.run() == ([], {})


async def test_a_recorder_that_does_not_answer_is_named_and_others_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruins = Ruins(
        tmp_path,
        monkeypatch,
        sources={"home": FakeSource("home"), "cabin": FakeSource("cabin")},
    )
    shown(ruins.sources["home"], clip_at(5))
    shown(ruins.sources["cabin"], clip_at(5, camera=CABIN))
    with desk_of(ruins, tmp_path / "desk") as desk:
        await desk.database.run(lambda db: db.execute(found.LOOSE))
        await desk.lies(PORCH_AT_5)
        await desk.lies("Door/2026/01/01/00-05-00.mp4")
        for step, error in (
            ("cameras", Blocked("wrong password")),
            ("clips", Transient("timeout")),
            ("open", Blocked("banned")),
        ):
            with monkeypatch.context():
                ruins.sources["home"].faults.arm(step, error)
                matches, unasked = await desk.run()
                assert unasked == {"home": error.message}
                keys = [match.key for match in matches]
                assert keys == (["Door/2026/01/01/00-05-00.mp4"] if step == "cameras" else [])
        assert await desk.keys() == [PORCH_AT_5]


@pytest.mark.parametrize("error", [Unfit("gone"), Transient("timeout")])
async def test_a_clip_that_cannot_be_served_now_is_left_open(
    desk: Desk, error: Unfit | Transient
) -> None:
    shown(desk.ruins.source, clip_at(5))
    shown(desk.ruins.source, clip_at(6))
    await desk.lies(PORCH_AT_5)
    await desk.lies("Porch/2026/01/01/00-06-00.mp4")
    desk.ruins.source.faults.arm("open", error)
    assert await desk.run() == ([Match("nas", "Porch/2026/01/01/00-06-00.mp4", SIZE)], {})
    assert await desk.keys() == [PORCH_AT_5]


async def test_a_source_is_asked_only_for_stores_it_goes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.fakes import FakeStore

    ruins = Ruins(tmp_path, monkeypatch, stores={"nas": FakeStore(), "cloud": FakeStore()})
    shown(ruins.source, clip_at(5))
    tables = ruins.settings().model_dump(mode="json")["sources"]
    tables["home"] |= {"stores": ["cloud"], "password": "p"}
    settings = ruins.settings(sources=tables)
    with desk_of(ruins, tmp_path / "desk") as desk:
        await desk.database.run(lambda db: db.execute(found.LOOSE))
        for store in ("nas", "cloud"):
            await desk.lies(PORCH_AT_5, store=store)
        matches, _ = await desk.run("nas", "cloud", settings=settings)
        assert [match.store for match in matches] == ["cloud"]
        assert (await desk.run("nas", settings=settings))[0] == []
