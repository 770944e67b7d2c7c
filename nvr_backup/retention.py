"""How long footage lives at the recorder, and whether the backlog will be carried in time.

A recorder deletes its oldest clips when its disk is full, so what counts is not an age but how fast
the oldest clip that a camera still lists moves on. Pure: times in, times out. It must never call a
clip lost: that is for the source to say, about this very clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import exp
from typing import Final

MEMORY: Final = timedelta(hours=12)
"""How fast the oldest clip moves is averaged over about so long: recorders delete in batches."""

TRUSTED: Final = timedelta(hours=1)
"""Watched for less than this, a recorder that deletes is taken to delete as fast as it records."""

CALM: Final = timedelta(days=7)
"""More time than this is as good as any: such clips are carried fairly, the oldest first."""

LEAST: Final = timedelta(minutes=1)
"""Less than this is not told apart."""

EDGE: Final = timedelta(minutes=10)
"""A clip with less time left than this may well vanish on its way."""

SHORT: Final = timedelta(hours=24)
"""A loss that is further off than this is not worth a warning yet."""

MARGIN: Final = 0.8
"""All is well again when it would be so at this share of the present rate."""

_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of a camera's oldest footage.

    `oldest`: start of the oldest clip on record that it still listed at `looked`; watched since
    `since`. `moved`: how many seconds `oldest` moves on in a second, averaged over MEMORY, as if it
    had stood still before `since`.
    """

    oldest: datetime
    looked: datetime
    since: datetime
    moved: float = 0.0

    @property
    def speed(self) -> float:
        """Seconds of footage that vanish in a second; 0 when none was ever seen to vanish."""
        if self.moved <= 0:
            return 0.0
        watched = self.looked - self.since
        known = 1 - exp(-watched / MEMORY)
        return max(1.0, self.moved / known) if watched >= TRUSTED else 1.0

    def left(self, start: datetime) -> timedelta | None:
        """How long after `looked` a clip vanishes; None when nothing vanishes. May be negative."""
        speed = self.speed
        return None if speed == 0 else (start - self.oldest) / speed


def first_life(oldest: datetime, now: datetime) -> Life:
    """The first look at a camera."""
    return Life(oldest, now, now)


def looked_again(life: Life, oldest: datetime, now: datetime) -> Life:
    """What a later look, which found this oldest clip, adds.

    A clock that went back, or a clip that is back, is no reason to believe anything: begun anew.
    """
    passed = now - life.looked
    if passed < timedelta() or oldest < life.oldest:
        return first_life(oldest, now)
    if passed == timedelta():
        return replace(life, oldest=oldest)
    weight = 1 - exp(-passed / MEMORY)
    moved = life.moved + weight * ((oldest - life.oldest) / passed - life.moved)
    return replace(life, oldest=oldest, looked=now, moved=moved)


def edge_ms(oldest_ms: int, speed: float, passed_ms: int) -> int:
    """What began before is gone, or will be before it could be carried (EDGE).

    `oldest_ms` is as it was found `passed_ms` ago.
    """
    return int(oldest_ms + speed * (passed_ms + EDGE // _MS))


def urgency_ms(edge: int, speed: float | None, start_ms: int) -> int:
    """Milliseconds that a clip has left before the edge, between LEAST and CALM."""
    calm, least = CALM // _MS, LEAST // _MS
    if not speed:
        return calm
    return max(least, min(calm, int((start_ms - edge) / speed)))


@dataclass(frozen=True, slots=True)
class Load:
    """So many waiting copies of a camera that vanish `left` from now (None: they do not)."""

    camera: str
    copies: int
    left: timedelta | None


@dataclass(frozen=True, slots=True)
class Loss:
    """What will be lost first: whose, and in how long.

    `needed` is what the `waiting` copies take, of all cameras; None: nothing is carried.
    """

    camera: str
    left: timedelta
    needed: timedelta | None
    waiting: int


def first_loss(loads: Iterable[Load], *, seconds_each: float | None) -> Loss | None:
    """The first clip that vanishes before its turn, if the most urgent are carried first.

    `seconds_each` is what a copy takes now, all workers together; None: nothing is carried. What
    has vanished already is no more a matter of time.
    """
    ordered: Sequence[Load] = sorted(
        (load for load in loads if load.left is None or load.left > timedelta()),
        key=lambda load: (load.left is None, load.left or timedelta()),
    )
    waiting = sum(load.copies for load in ordered)
    needed = None if seconds_each is None else timedelta(seconds=waiting * seconds_each)
    done = 0
    for load in ordered:
        if load.left is None:
            break
        done += load.copies
        if seconds_each is None or timedelta(seconds=done * seconds_each) > load.left:
            return Loss(load.camera, load.left, needed, waiting)
    return None
