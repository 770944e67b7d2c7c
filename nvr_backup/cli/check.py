"""`check-config` and `doctor`: is the configuration right, and does everything it names work?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta

import typer

from nvr_backup.cli.exits import Code
from nvr_backup.cli.options import ConfigOption, JsonOption, rule_of, settings, wait_for
from nvr_backup.cli.terminal import console, print_json
from nvr_backup.cli.words import local, number, short, size
from nvr_backup.clock import SystemClock
from nvr_backup.settings import (
    DEFAULT_CONFIG,
    DirectoryStore,
    GcsStore,
    Schedule,
    ScryptedSource,
    Settings,
    StoreSettings,
    find_config,
    format_duration,
    format_limit,
    format_size,
)
from nvr_backup.uplink import UNLIMITED


def check_config(config: ConfigOption = None) -> None:
    """Check the configuration, and say what it means. Connects to nothing.

    \b
    Exit code 0: it can be used, perhaps with warnings; 78: it cannot.

    \b
    Examples:
      nvr-backup check-config --config ./config.toml
      NVR_BACKUP_SOURCES__HOME__PASSWORD=... nvr-backup check-config
    """
    found = settings(config)
    out = console()
    out.print("The configuration can be used.")
    for line in _meaning(found):
        out.print(f"  {line}")
    for warning in found.warnings:
        out.print(f"warning: {short(warning, 500)}")


def _meaning(found: Settings) -> Iterator[str]:
    yield f"The checkpoint lies in {found.state_dir}."
    yield _schedule(found.schedule)
    for name, source in found.sources.items():
        stores = ", ".join(found.stores_of(name))
        yield f"sources.{name}: {_source(source)} → {stores}"
    for name, store in found.stores.items():
        yield f"stores.{name}: {_store(store)}"
    memory = 2 * found.transfer.workers * found.transfer.chunk_size
    yield (
        f"At most {number(found.transfer.workers, 'clip')} at a time, in chunks of "
        f"{format_size(found.transfer.chunk_size)}: up to {size(memory)} of memory for them."
    )
    limit = found.transfer.upload_limit
    if limit != UNLIMITED:
        zone = f" (time of {found.upload_zone or 'this machine'})" if limit.spans else ""
        yield f"Uploads to buckets, all together: {format_limit(limit)}{zone}."


def _schedule(schedule: Schedule) -> str:
    if schedule.every is not None:
        when = f"A cycle every {format_duration(schedule.every)}"
    else:
        due = rule_of(schedule).next_after(SystemClock().now())
        when = f'A cycle by cron "{schedule.cron}" ({schedule.timezone}), next {local(due)}'
    match schedule.backfill:
        case timedelta():
            first = f"the first one reaches back {format_duration(schedule.backfill)}"
        case "all":
            first = "the first one takes everything the recorder still has"
        case _:
            first = "the first one takes nothing that is already there"
    return f"{when}; {first}; a clip is final {format_duration(schedule.settle)} after its end."


def _source(source: ScryptedSource) -> str:
    user = f"as {source.username}" if source.username else "without a user name"
    if source.tls_fingerprint is not None:
        trust = ", certificate known by its fingerprint"
    elif source.url.startswith("http://"):
        trust = ", not encrypted"
    else:
        trust = ", certificate checked" if source.tls == "verify" else ", certificate NOT checked"
    cameras = "all cameras"
    if source.cameras.include != ("*",):
        cameras = "cameras " + ", ".join(source.cameras.include)
    if source.cameras.exclude:
        cameras += " except " + ", ".join(source.cameras.exclude)
    return f"Scrypted at {source.url} {user}{trust}; {short(cameras, 200)}"


def _store(store: StoreSettings) -> str:
    match store:
        case GcsStore():
            at = f" at {store.endpoint}" if store.endpoint else ""
            key = store.credentials_file or "application default credentials"
            return f"bucket gs://{store.bucket}/{store.prefix}{at}, with {key}"
        case DirectoryStore():
            return f"folder {store.path}"


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Try everything the configuration names.

    \b
    Logs in, lists the cameras with their newest clips, asks what the store's key
    may do, compares clocks, looks at disk and checkpoint. Changes nothing, works
    beside a running daemon. Under systemd it tells how to look as the service.
    Exit code 0: nothing failed; 1: something did.

    \b
    Examples:
      nvr-backup doctor
      nvr-backup doctor --json | jq '.[] | select(.level != "ok")'
    """
    from nvr_backup.doctor import Finding, examine  # noqa: PLC0415 - aiohttp and all adapters
    from nvr_backup.unit import this_program  # noqa: PLC0415 - as above

    loaded = settings(config)
    path = find_config(config, os.environ)
    asked_by = None
    if path == DEFAULT_CONFIG:
        asked_by = [*this_program(), "doctor", "--config", str(path)]
    out = console()
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}

    async def look() -> list[Finding]:
        found = []
        async for finding in examine(loaded, SystemClock(), asked_by=asked_by):
            found.append(finding)
            if not as_json:
                out.print(f"{finding.level:4}", style=style[finding.level], end="  ")
                out.print(f"{short(finding.part, 80)}: {short(finding.text, 600)}")
                if finding.do:
                    out.print(f"      {short(finding.do, 600)}")
        return found

    findings = wait_for(look())
    worst = any(finding.level == "fail" for finding in findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if worst:
        raise typer.Exit(Code.NOT_ALL)
