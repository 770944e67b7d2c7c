"""Good manners towards a source: how many clips are read from it at once, and when a camera rests.

How many follows how the source bears it: one more after a round of clips that came as fast as ever,
a third fewer as soon as one comes much slower, half as many after an error. What is too many is
paused in the middle, not broken off: an aborted stream costs a recorder more than a slow one. A
camera that fails again and again rests for a while. Only time in which we waited for the source
counts, never time in which we made it wait; must never end a transfer, or let one hang for good.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Final

from structlog.typing import FilteringBoundLogger

from nvr_backup.clock import Clock
from nvr_backup.errors import StartOver, Suspect, Transient
from nvr_backup.model import Camera

FIRST_LIMIT: Final = 1
"""So many clips are read at once before anything is known: one alone shows what is usual."""

STUCK_SECONDS: Final = 10.0
"""One clip of which nothing has come for so long does not keep another from its turn."""

IDLE_SECONDS: Final = 1.0
"""Nor do clips that nobody wanted more of for so long: their stores are busy, the source is not."""

SLOWER: Final = 0.67
FAILED: Final = 0.5
"""What is left of the limit after a reading that was slow, or that failed."""

SLOW_RATE: Final = 2.0
"""A stretch that takes so many times as long as the best ones is slow."""

FAST_SECONDS_PER_BYTE: Final = 1 / 20e6
"""At 20 MB/s for each reading nothing is slow: it would be our own processor that is busy."""

SLOW_START: Final = 4.0
FAST_START_SECONDS: Final = 1.0
"""A first byte that takes so many times as long as usual is slow, if it takes longer than this."""

USUAL_WEIGHT: Final = 0.1
LEARNING: Final = 0.2
FORGETTING: Final = 1.01
"""So much of a better rate is believed at once; and what was best fades with every stretch."""

STRETCH_SECONDS: Final = 2.0
STRETCH_BYTES: Final = 4 * 1024 * 1024
"""A stretch is judged when it has lasted so long or brought so much, or when the clip has ended."""

SHORTEST_BYTES: Final = 256 * 1024
"""Less says nothing about a rate."""

WAITED_SECONDS: Final = 0.005
PAUSE_SECONDS: Final = 0.05
BUFFERED_BYTES: Final = 8 * 1024 * 1024
"""A stretch begins with a read that has to wait so long, and ends when we are away for so long.
After that, buffers hold what came meanwhile: so much is not judged."""

SETTLING_SECONDS: Final = 10.0
"""What was begun so soon after a decrease still met those that were too many: a server that nobody
listens to goes on until the buffers between us are full."""

FIRST_CALM_SECONDS: Final = 10.0
LONGEST_CALM_SECONDS: Final = 600.0
"""After a decrease the limit stays for a while; as many as were too many are tried again after a
time that doubles as long as they are too many again."""

FAILURES: Final = 5
"""So many failures of a camera in a row, and it rests."""

FIRST_REST: Final = timedelta(seconds=30)
LONGEST_REST: Final = timedelta(minutes=15)
MOST_CAMERAS: Final = 4096


@dataclass(slots=True)
class _Rest:
    """How often a camera has failed in a row, and until when it is left in peace."""

    failures: int = 0
    until: float = -inf
    length: timedelta = FIRST_REST


class Manners:
    """What is known of one source, and what it is spared. `changed`: more may be read than before.

    `workers` is the most that may ever be read at once.
    """

    def __init__(self, clock: Clock, *, workers: int, changed: Callable[[], None] = lambda: None):
        self.workers = workers
        self._clock = clock
        self._changed = changed
        self._limit = float(FIRST_LIMIT)
        self._visits: dict[Visit, None] = {}  # ordered: the youngest pauses first
        self._usual_start: float | None = None
        self._best: float | None = None  # seconds for a byte
        self._reduced = -inf
        self._raised = -inf
        self._ceiling = inf  # so many were too many
        self._calm = FIRST_CALM_SECONDS
        self._moved = asyncio.Event()
        self._rests: OrderedDict[str, _Rest] = OrderedDict()

    # -- how many at once ---------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """How many clips may be read at once now."""
        return max(1, min(self.workers, int(self._limit)))

    @property
    def reading(self) -> int:
        """How many clips are being read at once, those that pause not counted."""
        return max(1, min(sum(visit.going for visit in self._visits), self.limit))

    @property
    def free(self) -> bool:
        """Whether one more may be begun."""
        stuck = sum(visit.stuck_in <= 0 for visit in self._visits)
        going = sum(visit.going for visit in self._visits)
        return going + max(0, stuck - 1) < self.limit

    def allow(self, workers: int) -> None:
        """So many from now on; those that pause look again, for time may have changed things."""
        self.workers = workers
        self._moved.set()

    def visit(self) -> Visit:
        """A transfer begins: it counts until it has read everything, or `leave` is called."""
        visit = Visit(self, self._clock)
        self.enter(visit)
        return visit

    def enter(self, visit: Visit) -> None:
        """The visit reads, or is about to."""
        self._visits[visit] = None

    def leave(self, visit: Visit) -> None:
        """The visit reads no more."""
        if visit in self._visits:
            del self._visits[visit]
            self._stir()

    def too_many(self, visit: Visit) -> bool:
        """Whether this visit is one of those that must pause now: the oldest ones go on."""
        if len(self._visits) <= self.limit or visit not in self._visits:
            return False
        going = [one for one in self._visits if one is visit or one.going]
        return going.index(visit) >= self.limit

    async def turn(self, visit: Visit) -> None:
        """Wait until the visit is not too many any more."""
        while self.too_many(visit):
            self._moved.clear()
            await self._moved.wait()

    # -- how it is borne ----------------------------------------------------------------------

    def started(self, seconds: float, began: float, beside: int) -> None:
        """A clip's first byte took so long; it was asked for at `began`.

        `beside` is here and below how many were read at once meanwhile, at most.
        """
        usual = self._usual_start
        slow = usual is not None and seconds > max(FAST_START_SECONDS, SLOW_START * usual)
        self._usual_start = seconds if usual is None else usual + USUAL_WEIGHT * (seconds - usual)
        if slow:
            self._reduce(SLOWER, began, beside)

    def streamed(self, seconds: float, size: int, began: float, beside: int) -> None:
        """A stretch of a clip: so many bytes came in so many seconds, all of them waited for."""
        each = max(seconds / size, FAST_SECONDS_PER_BYTE)
        best = each if self._best is None else self._best
        if each < best:
            self._best = best + LEARNING * (each - best)
        else:
            self._best = min(each, best * FORGETTING)
        if each > SLOW_RATE * self._best:
            self._reduce(SLOWER, began, beside)
        else:
            self.borne(began)

    def borne(self, began: float) -> None:
        """What was begun at `began` came as it should: a stretch, or a clip to its end."""
        before = self.limit
        if self.reading < before or began < self._raised:
            return  # what is allowed is not made use of, or what was allowed last is not yet proven
        more = min(self.workers, self._limit + 1 / before)
        calm = FIRST_CALM_SECONDS if int(more) < self._ceiling else self._calm
        since = self._reduced if before < self._ceiling else max(self._reduced, self._raised)
        if self._clock.monotonic() < since + calm:
            return  # too soon after what was too much, or beyond it
        self._limit = more
        if self.limit > before:
            self._raised = self._clock.monotonic()
            self._stir()

    def failed(self, began: float, beside: int) -> None:
        """A clip asked for at `began` could not be read, or not to its end."""
        self._reduce(FAILED, began, beside)

    def _reduce(self, left: float, began: float, beside: int) -> None:
        """Fewer at once; once for all that went on at the same time."""
        if began < self._reduced + SETTLING_SECONDS:
            return
        self._reduced = self._clock.monotonic()
        if beside == 1:
            return  # fewer there cannot be, and it says nothing about two
        again = beside == self._ceiling
        self._calm = min(2 * self._calm, LONGEST_CALM_SECONDS) if again else FIRST_CALM_SECONDS
        self._ceiling = beside
        self._limit = max(1.0, left * min(beside, self._limit))

    def _stir(self) -> None:
        self._moved.set()
        self._changed()

    # -- cameras that fail --------------------------------------------------------------------

    def rests(self, camera: str, *, busy: bool) -> bool:
        """Whether nothing is to be asked of a camera now; after a rest one clip at a time is."""
        rest = self._rests.get(camera)
        if rest is None or rest.failures < FAILURES:
            return False
        return busy or self._clock.monotonic() < rest.until

    def next_chance(self) -> float:
        """Seconds until more may be asked for, if nothing happens: a rest ends, a clip is stuck."""
        now = self._clock.monotonic()
        ends = [rest.until - now for rest in self._rests.values()]
        ends += [min(visit.stuck_in, visit.idle_in) for visit in self._visits if visit.going]
        return min((end for end in ends if end > 0), default=inf)

    def camera_failed(self, camera: str) -> timedelta | None:
        """A clip could not be had from the source; returns how long the camera now rests."""
        rest = self._rests.setdefault(camera, _Rest())
        self._rests.move_to_end(camera)
        if len(self._rests) > MOST_CAMERAS:
            self._rests.popitem(last=False)
        rest.failures += 1
        now = self._clock.monotonic()
        if rest.failures < FAILURES or now < rest.until:
            return None
        length, rest.length = rest.length, min(2 * rest.length, LONGEST_REST)
        rest.until = now + length.total_seconds()
        return length

    def camera_worked(self, camera: str) -> bool:
        """A clip came as a whole; whether the camera had been resting."""
        rest = self._rests.pop(camera, None)
        return rest is not None and rest.failures >= FAILURES


class Visit:
    """One transfer's readings of its source, one after the other."""

    def __init__(self, manners: Manners, clock: Clock) -> None:
        self.asking = False
        self._manners = manners
        self._clock = clock
        self._began = clock.monotonic()
        self._opened: float | None = None  # asked for, and nothing has come yet
        self._since: float | None = None  # a stretch goes on since
        self._size = 0
        self._last = -inf  # when the latest piece came
        self._buffered = 0  # so much of what comes was not waited for
        self._beside = 1

    def leave(self) -> None:
        """The transfer has ended, or needs nothing more of the source."""
        self._manners.leave(self)

    def asks(self) -> None:
        """The clip is asked for."""
        self._manners.enter(self)
        self._opened = self._began = self._clock.monotonic()
        self._since = None
        self._buffered = 0
        self._beside = self._manners.reading

    def failed(self, err: Transient) -> None:
        """It did not come, or not to its end."""
        if not isinstance(err, Suspect | StartOver):  # a clip that is no video says nothing
            self._manners.failed(self._began, max(self._beside, self._manners.reading))
        self.leave()

    @property
    def stuck_in(self) -> float:
        """Seconds until it counts as stuck, 0 or less if it is; infinite once something came."""
        if self._opened is None:
            return inf
        return self._opened + STUCK_SECONDS - self._clock.monotonic()

    @property
    def idle_in(self) -> float:
        """Seconds until it counts as idle, 0 or less if it is; infinite while it asks for more."""
        if self.asking or self._opened is not None or self._last == -inf:
            return inf
        return self._last + IDLE_SECONDS - self._clock.monotonic()

    @property
    def going(self) -> bool:
        """Whether the source has work with it now."""
        return self.stuck_in > 0 and self.idle_in > 0

    @property
    def waits(self) -> bool:
        """Whether it must pause now."""
        return self._manners.too_many(self)

    async def turn(self) -> None:
        """Pause until there is room."""
        self._judge()
        await self._manners.turn(self)

    def came(self, size: int, asked: float) -> None:
        """A piece that was asked for at `asked` is here."""
        now = self._clock.monotonic()
        self._beside = max(self._beside, self._manners.reading)
        if self._opened is not None:
            self._manners.started(now - self._opened, self._opened, self._beside)
            self._opened = None
        elif asked - self._last > PAUSE_SECONDS:
            self._judge()
            self._buffered = BUFFERED_BYTES
        self._last = now
        if self._buffered > 0:
            self._buffered -= size
        elif self._since is not None:
            self._size += size
            if now - self._since >= STRETCH_SECONDS or self._size >= STRETCH_BYTES:
                self._judge()
                self._since = now
        elif now - asked >= WAITED_SECONDS:
            self._since, self._beside = now, self._manners.reading

    def ended(self) -> None:
        """Nothing more comes."""
        self._judge()
        self._manners.borne(self._began)
        self.leave()

    def _judge(self) -> None:
        """End the stretch that goes on, if one does, where its latest piece came."""
        if self._since is not None and self._size >= SHORTEST_BYTES:
            seconds = self._last - self._since
            self._manners.streamed(seconds, self._size, self._since, self._beside)
        self._since, self._size, self._beside = None, 0, self._manners.reading


