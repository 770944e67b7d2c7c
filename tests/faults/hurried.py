"""The program with short patience: `python -m tests.faults.hurried run --config F`.

Everything is the real program; only the constants that say how long it waits before it looks again,
tries again or gives a silent peer up are smaller, so that a fault suite need not wait minutes. No
limit on how often, how much or how far is changed.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import aiohttp

from nvr_backup import cli, connections, manners, pool
from nvr_backup.sources import scrypted
from nvr_backup.sources.scrypted import login, reconnect
from nvr_backup.stores import gcs
from nvr_backup.stores.gcs import retry

STALL_SECONDS = 1.0
"""A peer that is silent for so long is given up. Much shorter, and a busy machine looks silent."""


def hurry() -> None:
    """Shorten every wait of this process."""
    _set(retry, FIRST_PAUSE_SECONDS=0.02, LONGEST_PAUSE_SECONDS=0.1)
    _set(pool, FIRST_DELAY=timedelta(seconds=0.1), LONGEST_DELAY=timedelta(seconds=0.4))
    _set(pool, LONGEST_NAP_SECONDS=0.1)
    rest = timedelta(seconds=0.3)
    _set(manners, FIRST_REST=rest, LONGEST_REST=rest, _Rest=partial(manners._Rest, length=rest))
    _set(connections, FIRST_PROBE_SECONDS=0.2, SLOWEST_PROBE_SECONDS=0.4)
    _set(login, FIRST_DELAY_SECONDS=0.1, LONGEST_DELAY_SECONDS=0.3)
    _set(reconnect, FIRST_DELAY_SECONDS=0.05, LONGEST_DELAY_SECONDS=0.2)
    _set(gcs, GcsSettings=partial(gcs.GcsSettings, stall_seconds=STALL_SECONDS))
    # As in the real program, an idle connection is closed long before the stall limit: aiohttp may
    # leave that limit running on one it has put back (3.14: a body that ended while it was paused).
    connector = partial(aiohttp.TCPConnector, keepalive_timeout=STALL_SECONDS / 4)
    _set(aiohttp, TCPConnector=connector)
    _set(
        scrypted,
        ScryptedSettings=partial(
            scrypted.ScryptedSettings,
            stall_seconds=STALL_SECONDS,
            connect_seconds=2.0,
            rpc_seconds=2.0,
            listing_seconds=2.0,
            heartbeat_seconds=0.5,
            heartbeat_limit_seconds=1.0,
        ),
    )


def _set(module: Any, **values: Any) -> None:
    for name, value in values.items():
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} any more")
        setattr(module, name, value)


if __name__ == "__main__":
    hurry()
    cli.main()
