"""A recorder that bears two reads at once: for how long it is driven past them, at what cost.

`nvr-backup once` against a simulated NVR whose disk reads 12.8 MB/s for each of two readers, and a
fifth of that for each as soon as there is a third. The NVR itself counts for how long how many were
reading.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import NvrBackup, Work
from benchmarks.measure import MB, run, server
from benchmarks.tables import table

BEARS: Final = 2
CAMERAS: Final = 4
CLIPS_EACH: Final = 60
CLIP_BYTES: Final = 16 * MB
PIECE_SECONDS: Final = 0.02
SLOWER: Final = 5
WORKERS: Final = (2, 4, 8)


def measure() -> str:
    """A table, by the number of workers."""
    head = ["workers", "wall s", "MB/s", "s with 1", "with 2", "with 3", "with more", "past two"]
    return table(head, [_row(workers) for workers in WORKERS])


def _row(workers: int) -> list[str]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        nvr = ["nvr_backup.simulator", "--digests", "none", "--cameras", str(CAMERAS)]
        nvr += ["--style", "href", "--clips", str(CLIPS_EACH), "--clip-size", str(CLIP_BYTES)]
        _, told = stack.enter_context(server(nvr))
        _, endpoint = stack.enter_context(server(["benchmarks.endpoint"]))
        facts = json.loads(told)
        fault = {"name": "overload", "times": None, "parallel": BEARS}
        _call(f"{facts['control']}faults", {**fault, "seconds": PIECE_SECONDS, "by": SLOWER})
        work = Work(
            nvr=facts["url"],
            plain="",
            endpoint=endpoint,
            folder=folder,
            count=CAMERAS * CLIPS_EACH,
            size=CLIP_BYTES,
            chunked=False,
            workers=workers,
        )
        cost = run(NvrBackup().carry(work).words, folder=folder)
        told_seconds = _call(f"{facts['control']}state")["reading_seconds"]
    seconds = {int(readers): float(spent) for readers, spent in told_seconds.items()}
    busy = sum(spent for readers, spent in seconds.items() if readers)
    past = sum(spent for readers, spent in seconds.items() if readers > BEARS)
    more = sum(spent for readers, spent in seconds.items() if readers > 3)
    return [
        str(workers),
        f"{cost.wall_seconds:.1f}",
        f"{work.count * work.size / MB / cost.wall_seconds:.1f}",
        *(f"{seconds.get(readers, 0.0):.1f}" for readers in (1, 2, 3)),
        f"{more:.1f}",
        f"{100 * past / busy:.1f} %",
    ]


def _call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")
