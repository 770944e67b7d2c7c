"""`doctor` and `check-config`: what they look at, and what they say about what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nvr_backup import doctor
from nvr_backup.clock import SystemClock
from nvr_backup.errors import Blocked, Transient
from nvr_backup.model import Clip
from nvr_backup.ports import Capabilities
from tests.cli.kit import CONFIG, GARDEN, PORCH, Desk
from tests.support.fakes import FakeSource, FakeStore, mp4


class Practice:
    """A desk whose recorder and store are fakes, as the doctor meets them."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.desk = desk
        self.source = FakeSource()
        self.store = FakeStore()
        self.used_before: list[bool] = []

        @asynccontextmanager
        async def open_source(*_: object) -> AsyncIterator[FakeSource]:
            yield self.source

        @asynccontextmanager
        async def open_store(*_: object, used_before: bool, **__: Any) -> AsyncIterator[FakeStore]:
            self.used_before.append(used_before)
            yield self.store

        monkeypatch.setattr(doctor, "open_source", open_source)
        monkeypatch.setattr(doctor, "open_store", open_store)

    def record(self, hours: float, camera: object = PORCH) -> None:
        assert isinstance(camera, type(PORCH))
        start = self.desk.ago(hours)
        clip = Clip(camera, f"{camera.id}-{hours}", start, start + timedelta(seconds=10))
        self.source.add(clip, mp4(500))

    def examine(self, code: int) -> dict[str, list[tuple[str, str]]]:
        """Findings as {part: [(level, text and remedy)]}."""
        answer = self.desk("doctor", "--json")
        assert answer.code == code, answer.out
        found: dict[str, list[tuple[str, str]]] = {}
        for one in answer.json:
            said = f"{one['text']} | {one['do']}"
            found.setdefault(one["part"], []).append((one["level"], said))
        return found


@pytest.fixture
def practice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Practice:
    return Practice(desk, monkeypatch)


def test_all_is_well(practice: Practice) -> None:
    practice.record(5)
    practice.record(3)
    found = practice.examine(0)
    assert {level for said in found.values() for level, _ in said} == {"ok"}
    newest = practice.desk.ago(3).strftime("%Y-%m-%d %H:%M:%S")
    assert f"newest clip {newest}, 2 in the last 24 hours" in found["sources.home, Porch"][0][1]
    assert "none yet" in found["checkpoint"][0][1]
    assert not practice.desk.state.exists()
    assert practice.used_before == [False]


def test_in_words_each_line_has_its_level(practice: Practice) -> None:
    practice.record(1)
    practice.source.faults.arm("clips", Transient("Listing timed out.", hint="Look at its log."))
    out = practice.desk("doctor").out
    assert "fail  sources.home, Porch: Listing timed out.\n      Look at its log." in out
    assert "ok    stores.nas: objects can be created" in out


def test_a_refused_login_is_a_failure_with_its_remedy_and_the_rest_is_looked_at(
    practice: Practice,
) -> None:
    practice.source.faults.arm("cameras", Blocked("Wrong password.", hint="Check it."))
    found = practice.examine(1)
    assert found["sources.home"] == [("fail", "Wrong password. | Check it.")]
    assert found["stores.nas"][0][0] == "ok"


def test_no_cameras_is_a_warning(practice: Practice) -> None:
    assert practice.examine(0)["sources.home"][0][0] == "warn"


def test_a_silent_camera_is_a_warning_and_a_quiet_one_is_not(practice: Practice) -> None:
    practice.record(24 * 3)
    practice.source.extra_cameras.append(GARDEN)
    found = practice.examine(0)
    assert found["sources.home, Porch"][0][0] == "ok"
    assert "in the last 7 days" in found["sources.home, Porch"][0][1]
    level, text = found["sources.home, Garden"][0]
    assert level == "warn"
    assert "no clip in the last 7 days" in text


def test_a_clip_from_the_future_tells_of_a_wrong_clock(practice: Practice) -> None:
    practice.record(-1)
    level, text = practice.examine(0)["sources.home, Porch"][0]
    assert level == "warn"
    assert "in the future" in text
    assert "NTP" in text


def test_a_store_that_refuses_is_a_failure(practice: Practice) -> None:
    practice.store.faults.arm("probe", Blocked("No such bucket.", hint="Create it."))
    assert practice.examine(1)["stores.nas"] == [("fail", "No such bucket. | Create it.")]


def test_what_a_key_may_not_do_is_told_with_what_follows() -> None:
    text = doctor.capabilities_text(
        Capabilities(stat=False, list=True, read=True, delete=False, resume=True)
    )
    assert "also: list, read, resume;" in text
    assert "no stat (" in text
    assert "no delete (" in text
    assert "no list" not in text


