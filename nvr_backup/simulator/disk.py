"""The recorder's disk while the fault "overload" is armed: it bears so many reads at once, no more.

Beyond that every read takes several times as long, so that more readers get less in all. It counts
for how long how many read at once. It must never take any time unless the fault is armed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nvr_backup.clock import Clock
from nvr_backup.simulator.faults import Faults


@dataclass(slots=True)
class Disk:
    """One disk. `spent`: seconds in which so many were reading at once."""

    clock: Clock
    faults: Faults
    spent: Counter[int] = field(default_factory=Counter)
    _readers: int = 0
    _since: float = 0.0

    async def read(self, subjects: frozenset[str]) -> None:
        """Read one piece of a clip."""
        fault = self.faults.armed("overload", subjects=subjects)
        if fault is None:
            return
        self._count(+1)
        try:
            seconds = fault.get("seconds", 0.02)
            if self._readers > fault.get("parallel", 2):
                self.faults.take("overload", subjects=subjects)
                seconds *= fault.get("by", 5)
            await self.clock.sleep(seconds)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        now = self.clock.monotonic()
        self.spent[self._readers] += now - self._since  # type: ignore[assignment]  # seconds
        self._readers += change
        self._since = now
