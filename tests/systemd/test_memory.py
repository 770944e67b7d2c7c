"""A memory limit that systemd enforces holds over gigabytes."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Counted
from tests.systemd.machine import Machine
from tests.systemd.site import MIB, UNIT, Site, Store

LIMIT = 256 * MIB
CLIP = 640 * MIB
CLIPS = 4


def cgroup_value(machine: Machine, *names: str) -> int:
    """A number of the service's memory cgroup: the first of these files that exists."""
    group = machine.show(UNIT, "ControlGroup").lstrip("/")
    for top in ("sys/fs/cgroup/memory", "sys/fs/cgroup"):
        for name in names:
            file = machine.path(Path(top) / group / name)
            if file.exists():
                return int(file.read_text())
    raise AssertionError(f"no {names} in {group}")


def test_memory_stays_flat_over_gigabytes(site: Site, store: Store, counted: Counted) -> None:
    site.drop_in("memory", "MemoryHigh=infinity", f"MemoryMax={LIMIT}", "MemorySwapMax=0")
    with site.nvr("--cameras", "1", "--clips", "0", "--digests", "none") as nvr:
        nvr.add("Porch", size=CLIP, count=CLIPS)
        site.configure(transfer={"workers": CLIPS})
        site.start()
        pid = site.pid
        limit = cgroup_value(site.machine, "memory.max", "memory.limit_in_bytes")
        assert limit == LIMIT, "the limit is in force"
        site.until_stored(nvr, store)
        assert (site.pid, site.restarts()) == (pid, 0)
        status = site.machine.path(f"/proc/{pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        assert peak < LIMIT
        assert store.received() == CLIP * CLIPS
    counted("fault cases")
