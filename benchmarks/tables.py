"""Results as tables, in plain text that is Markdown too."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import MB
from benchmarks.rounds import Row


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of even width."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [_line(head, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join([*lines, *(_line(row, widths) for row in rows)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(width) for c, width in zip(cells, widths, strict=True)) + " |"


def comparison(rows: Sequence[Row], *, many: bool) -> str:
    """Everyone next to the first row: its CPU in terms of theirs, its speed in terms of theirs."""
    head = ["", "CPU s/GiB", "our CPU / theirs", "wall s", "peak RSS MB"]
    if many:
        head[3:4] = ["clips/s", "our speed / theirs"]
    cells = []
    for row in rows:
        speed = [f"{row.wall:.1f}"]
        if many:
            speed = [f"{row.clips_per_second:.0f}", f"{row.speed_ratio:.2f}"]
        cells.append(
            [
                row.name,
                f"{row.cpu_per_gib:.2f}",
                f"{row.cpu_ratio:.2f}",
                *speed,
                f"{row.peak_rss / MB:.0f}",
            ]
        )
    return table(head, cells)
