"""The same work for every contender in turn, several rounds, and the medians.

Rounds are interleaved, so that a busy minute of the machine hits everyone alike, and the order
turns with each round. After each run the storage endpoint is asked what it received: work that was
not done is a failure, not a good time. Every run has fresh servers and an empty folder.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.contenders import Contender, Work
from benchmarks.measure import GIB, Cost, Failed, median, run, server


@dataclass(frozen=True, slots=True)
class Load:
    """A piece of work before its servers exist: `count` clips of `size` bytes from `cameras`.

    `delay_ms` is how long the storage endpoint waits before every answer. `directory`: into a
    folder instead.
    """

    title: str
    count: int
    size: int
    chunked: bool = False
    workers: int = 1
    cameras: int = 1
    delay_ms: float = 0.0
    directory: bool = False

    @property
    def gib(self) -> float:
        """How much is carried."""
        return self.count * self.size / GIB


@dataclass(frozen=True, slots=True)
class Row:
    """A contender's medians at one load, and its peak over all rounds.

    The ratios are taken within each round, where everyone met much the same machine: `cpu_ratio` is
    the first contender's CPU divided by this one's, `speed_ratio` how many times as fast it was.
    """

    name: str
    cpu_per_gib: float
    cpu_ratio: float
    wall: float
    clips_per_second: float
    speed_ratio: float
    peak_rss: int


def compare(load: Load, contenders: Sequence[Contender], rounds: int) -> list[Row]:
    """Everyone's medians, in the contenders' order; the first of them is what ratios are of."""
    costs = gather(load, contenders, rounds)
    ours = next(iter(costs.values()))
    return [_row(load, name, found, ours) for name, found in costs.items()]


def gather(load: Load, contenders: Sequence[Contender], rounds: int) -> dict[str, list[Cost]]:
    """What everyone who is present cost in each round."""
    present = [contender for contender in contenders if _present(contender)]
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in present}
    with _sources(load) as (nvr, plain):
        for number in range(rounds):
            turn = number % len(present)
            for contender in present[turn:] + present[:turn]:
                cost = _once(load, contender, nvr, plain)
                costs[contender.name].append(cost)
                print(
                    f"    round {number + 1}  {contender.name:24} {cost.cpu_seconds:7.2f} CPU s"
                    f" {cost.wall_seconds:7.2f} s {cost.peak_rss / 1e6:6.0f} MB",
                    flush=True,
                )
    return costs


def _present(contender: Contender) -> bool:
    reason = contender.absent()
    if reason is not None:
        print(f"    left out: {contender.name}: {reason}")
    return reason is None


@contextmanager
def _sources(load: Load) -> Iterator[tuple[str, str]]:
    """The simulated NVR and the plain server with the clips: their URLs."""
    style = "stream" if load.chunked else "href"
    nvr = ["nvr_backup.simulator", "--digests", "none", "--style", style]
    nvr += ["--cameras", str(load.cameras), "--clips", str(load.count // load.cameras)]
    nvr += ["--clip-size", str(load.size)]
    plain = ["benchmarks.plain", "--count", str(load.count), "--size", str(load.size)]
    with ExitStack() as stack:
        _, told = stack.enter_context(server(nvr))
        _, url = stack.enter_context(server(plain))
        yield json.loads(told)["url"], url


def _once(load: Load, contender: Contender, nvr: str, plain: str) -> Cost:
    endpoint = ["benchmarks.endpoint", "--delay-ms", str(load.delay_ms)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        _, url = stack.enter_context(server(endpoint))
        work = Work(
            nvr=nvr,
            plain=plain,
            endpoint=url,
            folder=folder,
            count=load.count,
            size=load.size,
            chunked=load.chunked,
            workers=load.workers,
        )
        if load.directory:
            work = replace(work, directory=folder / "footage")
            (folder / "footage").mkdir()
        command = contender.carry(work)
        cost = run(command.words, env=command.env, folder=folder)
        _check(work)
    return cost


def _check(work: Work) -> None:
    """Did everything arrive, in its full size?"""
    if work.directory is not None:
        sizes = [path.stat().st_size for path in work.directory.rglob("*.mp4")]
    else:
        with urllib.request.urlopen(f"{work.endpoint}/_double/objects", timeout=30) as answer:
            sizes = [int(entry["size"]) for entry in json.load(answer)]
    if sorted(sizes) != [work.size] * work.count:
        raise Failed(f"{len(sizes)} of {work.count} objects arrived, of {set(sizes)} bytes")


def _row(load: Load, name: str, costs: Sequence[Cost], ours: Sequence[Cost]) -> Row:
    wall = median(cost.wall_seconds for cost in costs)
    pairs = list(zip(ours, costs, strict=True))
    return Row(
        name=name,
        cpu_per_gib=median(cost.cpu_seconds for cost in costs) / load.gib,
        cpu_ratio=median(our.cpu_seconds / cost.cpu_seconds for our, cost in pairs),
        wall=wall,
        clips_per_second=load.count / wall,
        speed_ratio=median(cost.wall_seconds / our.wall_seconds for our, cost in pairs),
        peak_rss=max(cost.peak_rss for cost in costs),
    )
