"""A strict test double of the Google Cloud Storage JSON API and of Google's OAuth token endpoint.

    async with GcsDouble(buckets=("footage",)) as gcs:
        gcs.faults.add("chunk", Status(503), nth=2)
        ...                                  # code under test against gcs.url
        assert gcs.objects["footage"]["a/b.mp4"].data == clip
        assert not gcs.faults.unused()

It is written from Google's documentation and refuses what Google refuses (chunks that are no
multiple of 256 KiB, offset gaps, wrong checksums, failed preconditions, missing permissions); it
must never be more forgiving than the service. `python -m tests.support.gcs_double` runs it as a
process of its own.
"""

from tests.support.gcs_double.auth import CREATOR, PERMISSIONS, Account
from tests.support.gcs_double.discard import DiscardingStore
from tests.support.gcs_double.exchange import Seen
from tests.support.gcs_double.faults import (
    Backwards,
    Claim,
    Corrupt,
    Delay,
    EmptyPage,
    Fault,
    Faults,
    Garbled,
    Misreport,
    Partial,
    Reset,
    Slow,
    Stall,
    Status,
    What,
    Where,
    rate_limited,
)
from tests.support.gcs_double.held import QUANTUM, Held, Session, crc32c_text
from tests.support.gcs_double.server import GcsDouble

__all__ = [
    "CREATOR",
    "PERMISSIONS",
    "QUANTUM",
    "Account",
    "Backwards",
    "Claim",
    "Corrupt",
    "Delay",
    "DiscardingStore",
    "EmptyPage",
    "Fault",
    "Faults",
    "Garbled",
    "GcsDouble",
    "Held",
    "Misreport",
    "Partial",
    "Reset",
    "Seen",
    "Session",
    "Slow",
    "Stall",
    "Status",
    "What",
    "Where",
    "crc32c_text",
    "rate_limited",
]
