"""What an operator asks the journal."""

from __future__ import annotations

from typing import Any

from tests.conftest import Counted
from tests.systemd.site import MIB, UNIT, Nvr, Site, Store

PRIORITIES = {"emerg": 0, "crit": 2, "err": 3, "warning": 4, "info": 6, "debug": 7}


def priorities(entries: list[dict[str, Any]]) -> set[int]:
    return {int(entry["PRIORITY"]) for entry in entries}


def test_questions_by_camera_and_priority(site: Site, store: Store, counted: Counted) -> None:
    with site.nvr("--cameras", "2", "--clips", "1") as nvr:
        nvr.do("faults", name="html_page", camera="Porch", times=1)
        site.start()
        site.machine.until(lambda: len(store.objects()) == 1, "Garden's clip")
        site.machine.until(lambda: site.of_daemon("-p", "warning"), "Porch's trouble")
        trouble = site.journal("-u", UNIT, "CAMERA=Porch", "-p", "warning")
        assert trouble
        assert priorities(trouble) == {PRIORITIES["warning"]}
        assert {entry["CAMERA"] for entry in trouble} == {"Porch"}
        assert not site.journal("-u", UNIT, "CAMERA=Garden", "-p", "warning")
        cameras = site.machine.run("journalctl", "-u", UNIT, "--field=CAMERA").stdout.split()
        assert sorted(cameras) == ["Garden", "Porch"]
        (found,) = [one for one in site.journal("CAMERA=Garden") if "stored" in one["MESSAGE"]]
        (held,) = store.ask("objects")
        assert found["OBJECT_KEY"] == held["name"]
        assert found["BYTES"] == str(held["size"])
        assert (found["SOURCE"], found["STORE"]) == ("home", "offsite")
        assert found["CLIP_ID"] and found["CYCLE"]
        assert found["PRIORITY"] == str(PRIORITIES["info"])
        assert held["name"] in found["MESSAGE"]
        # One clip's whole story, and one cycle's.
        story = site.journal(f"CLIP_ID={found['CLIP_ID']}")
        assert len(story) >= 2
        cycle = site.journal(f"CYCLE={found['CYCLE']}")
        assert {one.get("CAMERA") for one in cycle} >= {"Porch", "Garden"}
    counted("fault cases")


def test_every_entry_is_the_daemons_and_readable(site: Site, nvr: Nvr, store: Store) -> None:
    site.configure(log={"level": "debug"})
    site.start()
    site.until_stored(nvr, store)
    site.stop()
    entries = site.of_daemon()
    assert len(entries) > 5
    for entry in entries:
        assert entry["_TRANSPORT"] == "journal"
        assert entry["SYSLOG_IDENTIFIER"] == "nvr-backup"
        assert isinstance(entry["MESSAGE"], str)
        assert not entry["MESSAGE"].lstrip().startswith("{")
    assert priorities(entries) <= {PRIORITIES["info"], PRIORITIES["debug"]}
    assert PRIORITIES["debug"] in priorities(entries)


def test_a_crash_is_one_entry_with_its_traceback(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    site.inject("bug")
    site.drop_in("soon", "RestartSec=100ms")
    site.start()
    site.until_stored(nvr, store)
    site.tell_injection("crash")
    site.machine.systemctl("kill", "--signal=USR1", UNIT)
    site.machine.until(lambda: site.restarts() > 0, "a restart")
    site.machine.run("systemctl", "stop", UNIT)
    found = [entry for entry in site.of_daemon() if "a bug" in str(entry)]
    assert found
    for entry in found:
        assert int(entry["PRIORITY"]) <= PRIORITIES["err"], entry["MESSAGE"]
    whole = [entry for entry in found if "Traceback" in str(entry["MESSAGE"])]
    assert any("in plan" in str(entry["MESSAGE"]) for entry in whole)
    informed = site.of_daemon("-p", "info..info")
    assert not any("Traceback" in str(entry["MESSAGE"]) for entry in informed)
    counted("fault cases")


def test_a_large_clip_is_a_few_lines(site: Site, store: Store) -> None:
    site.configure(transfer={"chunk_size": "256KiB"})
    with site.nvr("--cameras", "1", "--clips", "0") as nvr:
        nvr.add("Porch", size=40 * MIB + 1)
        site.start()
        site.until_stored(nvr, store)
        chunks = [one for one in store.journal() if one["where"] == "chunk"]
        assert len(chunks) > 100
        about = site.journal("-u", UNIT, "CAMERA=Porch", "-p", "info")
        assert 1 <= len(about) <= 4
