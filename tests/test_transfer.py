"""A clip's way, with a source and a store in memory and every fault between them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import google_crc32c
import pytest

from nvr_backup.chunks import Chunk
from nvr_backup.errors import (
    Blocked,
    KeyTaken,
    NvrBackupError,
    StartOver,
    Suspect,
    Transient,
    Unfit,
)
from nvr_backup.metadata import describe
from nvr_backup.model import Clip, StoredObject, UploadState
from nvr_backup.mp4 import ClipInspector
from nvr_backup.overlap import PROOF_BYTES, Witness
from nvr_backup.transfer import (
    FRESH_STARTS,
    KEYS_TRIED,
    Activity,
    Carried,
    Drained,
    Transfer,
)
from tests.support.fakes import FakeSource, FakeStore, box, clip_at, mp4

CHUNK = 4096


def ebml(doc_type: bytes) -> bytes:
    """A Matroska file with an empty segment."""
    kind = b"\x42\x82" + bytes([0x80 | len(doc_type)]) + doc_type
    head = b"\x1a\x45\xdf\xa3" + bytes([0x80 | len(kind)]) + kind
    return head + b"\x18\x53\x80\x67\x88" + b"\xec\x86" + b"\0" * 6


@dataclass
class Row:
    """The checkpoint's row of one copy, in memory."""

    keys: list[str] = field(default_factory=lambda: ["second.mp4", "third.mp4", "fourth.mp4"])
    upload: UploadState | None = None
    saved: list[UploadState] = field(default_factory=list)
    forgotten: int = 0

    async def save_upload(self, state: UploadState) -> None:
        self.upload = state
        self.saved.append(state)

    async def forget_upload(self) -> None:
        self.upload = None
        self.forgotten += 1

    async def another_key(self, extension: str) -> str:
        self.upload = None
        return self.keys.pop(0).removesuffix(".mp4") + extension


@dataclass
class Way:
    """One clip between a fake source and a fake store."""

    size: int = 5 * CHUNK + 123
    source: FakeSource = field(default_factory=FakeSource)
    store: FakeStore = field(default_factory=FakeStore)
    row: Row = field(default_factory=Row)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    activity: Activity = field(default_factory=Activity)
    finishing: list[int | None] = field(default_factory=list)
    clip: Clip = field(default_factory=lambda: clip_at(0))

    def __post_init__(self) -> None:
        self.data = mp4(self.size)
        self.source.add(self.clip, self.data)

    def begin(self, key: str = "first.mp4") -> Transfer:
        self.activity = Activity()
        return Transfer(
            clip=self.clip,
            key=key,
            source=self.source,
            store=self.store,
            store_name="nas",
            ledger=self.row,
            activity=self.activity,
            chunk_size=CHUNK,
            stop=self.stop,
            finishing=lambda: self.finishing.append(self.activity.finishing),
        )

    async def run(self) -> Carried:
        return await self.begin().run(self.row.upload)

    def foreign(self, key: str, data: bytes = b"foreign", **metadata: str) -> StoredObject:
        held = StoredObject(key, len(data), google_crc32c.value(data), "1", "x", metadata)
        self.store.objects[key] = (held, data)
        return held


@pytest.fixture
async def way() -> Way:
    return Way()


