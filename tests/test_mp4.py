"""The content check against files built by hand, box by box, and against ffmpeg's own.

The oracle is the way a file was built: the test knows where every box begins and ends, so it knows
which truncations can be seen and which cannot.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvr_backup.errors import StartOver, Suspect
from nvr_backup.mp4 import M2TS, MATROSKA, MP4, MPEG_TS, QUICKTIME, WEBM, ClipInspector, Container


def verdict(pieces: Iterable[bytes]) -> Container | str:
    """The container, or the text of the finding."""
    inspector = ClipInspector()
    try:
        for piece in pieces:
            inspector.feed(piece)
        inspector.finish()
    except Suspect as finding:
        return str(finding)
    assert inspector.container is not None
    return inspector.container


def box(kind: bytes, payload: bytes = b"", *, size: int | None = None, wide: bool = False) -> bytes:
    length = len(payload) + (16 if wide else 8) if size is None else size
    if wide:
        return b"\0\0\0\1" + kind + length.to_bytes(8) + payload
    return length.to_bytes(4) + kind + payload


def element(ident: str, payload: bytes = b"", *, size: bytes | None = None) -> bytes:
    length = (len(payload) | 0x4000).to_bytes(2) if size is None else size
    return bytes.fromhex(ident) + length + payload


def ebml(doc_type: bytes) -> bytes:
    return element("1a45dfa3", element("4286", b"\1") + element("4282", doc_type))


def packets(count: int, prefix: bytes = b"") -> bytes:
    return b"".join(prefix + b"\x47\x41\x00\x10" + bytes([i % 251]) * 184 for i in range(count))


UNKNOWN = b"\x01" + b"\xff" * 7
FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
MOOV = box(b"moov", b"\xaa" * 90)
MDAT = box(b"mdat", b"\x5a" * 130)
FRAGMENT = box(b"moof", b"\xbb" * 33) + MDAT
TRACKS = element("1654ae6b", b"\1" * 20)
CLUSTER = element("1f43b675", element("e7", b"\0") + element("a3", b"\x5a" * 60))

WHOLE: dict[str, tuple[bytes, Container]] = {
    "moov last": (FTYP + box(b"free") + MDAT + MOOV, MP4),
    "moov first": (FTYP + MOOV + MDAT, MP4),
    "64-bit sizes": (FTYP + MOOV + box(b"mdat", b"\x5a" * 77, wide=True), MP4),
    "empty mdat, then another": (FTYP + MOOV + box(b"mdat") + MDAT, MP4),
    "unknown boxes": (FTYP + box(b"uuid", b"x" * 20) + box(b"\xa9too") + MDAT + MOOV, MP4),
    "imda": (FTYP + MOOV + box(b"imda", b"\x5a" * 40), MP4),
    "fragments": (FTYP + MOOV + FRAGMENT * 2 + box(b"mfra", b"\xcc" * 9), MP4),
    "segment type first": (box(b"styp", b"msdh\0\0\0\0") + MOOV + FRAGMENT, MP4),
    "brand qt": (box(b"ftyp", b"qt  \0\0\2\0qt  ") + box(b"wide") + MDAT + MOOV, QUICKTIME),
    "mdat at byte 0": (MDAT + MOOV, QUICKTIME),
    "moov at byte 0": (MOOV + MDAT, QUICKTIME),
    "wide at byte 0": (box(b"wide") + MDAT + MOOV, QUICKTIME),
    "skip at byte 0": (box(b"skip", b"..") + MDAT + MOOV, QUICKTIME),
    "matroska": (ebml(b"matroska") + element("18538067", TRACKS + CLUSTER), MATROSKA),
    "webm": (ebml(b"webm") + element("18538067", TRACKS + CLUSTER), WEBM),
    "webm, padded type": (ebml(b"webm\0\0") + element("18538067", TRACKS + CLUSTER), WEBM),
    "void behind": (ebml(b"webm") + element("18538067", TRACKS) + element("ec", b"\0" * 9), WEBM),
    "live matroska": (
        ebml(b"matroska")
        + element("18538067", size=UNKNOWN)
        + TRACKS
        + element("1f43b675", element("e7", b"\0") + element("a3", b"\x5a" * 60), size=b"\xff")
        + CLUSTER,
        MATROSKA,
    ),
    "transport stream": (packets(5), MPEG_TS),
    "m2ts": (packets(5, b"\x12\x34\x56\x78"), M2TS),
    "m2ts that begins with a G": (packets(5, b"\x47\0\0\0"), M2TS),
}


def cuts(*parts: bytes) -> list[int]:
    return list(itertools.accumulate(map(len, parts)))


_LIVE = WHOLE["live matroska"][0]
_LIVE_CLUSTER = _LIVE.index(bytes.fromhex("1f43b675"))
_LIVE_INSIDE = _LIVE_CLUSTER + 5
_LIVE_NEXT = len(_LIVE) - len(CLUSTER)
UNDETECTABLE: dict[str, set[int]] = {
    # Whole fragments are complete files; up to 3 zero bytes of the next box's size are padding.
    "fragments": {
        end + zeros for end in cuts(FTYP + MOOV + FRAGMENT, FRAGMENT) for zeros in range(4)
    },
    # Without sizes every end of an element may be the end.
    "live matroska": {_LIVE_INSIDE, _LIVE_INSIDE + len(element("e7", b"\0")), _LIVE_NEXT},
    "empty mdat, then another": {len(FTYP + MOOV) + 8 + zeros for zeros in range(4)},
    "void behind": {len(WHOLE["void behind"][0]) - 12},
    "transport stream": {3 * 188, 4 * 188},
    "m2ts": {3 * 192, 4 * 192},
    "m2ts that begins with a G": {3 * 192, 4 * 192},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_accepted_as_what_it_is(name: str) -> None:
    body, container = WHOLE[name]
    assert verdict([body]) == container


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncation_at_any_byte_is_found_or_provably_cannot_be(name: str) -> None:
    body, _ = WHOLE[name]
    accepted = {n for n in range(len(body)) if not isinstance(verdict([body[:n]]), str)}
    assert accepted == UNDETECTABLE.get(name, set())


@pytest.mark.parametrize("name", [n for n, (_, c) in WHOLE.items() if c not in {MPEG_TS, M2TS}])
def test_zeros_behind_a_whole_file_are_padding_and_only_zeros_are(name: str) -> None:
    body, container = WHOLE[name]
    for zeros in (1, 7, 8, 9, 4096):
        assert verdict([body + bytes(zeros)]) == container
    finding = verdict([body + bytes(40) + b"\1\2" + bytes(40)])
    assert finding == verdict([body + bytes(40), b"\1\2" + bytes(40)])
    assert f"more data at byte {len(body) + 40}, behind zeros" in str(finding)
    assert isinstance(verdict([body + b"\1\2\3\4\5\6\7\x08\x09"]), str)


AT_MDAT = len(FTYP + box(b"free"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>502", "an HTML page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document"),
        (b'{"error":"Not logged in."}', "JSON"),
        (b'[{"inputArguments":["-i","rtsp://secret"]}]' * 30, "JSON"),
        (b"Gateway Timeout", "text"),
        (b"G" * 800, "text"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(500), "a JPEG picture"),
        (bytes(600), "unknown kind that begins with 00 00"),
        (packets(2), "unknown kind that begins with 47 41"),
        (b"\0\0\0\x18ftyp", "cut off after 8 bytes"),
        (ebml(b"webm")[:15], "cut off after 15 bytes"),
        (packets(2) + b"?" * 188 * 3, "unknown kind that begins with 47 41"),
        (ebml(b"doc"), "another type"),
        (element("1a45dfa3", b"\0" * 4000), "EBML header of 4006 bytes"),
        (
            FTYP + box(b"free") + MDAT,
            f"ends after {AT_MDAT + len(MDAT)} bytes, but moov is missing",
        ),
        (FTYP + MOOV, "no media data"),
        (FTYP + MOOV + box(b"moof", b".."), "there is no media data"),
        (FTYP + MOOV + FRAGMENT + box(b"moof", b".."), "last fragment has no media data"),
        (
            FTYP + box(b"free") + MDAT[:50],
            f"has 138 bytes, but the clip ends after {AT_MDAT + 50} (moov is missing)",
        ),
        (FTYP + MOOV[:40], f"'moov' at byte {len(FTYP)} has 98 bytes"),
        (FTYP + box(b"free") + MDAT[:5], f"within the header of the box at byte {AT_MDAT}"),
        (
            FTYP + MOOV + box(b"mdat", wide=True, size=99)[:12],
            f"within the header of the box at byte {len(FTYP + MOOV)}",
        ),
        (FTYP + box(b"mdat", b"\x5a" * 99, size=0), "never finished"),
        (FTYP + MOOV + box(b"free", size=0), "'free' at byte"),
        (FTYP + box(b"free", size=7) + MDAT + MOOV, f"'free' at byte {len(FTYP)} claims 7 bytes"),
        (FTYP + box(b"free", size=2) + MDAT + MOOV, f"'free' at byte {len(FTYP)} claims 2 bytes"),
        (FTYP + box(b"mdat", wide=True, size=15) + MOOV, "'mdat' at byte 32 claims 15 bytes"),
        (FTYP + box(b"mdat", wide=True, size=0) + MOOV, "'mdat' at byte 32 claims 0 bytes"),
        (FTYP + MDAT + b"\0\0\0\x20\x01bad" + bytes(99), "no box at byte 170, but 00 00 00 20 01"),
        (FTYP + MDAT + bytes(300), "only zeros at byte 170, but moov is missing"),
        (ebml(b"webm") + element("1654ae6b"), "Segment is missing"),
        (ebml(b"webm") + element("18538067", size=UNKNOWN) + TRACKS, "Cluster is missing"),
        (ebml(b"webm") + element("18538067", size=UNKNOWN) + CLUSTER, "Tracks is missing"),
        (ebml(b"webm") + element("1654ae6b", size=UNKNOWN), "'Tracks' at byte"),
        (ebml(b"webm") + b"\x08\x81\0", "no element at byte"),
        (ebml(b"webm") + b"\xec\0\0", "has no size"),
        (packets(300)[: 256 * 188] + b"?" * 188 * 44, "no sync byte in the packet at byte 48128"),
        (b"\0\0\0\x14GIF8" + bytes(400), "unknown kind"),
    ],
)
def test_what_is_no_whole_video_is_named(body: bytes, text: str) -> None:
    finding = verdict([body])
    assert isinstance(finding, str)
    assert text in finding
    assert "secret" not in finding
    assert verdict([body]) == finding


def test_the_end_may_be_left_open_by_the_last_box_once_moov_was_there() -> None:
    body = FTYP + MOOV + box(b"mdat", b"\x5a" * 99, size=0)
    accepted = [n for n in range(len(body)) if not isinstance(verdict([body[:n]]), str)]
    at_mdat = len(FTYP + MOOV)
    assert accepted == list(range(at_mdat + 8, len(body)))


def test_an_open_end_without_moov_is_refused_before_the_rest_is_fetched() -> None:
    inspector = ClipInspector()
    with pytest.raises(Suspect, match="never finished"):
        inspector.feed(FTYP + box(b"mdat", size=0))


@pytest.mark.parametrize(
    ("name", "needed"),
    [("moov last", 12), ("mdat at byte 0", 12), ("webm", len(ebml(b"webm"))), ("m2ts", 392)],
)
def test_the_container_is_known_as_soon_as_promised(name: str, needed: int) -> None:
    body, container = WHOLE[name]
    inspector = ClipInspector()
    inspector.feed(body[: needed - 1])
    before = inspector.container
    inspector.feed(body[needed - 1 : needed])
    after = ClipInspector(inspector.state())
    assert (before, inspector.container, after.container) == (None, container, container)


def walk(body: bytes, ends: Iterable[int], hand_over: Callable[[int], bool]) -> Container | str:
    """Feed `body` cut at `ends`; where `hand_over` says so, a new inspector takes over."""
    inspector = ClipInspector()
    start = 0
    try:
        for end in (*ends, len(body)):
            if hand_over(start):
                inspector = ClipInspector(inspector.state())
            inspector.feed(body[start:end])
            start = end
        inspector = ClipInspector(inspector.state())
        inspector.finish()
    except Suspect as finding:
        return str(finding)
    assert inspector.container is not None
    return inspector.container


@pytest.mark.parametrize("name", WHOLE)
def test_byte_by_byte_through_a_new_inspector_each_time(name: str) -> None:
    body, container = WHOLE[name]
    assert walk(body, range(len(body)), lambda _: True) == container


def damaged() -> st.SearchStrategy[bytes]:
    """Whole files, truncated, with bytes changed, inserted or repeated; and plain noise."""

    def change(body: bytes) -> st.SearchStrategy[bytes]:
        places = st.integers(0, len(body))
        return st.one_of(
            places.map(lambda n: body[:n]),
            st.tuples(places, st.binary(min_size=1, max_size=9)).map(
                lambda t: body[: t[0]] + t[1] + body[t[0] + len(t[1]) :]
            ),
            st.tuples(places, st.binary(max_size=9)).map(
                lambda t: body[: t[0]] + t[1] + body[t[0] :]
            ),
            st.tuples(places, places).map(lambda t: body[: t[0]] + body[t[1] :]),
        )

    files = st.sampled_from([body for body, _ in WHOLE.values()])
    return st.one_of(files.flatmap(change), st.binary(max_size=400))


@given(
    body=damaged(),
    ends=st.lists(st.integers(0, 900), max_size=12),
    hand_over=st.integers(0, 2**16 - 1),
)
@example(body=WHOLE["fragments"][0] + bytes(20), ends=[600, 601, 602], hand_over=0xFFFF)
def test_the_verdict_depends_on_the_bytes_alone(
    body: bytes, ends: list[int], hand_over: int
) -> None:
    steps = itertools.count()
    cut_at = sorted(min(end, len(body)) for end in ends)
    assert walk(body, cut_at, lambda _: bool(hand_over >> next(steps) & 1)) == verdict([body])


@given(body=damaged())
def test_a_state_is_short_and_says_the_same_after_a_round_trip(body: bytes) -> None:
    inspector = ClipInspector()
    try:
        inspector.feed(body)
    except Suspect:
        return
    state = inspector.state()
    assert len(state) < 2048
    assert ClipInspector(state).state() == state


@pytest.mark.parametrize("state", ["x", "{}", "[]", "[1]", "7", json.dumps([1, "AVI", *range(9)])])
def test_a_state_that_cannot_be_read_starts_the_clip_over(state: str) -> None:
    with pytest.raises(StartOver):
        ClipInspector(state)


def test_a_state_of_another_version_starts_the_clip_over() -> None:
    inspector = ClipInspector()
    inspector.feed(FTYP)
    state = json.loads(inspector.state())
    state[0] += 1
    with pytest.raises(StartOver):
        ClipInspector(json.dumps(state))


class Untouchable(bytes):
    """A piece whose bytes must not be looked at; only its length may be asked for."""

    def __getitem__(self, _: object) -> bytes:  # type: ignore[override]
        raise AssertionError("payload was touched")

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("payload was touched")


def test_payload_is_skipped_without_a_look_and_without_memory() -> None:
    """A 4 TiB clip: the piece stays the same object, no byte of it is sliced or kept."""
    piece = Untouchable(1 << 20)
    inspector = ClipInspector()
    inspector.feed(FTYP + MOOV + box(b"mdat", wide=True, size=16 + (1 << 42)))
    longest = len(inspector.state())
    for _ in range(1 << 12):
        inspector.feed(piece)
        longest = max(longest, len(inspector.state()))
    assert longest < 128
    with pytest.raises(Suspect, match=f"ends after {len(FTYP + MOOV) + 16 + (1 << 32)}"):
        inspector.finish()


FFMPEG = shutil.which("ffmpeg")
SOURCE = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=5", "-t", "2", "-pix_fmt", "yuv420p"]
FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof"
REAL: dict[str, tuple[list[str], Container]] = {
    "plain.mp4": ([], MP4),
    "faststart.mp4": (["-movflags", "faststart"], MP4),
    "fragmented.mp4": (["-movflags", FRAGMENTED, "-g", "5"], MP4),
    "clip.mov": ([], QUICKTIME),
    "clip.mkv": ([], MATROSKA),
    "live.mkv": (["-live", "1"], MATROSKA),
    "clip.webm": (["-c:v", "libvpx"], WEBM),
    "clip.ts": ([], MPEG_TS),
    "clip.m2ts": (["-mpegts_m2ts_mode", "1"], M2TS),
}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """What ffmpeg itself writes, two seconds of a test picture in each container."""
    folder: Path = tmp_path_factory.mktemp("recorded")

    def record(name: str) -> bytes:
        path = folder / name
        if not path.exists():
            if FFMPEG is None:
                pytest.skip(
                    "ffmpeg is not installed: no real samples (the files built by hand ran)"
                )
            subprocess.run([FFMPEG, "-v", "error", *SOURCE, *REAL[name][0], path], check=True)
        return path.read_bytes()

    return record


@pytest.mark.parametrize("name", REAL)
def test_ffmpegs_own_files(recorded: Callable[[str], bytes], name: str) -> None:
    body = recorded(name)
    assert verdict([body]) == REAL[name][1]
    assert walk(body, range(0, len(body), 7), lambda _: True) == REAL[name][1]
    packet = {"clip.ts": 188, "clip.m2ts": 192}.get(name)
    accepted = {n for n in range(len(body)) if not isinstance(verdict([body[:n]]), str)}
    if packet:
        assert accepted == set(range(3 * packet, len(body), packet))
    elif name == "fragmented.mp4":
        ends = {body.index(b"moof", body.index(b"moof") + 4) - 4, body.index(b"mfra") - 4}
        assert accepted == {end + zeros for end in ends for zeros in range(4)}
    elif name == "live.mkv":
        assert len(accepted) <= 2  # between elements of a segment without a size
    else:
        assert accepted == set()