def test_a_store_that_was_used_before_is_probed_as_such(practice: Practice) -> None:
    practice.desk.clip(5)
    practice.desk.store()
    found = practice.examine(0)
    assert practice.used_before == [True]
    assert "sound, 1 clips stored; no engine runs" in found["checkpoint"][0][1]
    assert found["Porch → nas"][0][1].startswith("safe until ")


def test_a_damaged_checkpoint_is_a_failure_and_the_rest_is_looked_at(practice: Practice) -> None:
    practice.desk.cycle()
    path = practice.desk.state / "checkpoint.sqlite3"
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    found = practice.examine(1)
    assert found["checkpoint"][0][0] == "fail"
    assert found["stores.nas"][0][0] == "ok"


@pytest.mark.parametrize(
    ("free", "level", "code"),
    [(10 * 1024**3, "ok", 0), (100 * 1024**2, "warn", 0), (1024**2, "fail", 1)],
)
def test_a_full_disk(
    practice: Practice, monkeypatch: pytest.MonkeyPatch, free: int, level: str, code: int
) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))
    assert practice.examine(code)["state_dir"][0][0] == level


def test_it_works_beside_an_engine(practice: Practice) -> None:
    async def engine(_checkpoint: object) -> None:
        import asyncio

        answer = await asyncio.to_thread(practice.desk, "doctor", "--json")
        assert answer.code == 0
        assert any("an engine runs (process " in one["text"] for one in answer.json)

    practice.desk.engine(engine)


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (4, "ok"), (90, "warn"), (-90, "warn")])
async def test_the_servers_clock_is_seen_in_its_answers(ahead: int, level: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        moment = datetime.now(UTC) + timedelta(seconds=ahead)
        return web.Response(headers={"Date": moment.strftime("%a, %d %b %Y %H:%M:%S GMT")})

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        difference = await doctor.clock_difference(url, SystemClock())
    finally:
        await runner.cleanup()
    assert difference is not None
    finding = doctor.difference_finding("sources.home", difference)
    assert finding.level == level
    if level == "warn":
        assert ("ahead of ours" if ahead > 0 else "behind ours") in finding.text


async def test_a_clock_that_cannot_be_seen_is_no_finding() -> None:
    assert await doctor.clock_difference("http://127.0.0.1:1", SystemClock()) is None


# -- check-config ---------------------------------------------------------------------------------


def test_check_config_says_what_it_means(desk: Desk) -> None:
    answer = desk("check-config")
    assert answer.code == 0
    for text in ("A cycle every 1h", "reaches back 1d", "as backup, not encrypted", "→ nas"):
        assert text in answer.out
    assert "hunter2" not in answer.out + answer.err


def test_check_config_tells_warnings_and_is_still_0(desk: Desk) -> None:
    desk.config.chmod(0o644)
    answer = desk("check-config")
    assert answer.code == 0
    assert "warning: " in answer.out
    assert "chmod o=" in answer.out


def test_check_config_tells_every_mistake(desk: Desk) -> None:
    desk.configure(CONFIG.replace('every = "1h"', 'every = "1"').replace("nas]", "nas]\ncolor=1"))
    answer = desk("check-config")
    assert answer.code == 78
    assert "schedule.every" in answer.err
    assert "stores.nas.color" in answer.err
    assert "hunter2" not in answer.out + answer.err


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('every = "1h"', 'cron = "0 2 * * *"\ntimezone = "Europe/Berlin"', "(Europe/Berlin), next"),
        ('every = "1h"', 'every = "1h"\nbackfill = "all"', "everything the recorder still has"),
        ('every = "1h"', 'every = "1h"\nbackfill = "none"', "takes nothing that is already"),
        ("http:", "https:", "certificate checked"),
        ('url = "http:', 'tls = "insecure"\nurl = "https:', "certificate NOT checked"),
        (
            'password = "hunter2"',
            'password = "hunter2"\ncameras = { include = ["Front*"], exclude = ["Front 2"] }',
            "cameras Front* except Front 2",
        ),
        (
            'kind = "directory"\npath = "nas"',
            'kind = "gcs"\nbucket = "my-footage"\nprefix = "home"',
            "bucket gs://my-footage/home/, with application default credentials",
        ),
    ],
)
def test_check_config_words(desk: Desk, old: str, new: str, text: str) -> None:
    desk.configure(CONFIG.replace(old, new))
    answer = desk("check-config")
    assert answer.code == 0, answer.err
    assert text in answer.out


def test_nothing_is_made_by_looking(desk: Desk, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    desk("check-config")
    desk("status")
    desk("clips")
    assert sorted(tmp_path.rglob("*")) == before
