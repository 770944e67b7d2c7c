"""`python -m nvr_backup.simulator`: a simulated NVR as a process of its own.

The first line on standard output is JSON: where it listens, its certificate's fingerprint and the
credentials (they are worth nothing elsewhere). It runs until SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta

from nvr_backup.simulator import DEMO_CAMERAS, STYLES, SimCamera, Simulator, SimulatorSettings
from nvr_backup.simulator.server import serve

_SUFFIXES = {"k": 1024, "m": 1024**2, "g": 1024**3}


def _size(text: str) -> int:
    """Bytes; a suffix K, M or G means powers of 1024."""
    factor = _SUFFIXES.get(text[-1:].lower(), 1)
    return int(text if factor == 1 else text[:-1]) * factor


def _cameras(count: int, style: str | None) -> tuple[SimCamera, ...]:
    """The demo's cameras first, then numbered ones of all styles in turn (or of one style)."""
    styles = [style] if style else list(STYLES)
    cameras = list(DEMO_CAMERAS[:count]) if style is None else []
    while len(cameras) < count:
        number = len(cameras) + 1
        cameras.append(SimCamera(f"Camera {number}", style=styles[number % len(styles)]))
    return tuple(cameras)


def _parser() -> argparse.ArgumentParser:
    default = SimulatorSettings()
    parser = argparse.ArgumentParser(
        prog="python -m nvr_backup.simulator", description="A simulated NVR for tests and demos."
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="0 takes any free one")
    add("--tls", action="store_true", help="self-signed certificate, new at every start")
    add("--username", default=default.username)
    add("--password", default=default.password)
    add("--cameras", type=int, default=len(default.cameras), help="how many")
    add("--style", choices=sorted(STYLES), help="all cameras in this style")
    add("--clips", type=int, default=default.clips_per_camera, help="per camera, in the past")
    add("--hours", type=float, default=24.0, help="how far the past reaches back")
    add("--clip-seconds", type=float, default=default.clip_seconds)
    add("--clip-size", type=_size, help="bytes, or 10M, 10G; default: a small playable sample")
    add("--live-every", type=float, metavar="SECONDS", help="a new clip so often")
    add("--digests", choices=("all", "crc32c", "none"), default=default.digests)
    add("--seed", type=int, default=default.seed)
    add("--first-run", action="store_true", help="a server that nobody has set up")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (those of the process by default) and serve until a signal."""
    told = _parser().parse_args(arguments)
    settings = dataclasses.replace(
        SimulatorSettings(),
        cameras=_cameras(told.cameras, told.style),
        tls=told.tls,
        username=told.username,
        password=told.password,
        clip_seconds=told.clip_seconds,
        history=timedelta(hours=told.hours),
        clips_per_camera=told.clips,
        clip_size=told.clip_size,
        live_every=told.live_every,
        digests=told.digests,
        seed=told.seed,
        first_run=told.first_run,
    )
    try:
        asyncio.run(_until_signal(settings, told.host, told.port))
    except OSError as err:
        sys.exit(f"cannot listen on {told.host}:{told.port}: {err.strerror}")


def _announce(nvr: Simulator) -> None:
    facts = {
        "url": nvr.url,
        "fingerprint": nvr.fingerprint,
        "username": nvr.settings.username,
        "password": nvr.settings.password,
        "control": f"{nvr.url}/_simulator/",
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def _until_signal(settings: SimulatorSettings, host: str, port: int) -> None:
    serving = asyncio.create_task(
        serve(settings, host=host, port=port, ready=_announce), name="simulator"
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    main()
