"""The transfers in flight, whether there is room for one more, and what came of those that ended.

A clip whose end has been read waits for the store's last answer: it reads nothing and holds its
last chunk at most. It leaves its worker to the next clip meanwhile, so that a store that thinks
for 50 ms does not halve the speed of small clips. At most as many as there are workers do so, and
they hold one chunk together at most: memory and connections stay bounded. (Should that answer be
that the upload must begin anew, it does so at once: for a while up to twice as many clips may be
read as there are workers.) Under an upload limit none does: what is on its way when the program
stops would be more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nvr_backup.model import Clip
from nvr_backup.rows import Claim
from nvr_backup.transfer import Activity


@dataclass(frozen=True, slots=True)
class Running:
    """A transfer in flight, for progress displays. `began` is monotonic seconds."""

    claim: Claim
    activity: Activity
    began: float


@dataclass(slots=True)
class Outcomes:
    """Counts since the last reset; `reasons` holds the latest failure of each copy."""

    stored: int = 0
    stored_bytes: int = 0
    failed: int = 0
    set_aside: int = 0
    reasons: dict[int, tuple[Clip, str]] = field(default_factory=dict)


def room(running: Iterable[Running], *, workers: int, spare_bytes: int) -> bool:
    """Whether another transfer may begin beside these.

    Those that wait for their last answer count unless they hold `spare_bytes` together at most.
    """
    busy = waiting = spare = 0
    for one in running:
        held = one.activity.finishing
        if held is not None and waiting < workers and spare + held <= spare_bytes:
            waiting += 1
            spare += held
        else:
            busy += 1
    return busy < workers
