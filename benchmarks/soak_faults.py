"""The faults of the soak: what goes wrong in which minute, and how it is mended.

Each is begun at the start of its minute and ended some seconds later; what it needs to be seen (a
request of the right kind) comes by itself, because the cameras never rest. None may do what cannot
be noticed (wrong bytes in a body of the right size) or not be mended (a deleted clip): at the end
every clip must be stored.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tests.support.proxy import Break, Direction, How, TcpProxy


class Stage(Protocol):
    """Everything that a fault may touch."""

    nvr_link: TcpProxy
    store_link: TcpProxy
    breaks: list[tuple[str, Break]]

    async def nvr(self, order: str, **body: Any) -> Any:
        """POST to the simulated NVR's control surface."""
        ...

    async def store(self, order: str, **body: Any) -> Any:
        """POST to the storage double's control surface."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        ...

    def configure(self, *, workers: int = 4, broken: bool = False) -> None:
        """Write the daemon's configuration again."""
        ...

    def unmount(self) -> None:
        """The folder store's folder is gone."""
        ...

    def mount(self) -> None:
        """It is back."""
        ...


Act = Callable[[Stage], Awaitable[Any]]


async def _nothing(_stage: Stage) -> None:
    """There is nothing to mend."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by name. `certain`: it has happened once it was begun."""

    name: str
    begin: Act
    end: Act = _nothing
    certain: bool = True


def _nvr(name: str, **options: Any) -> Fault:
    """A fault of the simulated NVR; stalls end by `release`."""

    async def release(stage: Stage) -> None:
        await stage.nvr("release")
        await stage.nvr("disarm", name=name)

    return Fault(
        f"nvr: {name}", lambda stage: stage.nvr("faults", name=name, **options), release, False
    )


def _order(name: str, order: str, **body: Any) -> Fault:
    return Fault(f"nvr: {name}", lambda stage: stage.nvr(order, **body))


def _store(where: str, what: str, times: int = 1, **options: Any) -> Fault:
    """A scripted fault of the storage double."""
    told = ", ".join(f"{key}={value}" for key, value in options.items())
    return Fault(
        f"store: {what}({told}) at {where}",
        lambda stage: stage.store(
            "faults", where=where, what=what, times=times, **{"with": options}
        ),
        lambda stage: stage.store("release"),
        False,
    )


def _cut(which: str, how: How, after_bytes: int, direction: Direction) -> Fault:
    """Links from now on break after so many bytes; the open ones now."""

    name = f"{which} link: {how} after {after_bytes} bytes {direction}"

    async def begin(stage: Stage) -> None:
        proxy = _proxy(stage, which)
        entry = proxy.cut(how, after_bytes=after_bytes, direction=direction, times=2)
        stage.breaks.append((name, entry))
        proxy.drop_all()

    async def end(stage: Stage) -> None:
        _proxy(stage, which).release()

    return Fault(name, begin, end, False)


def _down(which: str) -> Fault:
    """The link is down: open connections are reset, new ones refused."""

    async def begin(stage: Stage) -> None:
        await _proxy(stage, which).refuse()
        _proxy(stage, which).drop_all()

    async def end(stage: Stage) -> None:
        await _proxy(stage, which).accept()

    return Fault(f"{which} link: down", begin, end)


def _proxy(stage: Stage, which: str) -> TcpProxy:
    return stage.nvr_link if which == "nvr" else stage.store_link


async def _reload(stage: Stage) -> None:
    stage.configure(workers=2)
    stage.signal(signal.SIGHUP)


async def _reload_back(stage: Stage) -> None:
    stage.configure()
    stage.signal(signal.SIGHUP)


async def _reload_broken(stage: Stage) -> None:
    stage.configure(broken=True)
    stage.signal(signal.SIGHUP)


async def _cycles(stage: Stage) -> None:
    for _ in range(3):
        stage.signal(signal.SIGUSR1)


async def _unmount(stage: Stage) -> None:
    stage.unmount()


async def _mount(stage: Stage) -> None:
    stage.mount()


FAULTS: Final[tuple[Fault, ...]] = (
    _order("links dropped", "drop-links"),
    _nvr("cut_body", at_bytes=100_000, times=2),
    _store("chunk", "Status", 3, code=503),
    _order("restart, away for 5 s", "restart", down=5),
    _cut("store", "reset", 300_000, "up"),
    Fault("SIGHUP: other settings", _reload, _reload_back),
    _nvr("listing_error", message="database is locked", times=4),
    _store("last", "Reset", at="after"),
    _nvr("early_end", at_bytes=60_000, times=2),
    Fault("folder: gone for a while", _unmount, _mount),
    _store("any", "Status", 12, code=429, retry_after="3"),
    _order("tokens expired", "expire"),
    _cut("nvr", "reset", 50_000, "down"),
    _nvr("stall_body", at_bytes=10_000, times=2),
    _store("single", "Reset", at="after"),
    _down("store"),
    _nvr("empty_listing", times=8),
    Fault("store: upload sessions lost", lambda stage: stage.store("lose-sessions")),
    _nvr("html_page", times=2),
    Fault("SIGUSR1: three times", _cycles),
    _store("last", "Partial"),
    _nvr("restart_in_body", at_bytes=100_000, down=3),
    Fault("store: tokens expired", lambda stage: stage.store("expire-tokens")),
    _nvr("server_error", status=503, retry_after=5, times=3),
    _store("chunk", "Stall", at="before"),
    _down("nvr"),
    _nvr("length_too_large", times=2),
    _store("chunk", "Corrupt", at=7),
    _cut("store", "stall", 200_000, "up"),
    _nvr("listing_short", times=6),
    _store("last", "Garbled"),
    _nvr("black_hole"),
    Fault("SIGHUP: broken settings", _reload_broken, _reload_back),
    _nvr("unauthorized", times=2),
    _store("any", "Status", 20, code=403, reason="forbidden", message="Access denied."),
    _nvr("slow_listing", seconds=8, times=4),
    _store("token", "Status", 2, code=500),
    _nvr("plugin_dead", times=4),
    _cut("nvr", "stall", 30_000, "down"),
    _nvr("clip_error", message="no such file", times=3),
    _store("chunk", "Backwards", to=0),
    _nvr("drop_link_in_body", at_bytes=50_000, times=2),
)
"""One a minute, in this order, and then from the beginning."""
