"""The daemon in this very process: real signals to ourselves over fakes and a virtual clock."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nvr_backup import vitals as vitals_module
from nvr_backup.checkpoint import Checkpoint
from nvr_backup.database import EngineRunningError
from nvr_backup.errors import Blocked, ConfigError, Transient
from nvr_backup.model import Camera
from nvr_backup.notify import Notifier
from nvr_backup.pool import Pool
from nvr_backup.service import DRAIN_SECONDS, Service
from nvr_backup.settings import Settings
from nvr_backup.vitals import LOOK_SECONDS, STATUS_SECONDS, Vitals
from tests.support.fakes import FakeStore, clip_at, mp4
from tests.support.notify_socket import NotifySocket
from tests.support.wired import Wired

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
KIB_256 = 256 * 1024  # a chunk


@pytest.fixture
def missed() -> Iterator[list[int]]:
    """Signals that nobody handled; without this they would end the tests."""
    found: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: found.append(number)) for number in HANDLED
    }
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wired]:
    wired = Wired(tmp_path, monkeypatch)
    yield wired
    faults = [part.faults for part in wired.sources.values()]
    faults += [part.faults for part in wired.stores.values()]
    assert [fault.unused() for fault in faults if fault.unused()] == []


@dataclass
class Daemon:
    """A service at work. `configuration` is what a reload finds: settings, or an error.

    While `readable` is not set, reading it takes its time.
    """

    wired: Wired
    missed: list[int]
    configuration: Settings | ConfigError
    loads: int = 0
    notifier: Notifier = field(default_factory=lambda: Notifier(None))
    readable: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] = field(init=False)
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.readable.set()

    def load(self) -> Settings:
        found = self.configuration
        self.loads += 1
        assert self.readable.wait(20), "the loop stood still while the configuration was read"
        if isinstance(found, ConfigError):
            raise found
        return found

    def start(self, settings: Settings) -> None:
        self.service = Service(
            self.load,
            clock=self.wired.clock,
            log=self.wired.log(),
            notifier=self.notifier,
        )
        self.task = asyncio.create_task(self.service.run(settings))

    async def signal(self, number: signal.Signals) -> None:
        """Send ourselves a signal; returns when the loop has seen it."""
        os.kill(os.getpid(), number)
        await self.wired.clock.settle()
        assert self.missed == [], "nobody handles this signal"

    async def pass_time(self, seconds: float, manager: NotifySocket) -> None:
        """Let time pass, but never while the database's thread is at work: that takes none."""
        engine = self.service.engine
        assert engine is not None
        for _ in range(round(seconds / 15)):
            await self.wired.clock.advance(15)
            manager.said()  # its queue is short
            for _ in range(3):
                await engine.checkpoint.has_stored("nas")
                await self.wired.clock.settle()

    async def reload(self, configuration: Settings | ConfigError) -> None:
        """Change the configuration and say so; returns when the daemon has read it."""
        self.configuration = configuration
        answers = len(self.answers())
        await self.signal(signal.SIGHUP)
        await self.wired.until(lambda: len(self.answers()) > answers)

    def answers(self) -> list[dict[str, Any]]:
        return self.wired.said("reloaded") + self.wired.said(
            "reload refused, the old configuration stays"
        )

    async def until(self, happened: Callable[[], object]) -> None:
        await self.wired.until(lambda: happened() or self.task.done())
        if self.task.done():
            await self.task
        assert happened()

    async def ended(self) -> None:
        """Wait for the end; raises what the service raised."""
        async with asyncio.timeout(60):
            await asyncio.wait({self.task})
        await self.task

    def said(self, what: str) -> list[dict[str, Any]]:
        return self.wired.said(what)


@asynccontextmanager
async def at_work(
    wired: Wired, missed: list[int], notifier: Notifier | None = None, **changes: Any
) -> AsyncIterator[Daemon]:
    """A daemon; whoever leaves it running here ends it by cancellation, as a fault of the test."""
    settings = wired.settings(**changes)
    daemon = Daemon(wired, missed, settings)
    if notifier is not None:
        daemon.notifier = notifier
    daemon.start(settings)
    try:
        yield daemon
    finally:
        daemon.task.cancel()
        await asyncio.wait({daemon.task})


def fill(wired: Wired, clips: int = 1, size: int = 500, first: int = 1330) -> None:
    for number in range(first, first + clips):
        wired.source.add(clip_at(number), mp4(size, seed=number))


