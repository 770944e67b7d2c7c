"""A state folder in every condition a person may find it in, and the command line to look at it.

`Desk` is a folder with a configuration and a checkpoint that is filled through the engine's own
interface; times are relative to the real present, because the commands look at the real clock.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.cli import app
from nvr_backup.model import Camera, Clip, StoredObject, UploadState, to_ms
from nvr_backup.planner import Addition, Plan, Reach
from nvr_backup.rows import Claim, Tally

PORCH = Camera("home", "plugin:porch", "Porch")
GARDEN = Camera("home", "plugin:garden", "Garden")
TALLY = Tally(received=1000, seconds=0.5)

CONFIG = """\
state_dir = "state"
[schedule]
every = "1h"
[sources.home]
kind = "scrypted"
url = "http://127.0.0.1:9"
username = "backup"
password = "hunter2"
[stores.nas]
kind = "directory"
path = "nas"
"""


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def keys(_store: str, clip: Clip) -> Iterator[str]:
    yield f"{clip.camera.name}/{to_ms(clip.start)}.mp4"


@dataclass
class Desk:
    """A folder with a configuration; its checkpoint appears when it is first written to."""

    folder: Path
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        (self.folder / "nas").mkdir()
        self.configure(CONFIG)

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def configure(self, text: str) -> None:
        self.config.write_text(text)
        self.config.chmod(0o600)

    def __call__(self, command: str, *arguments: str) -> Answer:
        """Run a command as the process would, in this one."""
        return run(command, *arguments, "--config", str(self.config))

    def ago(self, hours: float) -> datetime:
        return (self.now - timedelta(hours=hours)).replace(microsecond=0)

    def engine(self, work: Callable[[Checkpoint], Coroutine[Any, Any, Any]]) -> None:
        """Do `work` with the checkpoint as an engine has it, then leave."""

        async def whole() -> None:
            checkpoint = await Checkpoint.open(self.state, now=self.now)
            try:
                await work(checkpoint)
            finally:
                checkpoint.close()

        asyncio.run(whole())

    def cycle(self, hours: float = 0.1) -> None:
        """A cycle began so long ago."""
        self.engine(lambda checkpoint: checkpoint.record_cycle(self.ago(hours)))

    def clip(
        self, hours: float, camera: Camera = PORCH, *, planned: float = 0.5, id_: str = ""
    ) -> Clip:
        """A clip of 20 s that began so many hours ago, in the backlog since `planned` hours."""
        start = self.ago(hours)
        name = id_ or f"{camera.name.lower()}-{hours}"
        clip = Clip(camera, name, start, start + timedelta(seconds=20), ("person",))
        plan = Plan(
            additions=(Addition(clip, frozenset({"nas"})),),
            new_ids=(),
            listed=1,
            ahead=0,
            latest=start,
            open_since=None,
        )

        async def add(checkpoint: Checkpoint) -> None:
            await checkpoint.apply(camera, plan, keys=keys, now=self.ago(planned))

        self.engine(add)
        self.listed(camera)
        return clip

    def listed(
        self, camera: Camera = PORCH, *, hours: float = 0, proven: float | None = None
    ) -> None:
        """The camera was last listed so many hours ago, and shown a clip `proven` hours ago."""
        now = self.ago(hours)
        shown = self.ago(hours if proven is None else proven)
        reach = Reach(begin=self.ago(240), proven=shown, seen=shown, listed_until=now, whole=now)
        self.engine(lambda checkpoint: checkpoint.advance(camera, {"nas": reach}))

    def outcome(self, work: Callable[[Checkpoint, Claim], Coroutine[Any, Any, Any]]) -> None:
        """Claim the oldest clip and do `work` with it."""

        async def carry(checkpoint: Checkpoint) -> None:
            claim = await checkpoint.claim(
                sources=["home"], stores=["nas"], cameras=lambda _: True, busy={}, due=None
            )
            assert claim is not None
            await work(checkpoint, claim)

        self.engine(carry)

    def store(self) -> None:
        self.outcome(
            lambda checkpoint, claim: checkpoint.commit_stored(
                claim.copy,
                StoredObject(claim.key, 1_500_000, 7, "g1"),
                verified=True,
                tally=TALLY,
                now=self.ago(0.2),
            )
        )

    def fail(self, reason: str, *, hours_off: float = 3) -> None:
        self.outcome(
            lambda checkpoint, claim: checkpoint.put_off(
                claim.copy,
                reason,
                again=1,
                not_before=self.now + timedelta(hours=hours_off),
                tally=TALLY,
                now=self.ago(0.2),
            )
        )

    def set_aside(self, reason: str, *, hours: float = 0.2) -> None:
        self.outcome(
            lambda checkpoint, claim: checkpoint.set_aside(
                claim.copy, reason, tally=TALLY, now=self.ago(hours)
            )
        )

    def half_way(self) -> None:
        """An engine died in the middle of an upload."""
        state = UploadState("secret-session", "k", "video/mp4", self.now, offset=4_000_000)
        self.outcome(lambda checkpoint, claim: checkpoint.save_upload(claim.copy, state))


def run(*arguments: str) -> Answer:
    """The command line in this process; an exception that was not foreseen is raised here."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)
