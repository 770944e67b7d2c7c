"""Manners towards a source on virtual time: never past what it bears for long, soon at rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from nvr_backup.errors import Suspect, Transient
from nvr_backup.manners import (
    FAILURES,
    FIRST_LIMIT,
    FIRST_REST,
    LONGEST_REST,
    STUCK_SECONDS,
    Guests,
    Manners,
)
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.polite import PoliteSource
from nvr_backup.ports import ClipBody
from tests.support.clock import VirtualClock
from tests.support.fakes import PORCH, FakeSource, clip_at, mp4
from tests.support.wired import Wired

PIECE = 4 * 1024 * 1024
MINUTE = 60.0
HOUR = 60 * MINUTE


class Recorder:
    """Reads `bears` pieces at once in `seconds` each; beyond that each takes `by` times as long.

    `reading`: seconds in which so many clips were being read. `starting`: seconds to a first byte.
    """

    def __init__(self, clock: VirtualClock, *, bears: int, seconds: float = 1.0, by: float = 5):
        self.reading: Counter[int] = Counter()
        self.bears = bears
        self.seconds = seconds
        self.starting = 0.05
        self.pieces = 2
        self.failing: Exception | None = None
        self.opened = 0
        self._clock = clock
        self._by = by
        self._now = 0
        self._since = 0.0

    async def cameras(self) -> Sequence[Camera]:
        return [PORCH]

    async def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
        yield clip_at(0)

    @asynccontextmanager
    async def open(self, clip: Clip, *, offset: int = 0) -> AsyncIterator[ClipBody]:
        self.opened += 1
        await self._clock.sleep(self.starting)
        if self.failing is not None:
            raise self.failing
        yield _Body(self)

    def count(self, change: int) -> None:
        now = self._clock.monotonic()
        self.reading[self._now] += now - self._since  # type: ignore[assignment]
        self._now += change
        self._since = now

    async def read(self) -> None:
        self.count(+1)
        slower = self._by if self._now > self.bears else 1
        await self._clock.sleep(self.seconds * slower)
        self.count(-1)


class _Body:
    size = None
    offset = 0

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._recorder.pieces):
            await self._recorder.read()
            yield bytes(PIECE)


class Readers:
    """As the pool does: as many workers as there may be, each begins a clip when one is free."""

    def __init__(self, clock: VirtualClock, recorder: Recorder, *, workers: int) -> None:
        self._moved = asyncio.Event()
        self.manners = Manners(clock, workers=workers, changed=self._moved.set)
        self.most = 0
        self.done = 0
        self.running = 0
        self.dwell = 0.0  # what each piece takes us
        self._clock = clock
        self._recorder = recorder
        self._workers = workers

    async def until(self, seconds: float) -> None:
        async with self._clock.running(), asyncio.TaskGroup() as group:
            ending = group.create_task(self._clock.sleep(seconds))
            ending.add_done_callback(lambda _: self._moved.set())
            while not ending.done():
                self._moved.clear()
                while self.running < self._workers and self.manners.free:
                    self.running += 1
                    group.create_task(self._carry())
                    await asyncio.sleep(0)
                self.most = max(self.most, self.running)
                await self._moved.wait()

    async def _carry(self) -> None:
        visit = self.manners.visit()
        source = PoliteSource(self._recorder, visit, self._clock)
        try:
            async with source.open(clip_at(0)) as body:
                async for _ in body:
                    if self.dwell:
                        await self._clock.sleep(self.dwell)
            self.done += 1
        except Transient:
            await self._clock.sleep(1)
        finally:
            visit.leave()
            self.running -= 1
            self._moved.set()


def past(recorder: Recorder) -> float:
    """The share of the reading time in which more clips were read than the recorder bears."""
    busy = sum(seconds for n, seconds in recorder.reading.items() if n)
    return sum(s for n, s in recorder.reading.items() if n > recorder.bears) / busy


@pytest.mark.parametrize("bears", [1, 2, 3])
@pytest.mark.parametrize("pieces", [2, 100])
async def test_a_recorder_is_never_driven_past_what_it_bears_for_long(
    bears: int, pieces: int
) -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, bears=bears)
    recorder.pieces = pieces
    readers = Readers(clock, recorder, workers=8)
    await readers.until(20 * MINUTE)
    assert past(recorder) <= 0.06
    used = sum(n * s for n, s in recorder.reading.items()) / (20 * MINUTE)
    assert used >= 0.7 * bears  # and what it bears is made use of


async def test_a_recorder_that_bears_all_gets_all_workers_soon() -> None:
    clock = VirtualClock()
    readers = Readers(clock, Recorder(clock, bears=99), workers=8)
    await readers.until(30)
    assert readers.manners.limit == readers.most == 8


async def test_nothing_is_driven_before_anything_is_known() -> None:
    clock = VirtualClock()
    readers = Readers(clock, Recorder(clock, bears=99), workers=8)
    await readers.until(0.1)
    assert readers.most == FIRST_LIMIT


async def test_a_single_worker_stays_alone() -> None:
    clock = VirtualClock()
    readers = Readers(clock, Recorder(clock, bears=99), workers=1)
    await readers.until(60)
    assert readers.most == readers.manners.limit == 1


async def test_it_comes_back_when_the_recorder_does() -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, bears=1)
    readers = Readers(clock, recorder, workers=4)
    await readers.until(60)
    assert readers.manners.limit <= 2
    recorder.bears = 99
    await readers.until(10 * MINUTE)
    assert readers.manners.limit == 4


async def test_time_in_which_we_keep_the_recorder_waiting_is_not_held_against_it() -> None:
    """A throttled upload: a piece a minute. The recorder is as quick as ever."""
    clock = VirtualClock()
    readers = Readers(clock, Recorder(clock, bears=99), workers=4)
    readers.dwell = 60.0
    await readers.until(HOUR)
    assert readers.manners.limit == 4


def test_what_the_buffers_held_is_not_taken_for_speed() -> None:
    """While we were busy some MB came; then the recorder goes on as it always did."""
    clock = VirtualClock()
    manners = Manners(clock, workers=2)
    visits = [manners.visit(), manners.visit()]

    def read(seconds: float, pieces: int) -> None:
        for _ in range(pieces):
            asked = clock.monotonic()
            clock._elapsed += seconds
            visits[0].came(1024 * 1024, asked)

    visits[0].asks()
    read(0.25, 40)
    assert manners.limit == 2
    for _ in range(20):
        clock._elapsed += 60
        read(0.01, 8)
        read(0.25, 16)
        assert manners.limit == 2
    read(1.0, 8)
    assert manners.limit == 1  # what is really slow is still seen


async def test_late_first_bytes_are_too_much_too() -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, bears=99)
    recorder.pieces = 1
    readers = Readers(clock, recorder, workers=4)
    await readers.until(30)
    assert readers.manners.limit == 4
    recorder.starting = 5.0
    await readers.until(20)
    assert readers.manners.limit < 4


async def test_an_error_halves_what_is_read_at_once() -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, bears=99)
    readers = Readers(clock, recorder, workers=8)
    await readers.until(30)
    recorder.failing = Transient("503")
    await readers.until(0.5)
    assert readers.manners.limit == 4
    await readers.until(30)
    assert readers.manners.limit == 1
    recorder.failing = None
    await readers.until(10 * MINUTE)
    assert readers.manners.limit == 8


async def test_clips_that_are_no_videos_change_nothing() -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, bears=99)
    readers = Readers(clock, recorder, workers=8)
    await readers.until(30)
    recorder.failing = Suspect("an error page")
    await readers.until(30)
    assert readers.manners.limit == 8


async def test_what_is_too_many_pauses_and_is_not_broken_off() -> None:
    """Clips that last for hours: the younger of two waits, and goes on when the older has ended."""
    clock = VirtualClock()
    source = FakeSource(piece=1000)
    for name in ("older", "younger"):
        source.add(clip_at(0, id=name), mp4(10_000))
    manners = Manners(clock, workers=2)
    read: dict[str, int] = {"older": 0, "younger": 0}
    going = asyncio.Event()

    async def carry(name: str) -> None:
        visit = manners.visit()
        async with PoliteSource(source, visit, clock).open(clip_at(0, id=name)) as body:
            async for piece in body:
                read[name] += len(piece)
                if read[name] == 3000:
                    await going.wait()

    async with asyncio.TaskGroup() as group:
        with_nothing_known = manners.visit()
        manners.borne(clock.monotonic())
        with_nothing_known.leave()
        group.create_task(carry("older"))
        group.create_task(carry("younger"))
        await clock.settle()
        assert read == {"older": 3000, "younger": 3000}
        manners.failed(clock.monotonic(), 2)
        assert manners.limit == 1
        going.set()
        for _ in range(500):
            await asyncio.sleep(0)
            if read["older"] < 10_000:
                assert read["younger"] == 3000
    assert read == {"older": 10_000, "younger": 10_000}
    assert [name for name, _ in source.opened] == ["older", "younger"]


# -- a camera that fails ---------------------------------------------------------------------------


def test_a_camera_that_fails_again_and_again_rests_ever_longer() -> None:
    clock = VirtualClock()
    manners = Manners(clock, workers=4)
    for _ in range(FAILURES - 1):
        assert manners.camera_failed("porch") is None
        assert not manners.rests("porch", busy=False)
    rests = [manners.camera_failed("porch")]
    assert manners.rests("porch", busy=False)
    assert not manners.rests("garden", busy=False)
    assert manners.camera_failed("porch") is None  # one that was under way
    for _ in range(7):
        clock._elapsed += LONGEST_REST.total_seconds()
        assert not manners.rests("porch", busy=False)
        assert manners.rests("porch", busy=True)  # one clip at a time finds out
        rests.append(manners.camera_failed("porch"))
    assert rests == [FIRST_REST * 2**n for n in range(5)] + [LONGEST_REST] * 3
    assert manners.camera_worked("porch")
    assert not manners.rests("porch", busy=True)
    assert not manners.camera_worked("porch")


def rests_in(seconds: float) -> int:
    """How many rests can have begun in so long a time, each followed by one clip."""
    number, rest = 0, FIRST_REST.total_seconds()
    while seconds >= 0:
        number, seconds = number + 1, seconds - rest
        rest = min(2 * rest, LONGEST_REST.total_seconds())
    return number


async def test_a_dead_camera_is_asked_ever_more_rarely_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backlog of hundreds is not run through; a single clip finds out that it works again."""
    wired = Wired(tmp_path, monkeypatch)
    garden = Camera("home", "garden", "Garden")
    for number in range(200):
        wired.source.add(clip_at(1200 + number / 10), mp4(500, seed=number))
    asked: list[str] = []
    dead = True
    opening = wired.source.open

    @asynccontextmanager
    async def open_(clip: Clip, *, offset: int = 0) -> AsyncIterator[ClipBody]:
        asked.append(clip.camera.id)
        if dead and clip.camera.id == "porch":
            raise Transient("HTTP 500 in place of the clip.")
        async with opening(clip, offset=offset) as body:
            yield body

    monkeypatch.setattr(wired.source, "open", open_)
    async with wired.daemon():
        await wired.until(lambda: wired.said("camera rests"))
        before, began = len(asked), wired.clock.monotonic()
        assert before <= FAILURES + 4
        for number in range(3):
            wired.source.add(clip_at(1300 + number, camera=garden), mp4(500, seed=900 + number))
        await wired.until(lambda: len(wired.store.objects) == 3, step=10)
        await wired.clock.advance(HOUR)
        assert asked.count("porch") <= before + rests_in(wired.clock.monotonic() - began)
        assert len([line for line in wired.said("camera rests") if line["level"] == "warning"]) == 1
        dead = False
        await wired.until(lambda: len(wired.store.objects) == 203, step=60)
    assert len(wired.said("camera works again")) == 1


