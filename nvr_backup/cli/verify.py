"""`verify`: the record held against stores and recorders, and what is wrong stored anew."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from nvr_backup import report
from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.options import ConfigOption, JsonOption, settings, since_moment, wait_for
from nvr_backup.cli.terminal import console, print_json
from nvr_backup.cli.words import iso, local, number, short, size
from nvr_backup.clock import SystemClock
from nvr_backup.settings.quantities import parse_size

if TYPE_CHECKING:
    from nvr_backup.findings import Finding
    from nvr_backup.settings import Settings
    from nvr_backup.verification import Outcome, Step
    from nvr_backup.verify import Verified

DEFAULT_SINCE: Final = "7d"
DEFAULT_BUDGET: Final = "5GB"

SHOWN: Final = 20
"""Entries of each kind; `--json` has them all."""

SAID_EVERY: Final = 10_000
"""Copies between two lines of progress where nobody watches."""


def verify(
    *,
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="TIME",
            help="From here on: 24h, 7d, or an ISO time (local, or with Z or an offset).",
        ),
    ] = DEFAULT_SINCE,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read objects back and compare their bytes, too.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="SIZE",
            show_default=False,
            help=f"With --deep: read so much from each store at most [default: {DEFAULT_BUDGET}]",
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Put what is missing or wrong back into the backlog.")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="With --fix: also where most objects on record are missing.",
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold stores and recorders against the record.

    Says which objects are missing, have a wrong size or checksum, or are unknown,
    and which clips a recorder lists that were never planned. What was found wrong
    before is looked at again, however old. --deep also reads objects back, those
    first that were not read for longest; it remembers when each was last proven.
    Works beside the daemon and changes no object.

    \b
    --fix leaves the work to the daemon, or to `nvr-backup once`: what is missing
    is stored again; what is corrupt is replaced, exactly that generation, where
    the key may delete, else stored under another key (a folder keeps the bad
    file below .nvr-backup/replaced). Unknown objects are never touched.
    Where most objects on record are missing, the bucket or prefix is more likely
    wrong than they are lost: none is put back there without --accept-loss.

    \b
    Exit code 0: all of it was looked at and is right, or with --fix is back in
    the backlog; 1: something is wrong; 69: nothing is wrong, but a store or
    recorder could not be asked, an object not be read, or the key may not look
    (the text says which).

    \b
    Examples:
      nvr-backup verify
      nvr-backup verify --since 30d --deep --budget 20GB
      nvr-backup verify --fix && nvr-backup once
      nvr-backup verify --json | jq '.wrong[] | {store, key, what}'
    """
    from nvr_backup.verify import Wish  # noqa: PLC0415 - aiohttp and all adapters: slow
    from nvr_backup.verify import verify as work  # noqa: PLC0415

    clock = SystemClock()
    begin = since_moment(since, clock.now())
    assert begin is not None  # noqa: S101 - it has a default
    if budget is not None and not deep:
        raise Misused("--budget is for --deep: without it nothing is read back.")
    if accept_loss and not fix:
        raise Misused("--accept-loss is for --fix: without it nothing is put back.")
    try:
        limit = parse_size(budget or DEFAULT_BUDGET)
    except ValueError as err:
        raise Misused(f"--budget {budget!r} {err}.") from None
    loaded = settings(config)
    with _progress(console("stderr")) as step:
        verified = wait_for(work(loaded, Wish(begin, deep, limit, fix, accept_loss), clock, step))
    if as_json:
        print_json(_as_json(verified, deep=deep, fix=fix))
    else:
        _show(console(), verified, loaded, fix=fix)
    _leave(verified, fix=fix)


def _leave(verified: Verified, *, fix: bool) -> None:
    left = [one for one in verified.wrong if one.copy not in verified.healed]
    if left or (verified.unplanned and not fix):
        raise typer.Exit(Code.NOT_ALL)
    if verified.unasked or any(one.unchecked or one.unread for one in verified.outcomes):
        raise typer.Exit(Code.UNREACHABLE)


@contextmanager
def _progress(err: Console) -> Iterator[Step]:
    """How far it is: a line that changes, or now and then a line."""
    if sys.stderr.isatty():
        with err.status("Asking the stores") as line:

            def draw(outcome: Outcome) -> None:
                line.update(_so_far(outcome))

            yield draw
        return
    said = 0

    def say(outcome: Outcome) -> None:
        nonlocal said
        done = (outcome.right + len(outcome.found)) // SAID_EVERY
        if done > said:
            said = done
            err.print(_so_far(outcome))

    yield say


def _so_far(outcome: Outcome) -> str:
    text = f"{outcome.store}: {number(outcome.right + len(outcome.found), 'object')} compared"
    if outcome.read_bytes:
        text += f", {size(outcome.read_bytes)} read back"
    return text