def stored_exactly(wired: Wired, store: str = "nas") -> bool:
    held = sorted(data for _, data in wired.stores[store].objects.values())
    return held == sorted(item.data for item in wired.source.recordings.values())


async def carry_on(wired: Wired) -> None:
    """What the next start does with what this one left."""
    async with wired.engine() as engine:
        await engine.once(asyncio.Event())


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_the_next_start_goes_on(
    wired: Wired, missed: list[int], number: signal.Signals
) -> None:
    fill(wired, size=5 * KIB_256)
    wired.source.silent_after = 2 * KIB_256 + 1000
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: wired.store.received == 2 * KIB_256)
        await daemon.signal(number)
        await daemon.ended()  # returns: exit code 0
    (line,) = daemon.said("draining")
    assert (line["signal"], line["transfers"]) == (number.name, 1)
    assert [line["event"] for line in wired.lines[-2:]] == ["clip paused", "stopped"]
    assert sorted(wired.closed) == ["home", "nas"]
    wired.source.silent_after = None
    await carry_on(wired)
    assert stored_exactly(wired)
    assert wired.store.received == 5 * KIB_256  # nothing was sent twice


async def test_a_drain_finishes_the_chunk_in_flight(wired: Wired, missed: list[int]) -> None:
    fill(wired, size=5 * KIB_256)
    wired.store.hold = asyncio.Event()
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: wired.store.held == 1)
        await daemon.signal(signal.SIGTERM)
        await wired.clock.advance(DRAIN_SECONDS - 1)
        assert not daemon.task.done()
        wired.store.hold.set()
        await daemon.ended()
    assert wired.store.received == KIB_256
    assert daemon.said("drain took too long; transfers will resume") == []
    await carry_on(wired)
    assert stored_exactly(wired)
    assert wired.store.received == 5 * KIB_256


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_stops_at_once_and_loses_nothing(
    wired: Wired, missed: list[int], second: signal.Signals
) -> None:
    fill(wired, 2, size=3 * KIB_256)
    wired.store.hold = asyncio.Event()
    async with at_work(wired, missed) as daemon:
        await wired.until(lambda: wired.store.held == 2, step=1)
        await daemon.signal(signal.SIGTERM)
        assert not daemon.task.done()
        await daemon.signal(second)
        with pytest.raises(asyncio.CancelledError):
            await daemon.ended()
    assert len(daemon.said("draining")) == 1
    (line,) = daemon.said("stopping at once")
    assert (line["level"], line["signal"]) == ("warning", second.name)
    assert daemon.said("stopped") == []
    wired.store.hold = None
    await carry_on(wired)
    assert stored_exactly(wired)


async def test_a_drain_that_is_held_up_ends_after_its_limit(
    wired: Wired, missed: list[int]
) -> None:
    fill(wired, size=3 * KIB_256)
    wired.store.hold = asyncio.Event()
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: wired.store.held == 1)
        await wired.clock.advance(10 * DRAIN_SECONDS)  # at work there is no such limit
        assert not daemon.task.done()
        await daemon.signal(signal.SIGTERM)
        await wired.clock.advance(DRAIN_SECONDS - 0.001)
        assert not daemon.task.done()
        await wired.clock.advance(0.001)
        await daemon.ended()  # returns: this, too, is a drain
    assert len(daemon.said("stopped")) == 1
    (line,) = daemon.said("drain took too long; transfers will resume")
    assert (line["level"], line["seconds"]) == ("warning", DRAIN_SECONDS)
    wired.store.hold = None
    await carry_on(wired)
    assert stored_exactly(wired)


async def test_an_idle_daemon_stops_without_any_time_passing(
    wired: Wired, missed: list[int]
) -> None:
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        since = wired.clock.monotonic()
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()
    assert wired.clock.monotonic() == since
    assert wired.clock.sleepers == 0  # neither the drain's limit nor the schedule is left behind
    assert daemon.said("draining")[0]["transfers"] == 0


@pytest.mark.parametrize("turns", [1, 5, 25, 125])
async def test_a_signal_during_the_start_is_no_less_a_signal(
    wired: Wired, missed: list[int], turns: int
) -> None:
    fill(wired, 2)
    async with at_work(wired, missed) as daemon:
        for _ in range(turns):
            await asyncio.sleep(0)
        await daemon.signal(signal.SIGUSR1)
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()
    await carry_on(wired)
    assert stored_exactly(wired)


