"""Two hundred seeds hold, a seed is a function, and what is broken on purpose is found.

Thousands more by hand: `python -m tests.simulation --seeds 0:5000`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Counted
from tests.simulation.script import Failed, play
from tests.simulation.stage import Story

SLICES = 25
SEEDS_EACH = 8
"""Small slices: several processes share them evenly."""

KINDS = 15
"""So many kinds of incidents, and of faults besides, happen in each slice: always the same ones."""


@pytest.mark.long
@pytest.mark.parametrize("number", range(SLICES))
def test_seeds_hold(number: int, counted: Counted) -> None:
    happened: Counter[str] = Counter()
    for seed in range(number * SEEDS_EACH, (number + 1) * SEEDS_EACH):
        story = play(seed)
        happened += story.happened + Counter(clips=story.clips, objects=story.stored)
        happened["checks"] += story.checks
        counted("seeds")
    assert happened["clips"] > 100
    assert happened["objects"] > 100
    assert happened["checks"] > 100
    kinds = Counter(name.startswith("incident: ") for name in happened)
    assert min(kinds[True], kinds[False]) >= KINDS


def test_a_seed_is_reproduced_exactly_by_any_process() -> None:
    """Even the order within sets of strings, which Python draws anew for each process, is no part
    of it; nor is what the same process did before."""
    alone = _trace_of_another_process(5, hash_seed="1")
    assert _trace_of_another_process(5, hash_seed="2") == alone
    lines: list[str] = []
    assert play(5, say=lines.append) == play(5)
    assert len(lines) > 500


def _trace_of_another_process(seed: int, *, hash_seed: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()[-1]


def test_seeds_differ() -> None:
    first, second = play(5), play(6)
    assert first.trace != second.trace
    assert isinstance(first, Story)


def test_a_seed_that_fails_fails_again_and_says_what_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nvr_backup.pool.PATIENCE", 1)
    told = []
    for _ in range(2):
        with pytest.raises(Failed, match=r"(?s)seed 5: .* is set aside in .* and not truly") as err:
            play(5)
        told.append(str(err.value))
    assert told[0] == told[1]
    assert " event=clip " in told[0]
