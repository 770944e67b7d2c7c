"""The program as it is, in a process of its own, that dies at a step or is refused at one.

    python -m tests.crashes.runner --root DIR --journal FILE [--step NAME --how kill] -- once …
    python -m tests.crashes.runner --serve

The first runs one command of `nvr-backup`. The second imports everything once and then, for each
line of JSON on standard input, runs a command in a fork of itself: hundreds of deaths would
otherwise spend most of their time with importing. It forks before any thread or event loop exists.
The daemon is told to stop, as the service manager would, when its first cycle is complete.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

import typer.main

from nvr_backup.cli import app, main
from nvr_backup.safekeeping import Safekeeping
from tests.crashes.watch import Fate, Watch

IMPORTED_BY_COMMANDS = (
    *("nvr_backup.cli.once", "nvr_backup.service", "nvr_backup.rebuild"),
    *("nvr_backup.notify", "nvr_backup.workplace", "uvloop"),
)


def run(order: dict[str, Any]) -> NoReturn:
    """Watch the process from here on and be the program; never returns."""
    fate = Fate(order["step"], order["how"], order["disk"]) if order.get("step") else None
    Watch(order["root"], order["journal"], fate).install()
    sys.argv = ["nvr-backup", *order["arguments"]]
    if order["arguments"][0] == "run":
        end_at_rest()
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def end_at_rest() -> None:
    """Once the daemon has taken the snapshot that follows a cycle, SIGTERM comes."""
    keep = Safekeeping.keep

    async def keep_and_stop(*args: Any) -> None:
        try:
            await keep(*args)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(Safekeeping, "keep", keep_and_stop)  # noqa: B010 - mypy forbids the assignment


def serve() -> None:
    """One order a line; the answer is a line with how it ended (as in `os.waitstatus…`)."""
    for name in IMPORTED_BY_COMMANDS:
        importlib.import_module(name)
    commands = typer.main.get_command(app)  # as much work as a small cycle
    setattr(typer.main, "get_command", lambda _: commands)  # noqa: B010
    gc.freeze()  # what is there stays: no fork copies it only to look at it
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            for number, name, flags in (
                (0, os.devnull, os.O_RDONLY),
                (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                (2, order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            ):
                file = os.open(name, flags)
                os.dup2(file, number)
                os.close(file)
            os.umask(order.get("umask", 0o022))
            run(order)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.crashes.runner")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--root")
    parser.add_argument("--journal")
    parser.add_argument("--step")
    parser.add_argument("--how", choices=("kill", "fill", "ENOSPC", "EIO"), default="kill")
    parser.add_argument("--disk", default="")
    parser.add_argument("arguments", nargs="*")
    told = parser.parse_args()
    if told.serve:
        serve()
    else:
        run(vars(told))
