"""Links cut, reset and stalled at every byte position that means something, on both links.

A position is named by what the bytes are to HTTP: before the request, within its head, within its
body, at a chunk's border and one byte to either side, after the body and before the answer, within
the answer's head and body. The proxy counts bytes behind marks that it sees go by; where the bytes
of a request begin is decided here, not by the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conftest import Counted
from tests.faults.conftest import Rigs
from tests.faults.rig import CHUNK, KINDS, RANGED, SIX, STREAM, Filmed, Kind, Rig
from tests.faults.wires import Wire
from tests.support.proxy import Direction, How, MarkedBreak

pytestmark = [pytest.mark.process, pytest.mark.long]

PROOF_BYTES = 256
"""Read again so that it is seen to be the same clip."""

HEAD_END = b"\r\n\r\n"
SMALL = CHUNK - 1000
"""Fits into one request."""


@dataclass(frozen=True)
class Spot:
    """A place in an exchange: so many bytes behind the marks."""

    name: str
    after_bytes: int
    direction: Direction = "up"
    behind: tuple[bytes | tuple[Direction, bytes], ...] = ()

    def cut(self, wire: Wire, how: How, *request: bytes) -> MarkedBreak:
        """Break there in the exchange that `request`'s marks begin."""
        return wire.cut_behind(
            how, *request, *self.behind, after_bytes=self.after_bytes, direction=self.direction
        )


DOWN_HEAD_END: tuple[Direction, bytes] = ("down", HEAD_END)
ANSWER = (
    Spot("before the answer", 0, "down"),
    Spot("after the answer's first byte", 1, "down"),
    Spot("within the answer's head", 20, "down"),
)


