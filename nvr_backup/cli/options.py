"""What the commands have in common: options, the configuration, times on the command line.

A text from the command line that cannot be meant is a usage error (exit 2) that says what is
expected.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import structlog
import typer

from nvr_backup.cli.exits import Misused
from nvr_backup.scheduler import Cron, Every, Rule
from nvr_backup.settings import (
    DEFAULT_CONFIG,
    Cameras,
    Schedule,
    Settings,
    find_config,
    load_settings,
    read_layers,
)
from nvr_backup.settings.quantities import parse_duration

UNIT_CREDENTIALS: Final = Path("/run/credentials/nvr-backup.service")
"""Where systemd keeps the service's credentials while it runs; root may read them."""
KEPT_CREDENTIALS: Final = Path("/etc/nvr-backup/credentials")
"""Where the unit takes them from (deploy/install.sh); for root, while the service does not run."""

FARTHEST_SINCE: Final = timedelta(days=730)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        show_default=False,
        help="The configuration. Without it: $NVR_BACKUP_CONFIG, else "
        "/etc/nvr-backup/config.toml, else the environment alone.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts: JSON on stdout.")]

T = TypeVar("T")


def settings(config: Path | None) -> Settings:
    """The whole configuration; ConfigError with everything that is wrong with it."""
    path = find_config(config, os.environ)
    return load_settings(path, _environment(path))


def _environment(path: Path | None) -> Mapping[str, str]:
    """The environment; for the installed configuration with the service's credentials."""
    if path != DEFAULT_CONFIG or os.environ.get("CREDENTIALS_DIRECTORY"):
        return os.environ
    for folder in (UNIT_CREDENTIALS, KEPT_CREDENTIALS):
        if os.access(folder, os.R_OK | os.X_OK):
            return {**os.environ, "CREDENTIALS_DIRECTORY": str(folder)}
    return os.environ


def remark(found: Settings) -> None:
    """Log what is worth a word about the configuration."""
    for warning in found.warnings:
        structlog.get_logger().warning("configuration", remark=warning)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """As much of the configuration as one needs to look: no secret, no key file.

    `cameras` has the patterns of each source.
    """

    state_dir: Path
    schedule: Schedule
    cameras: Mapping[str, Cameras]
    stores: frozenset[str]

    def wants(self, source: str, camera: str, camera_id: str) -> bool:
        """Whether the configuration names this source and includes this camera."""
        patterns = self.cameras.get(source)
        labels = (camera.casefold(), camera_id.casefold())

        def matches(wanted: tuple[str, ...]) -> bool:
            return any(fnmatchcase(label, w.casefold()) for label in labels for w in wanted)

        return patterns is not None and matches(patterns.include) and not matches(patterns.exclude)


def whereabouts(config: Path | None) -> Whereabouts:
    """The state folder, the schedule, the names of the parts and the wanted cameras.

    For commands that only look at the checkpoint: they work where the passwords and keys that only
    the service may read are out of reach, and with mistakes elsewhere in the configuration.
    """
    open_to_all = {k: v for k, v in os.environ.items() if k != "CREDENTIALS_DIRECTORY"}
    raw, place = read_layers(find_config(config, open_to_all), open_to_all)
    place.problems.clear()
    sources, stores = _table(raw, "sources"), _table(raw, "stores")
    # Settings are whole or not at all: what is not looked at is made up.
    kept: dict[str, Any] = {name: raw[name] for name in ("state_dir", "schedule") if name in raw}
    kept["sources"] = {name: _made_up(source) for name, source in sources.items()} or {
        "none": _made_up({})
    }
    kept["stores"] = {"made-up": {"kind": "directory", "path": "/"}}
    found = Settings.model_validate(kept, context=place)
    cameras = {name: found.sources[name].cameras for name in sources}
    return Whereabouts(found.state_dir, found.schedule, cameras, frozenset(stores))


def without_sources(config: Path | None) -> Settings:
    """The stores and what it takes to use them; the sources are not looked at.

    For commands that bring footage back, also on a machine that has never seen the recorder: a
    configuration of stores alone will do, and no password of a source is needed.
    """
    path = find_config(config, os.environ)
    raw, place = read_layers(path, _environment(path))
    place.problems[:] = [one for one in place.problems if not one.path.startswith("sources")]
    looked_at = ("state_dir", "transfer", "log", "stores")
    kept: dict[str, Any] = {name: raw[name] for name in looked_at if name in raw}
    kept["sources"] = {"none": _made_up({})}
    return Settings.model_validate(kept, context=place)


def _made_up(source: object) -> dict[str, Any]:
    made = {"kind": "scrypted", "url": "http://127.0.0.1", "username": ""}
    if isinstance(source, Mapping) and "cameras" in source:
        return {**made, "cameras": source["cameras"]}
    return made


def _table(raw: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    table = raw.get(section)
    return table if isinstance(table, Mapping) else {}


def rule_of(schedule: Schedule) -> Rule:
    """When cycles are due."""
    if schedule.every is not None:
        return Every(schedule.every)
    return Cron(schedule.cron or "", schedule.timezone)


def since_moment(text: str | None, now: datetime) -> datetime | None:
    """`24h`, `7d` or an ISO time (local without an offset) as a moment in the past, UTC."""
    if text is None:
        return None
    try:
        moment = now - parse_duration(text)
    except ValueError:
        stretch = moments(text)
        if stretch is None:
            raise Misused(
                f'--since {text!r} is neither a duration such as "24h" or "7d" '
                'nor a time such as "2026-03-01T18:00" or "2026-03-01T17:00Z".'
            ) from None
        moment = stretch[0]
    if moment > now:
        raise Misused(f"--since {text!r} is in the future.")
    if now - moment > FARTHEST_SINCE:
        raise Misused(f"--since {text!r} is too far back: at most {FARTHEST_SINCE.days}d.")
    return moment


def moments(text: str) -> tuple[datetime, datetime] | None:
    """An ISO date or time as the stretch [first, after the last) moment it stands for, in UTC.

    A date is a day, a time to the minute a minute, and so on. Without an offset it is local time.
    None when the text is no such time.
    """
    try:
        first = datetime.fromisoformat(text.strip())
        start = first.astimezone(UTC)
        if re.fullmatch(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}", text.strip()):
            return start, (first + timedelta(days=1)).astimezone(UTC)
        seconds = re.search(r"[T ][0-9]{2}:?[0-9]{2}:?[0-9]{2}", text)
        unit = timedelta(seconds=1) if seconds else timedelta(minutes=1)
        if first.microsecond:
            unit = timedelta(milliseconds=1)
        return start, start + unit
    except (ValueError, OverflowError):
        return None


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the fast event loop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some systems
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
