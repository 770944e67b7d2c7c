"""What every source must do, whatever recorder is behind it (`ports.ClipSource`, `ports.ClipBody`).

A source proves itself by one line in `SOURCES`: a context manager that starts a recorder and gives
a `SourceCase`, the test's hands on that recorder. The oracle is the recorder's own bytes and times,
never the adapter's word. What a recorder cannot be made to do is None in its case, and the test
that needs it is skipped for it by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from nvr_backup.errors import Blocked, NvrBackupError, Suspect, Transient, Unfit
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.ports import ClipSource
from nvr_backup.simulator import SimCamera, SimClip, Simulator, SimulatorSettings
from nvr_backup.sources import scrypted
from tests.support.clock import VirtualClock
from tests.support.fakes import FakeSource, mp4

LIMIT_SECONDS = 60.0
LARGEST_PIECE = 1 << 20
SIZE = 300_000
"""Bytes of a clip: several pieces, quickly compared."""

PORCH, GARDEN = "Porch", "Garden"


@dataclass(frozen=True)
class SourceCase:
    """A recorder with two cameras and no clips, and what a test can do to it.

    Optional hands are None where the recorder cannot be brought to it. `ranges` says whether bodies
    can begin in the middle, `sized` whether their size is announced.
    """

    now: Callable[[], datetime]
    open: Callable[[], AbstractAsyncContextManager[ClipSource]]
    """A new source on the same recorder, as after a restart of the program."""

    add: Callable[[str, datetime, float], bytes]
    """Record a clip of a camera (by name) from a time for so many seconds; its true bytes."""

    remove: Callable[[str, datetime], None]
    """Let the recorder's retention take the clip that began then."""

    ranges: bool
    sized: bool
    rename: Callable[[str, str], None] | None = None
    grow: Callable[[str, datetime, float], bytes] | None = None
    """Make a clip longer by so many seconds; its bytes are new ones."""

    fail_listing: Callable[[], None] | None = None
    """The next question for clips fails."""

    scramble_listing: Callable[[], None] | None = None
    """The next answer is out of order, full of duplicates, and ignores the window."""

    cut_body: Callable[[int], None] | None = None
    """The next body's transport fails after so many bytes."""

    stall_body: Callable[[], Callable[[], Awaitable[None]]] | None = None
    """The next body stops half-way; returns what to await until it has."""

    down: Callable[[], Awaitable[None]] | None = None
    """The recorder is away until `up`."""

    up: Callable[[], Awaitable[None]] | None = None
    restart: Callable[[], Awaitable[None]] | None = None


Started = Callable[[], AbstractAsyncContextManager[SourceCase]]


# -- Scrypted, simulated -------------------------------------------------------------------------


def simulated(style: str, *, ranges: bool = True, sized: bool = True) -> Started:
    """Scrypted with cameras of one of the simulator's styles."""

    @asynccontextmanager
    async def case() -> AsyncIterator[SourceCase]:
        clock = VirtualClock()
        cameras = tuple(SimCamera(name, style=style, clips=0) for name in (PORCH, GARDEN))
        settings = SimulatorSettings(cameras=cameras, clip_size=SIZE)
        async with Simulator(settings, clock=clock) as nvr, asyncio.TaskGroup() as group:
            yield _simulated_case(nvr, clock, group, ranges=ranges, sized=sized)

    return case


def _simulated_case(
    nvr: Simulator, clock: VirtualClock, group: asyncio.TaskGroup, *, ranges: bool, sized: bool
) -> SourceCase:
    away: list[asyncio.Task[None]] = []

    def find(camera: str, start: datetime) -> SimClip:
        ms = int(start.timestamp() * 1000)
        return next(c for c in nvr.catalogue.clips(camera) if c.start_ms == ms)

    def add(camera: str, start: datetime, seconds: float) -> bytes:
        return nvr.catalogue.add_clip(camera, start=start, seconds=seconds).content.read()

    def grow(camera: str, start: datetime, seconds: float) -> bytes:
        return nvr.catalogue.grow_clip(find(camera, start), seconds=seconds).content.read()

    def scramble() -> None:
        for fault in ("listing_outside", "listing_duplicates", "listing_unsorted"):
            nvr.faults.arm(fault, times=None)

    def stall() -> Callable[[], Awaitable[None]]:
        nvr.faults.arm("stall_body")
        return lambda: nvr.faults.wait_happened("stall_body")

    async def down() -> None:
        away.append(group.create_task(nvr.restart(down=86_400)))
        await clock.until_asleep(1)

    async def up() -> None:
        await clock.advance(86_400)
        await away.pop()

    def renamed(old: str, new: str) -> None:
        nvr.catalogue.rename(old, new)

    mine = scrypted.ScryptedSettings("home", nvr.url, "backup", "secret")
    return SourceCase(
        now=clock.now,
        open=lambda: scrypted.open_source(mine, clock),
        add=add,
        remove=lambda camera, start: nvr.catalogue.remove_clip(find(camera, start)),
        ranges=ranges,
        sized=sized,
        rename=renamed,
        grow=grow,
        fail_listing=lambda: _ignore(nvr.faults.arm("listing_error")),
        scramble_listing=scramble,
        cut_body=lambda at: _ignore(nvr.faults.arm("cut_body", at_bytes=at)),
        stall_body=stall,
        down=down,
        up=up,
        restart=nvr.restart,
    )