class Guests:
    """The manners towards every source, by its name; what is known outlives a reload."""

    def __init__(self, clock: Clock, *, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._workers = FIRST_LIMIT
        self._manners: dict[str, Manners] = {}  # as many as there ever were in the configuration

    def at(self, source: str) -> Manners:
        """The manners towards one source."""
        if source not in self._manners:
            self._manners[source] = Manners(
                self._clock, workers=self._workers, changed=self._changed
            )
        return self._manners[source]

    def allow(self, workers: int) -> None:
        """So many workers are there, for all sources together."""
        self._workers = workers
        for manners in self._manners.values():
            manners.allow(workers)

    def next_chance(self) -> float:
        """Seconds until more may be asked of some source, if nothing happens."""
        return min((manners.next_chance() for manners in self._manners.values()), default=inf)

    def failed(self, camera: Camera, err: Transient, log: FilteringBoundLogger) -> None:
        """A clip could not be had; said when the camera rests for it, loudly the first time."""
        rest = self.at(camera.source).camera_failed(camera.id)
        if rest is not None:
            say = log.warning if rest == FIRST_REST else log.debug
            say("camera rests", reason=err.message, rest_seconds=round(rest.total_seconds()))

    def worked(self, camera: Camera, log: FilteringBoundLogger) -> None:
        """A clip of the camera was stored."""
        if self.at(camera.source).camera_worked(camera.id):
            log.info("camera works again")