@pytest.mark.parametrize("size", [64, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
async def test_a_clip_of_any_size_arrives_whole_and_described(size: int) -> None:
    way = Way(size)
    carried = await way.run()
    stored, data = way.store.objects["first.mp4"]
    assert data == way.data
    assert carried == Carried(stored, verified=True)
    assert stored.content_type == "video/mp4"
    assert stored.metadata == describe(way.clip)
    assert way.source.opened == [(way.clip.id, 0)]
    assert way.activity.received == way.activity.confirmed == way.activity.size == size
    assert way.row.saved[-1].total == size
    assert way.row.saved[-1].total_crc32c == google_crc32c.value(data)


async def test_one_chunk_is_read_ahead_and_no_more() -> None:
    way = Way(40 * CHUNK, source=FakeSource(piece=64))
    way.store.hold = asyncio.Event()
    transfer = asyncio.create_task(way.run())
    while not way.store.held:
        await asyncio.sleep(0)
    for _ in range(1000):
        await asyncio.sleep(0)
    # One in the store's hands, one full, and the piece that tells that it is not the last.
    assert way.activity.received == 2 * CHUNK + 64
    way.store.hold.set()
    most = 0
    while not transfer.done():
        most = max(most, way.activity.received - way.activity.confirmed)
        await asyncio.sleep(0)
    await transfer
    assert most <= 2 * CHUNK + 64


async def test_both_ends_that_fail_at_once_are_one_failure() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    way = Way()
    way.store.hold = asyncio.Event()
    way.store.faults.arm("send", Transient("503"))
    way.source.faults.skip["piece"] = 6  # in the second chunk, while the first is being sent
    way.source.faults.arm("piece", Transient("link lost"))
    transfer = asyncio.create_task(way.run())
    while not way.source.faults.happened["piece"]:
        await asyncio.sleep(0)
    way.store.hold.set()
    with pytest.raises(Transient, match="503"):
        await transfer
    del transfer
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0)
    assert complaints == []
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data


# -- the source's faults ---------------------------------------------------------------------------


async def test_a_source_that_fails_half_way_is_resumed_where_the_store_is(way: Way) -> None:
    way.source.faults.skip["piece"] = 13  # in the fourth chunk
    way.source.faults.arm("piece", Transient("link lost"))
    with pytest.raises(Transient, match="link lost") as caught:
        await way.run()
    assert caught.value.origin == "sources.home"
    assert "first.mp4" not in way.store.objects
    state = way.row.upload
    assert state is not None
    assert 0 < state.offset == len(way.store.sessions[state.session])
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data
    assert way.source.opened[-1] == (way.clip.id, state.offset - PROOF_BYTES)
    assert way.store.received == way.size  # nothing was sent twice
    assert way.activity.resumed_at == state.offset
    assert way.activity.received == way.size - state.offset + PROOF_BYTES


@pytest.mark.parametrize("broken", range(6))
async def test_the_store_fails_at_any_chunk_and_the_clip_is_resumed(broken: int) -> None:
    for step in ("send", "send-answer", "finish", "finish-answer"):
        if broken >= (5 if step.startswith("send") else 1):
            continue  # there are five full chunks and one end
        way = Way()
        way.store.faults.skip[step] = broken
        way.store.faults.arm(step, Transient("503"))
        with pytest.raises(Transient, match="503") as caught:
            await way.run()
        assert caught.value.origin == "stores.nas"
        carried = await way.run()
        assert way.store.objects == {"first.mp4": (carried.stored, way.data)}
        assert way.store.received == way.size


async def test_a_source_without_ranges_is_read_again_and_proves_to_be_the_same_stream() -> None:
    way = Way(source=FakeSource(ranges=False, piece=700))
    way.store.faults.arm("finish", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data
    assert way.source.opened == [(way.clip.id, 0), (way.clip.id, 0)]
    assert way.store.received == way.size


@pytest.mark.parametrize("change", ["other bytes", "shorter"])
@pytest.mark.parametrize("step", ["send", "finish"])
@pytest.mark.parametrize("ranges", [False, True])
async def test_a_clip_that_changed_meanwhile_begins_anew(
    change: str, step: str, ranges: bool
) -> None:
    """What the store holds of it is never joined with what the source has now."""
    way = Way(source=FakeSource(ranges=ranges))
    way.store.faults.skip["send"] = 3
    way.store.faults.arm(step, Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    new = mp4(way.size, seed=5) if change == "other bytes" else mp4(2 * CHUNK)
    way.source.add(way.clip, new)
    await way.run()
    assert way.store.objects["first.mp4"][1] == new
    assert way.store.sessions == {}


async def test_a_range_of_a_changed_clip_is_caught_by_the_stores_checksum() -> None:
    way = Way()
    way.store.faults.arm("finish", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    way.source.add(way.clip, new := mp4(way.size, seed=5))
    await way.run()
    assert way.store.objects["first.mp4"][1] == new


def test_a_witness_keeps_the_last_bytes_however_they_come() -> None:
    data = mp4(3000)
    for size in (1, 7, PROOF_BYTES - 1, PROOF_BYTES, PROOF_BYTES + 1, 1000):
        witness = Witness()
        assert (witness.proof, Witness(witness.state()).proof) == (b"", b"")
        for at in range(0, len(data), size):
            witness.feed(data[at : at + size])
            assert witness.proof == data[: at + size][-PROOF_BYTES:]
            witness = Witness(witness.state())  # as after a death
        witness.finish()


def test_a_witness_reads_the_state_of_an_inspector_alone_and_no_nonsense() -> None:
    alone = ClipInspector()
    alone.feed(mp4(3000)[:1000])
    witness = Witness(alone.state())
    assert witness.proof == b""
    witness.feed(mp4(3000)[1000:])
    witness.finish()
    for nonsense in ("xyz:", "ab", "abc:[]", "ab:nothing", "{}"):
        with pytest.raises(StartOver):
            Witness(nonsense)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Bad gateway</body></html>", "HTML"),
        (b'{"error":"nope"}' * 10, "JSON"),
        (mp4(3 * CHUNK)[:-20], "cut off|ends|moov"),
        (mp4(3 * CHUNK)[: 2 * CHUNK], "cut off|ends|moov"),
        (box(b"ftyp", b"isom\0\0\0\0isom") + box(b"mdat", b"x" * 100), "moov"),
    ],
)
async def test_what_is_no_whole_video_is_never_stored(body: bytes, reason: str) -> None:
    way = Way()
    way.source.announce_size = False
    way.source.add(way.clip, body)
    with pytest.raises(Suspect, match=f"(?i){reason}") as first:
        await way.run()
    with pytest.raises(Suspect) as second:
        await way.run()
    assert way.store.objects == {}
    assert way.store.sessions == {}  # nothing is left behind
    assert way.row.upload is None
    assert first.value.message == second.value.message  # patience counts equal findings
    assert first.value.origin == "sources.home"


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_body_that_is_not_as_long_as_announced_is_never_stored(way: Way, off: int) -> None:
    way.source.recordings[way.clip.id].size = way.size + off
    with pytest.raises(Suspect, match=f"announced {way.size + off} bytes and sent {way.size}"):
        await way.run()
    assert way.store.objects == {}


async def test_a_source_that_skips_bytes_is_refused(way: Way) -> None:
    class Skipping(FakeSource):
        def open(self, clip: Clip, *, offset: int = 0):  # type: ignore[no-untyped-def]
            return super().open(clip, offset=offset + 10)

    way.source = Skipping()
    way.source.add(way.clip, way.data)
    with pytest.raises(StartOver, match="skipped 10 bytes"):
        await way.run()
    assert way.store.objects == {}


async def test_a_clip_that_is_gone_is_unfit(way: Way) -> None:
    way.source.remove(way.clip.id)
    with pytest.raises(Unfit, match="gone"):
        await way.run()


async def test_a_clip_that_turns_out_unfit_half_way_leaves_nothing_behind(way: Way) -> None:
    way.source.faults.skip["piece"] = 13
    way.source.faults.arm("piece", Unfit("The clip is gone."))
    with pytest.raises(Unfit, match="gone"):
        await way.run()
    assert way.store.received > 0
    assert way.store.sessions == {}
    assert way.row.upload is None


async def test_the_source_is_closed_whatever_the_end(way: Way) -> None:
    closed = []

    class Noting(FakeSource):
        @asynccontextmanager
        async def open(self, clip: Clip, *, offset: int = 0) -> AsyncIterator[Any]:
            async with FakeSource.open(self, clip, offset=offset) as body:
                try:
                    yield body
                finally:
                    closed.append(offset)

    way.source = Noting()
    way.source.add(way.clip, way.data)
    way.store.faults.skip["send"] = 1
    way.store.faults.arm("send", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    await way.run()
    assert closed == [0, CHUNK - PROOF_BYTES]


@pytest.mark.parametrize(
    ("body", "extension", "content_type"),
    [
        (ebml(b"webm"), ".webm", "video/webm"),
        (ebml(b"matroska"), ".mkv", "video/x-matroska"),
        ((b"G\0\0\x10" + b"\0" * 184) * 5, ".ts", "video/mp2t"),
    ],
)
async def test_another_container_gets_its_own_extension_and_type(
    way: Way, body: bytes, extension: str, content_type: str
) -> None:
    way.source.add(way.clip, body)
    carried = await way.run()
    assert carried.stored.key == f"second{extension}"
    assert carried.stored.content_type == content_type


# -- the store's faults ----------------------------------------------------------------------------


async def test_a_lost_session_begins_anew_a_limited_number_of_times(way: Way) -> None:
    way.store.faults.arm("send-answer", *[StartOver("410")] * (FRESH_STARTS + 1))
    with pytest.raises(StartOver, match="410"):
        await way.run()
    assert way.store.faults.unused() == []
    assert way.row.upload is None
    way.store.faults.arm("send-answer", *[StartOver("410")] * FRESH_STARTS)
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data


async def test_a_session_that_is_gone_is_not_asked_again(way: Way) -> None:
    way.store.faults.skip["send"] = 1
    way.store.faults.arm("send", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    way.store.sessions.clear()
    way.store.faults.skip["put"] = 1  # the first one asks for the session, the second one begins
    way.store.faults.arm("put", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    assert way.store.faults.unused() == []
    assert way.row.upload is None
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data


async def test_an_answer_lost_at_the_end_is_recognised_at_the_next_attempt(way: Way) -> None:
    way.store.faults.arm("finish-answer", Transient("connection lost"))
    with pytest.raises(Transient):
        await way.run()
    way.source.opened.clear()
    carried = await way.run()
    assert carried.verified
    assert carried.stored == way.store.objects["first.mp4"][0]
    assert way.source.opened == []  # nothing was read again


async def test_a_resumed_object_that_is_not_ours_begins_anew(way: Way) -> None:
    way.store.faults.arm("finish-answer", Transient("connection lost"))
    with pytest.raises(Transient):
        await way.run()
    assert way.row.upload is not None
    way.row.upload = replace(way.row.upload, total_crc32c=1)
    carried = await way.run()
    # The object under the first key is proven to hold these very bytes only by its checksum.
    assert carried.stored.key == "first.mp4"
    assert len(way.store.objects) == 1


async def test_a_finished_upload_of_other_bytes_is_never_believed(way: Way) -> None:
    way.store.faults.arm("finish-answer", Transient("connection lost"))
    with pytest.raises(Transient):
        await way.run()
    ((session, _),) = way.store.finished.items()
    held = way.foreign("first.mp4", b"x" * way.size)
    way.store.finished[session] = held
    carried = await way.run()
    assert carried.stored.key == "second.mp4"
    assert way.store.objects["second.mp4"][1] == way.data
    assert way.store.objects["first.mp4"][0] == held


async def test_a_store_without_checksums_is_believed_and_not_called_verified(way: Way) -> None:
    way.store.faults.arm("finish-answer", Transient("connection lost"))
    with pytest.raises(Transient):
        await way.run()
    ((session, held),) = way.store.finished.items()
    way.store.finished[session] = plain = replace(held, crc32c=None)
    assert await way.run() == Carried(plain, verified=False)
    assert way.source.opened == [(way.clip.id, 0)]


async def test_a_foreign_object_is_left_alone_and_the_clip_gets_its_own_key(way: Way) -> None:
    held = way.foreign("first.mp4")
    way.foreign("second.mp4")
    carried = await way.run()
    assert carried.stored.key == "third.mp4"
    assert way.store.objects["third.mp4"][1] == way.data
    assert way.store.objects["first.mp4"] == (held, b"foreign")


async def test_a_foreign_object_that_comes_half_way_is_walked_around_from_the_start(
    way: Way,
) -> None:
    way.store.faults.arm("finish", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    held = way.foreign("first.mp4", b"x" * way.size)  # as long as ours
    carried = await way.run()
    assert carried.stored.key == "second.mp4"
    assert way.store.objects["second.mp4"][1] == way.data
    assert way.store.objects["first.mp4"][0] == held


async def test_too_many_foreign_objects_set_the_clip_aside(way: Way) -> None:
    way.row.keys = [f"{number}.mp4" for number in range(9)]
    for key in ("first.mp4", *way.row.keys):
        way.foreign(key)
    before = dict(way.store.objects)
    with pytest.raises(Unfit, match=rf"{KEYS_TRIED} object keys in a row .* prefix"):
        await way.run()
    assert len(way.row.keys) == 9 - KEYS_TRIED
    assert way.store.objects == before


async def test_another_container_keeps_its_extension_beside_a_foreign_object(way: Way) -> None:
    way.source.add(way.clip, body := ebml(b"webm"))
    way.foreign("first.webm")
    carried = await way.begin("first.webm").run(None)
    assert carried.stored.key == "second.webm"
    assert way.store.objects["second.webm"][1] == body


@pytest.mark.parametrize(
    ("key", "planned"), [("a.b/.webm", "second.webm"), ("a.webm/clip", "second.webm")]
)
async def test_only_the_names_own_end_is_an_extension(way: Way, key: str, planned: str) -> None:
    way.source.add(way.clip, ebml(b"webm"))
    assert (await way.begin(key).run(None)).stored.key == planned


async def test_an_object_under_the_key_of_a_resumed_upload_is_compared_with_ours(way: Way) -> None:
    """A lost answer, found out by the store when the upload is to go on."""
    way.store.faults.arm("finish", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    way.store.faults.arm("put", KeyTaken("exists"))
    held = way.foreign("first.mp4", way.data)
    assert await way.run() == Carried(held, verified=True)
    assert way.store.faults.unused() == []


async def test_an_upload_goes_on_under_the_key_it_was_begun_with(way: Way) -> None:
    way.store.faults.arm("finish", Transient("503"))
    with pytest.raises(Transient):
        await way.run()
    transfer = way.begin("planned-later.mp4")
    way.foreign("first.mp4", way.data)
    way.foreign("planned-later.mp4")
    carried = await transfer.run(way.row.upload)
    assert carried == Carried(way.store.objects["first.mp4"][0], verified=True)
    assert transfer.key == "first.mp4"


async def test_an_identical_object_counts_as_stored(way: Way) -> None:
    held = way.foreign("first.mp4", way.data)
    assert await way.run() == Carried(held, verified=True)
    assert list(way.store.objects) == ["first.mp4"]


async def test_a_key_taken_before_a_byte_was_sent_is_settled_by_metadata(way: Way) -> None:
    way.store.faults.arm("send", KeyTaken("exists"))
    held = way.foreign("first.mp4", way.data, **describe(way.clip))
    assert await way.run() == Carried(held, verified=False)
    early = Way()
    early.store.faults.arm("put", KeyTaken("exists"))
    held = early.foreign("first.mp4", early.data, **describe(early.clip))
    assert await early.run() == Carried(held, verified=False)
    assert early.store.faults.unused() == []
    other = Way()
    other.store.faults.arm("send", KeyTaken("exists"))
    other.foreign("first.mp4", other.data, **describe(clip_at(0, seconds=5)))
    assert (await other.run()).stored.key == "second.mp4"


async def test_the_corrupt_object_that_may_not_be_replaced_is_never_ours(way: Way) -> None:
    """Its store says what it said when the clip was stored: only the bytes have rotted."""
    held = way.foreign("first.mp4", way.data, **describe(way.clip))
    for step in ("finish", "send", "put"):
        way.store.faults.arm(step, KeyTaken("may not be replaced"))
        way.row.keys = [f"{step}.mp4"]
        transfer = way.begin()
        transfer.replaces = held.generation
        carried = await transfer.run(None)
        assert (carried.stored.key, carried.verified) == (f"{step}.mp4", True)
        assert way.store.objects["first.mp4"][0] is held
    assert way.store.faults.unused() == []


class Remembering(FakeStore):
    """Notes what each put was to replace."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: list[tuple[str, str | None]] = []

    def put(self, key: str, **options: Any) -> Any:
        self.replaced.append((key, options["replaces"]))
        return super().put(key, **options)


@pytest.mark.parametrize("gone", [True, False])
async def test_nothing_but_the_corrupt_object_is_ever_to_be_replaced(gone: bool) -> None:
    """It has gone meanwhile, or the clip gets another key: then nothing may lie there."""
    store = Remembering()
    way = Way(store=store)
    if not gone:
        way.foreign("first.mp4")
    store.faults.arm("finish", KeyTaken("not this generation"))
    transfer = way.begin()
    transfer.replaces = "7"
    carried = await transfer.run(None)
    second = "first.mp4" if gone else "second.mp4"
    assert store.replaced == [("first.mp4", "7"), (second, None)]
    assert carried.stored.key == second


async def test_what_came_meanwhile_is_not_believed_by_its_description_alone(way: Way) -> None:
    """Rotten bytes are described rightly too, and may have been moved to another generation."""
    held = way.foreign("first.mp4", way.data, **describe(way.clip))
    way.store.faults.arm("send", KeyTaken("not this generation"))
    transfer = way.begin()
    transfer.replaces = "another"
    assert (await transfer.run(None)).stored.key == "second.mp4"
    assert way.store.objects["first.mp4"][0] is held


async def test_a_clip_that_is_gone_leaves_the_corrupt_object_as_it_is(way: Way) -> None:
    held = way.foreign("first.mp4", b"corrupt")
    del way.source.recordings[way.clip.id]
    transfer = way.begin()
    transfer.replaces = held.generation
    with pytest.raises(Unfit):
        await transfer.run(None)
    assert way.store.objects == {"first.mp4": (held, b"corrupt")}


async def test_an_object_other_than_the_corrupt_one_is_judged_by_its_bytes(way: Way) -> None:
    """Somebody stored it anew meanwhile."""
    held = way.foreign("first.mp4", way.data)
    transfer = way.begin()
    transfer.replaces = "another"
    assert await transfer.run(None) == Carried(held, verified=True)


async def test_a_store_that_is_down_while_we_look_costs_no_second_object(way: Way) -> None:
    """Not the permission to look is missing: whose object it is will be found out later."""
    held = way.foreign("first.mp4", way.data)
    way.store.faults.arm("stat", Blocked("The store is down."))
    with pytest.raises(Blocked) as caught:
        await way.run()
    assert caught.value.origin == "stores.nas"
    assert way.row.keys[0] == "second.mp4"  # no other key was asked for
    assert await way.run() == Carried(held, verified=True)
    assert list(way.store.objects) == ["first.mp4"]


async def test_where_there_are_no_checksums_only_its_description_tells_whose_an_object_is(
    way: Way,
) -> None:
    plain = replace(way.foreign("first.mp4", way.data, **describe(way.clip)), crc32c=None)
    way.store.objects["first.mp4"] = (plain, way.data)
    assert await way.run() == Carried(plain, verified=False)
    other = Way()
    plain = replace(other.foreign("first.mp4", other.data), crc32c=None)  # as long, says nothing
    other.store.objects["first.mp4"] = (plain, other.data)
    assert (await other.run()).stored.key == "second.mp4"


async def test_without_permission_to_look_only_a_lost_answer_explains_the_object() -> None:
    for maybe_ours, key in ((True, "first.mp4"), (False, "second.mp4")):
        way = Way(store=FakeStore(may_stat=False))
        way.foreign("first.mp4")
        way.store.faults.arm("finish", KeyTaken("exists", maybe_ours=maybe_ours))
        carried = await way.run()
        assert carried.stored.key == key
        assert carried.verified is not maybe_ours


async def test_without_permission_to_look_an_object_before_our_end_is_not_ours() -> None:
    way = Way(store=FakeStore(may_stat=False))
    way.foreign("first.mp4")
    way.store.faults.arm("send", KeyTaken("exists", maybe_ours=True))
    carried = await way.run()
    assert carried.stored.key == "second.mp4"
    assert way.store.objects["second.mp4"][1] == way.data


@pytest.mark.parametrize("wrong", [{"size": 1}, {"crc32c": 1}], ids=["size", "checksum"])
async def test_a_store_that_confirms_something_else_is_never_believed(
    way: Way, wrong: dict[str, Any]
) -> None:
    class Wrong(FakeStore):
        @asynccontextmanager
        async def put(self, key: str, **options: Any) -> AsyncIterator[Any]:
            async with super().put(key, **options) as upload:
                finish = upload.finish

                async def lie(chunk: Chunk) -> StoredObject:
                    stored = replace(await finish(chunk), **wrong)
                    self.objects[key] = (stored, b"")
                    return stored

                upload.finish = lie  # type: ignore[method-assign]
                yield upload

    way.store = Wrong()
    with pytest.raises(StartOver, match=rf"we sent {way.size} with"):
        await way.run()
    assert way.row.upload is None


async def test_an_object_that_vanishes_while_we_look_begins_anew(way: Way) -> None:
    way.store.faults.arm("send", KeyTaken("exists"))
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data


async def test_a_store_that_changes_what_it_stores_is_never_believed(way: Way) -> None:
    class Lying(FakeStore):
        async def stat(self, key: str) -> StoredObject | None:
            return None

    way.store = Lying()
    real = google_crc32c.value

    def lie(data: bytes) -> int:
        return int(real(data)) ^ 1

    google_crc32c.value = lie
    try:
        with pytest.raises(StartOver, match="differ"):
            await way.run()
    finally:
        google_crc32c.value = real
    assert way.store.objects == {}


async def test_a_blocked_store_names_itself(way: Way) -> None:
    for step in ("put", "send", "finish"):
        way.store.faults.arm(step, Blocked("no bucket"))
        with pytest.raises(Blocked) as caught:
            await way.run()
        assert caught.value.origin == "stores.nas", step
    way.source.faults.arm("open", Blocked("wrong password"))
    with pytest.raises(Blocked) as caught:
        await way.run()
    assert caught.value.origin == "sources.home"


# -- stopping --------------------------------------------------------------------------------------


async def test_a_stop_finishes_the_chunk_in_flight_and_resumes_later(way: Way) -> None:
    transfer = asyncio.create_task(way.run())
    while not way.activity.confirmed:
        await asyncio.sleep(0)
    way.stop.set()
    with pytest.raises(Drained):
        await transfer
    state = way.row.upload
    assert state is not None
    assert state.offset == way.store.received  # what was sent is recorded
    way.stop.clear()
    await way.run()
    assert way.store.objects["first.mp4"][1] == way.data
    assert way.store.received == way.size


async def test_a_stop_does_not_wait_for_a_source_that_does_not_open(way: Way) -> None:
    way.source.hold = asyncio.Event()
    transfer = asyncio.create_task(way.run())
    for _ in range(20):
        await asyncio.sleep(0)
    way.stop.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert transfer.done()
    with pytest.raises(Drained):
        await transfer


async def test_a_stop_does_not_wait_for_a_silent_source(way: Way) -> None:
    way.source.silent_after = 2 * CHUNK + 10
    transfer = asyncio.create_task(way.run())
    while way.activity.confirmed < 2 * CHUNK:
        await asyncio.sleep(0)
    way.stop.set()
    with pytest.raises(Drained):
        await transfer
    assert way.row.upload is not None
    assert way.row.upload.offset == 2 * CHUNK


async def test_cancellation_at_every_step_leaves_a_clip_that_can_be_carried() -> None:
    """The transfer is cancelled after each number of turns of the loop, then carried again."""
    turns = 0
    while True:
        way = Way(2 * CHUNK + 5)
        transfer = asyncio.create_task(way.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        transfer.cancel()
        try:
            await transfer
        except asyncio.CancelledError:
            pass
        else:
            break  # it was done before
        carried = await way.run()
        assert way.store.objects == {"first.mp4": (carried.stored, way.data)}, turns
        leftovers = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        assert not leftovers, turns
        turns += 1
    assert turns > 20


async def test_no_foreseen_error_is_swallowed(way: Way) -> None:
    """Whatever the parts raise that is not foreseen ends the transfer as what it is: a bug."""

    class Bug(Exception):
        pass

    def strike(step: str) -> None:
        if step == "send":
            raise Bug

    way.store.faults.strike = strike  # type: ignore[method-assign]
    with pytest.raises(Bug):
        await way.run()
    assert not issubclass(Bug, NvrBackupError)


async def test_it_says_when_nothing_but_the_last_answer_is_awaited(way: Way) -> None:
    """At the end of an attempt, with the bytes still held; not while it reads again."""
    way.store.faults.arm("finish", StartOver("The bytes differ."))
    carried = await way.run()
    assert carried.stored.size == way.size
    assert way.finishing == [123, 123]
    assert way.activity.finishing == 123
    way.store.objects.clear()
    way.store.faults.arm("finish", Transient("HTTP 503"))
    with pytest.raises(Transient):
        await way.begin().run(None)
    assert way.activity.finishing is None