def _ignore(_value: object) -> None:
    pass


# -- the fake --------------------------------------------------------------------------------------


@asynccontextmanager
async def fake() -> AsyncIterator[SourceCase]:
    """The fake of the core's tests."""
    clock = VirtualClock()
    source = FakeSource()
    cameras = {name: Camera("home", name.lower(), name) for name in (PORCH, GARDEN)}
    source.extra_cameras = list(cameras.values())

    def add(camera: str, start: datetime, seconds: float) -> bytes:
        data = mp4(SIZE, seed=len(source.recordings))
        end = start + timedelta(seconds=seconds)
        source.add(Clip(cameras[camera], f"{camera}/{start.isoformat()}", start, end), data)
        return data

    @asynccontextmanager
    async def opened() -> AsyncIterator[ClipSource]:
        yield source

    yield SourceCase(
        now=clock.now,
        open=opened,
        add=add,
        remove=lambda camera, start: source.remove(f"{camera}/{start.isoformat()}"),
        ranges=True,
        sized=True,
        fail_listing=lambda: source.faults.arm("clips", Transient("the listing failed")),
    )


SOURCES: dict[str, Started] = {
    "scrypted-file": simulated("file"),
    "scrypted-href": simulated("href"),
    "scrypted-nvr": simulated("nvr"),
    "scrypted-nvr-local": simulated("nvr_local"),
    "scrypted-external": simulated("href_external"),
    "scrypted-stream": simulated("stream", ranges=False, sized=False),
    "scrypted-buffer": simulated("buffer", ranges=False),
    "scrypted-request": simulated("request", ranges=False),
    "fake": fake,
}


@pytest.fixture(params=SOURCES)
def started(request: pytest.FixtureRequest) -> Started:
    return SOURCES[request.param]


@asynccontextmanager
async def case_and_source(started: Started) -> AsyncIterator[tuple[SourceCase, ClipSource]]:
    async with asyncio.timeout(LIMIT_SECONDS), started() as case, case.open() as source:
        yield case, source


# -- hands and eyes --------------------------------------------------------------------------------


async def camera_of(source: ClipSource, name: str = PORCH) -> Camera:
    return next(c for c in await source.cameras() if c.name == name)


async def listed(source: ClipSource, camera: Camera, window: Window) -> list[Clip]:
    return [clip async for clip in source.clips(camera, window)]


async def content(source: ClipSource, clip: Clip, offset: int = 0) -> bytes:
    async with source.open(clip, offset=offset) as body:
        pieces = [piece async for piece in body]
    assert all(0 < len(piece) <= LARGEST_PIECE for piece in pieces)
    return b"".join(pieces)


def last_hours(case: SourceCase, hours: float) -> Window:
    return Window(case.now() - timedelta(hours=hours), case.now())


async def one_clip(case: SourceCase, source: ClipSource) -> tuple[Clip, bytes]:
    """A clip of ten seconds that ended an hour ago, with another one after it."""
    start = case.now() - timedelta(hours=1)
    truth = case.add(PORCH, start, 10)
    case.add(PORCH, start + timedelta(minutes=5), 10)
    clips = await listed(source, await camera_of(source), last_hours(case, 2))
    return clips[0], truth


# -- cameras ---------------------------------------------------------------------------------------


async def test_every_camera_once_with_a_unique_id(started: Started) -> None:
    async with case_and_source(started) as (_, source):
        cameras = await source.cameras()
        assert sorted(c.name for c in cameras) == [GARDEN, PORCH]
        assert len({c.id for c in cameras}) == 2 and {c.source for c in cameras} == {"home"}