@pytest.mark.parametrize("ending", ["drained", "failed", "cancelled", "refused"])
async def test_signals_are_given_back_whatever_the_end(
    wired: Wired, missed: list[int], ending: str
) -> None:
    class Bug(Exception):
        pass

    async def broken() -> list[Camera]:
        raise Bug

    if ending == "failed":
        wired.monkeypatch.setattr(wired.source, "cameras", broken)
    if ending == "refused":
        async with wired.engine(), at_work(wired, missed) as daemon:
            with pytest.raises(EngineRunningError):
                await daemon.ended()
    else:
        async with at_work(wired, missed) as daemon:
            if ending == "failed":
                with pytest.raises(ExceptionGroup) as caught:
                    await daemon.ended()
                assert caught.group_contains(Bug)
            else:
                await daemon.until(lambda: daemon.said("cycle finished"))
                assert signal.getsignal(signal.SIGTERM) not in {None, signal.SIG_DFL}
                if ending == "drained":
                    await daemon.signal(signal.SIGTERM)
                    await daemon.ended()
    loop = asyncio.get_running_loop()
    assert [loop.remove_signal_handler(number) for number in HANDLED] == [False] * len(HANDLED)


# -- a cycle now -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [{"every": "1h"}, {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}],
    ids=["every", "cron"],
)
async def test_a_signal_starts_a_cycle_now(
    wired: Wired, missed: list[int], schedule: dict[str, str]
) -> None:
    fill(wired)
    async with at_work(wired, missed, schedule=schedule) as daemon:
        if "every" in schedule:  # begins with a cycle, a cron expression does not
            await daemon.until(lambda: daemon.said("cycle finished"))
        else:
            await wired.until(lambda: wired.clock.sleepers >= 2)
            assert daemon.said("cycle started") == []
        before = len(daemon.said("cycle started"))
        fill(wired, first=1400)
        since = wired.clock.monotonic()
        await daemon.signal(signal.SIGUSR1)
        await daemon.until(lambda: len(daemon.said("cycle finished")) == before + 1)
        assert wired.clock.monotonic() == since
        assert [line["signal"] for line in daemon.said("cycle asked for")] == ["SIGUSR1"]
        assert stored_exactly(wired)
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()


# -- reload ----------------------------------------------------------------------------------------


async def test_an_invalid_configuration_changes_nothing(wired: Wired, missed: list[int]) -> None:
    fill(wired)
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        await daemon.reload(ConfigError("stores.nas.path is missing.", hint="Name a folder."))
        (line,) = daemon.said("reload refused, the old configuration stays")
        assert line["level"] == "error"
        assert line["reason"] == "stores.nas.path is missing. Name a folder."
        assert daemon.said("reloaded") == []
        fill(wired, first=1400)
        await daemon.signal(signal.SIGUSR1)
        await daemon.until(lambda: stored_exactly(wired))
        assert sorted(wired.opened) == ["home", "nas"]  # the connections are the old ones
        assert wired.closed == []
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()


async def test_a_valid_configuration_applies_also_after_an_invalid_one(
    wired: Wired, missed: list[int]
) -> None:
    fill(wired, 2)
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        await daemon.reload(ConfigError("No."))
        wired.stores["offsite"] = FakeStore()
        await daemon.reload(wired.settings(schedule={"every": "10m"}))
        said = {line["setting"]: (line["old"], line["new"]) for line in daemon.said("changed")}
        assert said["schedule.every"] == ("1h", "10m")
        assert any(key.startswith("stores.offsite") for key in said)
        await daemon.until(lambda: wired.clock.sleepers >= 2)
        await wired.clock.advance(600)
        await daemon.until(lambda: stored_exactly(wired, "offsite"))
        await daemon.reload(wired.settings())
        assert [
            line["new"] for line in daemon.said("changed") if line["setting"] == "schedule.every"
        ][1:] == ["1h"]
        assert daemon.loads == 3  # once for each signal, not more
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()


async def test_the_state_folder_never_changes_under_a_running_daemon(
    wired: Wired, missed: list[int], tmp_path: Path
) -> None:
    fill(wired)
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        for _ in range(2):  # also said the second time: it is still not what the file says
            await daemon.reload(
                wired.settings(state_dir=str(tmp_path / "elsewhere"), schedule={"every": "10m"})
            )
        said = daemon.said("state_dir changes only with a restart")
        assert [(line["level"], line["state_dir"]) for line in said] == [
            ("warning", str(tmp_path / "elsewhere"))
        ] * 2
        fill(wired, first=1400)
        await daemon.until(lambda: wired.clock.sleepers >= 2)
        await wired.clock.advance(600)  # the rest of the new configuration applies
        await daemon.until(lambda: stored_exactly(wired))
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()
    assert not (tmp_path / "elsewhere").exists()
    await carry_on(wired)
    assert len(wired.store.objects) == 2


