"""Seeds by hand: `python -m tests.simulation --seeds 0:5000 [--jobs 2] [--trace]`."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.script import Failed, play
from tests.simulation.stage import Story


def _tried(seed: int, *, trace: bool) -> Story | str:
    try:
        return play(seed, say=print if trace else None)
    except Failed as err:
        return str(err)


def main() -> None:
    """Run the seeds that the command line names; exit 1 if one did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:250", help="N, or FIRST:AFTER (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="all that happens")
    told = parser.parse_args()
    first, _, after = told.seeds.partition(":")
    seeds = range(int(first), int(after) if after else int(first) + 1)
    began, failed, happened = time.monotonic(), 0, Counter[str]()
    clips = stored = 0
    hours, digest = 0.0, hashlib.sha256()
    with ProcessPoolExecutor(told.jobs) as pool:
        tried = partial(_tried, trace=told.trace)
        for number, result in enumerate((map if told.jobs == 1 else pool.map)(tried, seeds)):
            if number and number % 100 == 0:
                print(f"{number:,} seeds, {failed} failed", file=sys.stderr, flush=True)
            if isinstance(result, str):
                failed += 1
                print(f"{result}\n", flush=True)
                continue
            happened += result.happened
            digest.update(result.trace.encode())
            clips, stored = clips + result.clips, stored + result.stored
            hours += result.hours
    for name, times in sorted(happened.items()):
        print(f"{times:8,}  {name}")
    print(
        f"{len(seeds):,} seeds, {failed} failed; {clips:,} clips, {stored:,} objects, {hours:,.0f} "
        f"simulated hours in {time.monotonic() - began:.0f} s"
    )
    print(f"Trace: {digest.hexdigest()}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
