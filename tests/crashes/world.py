"""One small world for a crash: a simulated NVR, the strict store double, the program, the truth.

The NVR and the store live in the test's own process, the program in one of its own (`runner`). The
truth is the simulator's: which clips there are, with which bytes. Nothing here asks the program
what it has done; it looks at the folder, the bucket and the database file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import google_crc32c

from nvr_backup.clock import SystemClock
from nvr_backup.keys import RESERVED
from nvr_backup.simulator import SimCamera, SimClip, Simulator
from nvr_backup.stores.directory import DirectorySettings, open_store
from tests.crashes.program import Ended, Program
from tests.crashes.watch import How
from tests.support.gcs_double import GcsDouble

CHUNK = 256 * 1024
SMALL = 40_000
BIG = 3 * CHUNK + 54_321
STORES = ("bucket", "folder")
CAMERAS = (
    SimCamera("Porch", style="file", native_id="porch", clips=0),
    SimCamera("Porch", style="href", native_id="second-porch", clips=0),
    SimCamera("Garden", style="nvr", native_id="garden", clips=0),
    SimCamera("Studio", style="ffmpeg", native_id="studio", clips=0),
)
PRIVATE = ".nvr-backup"
"""What the names of the directory store's own files and folders begin with."""

UPLOAD = re.compile(r"\.nvr-backup/partial/[0-9a-f]{32}")

RECIPES = frozenset({"studio"})
"""Cameras whose clips are no videos: set aside by name."""


@dataclass(frozen=True)
class Made:
    """A clip to be at the NVR: camera's nativeId, minutes after the first, seconds, bytes."""

    camera: str
    minutes: int
    seconds: float
    size: int


ALL_KINDS = (
    Made("porch", 0, 10, SMALL),
    Made("second-porch", 0, 10, SMALL + 1),  # the same name and start: the same object key
    Made("porch", 1, 20, BIG),
    Made("garden", 2, 10, SMALL + 2),
    Made("studio", 3, 10, SMALL),
)