async def test_a_reload_does_not_hold_up_the_transfers(wired: Wired, missed: list[int]) -> None:
    """The file may lie on a network share that takes its time."""
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        daemon.readable.clear()
        await daemon.signal(signal.SIGHUP)
        await daemon.until(lambda: daemon.loads == 1)
        fill(wired)
        await daemon.signal(signal.SIGUSR1)
        await daemon.until(lambda: wired.store.objects)
        assert daemon.answers() == []
        daemon.readable.set()
        await daemon.until(daemon.answers)
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()


async def test_a_signal_while_a_reload_is_read_is_not_forgotten(
    wired: Wired, missed: list[int]
) -> None:
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        daemon.readable.clear()
        await daemon.signal(signal.SIGHUP)
        await daemon.until(lambda: daemon.loads == 1)
        daemon.configuration = wired.settings(schedule={"every": "10m"})  # what it read is old
        await daemon.signal(signal.SIGHUP)
        daemon.readable.set()
        await daemon.until(lambda: len(daemon.answers()) == 2)
        assert [line["new"] for line in daemon.said("changed")] == ["10m"]
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()
    assert daemon.loads == 2


async def test_a_drain_does_not_wait_for_a_reload(wired: Wired, missed: list[int]) -> None:
    async with at_work(wired, missed) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        daemon.readable.clear()
        await daemon.signal(signal.SIGHUP)
        await daemon.until(lambda: daemon.loads == 1)
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()
        daemon.readable.set()
    assert daemon.answers() == []


# -- start -----------------------------------------------------------------------------------------


async def test_a_restart_carries_nothing_twice(wired: Wired, missed: list[int]) -> None:
    def finished(cycles: int) -> bool:
        return len(wired.said("cycle finished")) == cycles

    fill(wired, 3)
    for start in range(2):
        async with at_work(wired, missed) as daemon:
            await daemon.until(partial(finished, start + 1))
            await daemon.signal(signal.SIGTERM)
            await daemon.ended()
        wired.clock.jump(timedelta(hours=1))
    assert stored_exactly(wired)
    assert len(wired.said("clip stored")) == 3


# -- the service manager ---------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "notify") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        yield manager


@pytest.fixture
def notifier(manager: NotifySocket) -> Iterator[Notifier]:
    with Notifier.from_environment() as notifier:
        yield notifier


def heard(manager: NotifySocket, *words: str) -> list[str]:
    """What was said that begins with one of these words, in order."""
    return [message.partition("\n")[0] for message in manager.said() if message.startswith(words)]


async def test_ready_comes_once_although_nothing_can_be_reached(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier
) -> None:
    wired.source.faults.arm("cameras", Transient("the NVR is down"))
    wired.store.faults.arm("probe", Blocked("no such bucket"))
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: heard(manager, "READY"))
        await daemon.until(lambda: "no such bucket" in "".join(heard(manager, "STATUS")))
        await daemon.until(lambda: daemon.said("source not listed"))
        assert heard(manager, "READY", "RELOADING", "STOPPING") == ["READY=1"]
        await daemon.signal(signal.SIGTERM)
        await daemon.ended()
    assert heard(manager, "READY", "RELOADING", "STOPPING") == ["READY=1", "STOPPING=1"]


async def test_ready_does_not_come_when_the_state_folder_is_taken(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier
) -> None:
    async with wired.engine(), at_work(wired, missed, notifier) as daemon:
        with pytest.raises(EngineRunningError):
            await daemon.ended()
    assert heard(manager, "READY") == []


@pytest.mark.parametrize("valid", [True, False])
async def test_a_reload_is_announced_and_concluded(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier, valid: bool
) -> None:
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        daemon.readable.clear()
        daemon.configuration = (
            wired.settings(transfer={"workers": 3}) if valid else ConfigError("not today")
        )
        await daemon.signal(signal.SIGHUP)
        await daemon.until(lambda: heard(manager, "RELOADING"))
        assert heard(manager, "READY", "RELOADING") == ["READY=1", "RELOADING=1"]
        daemon.readable.set()
        await daemon.until(daemon.answers)
        await daemon.until(lambda: len(heard(manager, "READY")) == 2)
        assert heard(manager, "READY", "RELOADING") == ["READY=1", "RELOADING=1", "READY=1"]


