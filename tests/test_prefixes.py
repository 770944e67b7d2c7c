"""Listing by days: everything on the wanted days, by prefixes that cost what these days cost.

The oracle is the fake store's whole listing, filtered by what each clip's own start says.
"""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta

import pytest

from nvr_backup.keys import DEFAULT_TEMPLATE, candidates, check_template, with_extension
from nvr_backup.model import Camera, Clip, StoredObject
from nvr_backup.prefixes import days, list_days, lists_everything
from tests.support.fakes import FakeStore

CAMERAS = [
    Camera("home", "1", "Front Door"),
    Camera("home", "2", "Front Door 2026"),
    Camera("x", "3", "Hof/ä"),
]
TEMPLATES = [
    DEFAULT_TEMPLATE,
    "footage/{cameraName}/{yyyy}-{MM}-{dd}/{HH}{mm}{ss}.mp4",
    "{yyyy}/{MM}/{dd}/{cameraName}/{clipId}.mp4",
    "{yyyy}/{cameraName}_{MM}/{dd}_{HH-mm-ss}.mp4",
    "{cameraName}/{yyyy}{MM}{dd}_{HH-mm-ss}.mp4",
    "{cameraName} {yyyy}/{source}-{MM}/x{dd}/{HH-mm-ss}_{cameraId}.mp4",
    "{yyyy}{MM}{dd}_{HH-mm-ss}_{cameraId}.mp4",
    "{cameraId}_{yyyy}{MM}{dd}_{HH-mm-ss}.mp4",
    "{MM}/{yyyy}/{dd}/{HH-mm-ss}_{cameraId}.mp4",
    "{source}/{clipId}.mp4",
    "a/{clipId}.mp4",
]


def filled(template: str, starts: list[datetime]) -> tuple[FakeStore, dict[str, date]]:
    """A store with a clip of each camera at each time, and the day of each key."""
    store, of_day = FakeStore(), {}
    dice = random.Random(7)
    for camera in CAMERAS:
        for number, start in enumerate(starts):
            clip = Clip(camera, f"c{number}", start)
            key = dice.choice([*candidates(template, clip)])
            key = with_extension(key, dice.choice([".mp4", ".mov", ".mkv"]))
            of_day[key] = start.date()
            store.objects[key] = (StoredObject(key, 1), b"x")
    for key in ("_nvr-backup/checkpoint/20260301.sqlite3", "readme.txt", "Front Door/notes/x.mp4"):
        store.objects[key] = (StoredObject(key, 1), b"x")
    return store, of_day


def times(first: date, number: int) -> list[datetime]:
    begin = datetime(first.year, first.month, first.day, tzinfo=UTC)
    return [begin + n * timedelta(hours=11, minutes=7, seconds=1) for n in range(number)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("first", "last"),
    [
        (date(2026, 2, 27), date(2026, 3, 1)),
        (date(2025, 12, 31), date(2026, 1, 1)),
        (date(2025, 12, 30), date(2026, 3, 2)),
        (date(2026, 1, 1), date(2026, 1, 31)),
        (date(2025, 1, 1), date(2025, 12, 31)),
    ],
)
async def test_everything_of_the_days_is_listed_once(
    template: str, first: date, last: date
) -> None:
    check_template(template)
    store, of_day = filled(template, times(date(2025, 12, 20), 160))
    wanted = days(first, last)
    found = [each.key async for each in list_days(store, template, wanted)]
    assert len(found) == len(set(found))
    assert {key for key, day in of_day.items() if day in set(wanted)} <= set(found)
    assert not [key for key in found if key.startswith("_nvr-backup/")]
    assert lists_everything(template) == ("" in store.listings)


async def test_only_what_is_wanted_is_asked_for() -> None:
    store, of_day = filled(DEFAULT_TEMPLATE, times(date(2026, 2, 20), 60))
    found = [each.key async for each in list_days(store, DEFAULT_TEMPLATE, [date(2026, 2, 27)])]
    assert {of_day[key] for key in found} == {date(2026, 2, 27)}
    assert sorted(store.listings) == [
        "Front Door 2026/2026/02/27/", "Front Door/2026/02/27/", "Hof_ä/2026/02/27/"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "last", "prefixes"),
    [
        (date(2026, 1, 31), date(2026, 3, 1), ["2026/01/31/", "2026/02/", "2026/03/01/"]),
        (date(2024, 1, 1), date(2025, 12, 31), ["2024/", "2025/"]),
        (date(2023, 12, 31), date(2025, 1, 1), ["2023/12/31/", "2024/", "2025/01/01/"]),
        (date(2024, 2, 1), date(2024, 2, 28), [f"2024/02/{day:02}/" for day in range(1, 29)]),
    ],
)  # fmt: skip
async def test_whole_months_and_years_are_one_listing(
    first: date, last: date, prefixes: list[str]
) -> None:
    store = FakeStore()
    template = "{yyyy}/{MM}/{dd}/{cameraId}/{HH-mm-ss}.mp4"
    assert [each async for each in list_days(store, template, days(first, last))] == []
    assert store.listings == prefixes
