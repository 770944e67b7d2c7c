"""Chunks: exact cutting, checksums at every boundary, replay after partial acknowledgement."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.chunks import Chunk, Progress, cut
from nvr_backup.errors import Suspect


class Lenient:
    """An inspector that remembers what it was fed."""

    def __init__(self, refuse_at: int | None = None) -> None:
        self.fed = b""
        self.finished = False
        self._refuse_at = refuse_at

    def feed(self, piece: bytes) -> None:
        self.fed += piece
        if self._refuse_at is not None and len(self.fed) >= self._refuse_at:
            raise Suspect("refused")

    def state(self) -> str:
        return str(len(self.fed))

    def finish(self) -> None:
        self.finished = True


async def pieces_of(data: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    position = 0
    for size in sizes:
        if position >= len(data):
            return
        yield data[position : position + size]
        position += size
    if position < len(data):
        yield data[position:]


@given(
    length=st.integers(1, 5000),
    chunk_size=st.integers(1, 700),
    sizes=st.lists(st.integers(1, 900), max_size=40),
)
async def test_chunks_hold_exactly_the_bytes_with_the_checksum_at_every_boundary(
    length: int, chunk_size: int, sizes: list[int]
) -> None:
    data = random.Random(length).randbytes(length)
    inspector = Lenient()
    offset = 0
    lasts = []
    async for chunk in cut(
        pieces_of(data, sizes), begin=Progress(), inspector=inspector, chunk_size=chunk_size
    ):
        assert chunk.start == offset
        assert b"".join(chunk) == data[offset : chunk.end]
        assert chunk.size == chunk_size or (chunk.last and 0 < chunk.size <= chunk_size)
        assert chunk.after == Progress(
            chunk.end, google_crc32c.value(data[: chunk.end]), str(chunk.end)
        )
        offset = chunk.end
        lasts.append(chunk.last)
    assert offset == length
    assert lasts == [False] * (len(lasts) - 1) + [True]
    assert inspector.finished
    assert inspector.fed == data


async def test_a_continued_cut_goes_on_from_the_recorded_progress() -> None:
    data = random.Random(1).randbytes(1000)
    begin = Progress(400, google_crc32c.value(data[:400]), "400")
    inspector = Lenient()
    inspector.fed = data[:400]
    chunks = [
        chunk
        async for chunk in cut(
            pieces_of(data[400:], [33] * 30), begin=begin, inspector=inspector, chunk_size=250
        )
    ]
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(400, 650), (650, 900), (900, 1000)]
    assert chunks[-1].after.crc32c == google_crc32c.value(data)


async def test_a_continued_cut_may_end_without_further_bytes() -> None:
    begin = Progress(400, 7, "400")
    chunks = [
        chunk
        async for chunk in cut(pieces_of(b"", []), begin=begin, inspector=Lenient(), chunk_size=250)
    ]
    assert [(chunk.start, chunk.end, chunk.last) for chunk in chunks] == [(400, 400, True)]
    assert chunks[0].after.crc32c == 7


async def test_a_refused_body_never_yields_a_last_chunk() -> None:
    seen = []
    with pytest.raises(Suspect):
        async for chunk in cut(
            pieces_of(b"x" * 100, [10] * 10),
            begin=Progress(),
            inspector=Lenient(refuse_at=95),
            chunk_size=40,
        ):
            seen.append(chunk)
    assert [chunk.last for chunk in seen] == [False, False]


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    start=st.integers(0, 1000),
    data=st.data(),
)
def test_a_chunk_forgets_exactly_the_acknowledged_prefix(
    sizes: list[int], start: int, data: st.DataObject
) -> None:
    content = random.Random(start).randbytes(sum(sizes))
    chunk = Chunk(start)
    position = 0
    for size in sizes:
        chunk.append(content[position : position + size])
        position += size
    for offset in sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5))):
        chunk.drop_until(start + offset)
        assert chunk.start == start + offset
        assert chunk.size == len(content) - offset
        assert b"".join(chunk) == content[offset:]
        assert all(chunk)  # no empty piece is ever sent


def test_tiny_pieces_cost_no_more_than_they_hold_and_large_ones_are_not_copied() -> None:
    large = [bytes([number]) * 8192 for number in range(4)]
    chunk = Chunk(0)
    for piece in large:
        chunk.append(piece)
    for number in range(20_000):
        chunk.append(bytes([number % 251]))
    held = list(chunk)
    assert all(piece is given for piece, given in zip(held, large, strict=False))
    assert len(held) < 20
    assert b"".join(held[4:]) == bytes(number % 251 for number in range(20_000))
    assert chunk.end == 4 * 8192 + 20_000


@pytest.mark.parametrize("offset", [9, 21])
def test_an_acknowledgement_outside_the_chunk_is_refused(offset: int) -> None:
    chunk = Chunk(10)
    chunk.append(b"0123456789")
    with pytest.raises(ValueError, match="outside the chunk 10-20"):
        chunk.drop_until(offset)
