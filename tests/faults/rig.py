"""The real pieces with every wire between them in reach: NVR, proxies, daemon, store, and truth.

A rig is one simulated NVR, one store (the strict double or a folder) and one daemon, each a
process, with a TCP proxy on both links. It serves many cases in turn: a case films its own clips,
breaks something, and `settled` then holds everything that can be seen from outside against the
truth: the NVR's own digests, the store's own journal, the rows of the checkpoint, the lines of the
log. The statements on the checkpoint are written here, apart from those of the code under test.
"""

from __future__ import annotations

import hashlib
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tests.faults.wires import Wire, wires
from tests.process.parts import (
    Backup,
    Daemon,
    Lines,
    Nvr,
    Store,
    call,
    gcs_double,
    process,
    simulated_nvr,
)

Kind = Literal["gcs", "directory"]
KINDS: tuple[Kind, ...] = ("gcs", "directory")

CHUNK = 256 * 1024
SIX = 6 * CHUNK - 1000
"""A clip of six chunks, the last one not full."""

FILE = "Porch"  # getVideoClip, converted to a file: Content-Length and Range
NVR = "Garden"  # as the NVR plugin: ids tell start and length
STREAM = "Garage"  # chunked, no Range
RANGED = "Camera 7"  # listed with an address of its own: Content-Length and Range
CAMERAS = (FILE, NVR, STREAM, RANGED)

STEP_MS = 15_000
"""From the start of one clip to that of the next, so that no two share a key."""

NUDGE_SECONDS = 0.7
"""How often a daemon that is not done is asked for another cycle."""

CYCLE = ("cycle asked for", "cycle started", "cycle listed")

Told = Mapping[str, int | tuple[int, int]]
"""How often the operator was told what, exactly or from … to …."""


@dataclass(frozen=True)
class Filmed:
    """A clip as the NVR made it."""

    camera: str
    id: str
    start_ms: int
    end_ms: int
    size: int

    @property
    def key(self) -> str:
        return key_of(self.camera, self.start_ms)


def key_of(camera: str, start_ms: int) -> str:
    """The object key of a clip, by the promise of docs/design.md."""
    start = datetime.fromtimestamp(start_ms / 1000, UTC)
    return f"{camera}/{start:%Y/%m/%d/%H-%M-%S}.mp4"