# -- showing --------------------------------------------------------------------------------------


def _show(out: Console, verified: Verified, loaded: Settings, *, fix: bool) -> None:
    out.print(f"Clips from {local(verified.begin)} to {local(verified.end)}")
    for outcome in verified.outcomes:
        _show_outcome(out, outcome)
    for part, why in verified.unasked.items():
        out.print(f"{short(part, 60)} could not be asked: {short(why, 500)}")
    _show_wrong(out, verified.wrong)
    _list(
        out,
        "At the recorder, but never planned",
        [
            f"{local(one.start)}  {short(one.camera, 30)} → {short(one.store, 15)}"
            for one in verified.unplanned
        ],
    )
    for outcome in verified.outcomes:
        _list(
            out,
            f"Could not be read in {outcome.store}",
            [f"{short(key, 200)}: {short(why, 200)}" for key, why in outcome.unread.items()],
        )
        _list(
            out,
            f"Unknown in {outcome.store} (left alone)",
            [f"{short(one.key, 200)}  {size(one.size)}" for one in outcome.strays],
            outcome.stray_count,
        )
    _show_remedy(out, verified, loaded, fix=fix)


def _show_outcome(out: Console, outcome: Outcome) -> None:
    parts = [f"{outcome.right:,} right", f"{len(outcome.found):,} wrong"]
    if outcome.stray_count:
        parts.append(f"{number(outcome.stray_count, 'unknown object')}")
    if outcome.unchecked:
        parts.append(f"{outcome.unchecked:,} not compared")
    if outcome.read:
        parts.append(f"{outcome.read:,} read back ({size(outcome.read_bytes)})")
    out.print(f"stores.{outcome.store}: {', '.join(parts)}")
    for limit in outcome.limits:
        out.print(f"  {limit}")


def _show_wrong(out: Console, wrong: Sequence[Finding]) -> None:
    _list(
        out,
        "Wrong",
        [
            f"{one.what.value:<8}  {one.store}: {short(one.key, 200)}: {short(one.detail, 200)}"
            for one in wrong
        ],
    )


def _list(out: Console, title: str, lines: Sequence[str], count: int | None = None) -> None:
    if not lines:
        return
    out.print(f"\n{title}")
    for line in lines[:SHOWN]:
        out.print(f"  {line}")
    count = count or len(lines)
    if (more := count - SHOWN) > 0:
        has = "has them" if count == len(lines) else f"has the first {len(lines):,}"
        out.print(f"  and {more:,} more; `--json` {has}")


def _show_remedy(out: Console, verified: Verified, loaded: Settings, *, fix: bool) -> None:
    if not (verified.wrong or verified.unplanned):
        return
    out.print()
    if not fix:
        out.print("`nvr-backup verify --fix` (same --since) stores it anew from the recorder.")
        return
    if verified.healed:
        out.print(f"{number(len(verified.healed), 'clip')} back in the backlog.")
    for why, copies in Counter(verified.left.values()).items():
        out.print(f"{number(copies, 'clip')} left as found: {why}.")
    if verified.unplanned:
        out.print(f"{number(len(verified.unplanned), 'clip')} to be listed again and planned.")
    if report.engine_process(loaded.state_dir) is None:
        out.print("No daemon runs now: the next one, or `nvr-backup once`, stores them.")
    else:
        out.print("The running daemon stores them; `nvr-backup status` shows when it is done.")


def _as_json(verified: Verified, *, deep: bool, fix: bool) -> dict[str, Any]:
    return {
        "since": iso(verified.begin),
        "until": iso(verified.end),
        "deep": deep,
        "stores": [
            {
                "store": one.store,
                "right": one.right,
                "wrong": len(one.found),
                "not_compared": one.unchecked,
                "unknown": one.stray_count,
                "read_back": one.read,
                "read_back_bytes": one.read_bytes,
                "not_read": one.unread,
                "limits": one.limits,
            }
            for one in verified.outcomes
        ],
        "not_asked": verified.unasked,
        "wrong": [
            {
                "store": one.store,
                "source": one.source,
                "camera": one.camera,
                "start": iso(one.start),
                "key": one.key,
                "what": one.what.value,
                "detail": one.detail,
                "found": iso(one.at),
                **(
                    {
                        "planned_again": one.copy in verified.healed,
                        "left": verified.left.get(one.copy),
                    }
                    if fix
                    else {}
                ),
            }
            for one in verified.wrong
        ],
        "unplanned": [
            {
                "source": one.source,
                "camera": one.camera,
                "store": one.store,
                "start": iso(one.start),
            }
            for one in verified.unplanned
        ],
        "unknown": [
            {"store": outcome.store, "key": one.key, "bytes": one.size}
            for outcome in verified.outcomes
            for one in outcome.strays
        ],
    }
