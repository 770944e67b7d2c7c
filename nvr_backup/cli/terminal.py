"""Standard output and error as rich consoles that also behave in a pipe.

On a terminal: its width, colours unless NO_COLOR. In a pipe: no colours, no boxes, and lines as
long as they must be, because whoever reads them may be a program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import Final, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

PIPE_WIDTH: Final = 4096
"""Columns where nobody looks at columns."""


class _Console(Console):
    """A rich console that leaves it to `exits` what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        """Called while the error is being handled."""
        raise  # noqa: PLE0704


def console(stream: Literal["stdout", "stderr"] = "stdout") -> Console:
    """A console on the stream as it is now."""
    file = sys.stdout if stream == "stdout" else sys.stderr
    terminal = file.isatty()
    return _Console(
        file=file,
        width=None if terminal else PIPE_WIDTH,
        force_terminal=None if terminal else False,
        no_color=None if terminal else True,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=not terminal,
    )


def print_table(
    out: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str]
) -> None:
    """Columns without lines, headings bold, those named in `right` aligned to the right.

    On a terminal cells are cut to its width, in a pipe they never are.
    """
    if not out.is_terminal:
        widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
        for row in (headings, *rows):
            cells = [
                set_cell_size(text, width) if name not in right else text.rjust(width)
                for text, width, name in zip(row, widths, headings, strict=True)
            ]
            out.print("  ".join(cells).rstrip())
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            overflow="ellipsis",
            no_wrap=True,
        )
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_json(value: object) -> None:
    """One JSON value on stdout.

    In ASCII: a lone surrogate from a recorder, or the terminal's encoding, must not end a command.
    """
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
