"""Scripted misbehaviour of the storage double: what goes wrong, where, and how often.

A test adds faults before it starts the code under test, and ends with `assert not
gcs.faults.unused()`, so that a fault that was never reached fails the test. Nothing here knows the
protocol: `server`, `uploads` and `objects` carry a fault out and call `Fault.hit` when they do.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal, get_args

Where = Literal[
    "initiate",  # POST uploadType=resumable
    "chunk",  # session PUT with bytes that does not end the object
    "last",  # session PUT that ends the object (a-T/T, or */T without a body)
    "single",  # POST uploadType=multipart or media
    "query",  # session PUT bytes */*
    "cancel",  # DELETE of a session
    "get",  # object metadata
    "media",  # object bytes
    "list",
    "delete",
    "bucket",
    "permissions",
    "token",
    "any",
]
"""The kind of request a fault waits for."""

WHERES: tuple[str, ...] = get_args(Where)


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with an error in Google's format. `commit`: carry the request out all the same.

    `early`: answer before the body was read. `lose_session`: the session is gone afterwards.
    `plain`: the body is a front end's HTML, not JSON.
    """

    code: int
    retry_after: str | None = None
    reason: str = ""
    message: str = ""
    commit: bool = False
    early: bool = False
    lose_session: bool = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """A TCP reset: `before` anything is read, `after` the request was carried out (answer lost).

    With `after_bytes` it comes after so many bytes of the request's body (of the answer's body
    for `media`), and the double keeps of a chunk what `GcsDouble.cut_keeps` says.
    """

    at: Literal["before", "after"] = "before"
    after_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence, until `Faults.release` or the double's end: `before` = never read, `after` = never
    answer what was carried out, `after_bytes` = stop reading (for `media`: sending) there."""

    at: Literal["before", "after"] = "before"
    after_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Garbled:
    """Status 200 with this body instead of the answer; `commit`: the request was carried out.

    `truncate` sends the first half of the true answer (with a Content-Length to match).
    """

    body: bytes = b""
    commit: bool = True
    truncate: bool = False
    content_type: str = "application/json; charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Partial:
    """Persist only `keep` bytes of the request (None: all of them), do not finalise, answer 308."""

    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Backwards:
    """Forget what was persisted beyond `to` bytes, this request included, and answer 308."""

    to: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """Persist the request as usual, but let the 308 claim `offset` bytes (a lie)."""

    offset: int


@dataclass(frozen=True, slots=True)
class Misreport:
    """The object's resource carries a wrong checksum and/or size.

    `stored`: from now on in every answer about this object, not only in this one.
    """

    crc32c: int | None = None
    size: int | None = None
    generation: str | None = None
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Flip the bits of one byte of this request's payload before it is persisted."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class Slow:
    """Read the body (send it, for `media`) in pieces of `piece` bytes with a pause before each."""

    piece: int = 65536
    pause_seconds: float = 0.01


@dataclass(frozen=True, slots=True)
class Delay:
    """Answer correctly, but so much later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class EmptyPage:
    """A page of a listing without any items, but with a token to go on (Google may do that)."""


What = (
    Status
    | Reset
    | Stall
    | Garbled
    | Partial
    | Backwards
    | Claim
    | Misreport
    | Corrupt
    | Slow
    | Delay
    | EmptyPage
)

_ONLY: dict[type, frozenset[str]] = {
    Partial: frozenset({"chunk", "last"}),
    Backwards: frozenset({"chunk", "last", "query"}),
    Claim: frozenset({"chunk", "query"}),
    Corrupt: frozenset({"chunk", "last", "single"}),
    Misreport: frozenset({"last", "single", "query", "get"}),
    EmptyPage: frozenset({"list"}),
}
"""Faults that make sense at some requests only; anywhere else they are a mistake in the test."""


def rate_limited(*, retry_after: str | None = None) -> Status:
    """Google's 403 for too many requests, as opposed to 403 for a missing permission."""
    return Status(
        403,
        reason="rateLimitExceeded",
        message="The rate of requests exceeds the limit.",
        retry_after=retry_after,
    )


@dataclass(slots=True)
class Fault:
    """One entry of the script, for every object or (where requests name it) for one `key` only.

    The first `nth - 1` matching requests pass, the next `times` fail.

    `times=None` never stops. `happened` counts the requests it was really carried out on.
    """

    where: Where
    what: What
    times: int | None = 1
    nth: int = 1
    key: str | None = None
    seen: int = 0
    taken: int = 0
    happened: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def hit(self) -> None:
        """It is being carried out now."""
        self.happened += 1
        self._reached.set()

    async def reached(self) -> None:
        """Wait until the fault was carried out for the first time."""
        await self._reached.wait()

    @property
    def used_up(self) -> bool:
        return self.happened >= (1 if self.times is None else self.times)


class Faults:
    """The script: at most one fault per request, the oldest one that waits for it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._release = asyncio.Event()

    def add(
        self,
        where: Where,
        what: What,
        *,
        times: int | None = 1,
        nth: int = 1,
        key: str | None = None,
    ) -> Fault:
        """Script a fault; ValueError for one that cannot happen at that kind of request."""
        if where not in WHERES:
            raise ValueError(f"no such kind of request: {where!r}")
        only = _ONLY.get(type(what))
        if only is not None and where not in only:
            raise ValueError(f"{type(what).__name__} cannot happen at {where!r}")
        if key is not None and where in ("initiate", "single", "token", "list"):
            raise ValueError(f"the key is not known yet when a request of kind {where!r} arrives")
        if nth < 1 or (times is not None and times < 1):
            raise ValueError("nth and times count from 1")
        fault = Fault(where, what, times, nth, key)
        self._faults.append(fault)
        return fault

    def take(self, where: str, key: str | None) -> Fault | None:
        """The fault for this request, if any; every fault that waits for its kind counts it."""
        taken: Fault | None = None
        for fault in self._faults:
            if fault.where not in (where, "any") or fault.key not in (None, key):
                continue
            fault.seen += 1
            open_ = fault.times is None or fault.taken < fault.times
            if taken is None and open_ and fault.seen >= fault.nth:
                taken = fault
                fault.taken += 1
        return taken

    def unused(self) -> list[Fault]:
        """Faults that were not carried out as often as scripted (endless ones: not once)."""
        return [fault for fault in self._faults if not fault.used_up]

    def all(self) -> list[Fault]:
        return list(self._faults)

    def clear(self) -> None:
        """Forget the script; stalled requests stay stalled."""
        self._faults.clear()

    def release(self) -> None:
        """End every stall so far with a reset of its connection."""
        release, self._release = self._release, asyncio.Event()
        release.set()

    async def stalled(self) -> None:
        """Wait for `release`."""
        await self._release.wait()
