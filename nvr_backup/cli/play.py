"""`demo` and `simulate`: see it work without a recorder."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from nvr_backup import logs
from nvr_backup.cli.exits import Code, Misused
from nvr_backup.cli.interrupts import draining
from nvr_backup.cli.options import JsonOption, wait_for
from nvr_backup.cli.terminal import console, print_json
from nvr_backup.cli.words import number, short, size
from nvr_backup.clock import Clock, SystemClock
from nvr_backup.errors import NvrBackupError
from nvr_backup.settings.quantities import parse_duration, parse_size

if TYPE_CHECKING:
    from nvr_backup.demo import Demo, Verdict
    from nvr_backup.simulator import SimCamera, Simulator, SimulatorSettings

VERIFY_SECONDS: Final = 0.5

# -- demo -----------------------------------------------------------------------------------------


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Back up what there is, compare it, and end.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where footage and checkpoint go.")
    ] = Path("nvr-backup-demo"),
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", show_default=False, help="Another day of clips."),
    ] = None,
) -> None:
    """See it work: a simulated NVR, backed up into a folder.

    \b
    Starts a simulated NVR with three cameras and a day of playable clips (about
    35 MB), backs it up, and goes on as new clips come, one every ten seconds.
    Every file is compared with the bytes that the simulated NVR holds. Ctrl-C
    ends it; the same folder may be used again. Needs no network, changes nothing
    but its folder: remove that to be rid of it.

    \b
    With --once, exit code 0 means that every clip is there, once and identical.

    \b
    Examples:
      nvr-backup demo
      nvr-backup demo --once --dir /tmp/nvr-backup-demo
    """
    wait_for(_demo(folder, once=once, seed=seed, clock=SystemClock()))


async def _demo(folder: Path, *, once: bool, seed: int | None, clock: Clock) -> None:
    from nvr_backup.demo import open_demo  # noqa: PLC0415 - with the simulator: slow

    out = console()
    logs.configure("warning")
    stop = asyncio.Event()
    with draining(stop, ""):
        async with open_demo(folder, seed=seed, clock=clock, told=out.print) as shown_off:
            out.print(f"It is backed up into {_shown(shown_off.footage)}.")
            before = [one async for one in shown_off.verify()]
            if before:
                out.print(f"From before: {_words(shown_off.verdict)}")
            if out.is_terminal:
                await _with_picture(shown_off, stop, out, once=once, clock=clock)
            else:
                await _carry(shown_off, stop, out, once=once, clock=clock)
            await _tell_compared(shown_off, out)
            verdict = await shown_off.conclude()
    _sum_up(out, verdict, shown_off)
    if once and stop.is_set():
        raise typer.Exit(Code.INTERRUPTED)
    if verdict.different or verdict.strays or (once and not verdict.perfect):
        raise typer.Exit(Code.NOT_ALL)


async def _with_picture(
    running: Demo, stop: asyncio.Event, out: Console, *, once: bool, clock: Clock
) -> None:
    from nvr_backup.cli.progress import shown, transfers  # noqa: PLC0415 - imports the engine

    def draw() -> RenderableType:
        verdict = running.verdict
        text = Text.assemble(
            ("Stopping" if stop.is_set() else "Backing up", "bold"),
            f"  {verdict.stored:,} of {number(verdict.recorded, 'clip')} stored, ",
            (f"{len(verdict.identical):,} identical", "green"),
        )
        hint = Text("" if once else "A new clip every ten seconds. Ctrl-C ends.", style="dim")
        return Group(text, *transfers(running.engine.pool), hint)

    async def nothing() -> None:
        return

    async with shown(out, draw, each_second=nothing, clock=clock) as stream:
        logs.configure("warning", stream, "console")
        try:
            await _carry(running, stop, out, once=once, clock=clock)
        finally:
            logs.configure("warning")


async def _carry(
    running: Demo, stop: asyncio.Event, out: Console, *, once: bool, clock: Clock
) -> None:
    """Back up, with a line for each clip that was stored and compared."""

    async def compare() -> None:
        complete = False
        while True:
            await _tell_compared(running, out)
            if running.verdict.perfect and not (complete or once):
                complete = True
                out.print(
                    f"{_words(running.verdict)} New ones follow every ten seconds; Ctrl-C ends."
                )
            await clock.sleep(VERIFY_SECONDS)

    async with asyncio.TaskGroup() as group:
        around = [group.create_task(compare(), name="compare")]
        if once:
            await running.settled()
            await running.engine.once(stop)
        else:
            around.append(group.create_task(running.record(stop), name="record"))
            await running.engine.run(stop)
        for one in around:
            one.cancel()


async def _tell_compared(running: Demo, out: Console) -> None:
    async for one in running.verify():
        word = "stored, identical" if one.identical else "DIFFERENT"
        out.print(f"{word}  {size(one.size):>9}  {short(one.key, 50)}")


def _words(verdict: Verdict) -> str:
    return (
        f"{number(verdict.stored, 'clip')} stored, "
        f"{len(verdict.identical):,} identical to what the simulated NVR holds."
    )


def _sum_up(out: Console, verdict: Verdict, running: Demo) -> None:
    out.print(_words(verdict))
    for what, keys in (("differs", sorted(verdict.different)), ("is a stray", verdict.strays)):
        for key in keys[:20]:
            out.print(f"  {short(key, 200)} {what}")
    missing = verdict.recorded - verdict.stored
    if missing > 0:
        out.print(f"{number(missing, 'clip')} not stored yet: run the demo again to go on.")
    out.print(f"Files: {_shown(running.footage)}")
    out.print(f"Look around: nvr-backup status -c {_shown(running.config)}")


def _shown(path: Path) -> str:
    try:
        return f"./{path.relative_to(Path.cwd())}"
    except ValueError:
        return str(path)


# -- simulate -------------------------------------------------------------------------------------


def simulate(
    *,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0: any free one.")
    ],
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    tls: Annotated[
        bool, typer.Option("--tls", help="With a self-signed certificate, new each time.")
    ] = False,
    cameras: Annotated[int, typer.Option("--cameras", min=1, max=1000, help="How many.")] = 3,
    clips: Annotated[
        int, typer.Option("--clips", min=0, max=100_000, help="Clips of each camera, in the past.")
    ] = 24,
    past: Annotated[
        str, typer.Option("--past", metavar="TIME", help="How far the past reaches back.")
    ] = "24h",
    clip_size: Annotated[
        str | None,
        typer.Option(
            "--clip-size",
            metavar="SIZE",
            show_default=False,
            help="Size of a clip, such as 10MB; without it a small playable one.",
        ),
    ] = None,
    new_every: Annotated[
        str | None,
        typer.Option(
            "--new-every", metavar="TIME", show_default=False, help="A new clip so often: 10s."
        ),
    ] = None,
    username: Annotated[str, typer.Option("--username", help="Who may log in.")] = "backup",
    password: Annotated[str, typer.Option("--password", help="And how.")] = "secret",  # noqa: S107 - simulated
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other clips.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """A simulated NVR alone, to try a configuration on.

    \b
    It speaks the wire protocol of the real one and prints its URL, user, password
    and a piece of configuration to paste. Ctrl-C ends it.

    \b
    Examples:
      nvr-backup simulate --port 10443 --tls
      nvr-backup simulate --port 0 --cameras 20 --clip-size 10MB --new-every 5s
    """
    from nvr_backup.simulator import SimulatorSettings  # noqa: PLC0415 - a server: slow

    every = None
    try:
        every = parse_duration(new_every).total_seconds() if new_every is not None else None
        history = parse_duration(past)
        each = parse_size(clip_size) if clip_size is not None else None
    except ValueError as err:
        raise Misused(f"One of --past, --new-every and --clip-size {err}.") from None
    if every == 0 or history < timedelta(minutes=1):
        raise Misused("--new-every is at least 1s and --past at least 1m.")
    try:
        wished = SimulatorSettings(
            cameras=_cameras(cameras),
            tls=tls,
            username=username,
            password=password,
            history=history,
            clips_per_camera=clips,
            clip_size=each,
            live_every=every,
            seed=seed,
        )
        wait_for(_simulate(wished, host, port, as_json=as_json))
    except OSError as err:
        raise NvrBackupError(f"Cannot listen on {host}:{port}: {err.strerror}.") from None
    except ValueError as err:
        raise Misused(f"{err}.") from None


def _cameras(count: int) -> tuple[SimCamera, ...]:
    """The demo's cameras first, then numbered ones in all styles in turn."""
    from nvr_backup.simulator import DEMO_CAMERAS, STYLES, SimCamera  # noqa: PLC0415

    styles = list(STYLES)
    more = range(len(DEMO_CAMERAS) + 1, count + 1)
    return (
        *DEMO_CAMERAS[:count],
        *(SimCamera(f"Camera {n}", style=styles[n % len(styles)]) for n in more),
    )