async def test_a_clip_that_hangs_does_not_keep_the_others_waiting_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known yet and the first clip brings nothing: soon the next has a turn."""
    wired = Wired(tmp_path, monkeypatch)
    for number in range(6):
        wired.source.add(clip_at(1330 + number), mp4(500, seed=number))
    opening, released = wired.source.open, asyncio.Event()

    @asynccontextmanager
    async def open_(clip: Clip, *, offset: int = 0) -> AsyncIterator[ClipBody]:
        if clip.id == "porch-1330":
            await released.wait()
        async with opening(clip, offset=offset) as body:
            yield body

    monkeypatch.setattr(wired.source, "open", open_)
    async with wired.daemon(wired.settings(transfer={"workers": 4})):
        await wired.until(lambda: len(wired.store.objects) == 5, step=0.1)
        assert wired.clock.monotonic() <= STUCK_SECONDS + 5
        released.set()
        await wired.until(lambda: len(wired.store.objects) == 6)


async def test_clips_that_wait_for_their_store_do_not_keep_others_from_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes no chunk: nothing is read, so the source is free for a second clip."""
    wired = Wired(tmp_path, monkeypatch)
    for number in range(3):
        wired.source.add(clip_at(1330 + number), mp4(2 * 1024 * 1024, seed=number))
    wired.store.hold = asyncio.Event()
    async with wired.daemon(wired.settings(transfer={"workers": 3, "chunk_size": "256KiB"})):
        await wired.until(lambda: wired.store.held == 3, step=0.1)
        wired.store.hold.set()
        await wired.until(lambda: len(wired.store.objects) == 3, step=1)


