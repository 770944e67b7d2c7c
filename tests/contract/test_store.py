"""What every store must do, whatever it is made of (`ports.ClipStore`, `ports.Upload`).

The oracle is the test's own bytes and a view of the store from outside (`StoreCase.visible`), never
the adapter's word. Uploads are driven as `transfer.py` does it: chunks from `chunks.cut`, states
kept as the checkpoint would keep them, a restart by opening the store anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import google_crc32c
import pytest

from nvr_backup.chunks import Chunk, Progress, cut
from nvr_backup.errors import KeyTaken, StartOver, Unfit
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import ClipStore, Upload
from tests.contract.conftest import CHUNK, StoreCase

KEY = "Front Door/2026/01/31/23-59-58.mp4"
METADATA = {"source": "home", "camera-id": "17", "camera": "Haustür"}
MOST_AWAITS = 2000
"""A bound for the tests that cancel at every await; no upload here comes near it."""


def clip(size: int, seed: int = 1) -> bytes:
    """Bytes that look like nothing else; each size and seed its own."""
    return random.Random(seed * 1_000_003 + size).randbytes(size)


class CountingInspector:
    """Accepts everything; its state tells how many bytes it saw."""

    def __init__(self, state: str = "") -> None:
        self.seen = int(state or "0")

    def feed(self, piece: bytes) -> None:
        self.seen += len(piece)

    def state(self) -> str:
        return str(self.seen)

    def finish(self) -> None:
        pass


async def received(content: bytes, piece_sizes: Callable[[], int]) -> AsyncIterator[bytes]:
    at = 0
    while at < len(content):
        piece = content[at : at + piece_sizes()]
        at += len(piece)
        yield piece


class Broken(Exception):
    """The source's connection broke, or whatever else ends an upload in the middle."""


@dataclass
class Sender:
    """Drives an upload as the core does; `states` is what the checkpoint would hold."""

    content: bytes
    key: str = KEY
    content_type: str = "video/mp4"
    metadata: Mapping[str, str] = field(default_factory=lambda: METADATA)
    chunk_size: int = CHUNK
    piece_sizes: Callable[[], int] = lambda: 65536
    states: list[UploadState] = field(default_factory=list)
    break_after: int | None = None
    """Chunks after which the upload breaks."""
    before_finish: Callable[[Upload, Chunk], Awaitable[None]] | None = None
    replaces: str | None = None
    on_record: Callable[[UploadState], Awaitable[None]] | None = None

    async def record(self, state: UploadState) -> None:
        self.states.append(state)
        await asyncio.sleep(0)  # a checkpoint takes its time, and may be cancelled meanwhile
        if self.on_record is not None:
            await self.on_record(state)

    async def __call__(
        self, store: ClipStore, *, resume: UploadState | None = None
    ) -> StoredObject:
        begin = Progress()
        if resume is not None:
            begin = Progress(resume.offset, resume.crc32c, resume.inspection)
        async with store.put(
            self.key,
            content_type=self.content_type,
            metadata=self.metadata,
            record=self.record,
            resume=resume,
            replaces=self.replaces,
        ) as upload:
            if upload.stored is not None:
                return upload.stored
            return await self.send_from(upload, begin)

    async def send_from(self, upload: Upload, begin: Progress) -> StoredObject:
        pieces = received(self.content[begin.offset :], self.piece_sizes)
        inspector = CountingInspector(begin.inspection)
        sent = 0
        async with aclosing(
            cut(pieces, begin=begin, inspector=inspector, chunk_size=self.chunk_size)
        ) as chunks:
            async for chunk in chunks:
                if sent == self.break_after:
                    raise Broken
                if chunk.last:
                    if self.before_finish is not None:
                        await self.before_finish(upload, chunk)
                    return await upload.finish(chunk)
                end = chunk.end
                await upload.send(chunk)
                assert upload.confirmed == end
                sent += 1
        raise AssertionError("cut() ended without a last chunk")


async def whole(
    store: ClipStore, key: str, *, offset: int = 0, generation: str | None = None
) -> bytes:
    pieces = store.read(key, offset=offset, generation=generation)
    return b"".join([piece async for piece in pieces])