def sent(mark: bytes, size: int, end: bytes = b"") -> tuple[Spot, ...]:
    """Spots in a request whose head begins with `mark` and whose body is of `size` bytes.

    Where `end` is given, these are the body's last bytes, and its size is only about `size`.
    """
    body = (HEAD_END,)
    tail = (*body, end[:-1]) if end else body
    last = 1 if end else size
    return (
        Spot("before the request", -len(mark)),
        Spot("within the head", 5),
        Spot("before the body", 0, behind=body),
        Spot("within the body", size // 2, behind=body),
        Spot("one byte before the body's end", last - 1 or -1, behind=tail),
        Spot("after the body", last, behind=tail),
        *ANSWER,
    )


NEXT_REQUEST = Spot("after the next request's first byte", CHUNK + 1, behind=(HEAD_END,))
WITHIN_THE_ANSWER = Spot("within the answer's body", 10, "down", (DOWN_HEAD_END,))

INITIATE = b"POST /upload/storage/v1/b/footage/o?uploadType=resumable"
SINGLE = b"POST /upload/storage/v1/b/footage/o?uploadType=multipart"
PUT = b"PUT /upload/"
JSON_END = b"}}"
RELATED_END = b"--\r\n"


@dataclass(frozen=True)
class Request:
    """A kind of request to the store, as a clip of `size` bytes causes it."""

    marks: tuple[bytes, ...]
    size: int
    spots: tuple[Spot, ...]


REQUESTS = {
    "initiate": Request((INITIATE,), SIX, (*sent(INITIATE, 100, JSON_END), WITHIN_THE_ANSWER)),
    "chunk": Request((PUT,) * 3, SIX, (*sent(PUT, CHUNK), NEXT_REQUEST)),
    "last": Request((PUT,) * 6, SIX, (*sent(PUT, SIX - 5 * CHUNK), WITHIN_THE_ANSWER)),
    "single": Request((SINGLE,), SMALL, (*sent(SINGLE, SMALL, RELATED_END), WITHIN_THE_ANSWER)),
}


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize(
    ("name", "spot"),
    [(name, spot) for name, request in REQUESTS.items() for spot in request.spots],
    ids=lambda value: value.name if isinstance(value, Spot) else value,
)
def test_the_link_to_the_store_breaks(
    rigs: Rigs, name: str, spot: Spot, how: How, counted: Counted
) -> None:
    """Nothing is said: the store is asked what it holds, and the upload goes on from there."""
    rig, request = rigs("gcs"), REQUESTS[name]
    assert rig.store_wire is not None
    rig.store_wire.drop_all()  # so that the whole upload goes over one new connection
    entry = spot.cut(rig.store_wire, how, *request.marks)
    rig.film(size=request.size)
    rig.settle()
    rig.until(lambda: entry.happened == 1, "broken")
    body = sum(seen["body_bytes"] for seen in rig.journal())
    rig.settled(orphans=1 if name == "initiate" else 0)
    assert body <= request.size + CHUNK + 8192, "more than one chunk was sent again"
    counted("fault cases")


CLIPS = b"GET /endpoint/@simulated/cameras/clips/"
BODY = (
    Spot("before the body", 0, "down", (DOWN_HEAD_END,)),
    Spot("after the body's first byte", 1, "down", (DOWN_HEAD_END,)),
    Spot("within a chunk", CHUNK // 2, "down", (DOWN_HEAD_END,)),
    Spot("one byte before a chunk's end", 2 * CHUNK - 1, "down", (DOWN_HEAD_END,)),
    Spot("at a chunk's end", 2 * CHUNK, "down", (DOWN_HEAD_END,)),
    Spot("one byte after a chunk's end", 2 * CHUNK + 1, "down", (DOWN_HEAD_END,)),
    Spot("within the last chunk", SIX - 1000, "down", (DOWN_HEAD_END,)),
)
FETCH = (Spot("before the request", -len(CLIPS)), Spot("within the head", 5), *ANSWER, *BODY)
WITH_LENGTH = (
    *FETCH,
    Spot("one byte before the end", SIX - 1, "down", (DOWN_HEAD_END,)),
    Spot("after the last byte", SIX, "down", (DOWN_HEAD_END,)),
)
END_MARK: tuple[Direction, bytes] = ("down", b"\r\n0\r\n")
LAST_CHUNK = (DOWN_HEAD_END, END_MARK)
CHUNKED = (
    *FETCH,
    Spot("before the end's mark", -3, "down", LAST_CHUNK),
    Spot("within the end's mark", 1, "down", LAST_CHUNK),
)


def fetches(camera: str, clip: Filmed) -> bytes:
    """The beginning of a request for the clip; its address ends with the id's last number."""
    return (
        CLIPS + camera.lower().replace(" ", "-").encode() + b"/" + clip.id.split("-")[-1].encode()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize(
    ("camera", "spot"),
    [(RANGED, spot) for spot in WITH_LENGTH] + [(STREAM, spot) for spot in CHUNKED],
    ids=lambda value: value.name if isinstance(value, Spot) else value,
)
def test_the_link_to_the_recorder_breaks(
    rigs: Rigs, kind: Kind, camera: str, spot: Spot, how: How, counted: Counted
) -> None:
    """The clip goes on where its upload stands, and is said to have failed at most once."""
    rig = rigs(kind)
    clip = rig.film(camera)
    entry = spot.cut(rig.nvr_wire, how, fetches(camera, clip))
    rig.settle()
    rig.until(lambda: entry.happened == 1, "broken")
    served = [body for body in rig.nvr.ask("served") if body["clip_id"] == clip.id]
    rig.settled(told={"clip failed": (0, 1)})
    if camera == RANGED and spot in BODY and len(served) > 1:
        whole = max(spot.after_bytes - 1, 0) // CHUNK * CHUNK
        least = whole - CHUNK - PROOF_BYTES
        assert served[-1]["offset"] >= least, "more than a chunk and a buffer is read again"
    counted("fault cases")


@pytest.mark.parametrize("name", REQUESTS)
def test_the_link_to_the_store_falls_silent(rigs: Rigs, name: str, counted: Counted) -> None:
    """At every spot, each on a link of its own; all of them wait out the stall limit together."""
    rig, request = rigs("gcs"), REQUESTS[name]
    assert rig.store_wire is not None
    rig.store_wire.drop_all()
    entries = [spot.cut(rig.store_wire, "stall", *request.marks) for spot in request.spots]
    film_until(rig, entries, RANGED, request.size)
    rig.settled(orphans=len(entries) if name == "initiate" else 0)
    counted("fault cases", len(entries))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("camera", "spots"), [(RANGED, WITH_LENGTH), (STREAM, CHUNKED)])
def test_the_link_to_the_recorder_falls_silent(
    rigs: Rigs, kind: Kind, camera: str, spots: tuple[Spot, ...], counted: Counted
) -> None:
    rig = rigs(kind)
    entries = [spot.cut(rig.nvr_wire, "stall", fetches(camera, rig.film(camera))) for spot in spots]
    rig.settle()
    rig.until(lambda: all(entry.happened for entry in entries), "broken")
    rests = {"camera rests": (0, len(entries))}
    rig.settled(told={"clip failed": (len(entries) // 2, len(entries)), **rests})
    counted("fault cases", len(entries))


def film_until(rig: Rig, entries: list[MarkedBreak], camera: str, size: int) -> None:
    """Film and carry clips until every break has happened."""
    for _ in range(len(entries)):
        for _ in range(len(entries) // 2):
            rig.film(camera, size=size)
        rig.settle()
        if all(entry.happened for entry in entries):
            return
    raise AssertionError([entry for entry in entries if not entry.happened])


LOGIN = b"POST /login "
HANDSHAKE = b"GET /endpoint/@scrypted/core/engine.io/api/?transport=polling"
UPGRADE = b"transport=websocket"
OPENING = {"login": LOGIN, "handshake": HANDSHAKE, "upgrade": UPGRADE}
OPENING_SPOTS = {
    "login": (*sent(LOGIN, 20, b"}")[:2], *ANSWER, WITHIN_THE_ANSWER),
    "handshake": (*sent(HANDSHAKE, 0)[:2], *ANSWER, WITHIN_THE_ANSWER),
    "upgrade": (
        Spot("within the head", 5),
        *ANSWER,
        Spot("within the first frame down", 1, "down", (DOWN_HEAD_END,)),
        Spot("within a frame up", 3, behind=(HEAD_END,)),
        Spot("within the system's state", 200, "down", (DOWN_HEAD_END,)),
    ),
}


SILENT = {"before the answer", "within the answer's body", "within a frame up"}
"""Where opening a link also meets a stall: each costs two of the limits for it."""


@pytest.mark.parametrize(
    ("name", "spot", "how"),
    [
        (name, spot, how)
        for name, spots in OPENING_SPOTS.items()
        for spot in spots
        for how in ("reset", "close", "stall")
        if how != "stall" or spot.name in SILENT
    ],
    ids=lambda value: value.name if isinstance(value, Spot) else value,
)
def test_opening_a_link_to_the_recorder_is_interrupted(
    rigs: Rigs, name: str, spot: Spot, how: How, counted: Counted
) -> None:
    """After its tokens have died; whatever comes, it is said once and over soon."""
    rig = rigs("directory")
    rig.nvr.do("expire")
    entry = spot.cut(rig.nvr_wire, how, OPENING[name])
    rig.nvr.do("drop-links")
    rig.film(RANGED, size=SMALL)
    rig.settle()
    rig.until(lambda: entry.happened == 1, "broken")
    rig.settled(told={"blocked": (0, 1), "source not listed": (0, 1), "camera not listed": (0, 1)})
    counted("fault cases")