async def test_workers_that_one_source_does_not_get_go_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of eight hang at a recorder about which nothing is known yet; the rest is not idle."""
    wired = Wired(tmp_path, monkeypatch)
    wired.sources["other"] = FakeSource("other")
    other = Camera("other", "yard", "Yard")
    for number in range(6):
        wired.source.add(clip_at(1330 + number), mp4(500, seed=number))
        wired.sources["other"].add(clip_at(1330 + number, camera=other), mp4(500, seed=50 + number))
    wired.source.hold = asyncio.Event()
    async with wired.daemon(wired.settings(transfer={"workers": 8})) as engine:
        await wired.until(lambda: len(wired.store.objects) == 6)
        await wired.until(lambda: len(engine.pool.running) == FIRST_LIMIT)
        wired.source.hold.set()
        await wired.until(lambda: len(wired.store.objects) == 12)


def test_what_is_known_of_a_source_is_kept_by_name() -> None:
    guests = Guests(VirtualClock(), changed=lambda: None)
    guests.allow(8)
    assert guests.at("home") is guests.at("home")
    assert guests.at("home").workers == 8
    guests.allow(1)
    assert guests.at("home").limit == 1
    assert guests.next_chance() == float("inf")
    for _ in range(FAILURES):
        guests.at("home").camera_failed("porch")
    assert guests.next_chance() == FIRST_REST / timedelta(seconds=1)
