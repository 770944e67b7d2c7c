"""Everything an uploader must survive, met by a daemon: the strict double misbehaves as scripted.

Each case arms its faults, films clips that meet them, and ends with the same words: every fault has
happened by the double's own count, the store holds what the NVR has, once, and the operator was
told what the case says (mostly nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Counted
from tests.faults.conftest import Rigs
from tests.faults.rig import CHUNK, SIX, Rig, Told

pytestmark = [pytest.mark.process, pytest.mark.long]

SMALL = CHUNK - 1000
"""Goes out in one request."""

NOTHING: Told = {}
FAILED: Told = {"clip failed": (1, 4)}
EVERYTHING = ("bucket", "create", "delete", "get", "list", "update")


@dataclass(frozen=True)
class Hit:
    """A fault of the double at one kind of request."""

    where: str
    what: str
    times: int | None = 1
    nth: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def arm(self, rig: Rig) -> None:
        rig.store_fault(self.where, self.what, times=self.times, nth=self.nth, **self.options)


def hit(where: str, what: str, /, *, times: int | None = 1, nth: int = 1, **options: Any) -> Hit:
    return Hit(where, what, times, nth, options)


@dataclass(frozen=True)
class Case:
    """What goes wrong together, on the way of clips of these sizes."""

    name: str
    hits: Sequence[Hit]
    told: Told = field(default_factory=dict)
    sizes: tuple[int, ...] = (SIX, SMALL)
    orphans: int = 0
    sent_again: int | None = None
    """At most so many bytes are sent twice (None: nothing is promised)."""


ASKED = hit("chunk", "Status", nth=2, code=503)
"""Makes the store be asked what it holds."""


def at_every_step(name: str, what: str, /, *, orphans: int = 0, **options: Any) -> Case:
    """The same fault at each kind of request of an upload."""
    return Case(
        name,
        (
            hit("initiate", what, **options),
            hit("chunk", what, nth=2, **options),
            hit("query", what, nth=2, **options),
            hit("last", what, **options),
            hit("single", what, **options),
        ),
        orphans=orphans,
        sent_again=None,
    )


STATUSES = tuple(
    at_every_step(
        f"{code}{'-carried-out' if commit else ''}",
        "Status",
        code=code,
        commit=commit,
        orphans=1 if commit else 0,
    )
    for code in (408, 425, 429, 500, 502, 503, 504)
    for commit in (False, True)
)
RATE = at_every_step("403-rate-limit", "Status", code=403, reason="rateLimitExceeded")
FRONT_END = at_every_step("502-html", "Status", code=502, plain=True)
EARLY = at_every_step("503-before-the-body", "Status", code=503, early=True)

GARBLED = (
    at_every_step("200-empty", "Garbled", commit=False),
    at_every_step("200-empty-carried-out", "Garbled", commit=True, orphans=1),
    at_every_step("200-truncated", "Garbled", truncate=True, orphans=1),
    at_every_step("200-half", "Garbled", truncate=True, commit=True, orphans=1),
)

RESETS = (
    *(
        Case(
            f"reset-before-x{times}",
            [
                hit(where, "Reset", at="before", times=times)
                for where in ("initiate", "chunk", "query", "last", "single")
            ],
            sent_again=CHUNK,
        )
        for times in (1, 3)
    ),
    *(
        Case(
            f"reset-within-x{times}",
            [
                hit("initiate", "Reset", after_bytes=10, times=times),
                hit("chunk", "Reset", after_bytes=1000, times=times),
                hit("last", "Reset", after_bytes=CHUNK - 2000, times=times),
                hit("single", "Reset", after_bytes=100_000, times=times),
            ],
        )
        for times in (1, 3)
    ),
    Case(
        "answers-lost",
        [
            hit(where, "Reset", at="after")
            for where in ("initiate", "chunk", "query", "last", "single")
        ],
        orphans=1,
        sent_again=0,
    ),
    Case(
        "answers-lost-x3",
        [
            hit("initiate", "Reset", at="after", times=3),
            hit("chunk", "Reset", at="after", times=3),
            hit("query", "Reset", at="after", times=3, nth=4),
            hit("last", "Reset", at="after"),
            hit("single", "Reset", at="after"),
            hit("get", "Reset", at="after", times=3),
        ],
        orphans=3,
        sent_again=0,
    ),
)

STALLS = (
    at_every_step("stall-before", "Stall", at="before"),
    at_every_step("stall-after", "Stall", at="after", orphans=1),
    Case(
        "stall-within",
        [
            hit("chunk", "Stall", after_bytes=100_000),
            hit("last", "Stall", after_bytes=CHUNK - 2000),
            hit("single", "Stall", after_bytes=CHUNK // 2),
        ],
    ),
)

PARTIAL = (
    *(
        Case(f"of-a-chunk-{keep}", [hit("chunk", "Partial", nth=nth, keep=keep)], sizes=(SIX,))
        for keep, nth in ((0, 1), (1, 1), (0, 3), (1, 3), (100_000, 2), (CHUNK - 1, 5), (CHUNK, 4))
    ),
    *(
        Case(f"of-the-last-{keep}", [hit("last", "Partial", keep=keep)], sizes=(SIX,))
        for keep in (0, 1, 100_000, None)
    ),
    Case(
        "everywhere-at-once",
        [
            *(hit("chunk", "Partial", keep=keep) for keep in (0, 1, 70_001, CHUNK - 1)),
            *(hit("last", "Partial", keep=keep) for keep in (0, 1000, None)),
        ],
        sizes=(SIX,),
    ),
)

LOST = tuple(
    Case(
        f"{code}-at-{where}",
        [
            *([ASKED] if where == "query" else []),
            hit(where, "Status", nth=nth, code=code, lose_session=True),
        ],
        sizes=(SIX,),
    )
    for code in (404, 410, 499)
    for where, nth in (("chunk", 3), ("query", 1), ("last", 1))
)

BACKWARDS = (
    Case("all-forgotten-at-the-last", [hit("last", "Backwards", to=0)], sizes=(SIX,)),
    Case("forgotten-when-asked", [ASKED, hit("query", "Backwards", to=0)], sizes=(SIX,)),
    Case("more-than-was-sent", [hit("chunk", "Claim", nth=2, offset=4 * CHUNK)], sizes=(SIX,)),
    Case("more-when-asked", [ASKED, hit("query", "Claim", offset=5 * CHUNK)], sizes=(SIX,)),
)

WRONG = (
    *(
        Case(f"wrong-byte-in-{where}", [hit(where, "Corrupt", at=5000)])
        for where in ("chunk", "last", "single")
    ),
    Case("wrong-byte-in-the-head-of-single", [hit("single", "Corrupt", at=100)], FAILED),
    *(
        Case(f"wrong-{what}-after-{where}", [hit(where, "Misreport", stored=True, **{what: 1})])
        for where in ("last", "single")
        for what in ("crc32c", "size")
    ),
)

TOKENS = (
    Case(
        "token-503",
        [ASKED, hit("chunk", "Status", nth=3, code=401), *[hit("token", "Status", code=503)] * 2],
    ),
    Case(
        "token-lost", [hit("chunk", "Status", nth=3, code=401), hit("token", "Reset", at="after")]
    ),
    Case(
        "token-empty",
        [hit("single", "Status", code=401), hit("token", "Garbled", commit=False)],
        {"blocked": 1},
    ),
)

SLOW = (
    Case(
        "slow",
        [
            hit("chunk", "Slow", piece=16384, pause_seconds=0.02),
            hit("last", "Slow", piece=65536, pause_seconds=0.05),
            hit("single", "Slow", piece=16384, pause_seconds=0.02),
            hit("chunk", "Delay", nth=2, seconds=0.5),
            hit("initiate", "Delay", seconds=0.5),
        ],
        sent_again=0,
    ),
)

CASES = (
    *STATUSES,
    RATE,
    FRONT_END,
    EARLY,
    *GARBLED,
    *RESETS,
    *STALLS,
    *PARTIAL,
    *LOST,
    *BACKWARDS,
    *WRONG,
    *TOKENS,
    *SLOW,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_of_the_store(rigs: Rigs, case: Case, counted: Counted) -> None:
    rig = rigs("gcs")
    for fault in case.hits:
        fault.arm(rig)
    for size in case.sizes:
        rig.film(size=size)
    rig.settle()
    more = 0
    while not rig.store_faults_happened() and more < 6:
        for size in case.sizes:
            rig.film(size=size)
        rig.settle()
        more += 1
    assert rig.store_faults_happened(), rig.store_faults()
    if case.sent_again is not None:
        assert sent_again(rig) <= case.sent_again, rig.journal()
    rig.settled(told=case.told, orphans=case.orphans)
    counted("fault cases", sum(fault.times or 1 for fault in case.hits))


def sent_again(rig: Rig) -> int:
    """Bytes of clips that the store received more than once, by its own journal."""
    body: int = sum(
        seen["body_bytes"] for seen in rig.journal() if seen["where"] in {"chunk", "last", "single"}
    )
    wrapped: int = sum(1 for seen in rig.journal() if seen["where"] == "single") * 2048
    return body - wrapped - sum(clip.size for clip in rig.filmed)
