"""The command line of the benchmarks: `python -m benchmarks [WORKLOAD...] [--rounds 3]`.

start    what each program costs before it does anything
big      one large clip into a bucket: with Content-Length, and chunked
small    500 clips of 3 MB, 4 at a time: the store answers at once, or after 50 ms
memory   peak RSS with a 10 GiB clip of unknown length, and with 4 large clips at a time
folder   one large clip into a folder
plan     a day of 20,000 clips against a checkpoint that holds a million
idle     what the daemon costs while it has nothing to do
limit    what passes under an upload limit (a quarter of an hour)
manners  a recorder that bears two reads at once
order    what the order of the backlog saves while the retention shrinks
soak     an hour with a fault a minute: does anything grow? (only when it is asked for by name)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import idle, limit, manners, order, planning, soak
from benchmarks.contenders import Contender, Curl, GoogleClient, NvrBackup, Rclone
from benchmarks.measure import GIB, MB, ROOT, Cost, Failed, floor, median, run
from benchmarks.rounds import Load, compare, gather
from benchmarks.tables import comparison, table

SMALL_CLIPS: Final = 500
SMALL_BYTES: Final = 3 * MB
CAMERAS: Final = 4
_SUFFIXES: Final = {"K": 1024, "M": 1024**2, "G": GIB}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    rounds: int
    size: int
    clips: int
    minutes: float | None
    fault_every: float
    google_python: Path

    @property
    def everyone(self) -> list[Contender]:
        """Who can carry one clip."""
        return [NvrBackup(), Rclone(), GoogleClient(self.google_python), Curl()]


def start(wish: Wish) -> None:
    """What it costs to start; for nvr-backup also to log in, list nothing and ask the store."""
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for number in range(2 * wish.rounds + 1):
            for contender in wish.everyone:
                if contender.absent() is None:
                    command = contender.start()
                    cost = run(command.words, folder=Path(folder))
                    if number:  # the first time fills the caches
                        costs.setdefault(contender.name, []).append(cost)
    nothing = gather(
        Load("no clips", 0, 1024), [NvrBackup("nvr-backup once, no clips")], wish.rounds
    )
    rows = [
        [
            name,
            f"{median(cost.cpu_seconds for cost in found):.2f}",
            f"{median(cost.wall_seconds for cost in found):.2f}",
            f"{max(cost.peak_rss for cost in found) / MB:.0f}",
        ]
        for name, found in [*costs.items(), *nothing.items()]
    ]
    print(f"\n{table(['start alone', 'CPU s', 'wall s', 'RSS MB'], rows)}")


def big(wish: Wish) -> None:
    """One large clip."""
    for chunked in (False, True):
        kind = "chunked, size unknown" if chunked else "with Content-Length"
        load = Load(f"One clip of {_gib(wish.size)}, {kind}", 1, wish.size, chunked=chunked)
        _compare(load, wish.everyone, wish.rounds)


def small(wish: Wish) -> None:
    """Many small clips."""
    contenders: list[Contender] = [
        NvrBackup(),
        Rclone("copy"),
        Rclone("copy --http-no-head"),
        Rclone("copyurl"),
        GoogleClient(wish.google_python),
    ]
    for delay in (0.0, 50.0):
        title = f"{wish.clips} clips of {SMALL_BYTES // MB} MB, 4 at a time, {delay:g} ms an answer"
        load = Load(title, wish.clips, SMALL_BYTES, workers=4, cameras=CAMERAS, delay_ms=delay)
        _compare(load, contenders, wish.rounds)


def memory(wish: Wish) -> None:
    """Peak RSS: it is not to depend on the size of clips."""
    one = Load("One clip of 10 GiB, chunked", 1, 10 * GIB, chunked=True)
    four = Load(
        "8 clips of 1.25 GiB, chunked, 4 at a time",
        8,
        5 * GIB // 4,
        chunked=True,
        workers=4,
        cameras=4,
    )
    for load in (one, four):
        _compare(load, [NvrBackup(), Rclone()], 1)


def folder(wish: Wish) -> None:
    """One large clip into a folder, durable when the program says so (ours alone)."""
    size = min(wish.size, GIB)
    for chunked in (False, True):
        kind = "chunked" if chunked else "with Content-Length"
        load = Load(f"{_gib(size)} into a folder, {kind}", 1, size, chunked, directory=True)
        _compare(load, [NvrBackup(), Rclone(), Curl()], wish.rounds)


def plan(wish: Wish) -> None:
    """Planning against a full checkpoint."""
    print(planning.measure(1 if wish.rounds < 5 else wish.rounds // 2))


def idle_hour(wish: Wish) -> None:
    """The daemon at rest."""
    print(idle.measure(wish.minutes or 5.0))


def soak_hour(wish: Wish) -> None:
    """The daemon in trouble."""
    print(soak.measure(wish.minutes or 60.0, wish.fault_every))


def upload_limit(_wish: Wish) -> None:
    """The daemon under an upload limit, over real minutes."""
    print(limit.measure(1.0))


def danger_first(_wish: Wish) -> None:
    """A simulation of orders."""
    print(order.measure())


def good_manners(_wish: Wish) -> None:
    """A recorder that slows down when too much is read at once."""
    print(manners.measure())


WORKLOADS: Final[dict[str, Callable[[Wish], None]]] = {
    "start": start,
    "big": big,
    "small": small,
    "memory": memory,
    "folder": folder,
    "plan": plan,
    "idle": idle_hour,
    "limit": upload_limit,
    "manners": good_manners,
    "order": danger_first,
    "soak": soak_hour,
}
ONLY_BY_NAME: Final = frozenset({"soak"})


def _compare(load: Load, contenders: list[Contender], rounds: int) -> None:
    print(f"\n## {load.title}\n", flush=True)
    rows = compare(load, contenders, rounds)
    print(f"\n{comparison(rows, many=load.count > 8)}", flush=True)


def _gib(size: int) -> str:
    return f"{size / GIB:g} GiB"


def _bytes(text: str) -> int:
    """Bytes; a suffix K, M or G means powers of 1024."""
    factor = _SUFFIXES.get(text[-1:].upper(), 1)
    return int(float(text[:-1] if factor > 1 else text) * factor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help=f"{', '.join(WORKLOADS)} or all")
    add("--rounds", type=int, default=3, help="how often, interleaved (default: %(default)s)")
    add("--size", type=_bytes, default=4 * GIB, help="of the large clip (default: 4G)")
    add("--clips", type=int, default=SMALL_CLIPS, help="how many small ones (default: %(default)s)")
    add("--minutes", type=float, help="of rest (default: 5), or of the soak (default: 60)")
    add("--fault-every", type=float, default=60.0, metavar="SECONDS", help="soak (default: 60)")
    add(
        "--google-python",
        type=Path,
        default=ROOT / ".venv-google/bin/python",
        help="an interpreter that has google-cloud-storage (python3 -m venv .venv-google && "
        ".venv-google/bin/pip install google-cloud-storage)",
    )
    return parser


def main() -> None:
    """Measure what the command line names."""
    parser = _parser()
    told = parser.parse_args()
    wanted = told.workloads or ["all"]
    unknown = set(wanted) - WORKLOADS.keys() - {"all"}
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}")
    if told.clips % CAMERAS:
        parser.error(f"--clips must be a multiple of {CAMERAS}: so many cameras share them")
    wish = Wish(
        told.rounds, told.size, told.clips, told.minutes, told.fault_every, told.google_python
    )
    print(f"Peak RSS below {floor() / MB:.0f} MB cannot be told from the benchmark's own.")
    for name, measure in WORKLOADS.items():
        if name in wanted or ("all" in wanted and name not in ONLY_BY_NAME):
            print(f"\n# {name}", flush=True)
            try:
                measure(wish)
            except Failed as err:
                sys.exit(f"{name}: {err}")


if __name__ == "__main__":
    main()
