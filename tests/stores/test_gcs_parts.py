"""The adapter's pure parts: bodies, headers, and what answers mean. Oracles are the RFCs and
Google's documentation, written out here by hand."""

from __future__ import annotations

import asyncio
import email
import json
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from gcloud.aio.storage import Storage
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.chunks import Chunk
from nvr_backup.clock import SystemClock
from nvr_backup.stores.gcs import body, replies, session
from nvr_backup.stores.gcs.body import SLICE_BYTES, YIELD_BYTES, PiecesBody
from nvr_backup.stores.gcs.client import GcsClient
from nvr_backup.stores.gcs.credentials import Bearer
from nvr_backup.stores.gcs.replies import Reply, Unanswered
from nvr_backup.stores.gcs.settings import Endpoint, GcsSettings

# -- the body ------------------------------------------------------------------------------------


class Writer:
    """Takes what a body writes; the parts as they came."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    async def write(self, part: Any) -> None:
        self.parts.append(part)


async def written(made: PiecesBody) -> list[Any]:
    writer = Writer()
    await made.write_with_length(writer, None)  # type: ignore[arg-type]
    return writer.parts


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=12),
    st.binary(max_size=5),
    st.binary(max_size=5),
    st.integers(0, 500),
)
def test_body_is_head_pieces_up_to_the_size_and_tail(
    pieces: list[bytes], head: bytes, tail: bytes, wish: int
) -> None:
    whole = b"".join(pieces)
    size = min(wish, len(whole))
    made = PiecesBody(pieces, size, head=head, tail=tail)
    assert made.size == len(head) + size + len(tail)
    assert b"".join(asyncio.run(written(made))) == head + whole[:size] + tail
    assert made.complete


async def test_pieces_are_passed_on_and_not_copied() -> None:
    pieces = [bytes([i]) * 70_000 for i in range(3)]
    parts = await written(PiecesBody(pieces, 210_000))
    assert [part is piece for part, piece in zip(parts, pieces, strict=True)] == [True] * 3


async def test_large_pieces_go_in_slices_of_the_same_memory() -> None:
    piece = bytes(3 * SLICE_BYTES + 1)
    parts = await written(PiecesBody([piece], len(piece)))
    assert [len(part) for part in parts] == [SLICE_BYTES] * 3 + [1]
    assert all(part.obj is piece for part in parts)


async def test_body_keeps_what_it_was_made_from() -> None:
    chunk = Chunk(0)
    for piece in (b"abc", b"def"):
        chunk.append(piece)
    made = PiecesBody(chunk, 6)
    chunk.drop_until(4)
    assert b"".join(await written(made)) == b"abcdef"


def test_body_reserves_nothing_by_the_length_of_a_chunk() -> None:
    """`len(chunk)` counts bytes: tuple(chunk) would reserve 64 MiB for a chunk of 8."""

    class Huge(list[bytes]):
        def __len__(self) -> int:
            return 2**60

    assert PiecesBody(Huge([b"ab", b"c"]), 3).size == 3


async def test_body_gives_the_loop_its_turn() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await written(PiecesBody([bytes(65536)] * 64, 64 * 65536))
    task.cancel()
    assert turns >= 64 * 65536 // YIELD_BYTES


async def test_body_is_written_once_and_says_so_from_the_first_byte() -> None:
    made = PiecesBody([b"x"], 1)
    assert not made.consumed
    seen: list[bool] = []
    made.progress = lambda: seen.append(made.consumed)
    await written(made)
    assert seen == [True]
    with pytest.raises(RuntimeError):
        await written(made)


def test_body_longer_than_its_pieces_is_a_bug() -> None:
    with pytest.raises(ValueError, match="less"):
        PiecesBody([b"abc"], 4)


async def test_interrupted_body_is_not_complete() -> None:
    class Broken(Writer):
        async def write(self, part: Any) -> None:
            await super().write(part)
            if len(self.parts) == 2:
                raise ConnectionResetError

    made = PiecesBody([b"a", b"b", b"c"], 3)
    with pytest.raises(ConnectionResetError):
        await made.write_with_length(Broken(), None)  # type: ignore[arg-type]
    assert not made.complete
    assert body.PiecesBody is PiecesBody


# -- requests ------------------------------------------------------------------------------------

NEW = session.NewObject("ä/1.mp4", "video/mp4", {"camera": "Tür"})


def chunk_of(data: bytes, start: int = 0) -> Chunk:
    chunk = Chunk(start)
    chunk.append(data)
    return chunk


@pytest.mark.parametrize(
    ("start", "size", "ending", "expected"),
    [
        (0, 10, None, "bytes 0-9/*"),
        (262144, 10, None, "bytes 262144-262153/*"),
        (100, 10, session.Ending(110, 0), "bytes 100-109/110"),
        (100, 0, session.Ending(100, 0), "bytes */100"),
    ],
)
def test_content_range(start: int, size: int, ending: session.Ending | None, expected: str) -> None:
    chunk = chunk_of(bytes(size), start)
    headers, made = session.part(chunk, start + size, ending)
    assert headers["Content-Range"] == expected
    assert ("X-Goog-Hash" in headers) is (ending is not None)
    assert made.size == size


async def test_single_request_is_a_well_formed_multipart() -> None:
    data = bytes(range(256)) * 3
    ending = session.Ending(len(data), 0xE3069283)  # the CRC32C of "123456789" (RFC 3720, B.4)
    headers, made = session.single(NEW, chunk_of(data), ending)
    raw = b"".join(await written(made))
    assert made.size == len(raw)
    message = email.message_from_bytes(
        f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + raw
    )
    parts: Any = message.get_payload()
    first, second = parts
    assert json.loads(first.get_payload(decode=True)) == {
        "name": "ä/1.mp4",
        "contentType": "video/mp4",
        "metadata": {"camera": "Tür"},
        "crc32c": "4waSgw==",  # Google's documentation of x-goog-hash, same bytes
    }
    assert second.get_content_type() == "video/mp4"
    assert data in raw


def test_boundaries_differ() -> None:
    made = {
        session.single(NEW, chunk_of(b""), session.Ending(0, 0))[0]["Content-Type"]
        for _ in range(10)
    }
    assert len(made) == 10


# -- answers -------------------------------------------------------------------------------------


def reply(status: int, content: Any = None, **headers: str) -> Reply:
    body_ = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(status, {k.replace("_", "-"): v for k, v in headers.items()}, body_)


@pytest.mark.parametrize(
    ("span", "held"),
    [
        (None, 0),
        ("bytes=0-0", 1),
        ("bytes=0-262143", 262144),
        ("bytes 0-9", 10),
        ("bytes=1-9", None),
        ("bytes=0-", None),
        ("0-9", None),
        ("", None),
        ("bytes=0-9, 20-29", None),
        ("bytes=0--5", None),
    ],
)
def test_persisted(span: str | None, held: int | None) -> None:
    headers = {} if span is None else {"Range": span}
    assert replies.persisted(Reply(308, headers)) == held


NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Fri, 02 Jan 2026 00:01:00 GMT", 60.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ("Fri, 02 Jan 2026 00:01:00", None),
    ],
)
def test_retry_after(wish: str, seconds: float | None) -> None:
    assert replies.retry_after(reply(503, Retry_After=wish), NOW) == seconds
    assert replies.retry_after(Unanswered("x"), NOW) is None


@pytest.mark.parametrize(
    "resource",
    [
        {},
        {"name": "a", "size": "1"},
        {"name": "a", "size": "x", "generation": "1"},
        {"name": "a", "size": "1", "generation": "1", "crc32c": "!!"},
        {"name": "a", "size": "1", "generation": "1", "crc32c": "AAAA"},
        {"name": "a", "size": None, "generation": "1"},
        {"name": "a", "size": "1", "generation": "1", "metadata": []},
        {"name": "a", "size": "1", "generation": "1", "metadata": ["x"]},
    ],
)
def test_no_object_resource(resource: Any) -> None:
    found = replies.stored_object(resource, "")
    assert found is None or (found.metadata == {} and resource["metadata"] == [])


@pytest.mark.parametrize("entry", [None, 5, "x", [], [1]])
def test_what_is_not_even_a_resource(entry: Any) -> None:
    assert replies.stored_object(entry, "") is None


def test_messages_hold_no_secret_and_no_page() -> None:
    said = {
        "error": {
            "message": "See https://h/upload/x?upload_id=SECRET or upload_id=SECRET,\n"
            "token Bearer SECRET, ya29.SECRET " + "x" * 5000
        }
    }
    text = str(replies.refusal(reply(418, said), doing="gs://b/k: sending"))
    assert "SECRET" not in text
    assert "\n" not in text
    assert len(text) < 600
    assert "html" not in str(replies.refusal(reply(418, b"<html>boo"), doing="x"))
    assert "SECRET" not in repr(reply(200, b"SECRET", Location="https://h/?upload_id=SECRET"))


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"[]", b'{"error": 5}', b'{"error": {"errors": 5}}'])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 412, 418, 503])
def test_any_error_body_is_survived(status: int, junk: bytes) -> None:
    odd = reply(status, junk)
    assert replies.refusal(odd, doing="x").hint or status == 400
    assert replies.is_unclear(odd) is (status in (401, 503))
    assert replies.is_taken(odd) is (status == 412)
    assert replies.is_corrupt(odd) is False


# -- the client's own guard ----------------------------------------------------------------------


async def test_token_never_goes_to_another_server() -> None:
    place = Endpoint("http://127.0.0.1:9", False, True)
    async with aiohttp.ClientSession() as plain:
        bearer = Bearer(None, plain, SystemClock())
        storage = Storage(session=plain, token=bearer, api_root=place.root, api_is_dev=False)
        client = GcsClient(storage, place, GcsSettings("offsite", "b"))
        for address in ("http://127.0.0.1:10/x", "https://evil.example/"):
            with pytest.raises(ValueError, match="another server"):
                await client.send("PUT", address)
            with pytest.raises(ValueError, match="another server"):
                await client.open(address, headers={})
