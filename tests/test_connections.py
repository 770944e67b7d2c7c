"""One connection: leases, slow probes, words said once, a quiet end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import structlog

from nvr_backup.connections import FIRST_PROBE_SECONDS, SLOWEST_PROBE_SECONDS, Connection
from nvr_backup.errors import Blocked, Transient
from tests.support.clock import VirtualClock

GONE = Blocked("The bucket is gone.", hint="Make it.")


class Bug(Exception):
    """Something nobody foresaw."""


@dataclass
class Line:
    """A connection to an adapter that is a mere word, and all that can be seen of it."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    answers: list[Exception | None] = field(default_factory=list)
    """What the next probes raise (None: all is well); GONE after that."""
    probes: list[float] = field(default_factory=list)
    """When it was probed, in virtual seconds."""
    said: list[tuple[str, str]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    changes: int = 0
    hold: asyncio.Event | None = None
    opening: asyncio.Event = field(default_factory=asyncio.Event)
    fails: Exception | None = None
    probe_first: bool = False
    state: str = "not opened"

    def __post_init__(self) -> None:
        self.opening.set()
        self.connection: Connection[str] = Connection(
            "stores.nas",
            self._open,
            self._probe,
            clock=self.clock,
            log=structlog.wrap_logger(
                None,
                processors=[self._keep],
                wrapper_class=structlog.make_filtering_bound_logger(0),
            ),
            changed=self._changed,
            probe_first=self.probe_first,
        )

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[str]:
        await self.opening.wait()
        if self.fails is not None:
            raise self.fails
        self.state = "open"
        try:
            yield "adapter"
        finally:
            self.state = "closed"

    async def _probe(self, adapter: str) -> None:
        assert (adapter, self.state) == ("adapter", "open")
        self.probes.append(self.clock.monotonic())
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers.pop(0) if self.answers else GONE
        if answer is not None:
            raise answer

    def _keep(self, _: object, method: str, fields: MutableMapping[str, Any]) -> str:
        self.said.append((method, fields["event"]))
        self.lines.append(dict(fields))
        raise structlog.DropEvent

    def _changed(self) -> None:
        self.changes += 1

    def blocked(self) -> Blocked | None:
        return self.connection.blocked

    @asynccontextmanager
    async def living(self) -> AsyncIterator[Connection[str]]:
        """The connection alive; at the end it must close by itself once it is retired."""
        async with asyncio.TaskGroup() as group:
            life = group.create_task(self.connection.live())
            yield self.connection
            self.connection.retire()
            await self.clock.settle()
            assert life.done(), "still alive although retired and unused"
        assert self.state in {"closed", "not opened"}
        assert self.clock.sleepers == 0


@pytest.fixture
async def line() -> Line:
    return Line()


# -- the adapter's life ----------------------------------------------------------------------------


async def test_whoever_asks_early_gets_the_adapter_once_it_is_open(line: Line) -> None:
    line.opening.clear()
    async with line.living() as connection:
        impatient = asyncio.create_task(connection.adapter())
        patient = asyncio.create_task(connection.adapter())
        await line.clock.settle()
        impatient.cancel()  # must not take the adapter away from the others
        await line.clock.settle()
        assert not patient.done()
        line.opening.set()
        assert await patient == "adapter"
        assert await connection.adapter() == "adapter"


@pytest.mark.parametrize("ending", ["well", "in an error", "cancelled"])
async def test_a_retired_adapter_stays_open_until_the_last_lease_ends(
    line: Line, ending: str
) -> None:
    go = asyncio.Event()

    async def transfer() -> None:
        with line.connection.lease():
            await go.wait()
            assert line.state == "open"
            if ending == "in an error":
                raise Transient("link lost")

    async with asyncio.TaskGroup() as group:
        life = group.create_task(line.connection.live())
        transfers = [asyncio.create_task(transfer()) for _ in range(2)]
        await line.clock.settle()
        line.connection.retire()
        await line.clock.settle()
        assert (line.state, life.done()) == ("open", False)
        with line.connection.lease():  # another one comes and goes
            await line.clock.settle()
        await line.clock.settle()
        assert line.state == "open"
        go.set()
        if ending == "cancelled":
            for task in transfers:
                task.cancel()
        await asyncio.wait(transfers)
        await line.clock.settle()
        assert life.done()
    assert line.state == "closed"
    errors = {type(task.exception()) for task in transfers if not task.cancelled()}
    assert (
        errors
        == {
            "well": {type(None)},
            "in an error": {Transient},
            "cancelled": set(),
        }[ending]
    )


async def test_an_adapter_that_cannot_be_opened_is_everybodys_error(line: Line) -> None:
    line.fails = Bug("no such kind")
    early = asyncio.create_task(line.connection.adapter())
    with pytest.raises(Bug):
        await line.connection.live()
    await line.clock.settle()
    assert early.done()
    with pytest.raises(Bug):
        await early
    with pytest.raises(Bug):
        await line.connection.adapter()


async def test_an_adapter_that_fails_while_nobody_waits_complains_only_once(line: Line) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    line.fails = Bug("no such kind")
    with pytest.raises(Bug):
        await line.connection.live()
    line.fails = None
    del line.connection
    gc.collect()
    await line.clock.settle()
    assert complaints == []


# -- blocked ---------------------------------------------------------------------------------------


async def test_a_blocked_part_is_asked_ever_more_rarely_and_never_less_than_at_last(
    line: Line,
) -> None:
    line.answers = [GONE, Transient("timeout"), *[GONE] * 6, None]
    async with line.living() as connection:
        await line.clock.settle()
        assert line.clock.sleepers == 0  # nothing ticks while all is well
        connection.block(GONE)
        assert line.blocked() is GONE
        await line.clock.advance(4 * 3600)
        assert line.blocked() is None
    gaps = [after - before for before, after in pairwise([0.0, *line.probes])]
    assert gaps == [30, 60, 120, 240, 480, 900, 900, 900, 900]
    assert (FIRST_PROBE_SECONDS, SLOWEST_PROBE_SECONDS) == (30, 900)
    assert line.said == [
        ("warning", "blocked"),
        ("debug", "still blocked"),
        ("info", "recovered"),
    ]
    assert (line.lines[0]["part"], line.lines[0]["hint"]) == ("stores.nas", "Make it.")
    assert line.lines[-1]["blocked_seconds"] == sum(gaps)


async def test_everyone_is_told_of_a_block_and_of_its_end(line: Line) -> None:
    line.answers = [None]
    async with line.living() as connection:
        connection.block(GONE)
        assert line.changes == 1
        await line.clock.advance(FIRST_PROBE_SECONDS - 1)
        assert (line.changes, line.blocked()) == (1, GONE)
        await line.clock.advance(1)
        assert (line.changes, line.blocked()) == (2, None)


async def test_the_latest_reason_is_shown_and_the_first_moment_kept(line: Line) -> None:
    newer = Blocked("The disk is full.")
    line.answers = [newer]
    async with line.living() as connection:
        since = line.clock.now()
        connection.block(GONE)
        await line.clock.advance(10)
        connection.block(Blocked("Several transfers find out at once."))
        assert line.said == [("warning", "blocked")]
        await line.clock.advance(FIRST_PROBE_SECONDS - 10)
        assert line.blocked() is newer
        assert connection.blocked_since == since


async def test_a_relapse_is_the_same_trouble_until_work_has_succeeded(line: Line) -> None:
    """The probe succeeds and the work does not: neither a word each time nor a probe each 30 s."""
    line.answers = [None] * 3
    async with line.living() as connection:
        since = line.clock.now()
        connection.block(GONE)
        for _ in range(2):
            await line.clock.advance(SLOWEST_PROBE_SECONDS)
            assert line.blocked() is None
            connection.block(GONE)
        await line.clock.advance(SLOWEST_PROBE_SECONDS)
        assert line.said == [
            ("warning", "blocked"),
            ("info", "recovered"),
            ("debug", "blocked"),
            ("debug", "blocked"),
        ]
        assert line.connection.blocked_since == since
        connection.worked()
        connection.worked()
        assert line.said[4:] == [("info", "recovered")]
        assert line.lines[-1]["blocked_seconds"] == 3 * SLOWEST_PROBE_SECONDS
        assert connection.blocked_since is None
    slept = [wait for wait in line.clock.waits if wait]
    assert slept == [30, 60, 120]


async def test_after_work_has_succeeded_the_next_trouble_is_a_new_one(line: Line) -> None:
    line.answers = [GONE, None, None]
    async with line.living() as connection:
        connection.block(GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS * 3)
        connection.worked()
        await line.clock.advance(3600)
        since = line.clock.now()
        connection.block(GONE)
        assert connection.blocked_since == since
        await line.clock.advance(FIRST_PROBE_SECONDS)
        assert line.blocked() is None
    assert line.said == [("warning", "blocked"), ("info", "recovered")] * 2
    assert [entry["blocked_seconds"] for entry in line.lines[1::2]] == [90, 30]


async def test_work_without_trouble_says_nothing(line: Line) -> None:
    async with line.living() as connection:
        connection.worked()
        assert (line.said, line.changes) == ([], 0)


async def test_work_that_ends_well_during_a_block_does_not_hide_it(line: Line) -> None:
    """A transfer that began before the block ends well after it: nothing changes by that."""
    line.answers = [GONE, None]
    async with line.living() as connection:
        connection.block(GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS)
        connection.worked()
        assert line.blocked() is GONE
        await line.clock.advance(FIRST_PROBE_SECONDS * 2)
        assert line.blocked() is None
    assert line.probes == [30, 90]
    assert line.said == [("warning", "blocked"), ("info", "recovered")]
    assert line.lines[-1]["blocked_seconds"] == 90


async def test_work_that_ends_well_during_a_relapse_does_not_end_the_trouble(line: Line) -> None:
    line.answers = [None, GONE, None]
    async with line.living() as connection:
        since = line.clock.now()
        connection.block(GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS)
        connection.block(GONE)
        connection.worked()
        assert (line.blocked(), connection.blocked_since) == (GONE, since)
        await line.clock.advance(3600)
        assert line.blocked() is None
    assert line.probes == [30, 90, 210]
    assert line.said == [("warning", "blocked"), ("info", "recovered"), ("debug", "blocked")]


async def test_a_clock_that_goes_back_makes_no_negative_trouble(line: Line) -> None:
    line.answers = [None]
    async with line.living() as connection:
        connection.block(GONE)
        line.clock.jump(-timedelta(days=1))
        await line.clock.advance(FIRST_PROBE_SECONDS)
        assert line.blocked() is None
    assert line.lines[-1]["blocked_seconds"] == 0


# -- asked before any work -------------------------------------------------------------------------


async def test_a_part_that_is_asked_first_is_blocked_before_any_work_finds_out() -> None:
    line = Line(probe_first=True, answers=[GONE, None])
    async with line.living():
        await line.clock.settle()
        assert (line.probes, line.blocked()) == ([0], GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS)
        assert line.blocked() is None
    assert line.said == [("warning", "blocked"), ("info", "recovered")]


@pytest.mark.parametrize("answer", [None, Transient("timeout")])
async def test_a_part_that_is_asked_first_and_not_refused_works(answer: Exception | None) -> None:
    line = Line(probe_first=True, answers=[answer])
    async with line.living() as connection:
        assert await connection.adapter() == "adapter"
        await line.clock.advance(3600)
        assert (line.probes, line.blocked()) == ([0], None)
    assert line.said == ([] if answer is None else [("debug", "not probed")])


async def test_no_work_begins_before_the_first_answer() -> None:
    line = Line(probe_first=True, answers=[GONE], hold=asyncio.Event())
    async with line.living() as connection:
        assert await connection.adapter() == "adapter"  # to look at, not to work with
        await line.clock.settle()
        assert (len(line.probes), connection.ready) == (1, False)
        assert line.hold is not None
        line.hold.set()
        await line.clock.settle()
        assert connection.ready
        assert line.blocked() is GONE


async def test_a_part_that_is_not_asked_first_is_ready_at_once(line: Line) -> None:
    async with line.living() as connection:
        assert connection.ready


async def test_a_first_probe_that_hangs_does_not_keep_a_retired_part_open() -> None:
    line = Line(probe_first=True, hold=asyncio.Event())
    async with line.living():
        await line.clock.settle()
        assert len(line.probes) == 1
    assert line.said == []


# -- blocked and retired ---------------------------------------------------------------------------


async def test_a_blocked_part_that_is_retired_closes_without_waiting_for_its_probe(
    line: Line,
) -> None:
    async with line.living() as connection:
        connection.block(GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS - 1)
    assert line.clock.monotonic() == FIRST_PROBE_SECONDS - 1
    assert line.said == [("warning", "blocked")]


async def test_a_probe_that_hangs_does_not_keep_a_retired_part_open(line: Line) -> None:
    line.hold = asyncio.Event()
    async with line.living() as connection:
        connection.block(GONE)
        await line.clock.advance(FIRST_PROBE_SECONDS)
        assert len(line.probes) == 1
    assert line.blocked() is GONE
    assert line.said == [("warning", "blocked")]


async def test_a_block_of_a_retired_part_starts_no_probe(line: Line) -> None:
    async with line.living() as connection:
        with connection.lease():
            connection.retire()
            connection.block(GONE)  # a transfer that was still on its way
            await line.clock.advance(3600)
            assert line.state == "open"
    assert line.probes == []


async def test_a_bug_in_a_probe_is_no_trouble_but_an_end(line: Line) -> None:
    line.answers = [Bug("oops")]
    with pytest.raises(ExceptionGroup) as caught:
        async with line.living() as connection:
            connection.block(GONE)
            await line.clock.advance(FIRST_PROBE_SECONDS)
            await asyncio.Event().wait()
    assert caught.group_contains(Bug)
    assert line.state == "closed"
