"""`verify` after somebody went behind its back, over every kind of store, with real processes."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.process.parts import Backup, Nvr, Store, gcs_double, simulated_nvr
from tests.process.test_end_to_end import truth
from tests.support.fake_gcs_server import binary, fake_gcs_server

pytestmark = [pytest.mark.process, pytest.mark.long]

CREATE, GET, LIST = "storage.objects.create", "storage.objects.get", "storage.objects.list"
PRIVATE = ".nvr-backup"
BYTES = ("--keep", "all")


class Shelf:
    """What lies in a store, for somebody who goes behind the program's back."""

    def all(self) -> dict[str, bytes]:
        raise NotImplementedError

    def write(self, key: str, content: bytes) -> None:
        raise NotImplementedError

    def remove(self, key: str) -> None:
        raise NotImplementedError


class Folder(Shelf):
    def __init__(self, root: Path) -> None:
        self.root = root

    def all(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and PRIVATE not in path.parts
        }

    def write(self, key: str, content: bytes) -> None:
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).write_bytes(content)

    def remove(self, key: str) -> None:
        (self.root / key).unlink()


class Bucket(Shelf):
    """Through the JSON API, as any other program would."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", body, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as err:
            raise AssertionError((method, path, err.code, err.read())) from err

    def all(self) -> dict[str, bytes]:
        objects = "/storage/v1/b/footage/o"
        page = json.loads(self._ask("GET", f"{objects}?maxResults=1000"))
        assert "nextPageToken" not in page
        names = [item["name"] for item in page.get("items", [])]
        return {
            name: self._ask("GET", f"{objects}/{quote(name, safe='')}?alt=media") for name in names
        }

    def write(self, key: str, content: bytes) -> None:
        upload = f"/upload/storage/v1/b/footage/o?uploadType=media&name={quote(key, safe='')}"
        self._ask("POST", upload, content)

    def remove(self, key: str) -> None:
        self._ask("DELETE", f"/storage/v1/b/footage/o/{quote(key, safe='')}")


@dataclass
class House:
    """A recorder, a store and the program, all clips stored."""

    nvr: Nvr
    backup: Backup
    shelf: Shelf
    double: Store | None = None

    def verify(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.backup.command("verify", "--json", *arguments)
        assert done.returncode == code, done.stderr + done.stdout
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def kept(self) -> Counter[str]:
        return Counter(sha256(content).hexdigest() for content in self.shelf.all().values())


@contextmanager
def _house(folder: Path, url: str = "", *, clips: int = 4, **tables: Any) -> Iterator[House]:
    sizes = ("--style", "href", "--clip-size", "4096")
    with simulated_nvr("--cameras", "2", "--clips", str(clips), *sizes) as nvr:
        backup = Backup(folder, nvr, url, tables=tables)
        backup.once()
        shelf = Bucket(url) if url else Folder(backup.footage)
        house = House(nvr, backup, shelf)
        assert house.kept() == truth(nvr)
        yield house


@asynccontextmanager
async def at_home(folder: Path, kind: str) -> AsyncIterator[Callable[..., Any]]:
    """Runs a synchronous test body with a house."""
    if kind == "fake-gcs-server":
        if binary() is None:
            pytest.skip("the fake-gcs-server binary is not installed")
        async with fake_gcs_server() as server:
            yield lambda body: asyncio.to_thread(_inside, folder, server.url, body)
    elif kind == "gcs-double":
        with gcs_double(*BYTES) as double:
            yield lambda body: asyncio.to_thread(_inside, folder, double.url, body)
    else:
        yield lambda body: asyncio.to_thread(_inside, folder, "", body)


def _inside(folder: Path, url: str, body: Callable[[House], None]) -> None:
    with _house(folder, url) as house:
        body(house)


def test_a_store_that_lacks_most_of_what_is_on_record_is_not_filled_unasked(tmp_path: Path) -> None:
    """Rather a wrong prefix, where the latest clips lie already, than a loss."""
    with _house(tmp_path, clips=6) as house:
        before = house.shelf.all()
        gone = sorted(before)[:-1]
        for key in gone:
            house.shelf.remove(key)
        refused = house.verify("--fix", code=1)
        assert len(refused["wrong"]) == len(gone) == 11
        assert not any(one["planned_again"] for one in refused["wrong"])
        assert "are bucket, prefix and path the right ones?" in refused["wrong"][0]["left"]
        assert house.backup.once()[0]["stored"] == 0
        misused = house.backup.command("verify", "--accept-loss")
        assert misused.returncode == 2
        assert "--accept-loss is for --fix" in misused.stderr
        assert all(one["planned_again"] for one in house.verify("--fix", "--accept-loss")["wrong"])
        assert house.backup.once()[0]["stored"] == 11
        assert house.shelf.all() == before


@pytest.mark.parametrize(("clips", "left"), [(4, 0), (12, 12)])
def test_a_few_that_are_missing_or_half_of_them_need_no_word(
    tmp_path: Path, clips: int, left: int
) -> None:
    with _house(tmp_path, clips=clips) as house:
        before = house.shelf.all()
        for key in sorted(before)[left:]:
            house.shelf.remove(key)
        house.verify("--fix")
        house.backup.once()
        assert house.shelf.all() == before


def test_what_was_found_before_says_nothing_of_a_stretch_without_clips(tmp_path: Path) -> None:
    """Ten are missing and the others are there, but the range that is asked for has none."""
    with _house(tmp_path, clips=12) as house:
        before = house.shelf.all()
        for key in sorted(before)[:10]:
            house.shelf.remove(key)
        assert len(house.verify(code=1)["wrong"]) == 10
        healed = house.verify("--since", "1s", "--fix")
        assert all(one["planned_again"] for one in healed["wrong"])


@pytest.mark.parametrize("kind", ["gcs-double", "fake-gcs-server", "directory"])
async def test_what_was_done_behind_its_back_is_named_and_healed(tmp_path: Path, kind: str) -> None:
    def body(house: House) -> None:
        assert house.verify()["wrong"] == []
        keys = sorted(house.shelf.all())
        removed, shorter, replaced, other = random.Random(7).sample(keys, 4)
        before = house.shelf.all()
        house.shelf.remove(removed)
        house.shelf.write(shorter, before[shorter][:-100])
        house.shelf.write(replaced, bytes(len(before[replaced])))
        camera = other.rpartition("/")[0]
        strange, foreign = f"{camera}/notes.txt", f"{camera}/23-59-59.mp4"
        house.shelf.write(strange, b"mine")
        house.shelf.write(foreign, b"somebody's film")

        deep = ["--deep"] if kind == "directory" else []  # a folder's checksum is our own record
        found = house.verify(*deep, code=1)
        what = {"directory": "content"}.get(kind, "checksum")
        assert {one["key"]: one["what"] for one in found["wrong"]} == {
            removed: "missing",
            shorter: "size",
            replaced: what,
        }
        assert {one["key"] for one in found["unknown"]} == {strange, foreign}
        assert found["stores"][0]["right"] == len(keys) - 3 + (kind == "directory")
        assert house.shelf.all() == {
            **{key: before[key] for key in keys if key != removed},
            shorter: before[shorter][:-100],
            replaced: bytes(len(before[replaced])),
            strange: b"mine",
            foreign: b"somebody's film",
        }
        status = json.loads(house.backup.command("status", "--json").stdout)
        assert status["findings"] == [
            {"store": "offsite", "what": each, "copies": 1}
            for each in sorted(["missing", "size", what])
        ]

        fixed = house.verify("--fix", code=0)
        assert {one["key"] for one in fixed["wrong"] if one["planned_again"]} == {
            removed,
            shorter,
            replaced,
        }
        result, _ = house.backup.once()
        assert result["stored"] == 3
        assert house.shelf.all() == {**before, strange: b"mine", foreign: b"somebody's film"}
        if kind == "directory":
            aside = house.backup.footage / PRIVATE / "replaced"
            assert sorted(path.read_bytes() for path in aside.iterdir()) == sorted(
                [before[shorter][:-100], bytes(len(before[replaced]))]
            )
        again = house.verify("--deep")
        assert (again["wrong"], again["stores"][0]["read_back"]) == ([], len(keys))

    async with at_home(tmp_path, kind) as run:
        await run(body)


def test_rot_that_only_reading_shows(tmp_path: Path) -> None:
    with gcs_double(*BYTES) as double, _house(tmp_path, double.url) as house:
        key = sorted(house.shelf.all())[2]
        urllib.request.urlopen(
            f"{double.url}/_double/harm", json.dumps({"name": key, "at": 9}).encode()
        ).close()
        assert house.verify()["wrong"] == []
        (found,) = house.verify("--deep", code=1)["wrong"]
        assert (found["key"], found["what"]) == (key, "content")
        # A listing cannot take back what was read.
        assert [one["key"] for one in house.verify(code=1)["wrong"]] == [key]
        old = double.objects()[key]["generation"]
        house.verify("--fix")
        house.backup.once()
        assert house.kept() == truth(house.nvr)
        assert double.objects()[key]["generation"] != old
        assert house.verify("--deep")["wrong"] == []


def test_without_permission_to_delete_the_clip_gets_a_key_of_its_own(tmp_path: Path) -> None:
    key_file = tmp_path / "key.json"
    with (
        gcs_double(*BYTES, "--auth", "--service-account", str(key_file)) as double,
        simulated_nvr("--cameras", "1", "--clips", "2", "--style", "href") as nvr,
    ):
        backup = Backup(tmp_path, nvr, double.url, credentials=key_file)
        backup.once()
        house = House(nvr, backup, Shelf(), double)
        key = sorted(double.objects())[0]
        bad = double.objects()[key]
        urllib.request.urlopen(
            f"{double.url}/_double/harm", json.dumps({"name": key}).encode()
        ).close()
        _permit(double, CREATE, GET, LIST)
        house.verify("--deep", "--fix")
        result, _ = backup.once()
        assert result["stored"] == 1
        objects = double.objects()
        assert objects[key]["generation"] == bad["generation"]
        good = {each: found for each, found in objects.items() if each != key}
        assert Counter(found["sha256"] for found in good.values()) == truth(nvr)
        assert house.verify("--deep")["stores"][0]["unknown"] == 1


def _permit(double: Store, *permissions: str) -> None:
    urllib.request.urlopen(
        f"{double.url}/_double/permissions", json.dumps({"permissions": permissions}).encode()
    ).close()


def test_a_key_that_may_only_create_is_said(tmp_path: Path) -> None:
    key_file = tmp_path / "key.json"
    with (
        gcs_double(*BYTES, "--auth", "--service-account", str(key_file)) as double,
        simulated_nvr("--cameras", "1", "--clips", "2", "--style", "href") as nvr,
    ):
        backup = Backup(tmp_path, nvr, double.url, credentials=key_file)
        backup.once()
        house = House(nvr, backup, Shelf(), double)
        _permit(double, CREATE)
        found = house.verify("--deep", code=69)
        assert found["stores"][0]["not_compared"] == 2
        assert (found["wrong"], found["not_asked"]) == ([], {})
        shown = backup.command("verify")
        assert "may not look at objects" in shown.stdout
        _permit(double, CREATE, GET)
        found = house.verify("--deep")
        assert (found["stores"][0]["right"], found["stores"][0]["read_back"]) == (2, 2)
        assert len(found["stores"][0]["limits"]) == 1


def test_a_store_or_recorder_that_is_away_makes_nothing_wrong(tmp_path: Path) -> None:
    with gcs_double(*BYTES) as double:
        with _house(tmp_path, double.url) as house:
            house.backup.tables["stores.offsite"] = {"endpoint": "http://127.0.0.1:9"}
            house.backup.write()
            found = house.verify(code=69)
            assert list(found["not_asked"]) == ["stores.offsite"]
            house.backup.tables["stores.offsite"] = {}
            house.backup.write()
        found = house.verify(code=69)
        assert (list(found["not_asked"]), found["wrong"]) == (["sources.home"], [])
        assert found["stores"][0]["right"] == 8


def test_a_clip_that_was_never_planned_is_found_and_planned(tmp_path: Path) -> None:
    with _house(tmp_path) as house:
        # As if a listing had hidden the clip: it is not on record, nor in the store.
        for _ in range(3):
            house.backup.once()  # listed for good
        checkpoint = house.backup.folder / "state" / "checkpoint.sqlite3"
        with closing(sqlite3.connect(checkpoint)) as db, db:
            copy, clip, key, camera = db.execute(
                "SELECT copy.id, clip, object_key, name FROM copy JOIN camera"
                " ON camera.id = copy.camera ORDER BY start_ms LIMIT 1"
            ).fetchone()
            db.execute("DELETE FROM attempt WHERE copy = ?", (copy,))
            db.execute("DELETE FROM copy WHERE id = ?", (copy,))
            db.execute("DELETE FROM clip WHERE id = ?", (clip,))
        house.shelf.remove(key)
        assert house.backup.once()[0]["stored"] == 0
        found = house.verify(code=1)
        assert [one["camera"] for one in found["unplanned"]] == [camera]
        assert house.verify("--fix")["unplanned"]
        result, _ = house.backup.once()
        assert result["stored"] == 1
        assert house.verify()["unplanned"] == []
        assert house.kept() == truth(house.nvr)


def test_beside_a_running_daemon_it_leaves_the_storing_to_that(tmp_path: Path) -> None:
    with (
        gcs_double(*BYTES) as double,
        simulated_nvr("--cameras", "2", "--clips", "4", "--style", "href") as nvr,
    ):
        house = House(nvr, Backup(tmp_path, nvr, double.url), Bucket(double.url), double)
        with house.backup.daemon() as daemon:
            daemon.until_said("cycle finished")
            before = house.shelf.all()
            removed, rotten = sorted(before)[1:3]
            house.shelf.remove(removed)
            urllib.request.urlopen(
                f"{double.url}/_double/harm", json.dumps({"name": rotten}).encode()
            ).close()
            # Rotten bytes are described as the clip's: they are not the answer that was lost.
            double.fault(where="single", what="Status", times=2, **{"with": {"code": 503}})
            assert house.verify("--deep", "--fix")["stores"][0]["wrong"] == 2
            daemon.signal(signal.SIGUSR1)
            daemon.until(lambda: house.shelf.all() == before, "healed")
            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
        assert house.verify("--deep")["wrong"] == []


def test_reading_back_stays_in_its_budget_and_takes_turns(tmp_path: Path) -> None:
    with _house(tmp_path) as house:
        sizes = {key: len(content) for key, content in house.shelf.all().items()}
        budget = sum(sizes.values()) // 2
        first = house.verify("--deep", "--budget", f"{budget}B")["stores"][0]
        assert 0 < first["read_back_bytes"] <= budget
        assert 0 < first["read_back"] < len(sizes)
        second = house.verify("--deep", "--budget", f"{budget}B")["stores"][0]
        assert second["read_back_bytes"] <= budget
        third = house.verify("--deep", "--budget", "1B")["stores"][0]
        assert third["read_back"] == 1  # one at least, whatever its size
        proven = [
            json.loads(house.backup.command("explain", key, "--json").stdout)[0]["proven"]
            for key in sizes
        ]
        assert all(proven)


def test_what_a_person_reads(tmp_path: Path) -> None:
    with _house(tmp_path) as house:
        key = sorted(house.shelf.all())[0]
        house.shelf.remove(key)
        shown = house.backup.command("verify")
        assert shown.returncode == 1
        assert f"missing   offsite: {key}: there is no such object" in shown.stdout
        assert "--fix" in shown.stdout
        assert shown.stderr == ""
        told = house.backup.command("explain", key).stdout
        assert "found wrong: there is no such object" in told
        wrong = house.backup.command("verify", "--budget", "1GB")
        assert (wrong.returncode, "--deep" in wrong.stderr) == (2, True)