@dataclass
class Rig:
    """See the module. `expected` is every object there must be, by key: SHA-256.

    `foreign` are those that somebody else has put there.
    """

    kind: Kind
    folder: Path
    nvr: Nvr
    nvr_wire: Wire
    backup: Backup
    store: Store | None = None
    store_wire: Wire | None = None
    daemon: Daemon | None = None
    expected: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)
    filmed: list[Filmed] = field(default_factory=list)
    proven: bool = True
    _next_ms: int = field(default_factory=lambda: int(time.time() * 1000) - 4 * 3_600_000)
    _nudged: float = 0.0
    _asked: int = 0
    _orphans: int = 0
    _said_before: int = 0
    _journal_before: int = 0
    _struck_before: dict[str, int] = field(default_factory=dict)
    _known_files: dict[tuple[str, int, int, int], str] = field(default_factory=dict)
    _daemons: ExitStack = field(default_factory=ExitStack)

    # -- the daemon ---------------------------------------------------------------------------

    def start(self) -> Daemon:
        """Start the daemon and let it begin its first cycle; from then on it knows its signals."""
        self.backup.write()
        arguments = ("tests.faults.hurried", "run", "--config", str(self.backup.config))
        self.daemon = Daemon(self._daemons.enter_context(process(*arguments)))
        self._said_before = self._asked = 0
        self.daemon.until_said("cycle started")
        return self.daemon

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon; its exit code."""
        assert self.daemon is not None
        self.daemon.signal(how)
        code = self.daemon.end()
        self._daemons.close()
        self.daemon = None
        return code

    def close(self) -> None:
        self._daemons.close()

    @property
    def lines(self) -> Lines:
        """What the daemon has said in this case."""
        assert self.daemon is not None
        return self.daemon.lines[self._said_before :]

    def said(self, message: str) -> Lines:
        return [line for line in self.lines if line["message"] == message]

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Read on until `happened`; without nudging the daemon."""
        assert self.daemon is not None
        self.daemon.until(happened, what)

    def cycle(self) -> None:
        """Ask for a cycle, and wait until it has come to rest."""
        self.until(self._idle, "no cycle under way")
        before = len(self.said("cycle finished"))
        self._ask()
        self.until(lambda: len(self.said("cycle finished")) > before, "cycle finished")
        self.until(self._idle, "no cycle under way")

    def nudge(self, *, at_once: bool = False) -> None:
        """Ask for a cycle, unless one is under way or that was done a moment ago."""
        if at_once:
            self.until(self._idle, "no cycle under way")
        if (time.monotonic() - self._nudged > NUDGE_SECONDS or at_once) and self._idle():
            self._ask()

    def _ask(self) -> None:
        assert self.daemon is not None
        self._nudged = time.monotonic()
        self._asked += 1
        self.daemon.signal(signal.SIGUSR1)

    def _idle(self) -> bool:
        """Whether every cycle that was asked for has listed what there is."""
        assert self.daemon is not None
        order = [line["message"] for line in self.daemon.lines if line["message"] in CYCLE]
        return order.count("cycle asked for") == self._asked and order[-1] == "cycle listed"

    # -- a case -------------------------------------------------------------------------------

    def begin(self) -> None:
        """A case begins: what was said and sent so far is not its own."""
        self.proven = False
        self._said_before = len(self.daemon.lines) if self.daemon is not None else 0
        self._journal_before = len(self.store.journal()) if self.store is not None else 0
        self._struck_before = self.nvr.ask("faults")["happened"]
        self.filmed = []

    def film(self, camera: str = RANGED, *, size: int | None = SIX, **more: Any) -> Filmed:
        """A new clip at the NVR, which a cycle will find."""
        start_ms = more.pop("start_ms", None)
        if start_ms is None:
            start_ms, self._next_ms = self._next_ms, self._next_ms + STEP_MS
        (made,) = self.nvr.do("clips", camera=camera, size=size, start_ms=start_ms, **more)
        clip = Filmed(camera, made["id"], made["start_ms"], made["end_ms"], made["size"])
        self.filmed.append(clip)
        return clip

    def fault(self, name: str, **options: Any) -> None:
        """Arm a fault of the simulator."""
        self.nvr.do("faults", name=name, **options)

    def store_fault(self, where: str, what: str, /, **options: Any) -> None:
        """Script a fault of the double; `times`, `nth` and `key` are the script's own."""
        assert self.store is not None
        own = {name: options.pop(name) for name in ("times", "nth", "key") if name in options}
        self.store.fault(where=where, what=what, **own, **{"with": options})

    def store_faults_happened(self) -> bool:
        return all(fault["used_up"] for fault in self.store_faults())

    def end_store_faults(self) -> None:
        """Forget the double's script and end its stalls."""
        if self.store is not None:
            call_delete(f"{self.store.url}/_double/faults")
            call(f"{self.store.url}/_double/release", {})

    def lose_sessions(self, status: int) -> None:
        """All unfinished uploads are gone, as after a week; also those that nobody knows of."""
        assert self.store is not None
        assert call(f"{self.store.url}/_double/lose-sessions", {"status": status})["sessions"]
        self._orphans = 0

    def store_faults(self) -> list[dict[str, Any]]:
        """The double's script with its own counts."""
        assert self.store is not None
        found: list[dict[str, Any]] = call(f"{self.store.url}/_double/faults")
        return found

    def keys_of(self, *ids: str) -> list[str]:
        """The object keys of clips by their ids at the NVR."""
        marks = ", ".join("?" * len(ids))
        sql = (
            f"SELECT object_key FROM copy JOIN clip ON clip.id = clip WHERE source_id IN ({marks})"
        )
        return [key for (key,) in self.ask(sql, *ids)]

    def place(self, key: str, text: str) -> None:
        """Somebody else puts an object under a key."""
        if self.store is not None:
            call(f"{self.store.url}/_double/objects", {"name": key, "text": text})
        else:
            path = self.backup.footage / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.foreign[key] = hashlib.sha256(text.encode()).hexdigest()

    def happened(self, *names: str) -> list[int]:
        """How often faults of the simulator have struck in this case."""
        counts = self.nvr.ask("faults")["happened"]
        return [counts.get(name, 0) - self._struck_before.get(name, 0) for name in names]

    def journal(self) -> list[dict[str, Any]]:
        """The requests the double has seen in this case."""
        assert self.store is not None
        return self.store.journal()[self._journal_before :]

    def truth(self) -> dict[str, str]:
        """Key to SHA-256 of this case's clips, as the NVR has them now."""
        if not self.filmed:
            return {}
        since = min(clip.start_ms for clip in self.filmed)
        listed = self.nvr.ask(f"oracle?since_ms={since}")
        return {key_of(clip["camera"], clip["start_ms"]): clip["sha256"] for clip in listed}

    def settle(self, *, aside: Collection[str] = (), keys: Collection[str] = ()) -> None:
        """Until every clip of this case is stored (or set aside), asking for cycles meanwhile.

        `keys` are those of clips that do not have the usual ones.
        """
        wanted = dict.fromkeys(keys or (clip.key for clip in self.filmed), "stored")
        wanted |= dict.fromkeys(aside, "set_aside")

        def done() -> bool:
            if self.states(wanted) == wanted:
                return True
            self.nudge()
            return False

        self.nudge(at_once=True)
        self.until(done, f"{wanted}")

    def settled(
        self,
        *,
        told: Told | None = None,
        aside: Collection[str] = (),
        orphans: int = 0,
        truth: Mapping[str, str] | None = None,
    ) -> None:
        """Everything holds, and one more cycle changes nothing. The end of every case.

        `told` are the warnings and errors the operator got, by message; `aside` the keys of the
        clips that are set aside. `orphans` are at most so many
        uploads that nobody can know of, and so nobody can finish (the answer that named them was
        lost); they are counted over the rig's life. `truth` replaces what the NVR has.
        """
        self.nvr.do("release")
        self.nvr.do("disarm")
        for wire in (self.nvr_wire, self.store_wire):
            if wire is not None:
                wire.clear()
        self.settle(aside=aside, keys=() if truth is None else truth)
        self.cycle()
        self.expected |= self.truth() if truth is None else truth
        for key in aside:
            self.expected.pop(key, None)
            self.aside.add(key)
        self.check_store(orphans=orphans)
        self.check_checkpoint()
        self.check_told(told or {})
        self.end_store_faults()
        self.proven = True

    def check_told(self, told: Told) -> None:
        """These warnings and no others; and whatever was blocked has recovered, said once."""
        loud = Counter(
            line["message"] for line in self.lines if line["level"] not in {"info", "debug"}
        )
        assert loud.keys() <= told.keys(), self.loud_lines()
        for message, wanted in told.items():
            least, most = wanted if isinstance(wanted, tuple) else (wanted, wanted)
            assert least <= loud[message] <= most, (
                f"{message}: {loud[message]}\n{self.loud_lines()}"
            )
        assert len(self.said("recovered")) == len(self.said("blocked")), self.loud_lines()

    def loud_lines(self) -> str:
        """What was said, for a failing test."""
        quiet = {"cycle asked for", "cycle started", "clip started", "cycle listed"}
        return "\n".join(str(line) for line in self.lines if line["message"] not in quiet)

    # -- what is there ------------------------------------------------------------------------

    def stored(self) -> dict[str, str]:
        """Every object in the store: SHA-256 by key."""
        if self.store is not None:
            return {name: held["sha256"] for name, held in self.store.objects().items()}
        root = self.backup.footage
        found = {}
        for path in root.rglob("*"):
            if path.is_file() and ".nvr-backup" not in path.parts:
                found[str(path.relative_to(root))] = self._digest(path)
        return found

    def _digest(self, path: Path) -> str:
        status = path.stat()
        identity = (str(path), status.st_ino, status.st_size, status.st_ctime_ns)
        if identity not in self._known_files:
            self._known_files[identity] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._known_files[identity]

    def unfinished(self) -> list[str]:
        """Uploads in the store that are neither finished nor given up."""
        if self.store is not None:
            return [str(held) for held in call(f"{self.store.url}/_double/sessions")]
        partial = self.backup.footage / ".nvr-backup" / "partial"
        return [path.name for path in partial.glob("*")]

    def check_store(self, *, orphans: int = 0) -> None:
        """Exactly the expected objects, byte for byte, under their keys; nothing half-done."""
        stored, expected = self.stored(), self.expected | self.foreign
        assert stored.keys() == expected.keys()
        assert stored == expected
        left = self.unfinished()
        assert self._orphans <= len(left) <= self._orphans + orphans, left
        self._orphans = len(left)
        if self.kind == "directory":
            sidecars = self.backup.footage / ".nvr-backup" / "objects"
            assert len(list(sidecars.glob("*/*"))) == len(self.expected)

    # -- the checkpoint -----------------------------------------------------------------------

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Look into the checkpoint beside the daemon."""
        path = (self.backup.state_dir or self.backup.folder / "state") / "checkpoint.sqlite3"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=15)) as db:
            return db.execute(sql, values).fetchall()

    def states(self, keys: Collection[str]) -> dict[str, str]:
        """The copies' states by object key."""
        rows = self.ask("SELECT object_key, state FROM copy")
        return {key: state for key, state in rows if key in keys}

    def check_checkpoint(self) -> None:
        """Every clip exactly one of waiting, stored, set aside; no watermark past any other."""
        rows = self.ask("SELECT object_key, state FROM copy")
        assert len(rows) == len({key for key, _ in rows})
        assert {key for key, state in rows if state == "stored"} == self.expected.keys()
        assert {key for key, state in rows if state == "set_aside"} == self.aside
        assert {state for _, state in rows} <= {"stored", "set_aside"}
        assert self.ask("SELECT count(*) FROM upload") == [(0,)]
        assert self.ask("SELECT count(*) FROM copy WHERE claim IS NOT NULL") == [(0,)]
        self.check_watermarks()
        assert self.ask("PRAGMA integrity_check") == [("ok",)]
        assert self.ask("PRAGMA foreign_key_check") == []

    def check_watermarks(self) -> None:
        """No camera is listed up to a moment before which a clip ended that nobody knows."""
        reached = dict(
            self.ask(
                "SELECT camera.name, min(listed_until_ms) FROM reach"
                " JOIN camera ON camera.id = reach.camera GROUP BY camera.id"
            )
        )
        known = set(self.ask("SELECT camera_name, start_ms FROM clip"))
        for clip in self.nvr.ask("oracle?digests=0"):
            listed = reached.get(clip["camera"])
            if listed is not None and clip["end_ms"] < listed:
                assert (clip["camera"], clip["start_ms"]) in known, clip