async def listed(store: ClipStore, prefix: str) -> list[StoredObject]:
    return [found async for found in store.list(prefix)]


def assert_describes(found: StoredObject | None, content: bytes, key: str = KEY) -> None:
    assert found is not None
    assert found.key == key
    assert found.size == len(content)
    assert found.crc32c in (None, google_crc32c.value(content))


# -- the bytes -----------------------------------------------------------------------------------

SIZES = {
    "empty": 0,
    "one": 1,
    "chunk-1": CHUNK - 1,
    "chunk": CHUNK,
    "chunk+1": CHUNK + 1,
    "3chunks": 3 * CHUNK,
    "5MiB+12345": 5 * 1024 * 1024 + 12345,
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
async def test_stores_exactly_the_bytes(case: StoreCase, store: ClipStore, size: int) -> None:
    dice = random.Random(size)
    content = clip(size)
    stored = await Sender(content, piece_sizes=lambda: dice.randint(1, 100_000))(store)
    assert_describes(stored, content)
    seen = await case.visible()
    assert list(seen) == [KEY]
    assert hashlib.sha256(seen[KEY]).digest() == hashlib.sha256(content).digest()
    assert await whole(store, KEY) == content
    assert await store.stat(KEY) == stored


async def test_many_tiny_pieces(case: StoreCase, store: ClipStore) -> None:
    """More pieces in one chunk than the kernel takes in one call."""
    content = clip(CHUNK + 5000)
    await Sender(content, piece_sizes=lambda: 97)(store)
    assert await case.visible() == {KEY: content}


async def test_large_chunks(case: StoreCase, store: ClipStore) -> None:
    content = clip(3 * 1024 * 1024 + 7)
    await Sender(content, chunk_size=1024 * 1024, piece_sizes=lambda: 1 << 20)(store)
    assert await case.visible() == {KEY: content}


# -- what goes with them -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 2 * CHUNK], ids=["single", "chunked"])
async def test_metadata_and_type_come_back(case: StoreCase, store: ClipStore, size: int) -> None:
    metadata = {
        "camera": "Haustür 🚪 «links»",
        "empty": "",
        "lines": 'a\nb\t"c"',
        "blanks": "  both ends  ",
        "classes": "person,car",
        "long": "x" * 1500,
    }
    await Sender(clip(size), metadata=metadata, content_type="video/x-matroska")(store)
    async with case.open() as again:
        for found in (await again.stat(KEY), *await listed(again, "")):
            assert found is not None
            assert dict(found.metadata) == metadata
            assert found.content_type == "video/x-matroska"


KEYS = {
    "plain": "cam/2026/01/02/03-04-05.mp4",
    "one-name": "clip.mp4",
    "blanks": "Front Door/a  b .mp4",
    "umlauts": "Küche/Übergröße ß.mp4",
    "percent": "a%2Fb/100%/%41.mp4",
    "hash": "cam #1/a#b.mp4",
    "question": "what?/a?b=c&d.mp4",
    "emoji": "📷 garden/👩‍👩‍👧.mp4",
    "signs": "a+b;c,d=e@f:g/!$&'()*[]{}|^~`\\\".mp4",
    "dots": "a..b/...c/x..mp4",
    "1024-bytes": "/".join(["ü" * 127] * 3 + ["k" * 254] + ["m" * 4]),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
async def test_any_reasonable_key(case: StoreCase, store: ClipStore, key: str) -> None:
    content = clip(CHUNK + 3)
    await Sender(content, key=key)(store)
    assert await case.visible() == {key: content}
    assert_describes(await store.stat(key), content, key)
    assert [found.key for found in await listed(store, key)] == [key]
    assert await whole(store, key) == content
    await store.delete(key)
    assert await case.visible() == {}


def test_the_longest_key_is_as_long_as_it_says() -> None:
    assert len(KEYS["1024-bytes"].encode()) == 1024


# -- create-only ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 3 * CHUNK], ids=["single", "chunked"])
async def test_an_existing_object_is_never_replaced(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    await case.place(KEY, b"somebody else's")
    with pytest.raises(KeyTaken) as caught:
        await Sender(clip(size))(store)
    assert not caught.value.maybe_ours
    assert await case.visible() == {KEY: b"somebody else's"}


@pytest.mark.parametrize("size", [100, 3 * CHUNK], ids=["single", "chunked"])
async def test_an_own_object_is_never_replaced(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    first = await Sender(clip(size), metadata={"whose": "first"})(store)
    with pytest.raises(KeyTaken):
        await Sender(clip(size, seed=2), metadata={"whose": "second"})(store)
    assert await case.visible() == {KEY: clip(size)}
    assert await store.stat(KEY) == first


# -- taking the place of a corrupt object ---------------------------------------------------------

_SIZES = pytest.mark.parametrize("size", [100, 3 * CHUNK], ids=["single", "chunked"])


async def spoilt(store: ClipStore, size: int) -> StoredObject:
    """An object that is to be replaced."""
    await Sender(b"spoilt" * size, metadata={"whose": "old"})(store)
    there = await store.stat(KEY)
    assert there is not None
    return there


@_SIZES
async def test_exactly_the_corrupt_generation_gives_way(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    old = await spoilt(store, size)

    async def still_there(_upload: Upload, _chunk: Chunk) -> None:
        assert await case.visible() == {KEY: b"spoilt" * size}

    stored = await Sender(clip(size), replaces=old.generation or "", before_finish=still_there)(
        store
    )
    assert await case.visible() == {KEY: clip(size)}
    assert await store.stat(KEY) == stored
    assert dict(stored.metadata) == METADATA


@_SIZES
async def test_another_generation_does_not_give_way(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    old = await spoilt(store, size)
    await store.delete(KEY)
    await case.place(KEY, b"a later one")
    with pytest.raises(KeyTaken):
        await Sender(clip(size), replaces=f"{old.generation}1")(store)
    assert await case.visible() == {KEY: b"a later one"}


@_SIZES
async def test_a_replacement_that_breaks_leaves_the_old_and_goes_on(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    old = await spoilt(store, size)
    sender = Sender(clip(size), replaces=old.generation or "", break_after=size // CHUNK and 1)
    with pytest.raises(Broken):
        await sender(store)
    assert await case.visible() == {KEY: b"spoilt" * size}
    again = replace(sender, break_after=None)
    await again(store, resume=sender.states[-1] if sender.states else None)
    assert await case.visible() == {KEY: clip(size)}


@pytest.mark.parametrize("size", [100, 3 * CHUNK], ids=["single", "chunked"])
async def test_of_two_uploads_to_one_key_the_first_to_finish_wins(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    async def overtake(upload: Upload, chunk: Chunk) -> None:
        await Sender(clip(size, seed=2), metadata={"whose": "second"})(store)

    with pytest.raises(KeyTaken):
        await Sender(clip(size), before_finish=overtake)(store)
    assert await case.visible() == {KEY: clip(size, seed=2)}
    found = await store.stat(KEY)
    assert found is not None
    assert dict(found.metadata) == {"whose": "second"}


@pytest.mark.parametrize("size", [100, 2 * CHUNK], ids=["single", "chunked"])
async def test_of_simultaneous_uploads_to_one_key_one_wins(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    outcomes = await asyncio.gather(
        *(Sender(clip(size, seed), metadata={"seed": str(seed)})(store) for seed in range(4)),
        return_exceptions=True,
    )
    winners = [seed for seed, outcome in enumerate(outcomes) if isinstance(outcome, StoredObject)]
    assert len(winners) == 1
    losers = [outcome for outcome in outcomes if not isinstance(outcome, StoredObject)]
    assert [type(loser) for loser in losers] == [KeyTaken] * 3, losers
    assert await case.visible() == {KEY: clip(size, winners[0])}
    found = await store.stat(KEY)
    assert found is not None
    assert dict(found.metadata) == {"seed": str(winners[0])}


# -- whole or nothing ----------------------------------------------------------------------------


async def test_nothing_is_visible_before_the_end(case: StoreCase, store: ClipStore) -> None:
    content = clip(3 * CHUNK)
    looks = 0

    async def look(state: UploadState | None = None) -> None:
        nonlocal looks
        looks += 1
        assert await case.visible() == {}
        assert await store.stat(KEY) is None
        assert await listed(store, "") == []

    async def look_before_finish(upload: Upload, chunk: Chunk) -> None:
        await look()

    await Sender(content, on_record=look, before_finish=look_before_finish)(store)
    assert looks >= 4
    assert await case.visible() == {KEY: content}


@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_a_broken_body_leaves_nothing_visible(
    case: StoreCase, store: ClipStore, sent: int
) -> None:
    content = clip(3 * CHUNK)
    with pytest.raises(Broken):
        await Sender(content, break_after=sent)(store)
    assert await case.visible() == {}
    assert await store.stat(KEY) is None
    await Sender(content)(store)
    assert await case.visible() == {KEY: content}


@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_discard_leaves_nothing(case: StoreCase, store: ClipStore, sent: int) -> None:
    content = clip(3 * CHUNK)
    sender = Sender(content)
    async with store.put(
        KEY, content_type="video/mp4", metadata=METADATA, record=sender.record
    ) as upload:
        chunks = cut(
            received(content, sender.piece_sizes),
            begin=Progress(),
            inspector=CountingInspector(),
            chunk_size=CHUNK,
        )
        async with aclosing(chunks):
            for _ in range(sent):
                await upload.send(await anext(chunks))
        await upload.discard()
    assert await case.visible() == {}
    if sender.states:  # what was sent is gone: it cannot be taken up again
        with pytest.raises(StartOver):
            await Sender(content)(store, resume=sender.states[-1])
    await Sender(content)(store)
    assert await case.visible() == {KEY: content}


class CancelledAt:
    """Awaits `inner`, cancelling the task when it suspends for the `turn`-th time (from 1)."""

    def __init__(self, inner: Awaitable[Any], turn: int) -> None:
        self._inner = inner
        self._turn = turn
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        steps = self._inner.__await__()
        thrown: BaseException | None = None
        suspended = 0
        while True:
            try:
                waiting = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value
            suspended += 1
            if suspended == self._turn:
                self.reached = True
                task.cancel()
            try:
                yield waiting
                thrown = None
            except BaseException as err:
                thrown = err


async def _cancelled_at(turn: int, inner: Awaitable[Any]) -> bool:
    """Whether `inner` got as far as its `turn`-th suspension; it was cancelled there then."""
    driver = CancelledAt(inner, turn)

    async def drive() -> None:
        await driver

    task = asyncio.create_task(drive())
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    assert task.cancelled() == driver.reached, "a cancellation was swallowed"
    return driver.reached


@pytest.mark.parametrize("size", [1000, 2 * CHUNK + 5], ids=["single", "chunked"])
async def test_cancelling_anywhere_harms_nothing(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    """At every await there is: all or nothing visible, and the recorded state leads to the end."""
    content = clip(size)
    for turn in range(1, MOST_AWAITS):
        key = f"turn/{turn}.mp4"
        sender = Sender(content, key=key)
        reached = await _cancelled_at(turn, sender(store))
        seen = await case.visible()
        assert seen in ({}, {key: content})
        if not reached:
            assert seen == {key: content}
            break
        try:
            await Sender(content, key=key)(
                store, resume=sender.states[-1] if sender.states else None
            )
        except StartOver:
            await Sender(content, key=key)(store)
        except KeyTaken as taken:
            # A single request whose answer was lost may have reached the store in the meantime.
            assert taken.maybe_ours or not sender.states
        assert await case.visible() == {key: content}
        await store.delete(key)
    else:
        raise AssertionError("the upload never ended")
    assert turn > 2  # at the very least the record and the store's answer were waited for


async def test_a_wrong_checksum_never_becomes_visible(case: StoreCase, store: ClipStore) -> None:
    async def tamper(upload: Upload, chunk: Chunk) -> None:
        chunk.after = replace(chunk.after, crc32c=chunk.after.crc32c ^ 1)

    for size in (100, CHUNK, 2 * CHUNK + 1):
        with pytest.raises(StartOver):
            await Sender(clip(size), before_finish=tamper)(store)
        assert await case.visible() == {}
        assert await store.stat(KEY) is None
    content = clip(2 * CHUNK + 1)
    await Sender(content)(store)
    assert await case.visible() == {KEY: content}


# -- states and resuming -------------------------------------------------------------------------


async def test_every_acknowledgement_is_recorded(store: ClipStore) -> None:
    content = clip(3 * CHUNK + 99)
    sender = Sender(content)
    await sender(store)
    assert all(state.key == KEY for state in sender.states)
    assert all(state.content_type == "video/mp4" for state in sender.states)
    assert len({state.session for state in sender.states}) == 1
    assert len({state.created_at for state in sender.states}) == 1
    acknowledged = {state.offset: state for state in sender.states if state.total is None}
    ends = [CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert [offset for offset in acknowledged if offset] == ends
    for end in ends:
        assert acknowledged[end].crc32c == google_crc32c.value(content[:end])
        assert acknowledged[end].inspection == str(end)
    *before, last = sender.states
    assert all(state.total is None for state in before)
    assert (last.total, last.total_crc32c) == (len(content), google_crc32c.value(content))
    assert (last.offset, last.inspection) == (3 * CHUNK, str(3 * CHUNK))


@pytest.mark.parametrize("size", [100, 2 * CHUNK], ids=["single", "chunked"])
async def test_the_end_is_recorded_before_it_happens(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    content = clip(size)

    async def crash(state: UploadState) -> None:
        if state.total is not None:
            assert (state.total, state.total_crc32c) == (size, google_crc32c.value(content))
            assert await case.visible() == {}
            raise Broken

    sender = Sender(content, on_record=crash)
    with pytest.raises(Broken):
        await sender(store)
    async with case.open() as again:
        try:
            stored = await Sender(content)(again, resume=sender.states[-1])
        except StartOver:
            stored = await Sender(content)(again)
        assert_describes(stored, content)
    assert await case.visible() == {KEY: content}


@pytest.mark.parametrize("more", [0, 1], ids=["exactly", "store-holds-more"])
@pytest.mark.parametrize("chunks", [1, 2, 3])
async def test_goes_on_after_a_restart(
    case: StoreCase, store: ClipStore, chunks: int, more: int
) -> None:
    content = clip(4 * CHUNK + 4321)
    sender = Sender(content, break_after=chunks + more)
    with pytest.raises(Broken):
        await sender(store)
    state = next(state for state in sender.states if state.offset == chunks * CHUNK)
    async with case.open() as again:
        capable = (await again.probe()).resume
        assert capable
        second = Sender(content)
        stored = await second(again, resume=state)
        assert_describes(stored, content)
        assert {state.session for state in second.states} == {state.session}
    assert await case.visible() == {KEY: content}
    found = await store.stat(KEY)
    assert found is not None
    assert dict(found.metadata) == METADATA
    assert found.content_type == "video/mp4"


async def test_what_is_confirmed_need_not_come_again(case: StoreCase, store: ClipStore) -> None:
    """A resumed upload knows what it holds, and takes chunks that begin before that too."""
    content = clip(3 * CHUNK + 17)
    sender = Sender(content, break_after=2)
    with pytest.raises(Broken):
        await sender(store)
    state = sender.states[-1]
    async with store.put(
        KEY, content_type="video/mp4", metadata=METADATA, record=sender.record, resume=state
    ) as upload:
        assert upload.stored is None
        assert upload.confirmed == state.offset == 2 * CHUNK
        # The source could not seek: everything comes from byte 0, in chunks cut otherwise.
        pieces = received(content, lambda: 50_000)
        at_once = 3 * CHUNK
        async with aclosing(
            cut(pieces, begin=Progress(), inspector=CountingInspector(), chunk_size=at_once)
        ) as chunks:
            async for chunk in chunks:
                if chunk.last:
                    await upload.finish(chunk)
                else:
                    await upload.send(chunk)
    assert await case.visible() == {KEY: content}


@pytest.mark.parametrize("size", [0, 100, CHUNK, 2 * CHUNK + 1], ids=str)
async def test_a_finished_upload_is_recognised(
    case: StoreCase, store: ClipStore, size: int
) -> None:
    """The process died after the store had finished and before the outcome was recorded."""
    content = clip(size)
    sender = Sender(content)
    stored = await sender(store)
    async with (
        case.open() as again,
        again.put(
            KEY,
            content_type="video/mp4",
            metadata=METADATA,
            record=sender.record,
            resume=sender.states[-1],
        ) as upload,
    ):
        assert upload.stored == stored
    assert await case.visible() == {KEY: content}


@pytest.mark.parametrize(
    "session",
    ["garbage", "0" * 32, "../../../etc/passwd", "http://127.0.0.1:9/upload?upload_id=x", "\0"],
)
async def test_an_unknown_session_starts_over(
    case: StoreCase, store: ClipStore, session: str
) -> None:
    sender = Sender(clip(2 * CHUNK), break_after=1)
    with pytest.raises(Broken):
        await sender(store)
    state = replace(sender.states[-1], session=session)
    with pytest.raises(StartOver) as caught:
        await Sender(clip(2 * CHUNK))(store, resume=state)
    assert session not in str(caught.value)
    assert await case.visible() == {}


# -- looking -------------------------------------------------------------------------------------


async def test_absent_is_none(store: ClipStore) -> None:
    await Sender(b"x", key="a/b/c.mp4")(store)
    for key in ("a/b/d.mp4", "a/b", "a", "a/b/c.mp4/d", "nothing/at/all"):
        assert await store.stat(key) is None


async def test_listing_in_key_order_whatever_the_pages(case: StoreCase, store: ClipStore) -> None:
    keys = [
        *(f"cam/2026/01/{day:02}/clip.mp4" for day in range(1, 26)),
        *("cam-2/a.mp4", "cam.mp4", "cam0/a.mp4", "cam/2026.mp4", "cam/2026-x/a.mp4"),
        *("camé/a.mp4", "Cam/a.mp4", "z.mp4", "cam/2026/01/01/clip.mp4x", "😀/a.mp4", "ﬀ/a.mp4"),
    ]
    for key in random.Random(5).sample(keys, len(keys)):
        await Sender(key.encode(), key=key, metadata={"key": key})(store)
    in_order = sorted(keys, key=str.encode)
    prefixes = ["", "cam", "cam/", "cam/2026", "cam/2026/", "cam/2026/01/1", "ca", "z.mp4", "zz"]
    for prefix in [*prefixes, "cam/2026/01/01/clip.mp4", "cam/2026/01/01/clip.mp4/", "😀"]:
        found = await listed(store, prefix)
        assert [one.key for one in found] == [key for key in in_order if key.startswith(prefix)]
        for one in found:
            assert_describes(one, one.key.encode(), one.key)
            assert dict(one.metadata) == {"key": one.key}


async def test_a_listing_may_be_left_early(store: ClipStore) -> None:
    for number in range(10):
        await Sender(b"x", key=f"{number}.mp4")(store)
    async with aclosing(store.list("")) as listing:  # type: ignore[type-var]
        assert (await anext(aiter(listing))).key == "0.mp4"
    assert len(await listed(store, "")) == 10


async def test_reading_from_anywhere(store: ClipStore) -> None:
    content = clip(2 * 1024 * 1024 + 77)
    await Sender(content)(store)
    for offset in (0, 1, CHUNK, 1024 * 1024, len(content) - 1, len(content)):
        assert await whole(store, KEY, offset=offset) == content[offset:]
    async with aclosing(store.read(KEY)) as reading:  # type: ignore[type-var]
        first = await anext(aiter(reading))
    assert first
    assert content.startswith(first)


async def test_folders_of_one_level_whatever_the_pages(store: ClipStore) -> None:
    keys = [
        *(f"cam {n}/2026/0{n % 3 + 1}/{n}.mp4" for n in range(1, 10)),
        *("cam-x/a.mp4", "cam.mp4", "cam/a.mp4", "Küche/2026/01/a.mp4", "Küche/a.mp4", "z/😀/b.ts"),
    ]
    for key in keys:
        await Sender(b"x", key=key)(store)
    prefixes = ["", "cam", "cam ", "cam 1/", "cam 1/2026/", "cam 1/20", "Küche/", "cam.mp4", "zz/"]
    for prefix in [*prefixes, "cam 1/2026/02/1.mp4", "cam 1/2026/02/1.mp4/", "../", "/", "z/./"]:
        found = [folder async for folder in store.folders(prefix)]
        heads = (key[len(prefix) :].partition("/") for key in keys if key.startswith(prefix))
        expected = {prefix + head + slash for head, slash, _ in heads if slash}
        assert found == sorted(expected, key=str.encode), prefix


async def test_reading_a_generation(case: StoreCase, store: ClipStore) -> None:
    old = await Sender(clip(CHUNK + 9))(store)
    if old.generation is None:
        pytest.skip("this store knows no generations")
    assert await whole(store, KEY, offset=7, generation=old.generation) == clip(CHUNK + 9)[7:]
    await store.delete(KEY)
    new = await Sender(clip(CHUNK + 9, seed=2))(store)
    for offset in (0, CHUNK):
        with pytest.raises(Unfit):
            await whole(store, KEY, offset=offset, generation=old.generation)
    assert await whole(store, KEY, generation=new.generation) == clip(CHUNK + 9, seed=2)


async def test_reading_what_is_not_there(store: ClipStore) -> None:
    await Sender(b"x", key="a/b.mp4")(store)
    for key in ("nothing.mp4", "a"):
        with pytest.raises(Unfit):
            await whole(store, key)


# -- removing ------------------------------------------------------------------------------------


async def test_deleting_twice_is_no_error(case: StoreCase, store: ClipStore) -> None:
    await Sender(b"one", key="a/1.mp4")(store)
    await Sender(b"two", key="a/2.mp4")(store)
    for _ in range(2):
        await store.delete("a/1.mp4")
    await store.delete("never/was.mp4")
    assert await case.visible() == {"a/2.mp4": b"two"}
    assert await store.stat("a/1.mp4") is None


async def test_a_deleted_key_is_free_again(case: StoreCase, store: ClipStore) -> None:
    await Sender(b"first", metadata={"whose": "first"})(store)
    await store.delete(KEY)
    stored = await Sender(b"again", metadata={"whose": "again"})(store)
    assert dict(stored.metadata) == {"whose": "again"}
    assert await store.stat(KEY) == stored
    assert await case.visible() == {KEY: b"again"}


async def test_deleting_only_in_its_generation(case: StoreCase, store: ClipStore) -> None:
    old = await Sender(b"old")(store)
    if old.generation is None:
        pytest.skip("this store knows no generations")
    await store.delete(KEY)
    new = await Sender(b"new")(store)
    assert new.generation not in (None, old.generation)
    await store.delete(KEY, generation=old.generation)
    assert await case.visible() == {KEY: b"new"}
    await store.delete(KEY, generation=new.generation)
    assert await case.visible() == {}


# -- together ------------------------------------------------------------------------------------


async def test_eight_at_a_time(case: StoreCase, store: ClipStore) -> None:
    contents = {f"cam {n}/2026/{n}.mp4": clip(n * CHUNK // 2 + n, seed=n) for n in range(8)}
    async with asyncio.TaskGroup() as group:
        for key, content in contents.items():
            group.create_task(_stored(store, key, content))
    assert await case.visible() == contents


async def _stored(store: ClipStore, key: str, content: bytes) -> None:
    assert_describes(await Sender(content, key=key)(store), content, key)


async def test_the_probe_leaves_nothing(case: StoreCase, store: ClipStore) -> None:
    for expected in ({}, {KEY: b"x"}):
        capabilities = await store.probe()
        assert capabilities.stat
        assert capabilities.list
        assert capabilities.read
        assert capabilities.delete
        assert capabilities.resume
        assert await case.visible() == expected
        assert [found.key for found in await listed(store, "")] == list(expected)
        if not expected:
            await Sender(b"x")(store)