async def _simulate(wished: SimulatorSettings, host: str, port: int, *, as_json: bool) -> None:
    from nvr_backup.simulator import Simulator  # noqa: PLC0415

    stop = asyncio.Event()
    with draining(stop, ""):
        async with Simulator(wished, host=host, port=port) as nvr:
            (_announce_json if as_json else _announce)(nvr)
            running = asyncio.create_task(nvr.run(), name="simulator")
            ending = asyncio.create_task(stop.wait(), name="end")
            try:
                await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
            finally:
                running.cancel()
                ending.cancel()


def _announce(nvr: Simulator) -> None:
    out = console()
    out.print(f"A simulated NVR listens at {nvr.url}")
    out.print(f"  user         {nvr.settings.username}")
    out.print(f"  password     {nvr.settings.password}")
    if nvr.fingerprint:
        out.print(f"  fingerprint  sha256:{nvr.fingerprint}", soft_wrap=True)
    cameras = nvr.catalogue.cameras
    names = ", ".join(camera.name for camera in cameras[:5]) + (", …" if len(cameras) > 5 else "")
    out.print(
        f"  holds        {number(len(nvr.catalogue.clips()), 'clip')} of "
        f"{number(len(cameras), 'camera')}: {names}"
    )
    out.print("\nFor the configuration:\n")
    out.print(_snippet(nvr), soft_wrap=True)
    out.file.flush()


def _announce_json(nvr: Simulator) -> None:
    out = console()
    print_json(
        {
            "url": nvr.url,
            "username": nvr.settings.username,
            "password": nvr.settings.password,
            "fingerprint": f"sha256:{nvr.fingerprint}" if nvr.fingerprint else None,
            "cameras": [camera.name for camera in nvr.catalogue.cameras],
            "clips": len(nvr.catalogue.clips()),
        }
    )
    out.file.flush()


def _snippet(nvr: Simulator) -> str:
    lines = [
        "[sources.simulated]",
        'kind = "scrypted"',
        f'url = "{nvr.url}"',
        f'username = "{nvr.settings.username}"',
        f'password = "{nvr.settings.password}"',
    ]
    if nvr.fingerprint:
        lines.append(f'tls_fingerprint = "sha256:{nvr.fingerprint}"')
    return "\n".join(lines)