def call_delete(url: str) -> None:
    """DELETE of a control surface."""
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE")) as answer:
        answer.read()


@contextmanager
def rig(
    kind: Kind,
    folder: Path,
    *,
    start: bool = True,
    double: tuple[str, ...] = (),
    tables: Mapping[str, dict[str, Any]] | None = None,
) -> Iterator[Rig]:
    """A rig of its own in `folder`, its daemon past the first cycle.

    `double` are more arguments for the double, `tables` changes to the configuration's tables.
    """
    with ExitStack() as stack:
        wire = stack.enter_context(wires())
        nvr = stack.enter_context(simulated_nvr("--cameras", "7", "--clips", "0"))
        nvr_wire = wire(nvr.url)
        backup = Backup(folder, replace(nvr, url=nvr_wire.url))
        store = store_wire = None
        if kind == "gcs":
            key_file = folder / "gcs.json"
            store = stack.enter_context(
                gcs_double("--auth", "--service-account", str(key_file), *double)
            )
            store_wire = wire(store.url)
            backup.store_url, backup.credentials = store_wire.url, key_file
        backup.tables = {
            "transfer": {"chunk_size": "256KiB", "workers": 4},
            "sources.home.cameras": {"include": list(CAMERAS)},
            **(tables or {}),
        }
        made = Rig(kind, folder, nvr, nvr_wire, backup, store, store_wire)
        stack.callback(made.close)
        if start:
            daemon = made.start()
            daemon.until_said("cycle finished")
        yield made