async def test_a_reload_asked_for_during_a_reload_is_part_of_it(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier
) -> None:
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        daemon.readable.clear()
        await daemon.signal(signal.SIGHUP)
        await daemon.until(lambda: daemon.loads == 1)
        await daemon.signal(signal.SIGHUP)
        daemon.readable.set()
        await daemon.until(lambda: len(heard(manager, "READY")) == 2)
        assert daemon.loads == 2
        order = heard(manager, "READY", "RELOADING")
        assert order == ["READY=1", "RELOADING=1", "RELOADING=1", "READY=1"]


async def test_the_status_follows_the_work(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier
) -> None:
    fill(wired, size=5 * KIB_256)
    wired.store.hold = asyncio.Event()
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: wired.store.held == 1)
        await wired.clock.advance(STATUS_SECONDS)
        await daemon.until(lambda: "uploading 1 at" in "".join(heard(manager, "STATUS")))
        wired.store.hold.set()
        await daemon.until(lambda: daemon.said("cycle finished"))
        await wired.clock.advance(STATUS_SECONDS)
        await daemon.until(lambda: "0 clips waiting" in heard(manager, "STATUS")[-1])
        assert "1 camera safe to" in heard(manager, "STATUS")[-1]
        said = len(heard(manager, "STATUS"))
        await daemon.pass_time(600, manager)
        assert len(heard(manager, "STATUS")) == said  # nothing new, nothing said


async def test_the_watchdog_is_fed_at_half_its_time_also_when_idle(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier
) -> None:
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        fed = len(heard(manager, "WATCHDOG"))
        await daemon.pass_time(3600, manager)
        assert len(heard(manager, "WATCHDOG")) == fed + 240
        assert daemon.said("hung") == []


async def test_a_suspended_machine_is_not_taken_for_a_hung_daemon(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier
) -> None:
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        wired.clock.jump(timedelta(hours=9))
        await daemon.pass_time(600, manager)
        assert daemon.said("hung") == []


async def never(*_: object, **__: object) -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("hang", "part"),
    [
        ("claim", "the worker pool"),
        ("next_due", "the worker pool"),
        ("_wait", "the worker pool"),
        ("cameras", "the scheduler"),
        ("reaches", "the scheduler"),
    ],
)
async def test_a_hung_supervisor_starves_the_watchdog(
    wired: Wired, missed: list[int], manager: NotifySocket, notifier: Notifier, hang: str, part: str
) -> None:
    fill(wired)
    async with at_work(wired, missed, notifier) as daemon:
        await daemon.until(lambda: daemon.said("cycle finished"))
        if hang == "_wait":
            wired.monkeypatch.setattr(Pool, "_wait", never)
        elif hang == "cameras":
            wired.monkeypatch.setattr(wired.source, "cameras", never)
        else:
            wired.monkeypatch.setattr(Checkpoint, hang, never)
        await daemon.signal(signal.SIGUSR1)  # a cycle: everything moves, and then hangs
        await daemon.pass_time(3600, manager)
        fed = len(heard(manager, "WATCHDOG"))
        await daemon.pass_time(3600, manager)
        assert len(heard(manager, "WATCHDOG")) == fed
        (line,) = daemon.said("hung")
        assert line["level"] == "critical"
        assert "never" in line["stack"]
        assert line["parts"] == [part]


async def test_opening_a_checkpoint_for_long_asks_for_more_time_while_it_moves(
    wired: Wired, manager: NotifySocket, notifier: Notifier
) -> None:
    vitals = Vitals(notifier, clock=wired.clock, log=wired.log())
    used = [(1, 0), (2, 0), (2, 7), (2, 7), (2, 7)]
    wired.monkeypatch.setattr(vitals_module, "_usage", lambda: used.pop(0))
    starting = asyncio.create_task(vitals.starting())
    for asked in [1, 2, 2, 2]:  # CPU, then blocks, then neither
        await wired.clock.advance(LOOK_SECONDS)
        assert heard(manager, "EXTEND") == ["EXTEND_TIMEOUT_USEC=60000000"] * asked
    starting.cancel()
    await asyncio.wait({starting})