@dataclass
class World:
    """Everything around one run, or several in a row."""

    folder: Path
    program: Program
    nvr: Simulator
    gcs: GcsDouble
    stores: Sequence[str]
    workers: int = 1
    clips: dict[str, SimClip] = field(default_factory=dict)
    allowed: Counter[str] = field(default_factory=Counter)
    deposits: bool = False
    disk: Path | None = None
    """A small file system of its own, for one of the folders."""
    on_disk: str = ""
    deaths: int = 0
    written: int = 0
    """Pieces of clips written into the folder, at most a chunk each."""

    @property
    def state(self) -> Path:
        return self._place("state")

    @property
    def footage(self) -> Path:
        return self._place("footage")

    def _place(self, name: str) -> Path:
        return (self.disk if self.disk and name == self.on_disk else self.folder) / name

    @property
    def database(self) -> Path:
        return self.state / "checkpoint.sqlite3"

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    def write_config(self) -> None:
        self.footage.mkdir(parents=True, exist_ok=True)
        tables: dict[str, Mapping[str, Any]] = {
            "schedule": {"every": "1h", "settle": "0s", "lookback": "2h", "backfill": "25h"},
            "transfer": {"workers": self.workers, "chunk_size": "256KiB"},
            "sources.home": {
                "kind": "scrypted",
                "url": self.nvr.url,
                "username": self.nvr.settings.username,
                "password": self.nvr.settings.password,
            },
        }
        if "bucket" in self.stores:
            tables["stores.bucket"] = {
                "kind": "gcs",
                "bucket": "footage",
                "endpoint": self.gcs.url,
            }
        if "folder" in self.stores:
            tables["stores.folder"] = {"kind": "directory", "path": str(self.footage)}
        if self.deposits:
            tables["checkpoint"] = {"stores": list(self.stores)}
        lines = [f"state_dir = {json.dumps(str(self.state))}"]
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
        self.config.touch(mode=0o600)
        self.config.write_text("\n".join(lines))

    # -- what happens -------------------------------------------------------------------------

    def record(self, clips: Iterable[Made], begin: datetime) -> None:
        """The cameras have recorded these clips."""
        for made in clips:
            self.clips[f"{made.camera} {made.minutes}"] = self.nvr.catalogue.add_clip(
                made.camera,
                start=begin + timedelta(minutes=made.minutes),
                seconds=made.seconds,
                size=made.size,
                content="synthetic",
            )

    def grow(self, name: str, size: int) -> None:
        """A clip has become longer; its shorter version may be in the stores as well."""
        shorter = self.clips[name]
        self.allowed[shorter.content.digest().sha256] += 1
        self.clips[name] = self.nvr.catalogue.grow_clip(shorter, seconds=7, size=size)

    async def once(
        self,
        *,
        step: str | None = None,
        how: How = "kill",
        command: Sequence[str] = ("once",),
        write_config: bool = True,
    ) -> Ended:
        """One run of the program, with its fate."""
        if write_config:
            self.write_config()
        journal, out, err = (self.folder / name for name in ("journal", "out", "err"))
        journal.unlink(missing_ok=True)
        code = await self.program.order(
            arguments=[*command, "--config", str(self.config)],
            root=str(self.folder),
            journal=str(journal),
            step=step,
            how=how,
            disk=str(self.disk or ""),
            out=str(out),
            err=str(err),
        )
        steps = [json.loads(line) for line in journal.read_bytes().splitlines() if line]
        ended = Ended(code, out.read_text(), err.read_text(), steps)
        self.deaths += code == -signal.SIGKILL
        self.written += sum(step.startswith("before pwritev ") for step in ended.steps)
        return ended

    # -- the truth ----------------------------------------------------------------------------

    def truth(self) -> Counter[str]:
        """SHA-256 of every clip that must be in each store."""
        entries = self.nvr.oracle()
        return Counter(entry.sha256 for entry in entries if entry.native_id not in RECIPES)

    def objects(self, store: str) -> dict[str, bytes]:
        """The clips that are visible in a store, by key."""
        found = self.visible(store)
        return {key: data for key, data in found.items() if not key.startswith(RESERVED)}

    def visible(self, store: str) -> dict[str, bytes]:
        """All that is visible in a store, by key: the checkpoint's deposits as well."""
        if store == "bucket":
            return {key: held.data for key, held in self.gcs.objects["footage"].items()}
        return {
            str(path.relative_to(self.footage)): path.read_bytes()
            for path in sorted(self.footage.rglob("*"))
            if path.is_file() and not path.relative_to(self.footage).parts[0].startswith(PRIVATE)
        }

    @contextmanager
    def looked_at(self) -> Iterator[sqlite3.Connection]:
        """A copy of the database, so that looking changes nothing; an empty one if there is none.

        Integrity and references are checked on the way.
        """
        aside = self.folder / "looked-at"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name in (self.database.name, f"{self.database.name}-wal"):
            if (self.state / name).exists():
                shutil.copy(self.state / name, aside / name)
        with closing(sqlite3.connect(aside / self.database.name)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                db.executescript(files("nvr_backup").joinpath("schema.sql").read_text())
            yield db

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """One question to the database."""
        with self.looked_at() as db:
            return db.execute(sql).fetchall()

    def check_promises(self) -> None:
        """What must hold at every moment, also right after a death."""
        with self.looked_at() as db:
            self._check_promises(db, {store: self.objects(store) for store in self.stores})
        for snapshot in self.state.glob("snapshots/checkpoint-*.sqlite3"):
            check_sound(snapshot)
        for store in self.stores if self.deposits else ():
            for key, data in self.visible(store).items():
                if key.startswith(RESERVED):
                    (self.folder / "deposit").write_bytes(gzip.decompress(data))
                    check_sound(self.folder / "deposit")

    def _check_promises(
        self, db: sqlite3.Connection, objects: Mapping[str, Mapping[str, bytes]]
    ) -> None:
        possible = self.truth() + self.allowed
        for store, held in objects.items():
            assert not _sums(held) - possible, f"{store} holds what no clip is: {sorted(held)}"
        for store, key, size, crc32c in db.execute(
            "SELECT store, object_key, size, crc32c FROM copy WHERE state = 'stored'"
        ):
            assert key in objects[store], f"{key} is recorded as stored and is not in {store}"
            assert len(objects[store][key]) == size
            assert google_crc32c.value(objects[store][key]) == crc32c
        self._check_watermarks(db)
        for key, data in objects.get("folder", {}).items():
            described = self._sidecars().get(key)
            assert described is not None, f"{key} is visible and nothing describes it"
            assert described["size"] == len(data)
            assert int(described["crc32c"], 16) == google_crc32c.value(data)

    def _sidecars(self) -> dict[str, dict[str, Any]]:
        found = (
            json.loads(path.read_bytes())
            for path in self.footage.glob(".nvr-backup/objects/*/*.json")
        )
        return {described["key"]: described for described in found}

    def check_said(self, ended: Ended) -> None:
        """What was logged as stored is recorded as stored, whatever came after."""
        with self.looked_at() as db:
            recorded = set(db.execute("SELECT store, object_key FROM copy WHERE state = 'stored'"))
        said = {
            (line["store"], line["key"])
            for line in map(json.loads, filter(_is_log, ended.err.splitlines()))
            if line["message"] == "clip stored"
        }
        assert said <= recorded, f"said to be stored, and forgotten: {said - recorded}"

    def _check_watermarks(self, db: sqlite3.Connection) -> None:
        """No watermark passes a clip that is not accounted for."""
        accounted = set(
            db.execute(
                "SELECT copy.store, camera.source_id, clip.start_ms FROM copy JOIN clip"
                " ON clip.id = copy.clip JOIN camera ON camera.id = clip.camera"
                " WHERE state != 'waiting'"
            )
        )
        for camera, store, mark in db.execute(
            "SELECT camera.source_id, reach.store, min(listed_until_ms, ifnull((SELECT"
            " min(start_ms) FROM copy WHERE copy.camera = reach.camera AND copy.store = reach.store"
            " AND state = 'waiting'), listed_until_ms)) FROM reach JOIN camera"
            " ON camera.id = reach.camera"
        ):
            for state, clip in self.nvr.catalogue.owned():
                if camera.endswith(f":{state.native_id}") and clip.end_ms < mark:
                    assert (store, camera, clip.start_ms) in accounted, (store, camera, clip)

    def check_whole(self) -> None:
        """At rest: every object whole, once; every clip stored or set aside; nothing left over."""
        truth, possible = self.truth(), self.truth() + self.allowed
        objects = {store: self.objects(store) for store in self.stores}
        recipes = sum(c.native_id in RECIPES for c, _ in self.nvr.catalogue.owned())
        with self.looked_at() as db:
            self._check_promises(db, objects)
            states = Counter(db.execute("SELECT store, state FROM copy"))
            assert {state for _, state in states} <= {"stored", "set_aside"}, states
            for store, held in objects.items():
                assert not truth - _sums(held), f"{store} lacks {truth - _sums(held)}"
                assert not _sums(held) - possible, f"{store} has too much: {sorted(held)}"
                stored = db.execute(
                    "SELECT object_key FROM copy WHERE state = 'stored' AND store = ?", (store,)
                )
                assert {key for (key,) in stored} == set(held)
                assert states[(store, "set_aside")] == recipes
            for clip in self.nvr.catalogue.clips():
                copies = db.execute(
                    "SELECT store FROM copy JOIN clip ON clip.id = copy.clip"
                    " WHERE clip.start_ms = ? AND end_ms = ? AND source_id = ? ORDER BY store",
                    (clip.start_ms, clip.end_ms, clip.id),
                ).fetchall()
                assert copies == [(store,) for store in sorted(self.stores)], clip
            assert db.execute("SELECT * FROM upload").fetchall() == []
            assert db.execute("SELECT * FROM copy WHERE claim IS NOT NULL").fetchall() == []

    def litter(self) -> list[str]:
        """Files of the program's own that belong to nothing; relative to the footage."""
        keys = set(self.visible("folder"))
        own = {f".nvr-backup/objects/{_sidecar_of(key)}" for key in keys}
        return [
            name
            for path in sorted(self.footage.rglob("*"))
            if path.is_file()
            and (name := str(path.relative_to(self.footage))) not in keys | own
            and name != ".nvr-backup/store.json"
        ]

    def check_litter(self) -> None:
        """What a death may leave: the files of one upload or probe; no byte of a clip."""
        found = self.litter()
        assert len(found) <= 2 * self.deaths, found
        assert all(name.startswith(PRIVATE) for name in found), found
        for path in (self.footage / name for name in found if UPLOAD.fullmatch(name)):
            # Of deposits alone nothing is noted: the next day's is as good.
            assert self.deposits or not path.stat().st_size or path.stat().st_nlink > 1, path
        open_sessions = [s for s in self.gcs.sessions if s.done is None and s.lost is None]
        assert len(open_sessions) <= self.deaths
        assert not any(session.content.size for session in open_sessions)

    def check_thrift(self) -> None:
        """A death costs each worker at most a chunk sent or written again, and no comparison.

        As many again that waited for their last answer cost one chunk together.
        """
        again = self.deaths * (self.workers + 1)
        requests = self.gcs.requests
        clips = sum(map(len, self.visible("bucket").values()))
        assert sum(r.body_bytes for r in requests) <= clips + again * CHUNK + len(requests) * 2048
        pieces = sum(-(-len(data) // CHUNK) for data in self.visible("folder").values())
        assert self.written <= pieces + self.deaths * 2 * self.workers
        assert self.rows("SELECT object_key FROM copy WHERE verified != 1") == []

    async def check_litter_goes(self) -> None:
        """A week passes, and the store is asked whether it works: that clears away what is old."""
        for name in self.litter():
            week = 8 * 24 * 3600
            at = (self.footage / name).stat().st_mtime - week
            os.utime(self.footage / name, (at, at))
        async with open_store(DirectorySettings("folder", self.footage), SystemClock()) as store:
            await store.probe()
        assert self.litter() == []


def check_sound(file: Path) -> None:
    """A whole database, of the present schema."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], file
        assert db.execute("SELECT count(*) FROM opening").fetchone() >= (1,), file


def _sums(objects: Mapping[str, bytes]) -> Counter[str]:
    return Counter(hashlib.sha256(data).hexdigest() for data in objects.values())


def _is_log(line: str) -> bool:
    return line.startswith("{")


def _sidecar_of(key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:]}.json"