async def test_cameras_are_the_same_after_a_restart_of_ours(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        before = await source.cameras()
        async with case.open() as again:
            assert sorted(await again.cameras(), key=str) == sorted(before, key=str)


async def test_a_renamed_camera_keeps_its_id_and_its_clips(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.rename is None:
            pytest.skip("cannot rename a camera")
        clip, truth = await one_clip(case, source)
        case.rename(PORCH, "Front door")
        renamed = await camera_of(source, "Front door")
        assert renamed.id == clip.camera.id
        found = await listed(source, renamed, last_hours(case, 2))
        assert found[0].id == clip.id
        # Under its old name, too: the checkpoint may remember that one.
        assert await content(source, clip) == await content(source, found[0]) == truth


# -- listings --------------------------------------------------------------------------------------


async def test_an_empty_listing_is_no_error(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        assert await listed(source, await camera_of(source), last_hours(case, 24)) == []


async def test_clips_are_whole_and_in_order_over_a_day(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        begin = case.now() - timedelta(hours=24)
        starts = [begin + timedelta(minutes=47 * n) for n in range(30)]
        for start in [*starts[1::2], *starts[::2]]:
            case.add(PORCH, start, 10)
        case.add(GARDEN, begin, 10)
        camera = await camera_of(source)
        clips = await listed(source, camera, last_hours(case, 24))
        assert [c.start for c in clips] == starts
        assert {c.end - c.start for c in clips if c.end} == {timedelta(seconds=10)}
        assert {c.camera for c in clips} == {camera}
        assert len({c.id for c in clips}) == len(starts)


async def test_listing_twice_gives_the_same_clips(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        await one_clip(case, source)
        camera = await camera_of(source)
        first = await listed(source, camera, last_hours(case, 24))
        assert first == await listed(source, camera, last_hours(case, 24))
        async with case.open() as again:
            assert first == await listed(again, camera, last_hours(case, 24))


async def test_what_touches_the_window_and_nothing_else(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        begin = case.now() - timedelta(hours=12)
        end = begin + timedelta(hours=7)
        touching = [
            begin - timedelta(seconds=59),
            begin + timedelta(hours=3),
            end - timedelta(seconds=1),
        ]
        beside = [begin - timedelta(seconds=61), end, end + timedelta(seconds=1)]
        for start in touching + beside:
            case.add(PORCH, start, 60)
        clips = await listed(source, await camera_of(source), Window(begin, end))
        assert [c.start for c in clips] == touching


async def test_windows_side_by_side_lose_nothing(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        begin = case.now() - timedelta(hours=9)
        starts = [begin + timedelta(minutes=7 * n) for n in range(60)]
        for start in starts:
            case.add(PORCH, start, 60)
        camera = await camera_of(source)
        found: set[str] = set()
        for part in Window(begin, begin + timedelta(hours=8)).split(timedelta(minutes=50)):
            found |= {c.id for c in await listed(source, camera, part)}
        assert len(found) == len(starts)


async def test_a_listing_that_fails_raises_and_the_next_is_whole(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.fail_listing is None:
            pytest.skip("cannot fail a listing")
        clip, _ = await one_clip(case, source)
        case.fail_listing()
        with pytest.raises(Transient):
            await listed(source, clip.camera, last_hours(case, 2))
        assert clip in await listed(source, clip.camera, last_hours(case, 2))


async def test_a_scrambled_answer_is_put_right(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.scramble_listing is None:
            pytest.skip("cannot scramble a listing")
        begin = case.now() - timedelta(hours=10)
        starts = [begin + timedelta(minutes=10 * n) for n in range(40)]
        for start in [begin - timedelta(hours=1), *starts]:
            case.add(PORCH, start, 10)
        camera = await camera_of(source)
        case.scramble_listing()
        clips = await listed(source, camera, last_hours(case, 10))
        assert [c.start for c in clips] == starts


async def test_a_listing_may_be_left_half_way(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        clip, _ = await one_clip(case, source)
        async for _ in source.clips(clip.camera, last_hours(case, 2)):
            break
        assert len(await listed(source, clip.camera, last_hours(case, 2))) == 2


# -- bodies ----------------------------------------------------------------------------------------


async def test_the_exact_bytes(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        clip, truth = await one_clip(case, source)
        async with source.open(clip) as body:
            assert body.offset == 0
            assert body.size == (len(truth) if case.sized else None)
        assert await content(source, clip) == truth


@pytest.mark.parametrize("offset", [1, 65_536, 299_999])
async def test_from_an_offset_or_from_the_beginning(started: Started, offset: int) -> None:
    async with case_and_source(started) as (case, source):
        clip, truth = await one_clip(case, source)
        async with source.open(clip, offset=offset) as body:
            granted = body.offset
            assert granted == (offset if case.ranges else 0)
            assert body.size in (None, len(truth))
        assert await content(source, clip, offset) == truth[granted:]


async def test_an_offset_at_or_beyond_the_end_gives_nothing_wrong(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        clip, truth = await one_clip(case, source)
        for offset in (len(truth), len(truth) + 1000):
            async with source.open(clip, offset=offset) as body:
                got = b"".join([piece async for piece in body])
                assert got == truth[body.offset :]


async def test_a_clip_listed_before_a_restart_of_ours(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        clip, truth = await one_clip(case, source)
        async with case.open() as again:
            assert await content(again, clip) == truth


async def test_a_clip_listed_before_a_restart_of_the_recorder(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.restart is None:
            pytest.skip("cannot restart the recorder")
        clip, truth = await one_clip(case, source)
        await case.restart()
        async with case.open() as again:
            assert await content(again, clip) == truth


async def test_a_clip_that_grew_after_it_was_listed(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.grow is None:
            pytest.skip("clips do not grow")
        clip, _ = await one_clip(case, source)
        grown = case.grow(PORCH, clip.start, 7)
        async with case.open() as again:
            assert await content(again, clip) == grown


async def test_many_clips_at_once(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        begin = case.now() - timedelta(hours=2)
        truth = {
            start: case.add(PORCH, start, 10)
            for start in (begin + timedelta(minutes=n) for n in range(12))
        }
        clips = await listed(source, await camera_of(source), last_hours(case, 3))
        got = await asyncio.gather(*(content(source, clip) for clip in clips))
        assert dict(zip((c.start for c in clips), got, strict=True)) == truth


async def test_a_clip_that_is_gone_is_unfit(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        clip, _ = await one_clip(case, source)
        case.remove(PORCH, clip.start)
        async with case.open() as again:
            for one in (source, again):
                with pytest.raises(Unfit) as caught:
                    await content(one, clip)
                assert str(caught.value)


async def test_a_transport_that_fails_is_transient_after_the_bytes_that_came(
    started: Started,
) -> None:
    async with case_and_source(started) as (case, source):
        if case.cut_body is None:
            pytest.skip("cannot cut a body")
        clip, truth = await one_clip(case, source)
        case.cut_body(200_000)
        got = b""
        with pytest.raises(Transient) as caught:
            async with source.open(clip) as body:
                async for piece in body:
                    got += piece
        assert not isinstance(caught.value, Suspect)
        assert truth.startswith(got) and len(got) <= 200_000
        assert await content(source, clip) == truth


async def test_cancelled_in_the_middle_of_a_body(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.stall_body is None:
            pytest.skip("cannot stall a body")
        clip, truth = await one_clip(case, source)
        stalled = case.stall_body()
        task = asyncio.create_task(content(source, clip))
        await stalled()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await content(source, clip) == truth


@pytest.mark.parametrize("awaits", [0, 1, 2, 5, 10, 20, 40])
async def test_cancelled_anywhere_the_source_stays_usable(started: Started, awaits: int) -> None:
    async with case_and_source(started) as (case, source):
        clip, truth = await one_clip(case, source)
        for work in (
            source.cameras(),
            listed(source, clip.camera, last_hours(case, 24)),
            content(source, clip),
        ):
            task = asyncio.ensure_future(work)
            for _ in range(awaits):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert clip in await listed(source, await camera_of(source), last_hours(case, 24))
        assert await content(source, clip) == truth


# -- a recorder that is away -----------------------------------------------------------------------


async def test_an_unreachable_recorder_blocks_with_words_and_comes_back(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.down is None or case.up is None:
            pytest.skip("cannot be switched off")
        clip, truth = await one_clip(case, source)
        window = last_hours(case, 2)
        await case.down()
        for work in (
            source.cameras(),
            listed(source, clip.camera, window),
            content(source, clip),
            source.cameras(),
        ):
            # A link may still have to be found lost: once Transient, from then on Blocked.
            with pytest.raises(NvrBackupError) as caught:
                await work
            assert isinstance(caught.value, Blocked | Transient) and str(caught.value)
        assert isinstance(caught.value, Blocked)
        await case.up()
        assert len(await source.cameras()) == 2
        assert await content(source, clip) == truth


async def test_opening_a_source_does_not_need_its_recorder(started: Started) -> None:
    async with case_and_source(started) as (case, source):
        if case.down is None or case.up is None:
            pytest.skip("cannot be switched off")
        clip, truth = await one_clip(case, source)
        await case.down()
        async with case.open() as again:
            with pytest.raises(Blocked):
                await again.cameras()
            with pytest.raises(Blocked):
                await content(again, clip)
            await case.up()
            assert len(await again.cameras()) == 2
            assert await content(again, clip) == truth
