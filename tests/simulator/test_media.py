"""The bytes of clips: whole, playable or at least box-valid, distinct, readable anywhere."""

from __future__ import annotations

import hashlib
import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.simulator.media import PERIOD, ClipContent, clip_content, sample


def boxes(data: bytes) -> list[tuple[str, int]]:
    """Top-level MP4 boxes with their sizes; fails when they do not fill the data exactly."""
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        assert size >= 8
        found.append((kind.decode(), size))
        at += size
    assert at == len(data)
    return found


def test_the_sample_is_small_and_whole() -> None:
    assert [kind for kind, _ in boxes(sample("mp4"))] == ["ftyp", "moov", "free", "mdat"]
    assert sum(len(sample(name)) for name in ("mp4", "webm", "ts")) <= 150_000
    assert sample("webm").startswith(b"\x1a\x45\xdf\xa3")
    assert len(sample("ts")) % 188 == 0
    assert set(sample("ts")[::188]) == {0x47}


def test_a_clip_of_the_sample_is_the_sample_and_a_box() -> None:
    content = clip_content("a", "sample")
    whole = content.read()
    assert whole.startswith(sample("mp4"))
    assert [kind for kind, _ in boxes(whole)][-1] == "free"
    assert len(whole) == content.size


@pytest.mark.parametrize("size", [30_000, 1_000_000])
def test_a_sample_can_be_padded_to_any_size(size: int) -> None:
    whole = clip_content("a", "sample", size).read()
    assert len(whole) == size
    assert whole.startswith(sample("mp4"))
    assert boxes(whole)[-1][0] == "free"


@pytest.mark.parametrize("size", [512, 513, 300_000, 2 * PERIOD + 1000])
def test_synthetic_clips_are_box_valid(size: int) -> None:
    whole = clip_content("a", "synthetic", size).read()
    assert len(whole) == size
    assert [kind for kind, _ in boxes(whole)] == ["ftyp", "free", "mdat", "moov"]


def test_ten_gigabytes_cost_nothing_to_look_into() -> None:
    size = 10 * 1024**3
    content = clip_content("big", "synthetic", size)
    assert content.size == size
    (kind, mdat) = struct.unpack_from(">4sQ", content.read(0, 200), 100 + 4)
    assert kind == b"mdat"
    assert [k for k, _ in boxes(content.read(100 + mdat))] == ["moov"]
    assert sum(len(p) for p in content.pieces(size - 1_000_000)) == 1_000_000


def test_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        clip_content("a", "synthetic", 511)
    with pytest.raises(ValueError, match="512"):
        clip_content("a", "synthetic")
    with pytest.raises(ValueError, match="sample clip"):
        clip_content("a", "sample", 1000)


@pytest.mark.parametrize("kind", ["sample", "webm", "ts"])
def test_every_clip_is_another(kind: str) -> None:
    one, two = (clip_content(name, kind).read() for name in "ab")  # type: ignore[arg-type]
    assert len(one) == len(two)
    assert one != two
    assert one == clip_content("a", kind).read()  # type: ignore[arg-type]


def test_webm_and_ts_end_with_what_a_player_skips() -> None:
    webm = clip_content("a", "webm").read()[len(sample("webm")) :]
    assert webm[0] == 0xEC
    assert webm[1] & 0x7F == len(webm) - 2
    stream = clip_content("a", "ts").read()
    assert len(stream) % 188 == 0
    assert stream[-188:].startswith(b"\x47\x1f\xff")


def test_chunks_in_the_wrong_order_are_noticed() -> None:
    """Swapping or repeating aligned chunks of the usual sizes changes the bytes."""
    content = clip_content("a", "synthetic", 64 * 1024**2)
    for chunk in (64 * 1024, 256 * 1024, 1024**2, 8 * 1024**2):
        seen = [
            hashlib.sha256(content.read(at, at + chunk)).digest()
            for at in range(0, content.size, chunk)
        ]
        assert len(set(seen)) == len(seen)


def test_the_middle_of_a_synthetic_clip_is_its_own() -> None:
    """Not just the head tells clips apart: a resume with another clip's bytes must not fit."""
    middles = {clip_content(name, "synthetic", 9000).read(4000, 5000) for name in "abcdefgh"}
    assert len(middles) == 8


@given(
    size=st.integers(512, 3 * PERIOD),
    start=st.integers(0, 3 * PERIOD),
    length=st.integers(0, 3 * PERIOD),
    longest=st.integers(1000, 300_000),
)
def test_any_part_is_that_part_of_the_whole(
    size: int, start: int, length: int, longest: int
) -> None:
    content: ClipContent = clip_content("h", "synthetic", size)
    whole = content.read()
    pieces = list(content.pieces(start, start + length, longest))
    assert b"".join(pieces) == whole[start : start + length]
    assert all(0 < len(piece) <= longest for piece in pieces)


def test_digest() -> None:
    content = clip_content("a", "synthetic", 700_000)
    part = content.read()[1000:690_000]
    digest = content.digest(1000, 690_000)
    assert digest.size == len(part)
    assert digest.sha256 == hashlib.sha256(part).hexdigest()
    assert digest.crc32c == google_crc32c.value(part)
