"""What docs/monitoring.md promises of the journal, on the real one.

Its commands are run as they stand there. The journal is disturbed, too: it starts anew, it hangs.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import Counted
from tests.systemd.machine import Machine
from tests.systemd.site import CONFIG, UNIT, Nvr, Site, Store

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"
SMILES = "\N{GRINNING FACE}" * 65_000

Entry = dict[str, Any]


def priorities(entries: list[Entry]) -> set[str]:
    return {entry["PRIORITY"] for entry in entries}


def test_each_level_has_its_priority(site: Site, nvr: Nvr, store: Store, counted: Counted) -> None:
    site.configure(log={"level": "debug"})
    nvr.do("faults", name="html_page", times=1)
    site.start()
    site.machine.until(lambda: site.said("watermark"), "the end of the first cycle")
    site.machine.write(CONFIG, "[schedul]\n")
    site.machine.systemctl("kill", "--signal=HUP", UNIT)
    site.machine.until(lambda: site.said("reload refused"), "a reload that is refused")
    for what, priority in (
        ("reload refused, the old configuration stays", "3"),
        ("clip failed", "4"),
        ("clip stored", "6"),
        ("watermark", "7"),
    ):
        assert priorities(site.journal("-u", UNIT, f"WHAT={what}")) == {priority}, what
    assert {entry["WHAT"] for entry in site.of_daemon("-p", "err")} == {
        "reload refused, the old configuration stays"
    }
    assert all("WHAT" in entry for entry in site.of_daemon()), "something came past the log"
    site.stop()
    assert site.of_daemon()[-1]["WHAT"] == "stopped", "known as the unit's although it is gone"
    counted("fault cases")


def test_large_entries_and_tracebacks_under_the_units_restrictions(
    site: Site, nvr: Nvr, store: Store
) -> None:
    site.inject("talk")
    site.start()
    (large,) = site.journal("-u", UNIT, "WHAT=large", "CAMERA=Yard")
    assert large["TEXT"] == SMILES  # 260 kB: in a sealed memfd
    assert large["_TRANSPORT"] == "journal"
    (broken,) = site.journal("-u", UNIT, "CAMERA=Porch", "-p", "err")
    first, second, *_, before, last = broken["MESSAGE"].split("\n")
    assert (first, second) == ("broken: Porch", "Traceback (most recent call last):")
    assert (before, last) == ("RuntimeError: a failure", "of two lines")


def test_a_configuration_that_cannot_be_used_is_an_error_of_the_unit(
    site: Site, counted: Counted
) -> None:
    site.machine.write(CONFIG, "[schedul]\n")
    site.machine.systemctl("start", UNIT, code=None)
    said = site.of_daemon()
    assert any("schedul" in str(entry["MESSAGE"]) for entry in said)
    assert priorities(said) == {"3"}
    counted("fault cases")


def test_a_journald_that_starts_anew_is_found(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    site.start()
    site.until_stored(nvr, store)
    pid = site.pid
    site.machine.systemctl("restart", "systemd-journald.service")
    nvr.add("Porch")
    site.machine.systemctl("kill", "--signal=USR1", UNIT)
    site.until_stored(nvr, store)
    site.machine.until(lambda: len(site.said("clip stored")) == 3, "the third message")
    assert {entry["_TRANSPORT"] for entry in site.said("clip stored")} == {"journal"}
    assert site.pid == pid
    counted("fault cases")


def test_a_journald_that_hangs_holds_nothing_up(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    """Its queue is far too short for all of these (net.unix.max_dgram_qlen)."""
    site.configure(log={"level": "debug"})
    site.start()
    site.until_stored(nvr, store)
    journald = site.machine.show("systemd-journald.service", "MainPID")
    site.machine.run("sh", "-c", f"kill -STOP {journald}")
    try:
        nvr.add("Porch", count=40)
        site.machine.run("sh", "-c", f"kill -USR1 {site.pid}")
        site.until_stored(nvr, store)
    finally:
        site.machine.run("sh", "-c", f"kill -CONT {journald}")
    site.machine.until(lambda: len(site.said("clip stored")) == 42, "all of it was kept for it")
    of_both = {entry["_TRANSPORT"] for entry in site.said("clip stored")}
    assert of_both == {"journal", "stdout"}, "the fallback was needed"
    assert priorities(site.said("clip stored")) == {"6"}
    assert not site.said("log entries lost")
    counted("fault cases")


def commands() -> list[str]:
    section = re.search(r"^## Ten commands\n.*?```sh\n(.*?)```", DOCUMENT.read_text(), re.M | re.S)
    assert section is not None
    return [line for line in section[1].splitlines() if not line.startswith("#")]


def test_the_documented_commands_find_what_they_are_for(
    site: Site, store: Store, counted: Counted
) -> None:
    with site.nvr("--cameras", "2", "--clips", "2") as nvr:
        nvr.do("faults", name="html_page", camera="Porch", times=1)
        site.inject("hurry")
        site.start()
        site.machine.until(lambda: site.said("cycle finished"), "the end of the first cycle")
        (failed,) = site.journal("-u", UNIT, "WHAT=clip failed")
    for line in commands():
        if "jq" in line and shutil.which("jq") is None:
            continue
        found = run_as_documented(site.machine, line, failed)
        assert found.strip(), f"found nothing: {line}"
    counted("fault cases")


def run_as_documented(machine: Machine, line: str, example: Entry) -> str:
    """What the line prints, with this journal's clip and cycle in place of the example's."""
    told = re.sub(r"OBJECT_KEY=\S+", f"OBJECT_KEY={shlex.quote(example['OBJECT_KEY'])}", line)
    told = re.sub(r"CYCLE=\S+", f"CYCLE={example['CYCLE']}", told)
    if told.endswith(" -f"):
        told = f"timeout 1 {told} || test $? = 124"
    return machine.run("bash", "-o", "pipefail", "-c", told).stdout
