"""Signs of life: each supervisor promises when it will be heard of again.

A timer that ticks proves only that the event loop turns. A supervisor that waits for ever for an
answer that never comes leaves the loop turning; its broken promise is what shows. It must never be
renewed by anything but the supervisor itself.
"""

from __future__ import annotations

from nvr_backup.clock import Clock


class Pulse:
    """One supervisor's latest promise. `part` is its name for people."""

    def __init__(self, part: str, clock: Clock) -> None:
        self.part = part
        self._clock = clock
        self._due: float | None = None

    def promise(self, seconds: float) -> None:
        """It will promise again within `seconds` of elapsed time (a suspend does not count)."""
        self._due = self._clock.monotonic() + seconds

    def rest(self) -> None:
        """It has nothing to do any more and promises nothing."""
        self._due = None

    @property
    def late(self) -> bool:
        """Whether the latest promise was broken."""
        return self._due is not None and self._clock.monotonic() > self._due
