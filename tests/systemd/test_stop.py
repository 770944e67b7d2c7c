"""Stop and kill in the middle of a large transfer: what was sent stays sent."""

from __future__ import annotations

import time

from tests.conftest import Counted
from tests.systemd.site import CHUNK, MIB, UNIT, Nvr, Site, Store

GIB = 1024 * MIB
STOP_SECONDS = 5.0
"""What a stop in the middle of a transfer may take; it needs a tenth of that."""


def test_a_stop_in_a_transfer_of_a_gigabyte_is_quick_and_resumes(
    site: Site, store: Store, counted: Counted
) -> None:
    with site.nvr("--cameras", "1", "--clips", "0") as nvr:
        nvr.add("Porch", size=GIB)
        site.start()
        site.machine.until(lambda: store.received() > GIB // 4, "a quarter of it")
        store.slow_down(0.2)  # so that it cannot end before the stop
        begun = time.monotonic()
        site.stop()
        took = time.monotonic() - begun
        assert took < STOP_SECONDS
        assert site.machine.show(UNIT, "Result") == "success"
        assert store.objects() == {}
        store.full_speed()
        site.start()
        site.until_stored(nvr, store)
        assert store.received() <= GIB + CHUNK
        assert store.uploads() == 1
    counted("crash points")


def test_a_kill_in_two_transfers_costs_at_most_a_chunk_of_each(
    site: Site, store: Store, counted: Counted
) -> None:
    site.drop_in("soon", "RestartSec=100ms")
    with site.nvr("--cameras", "2", "--clips", "0") as nvr:
        for camera in ("Porch", "Garden"):
            nvr.add(camera, size=GIB // 2)
        site.start()
        pid = site.pid
        site.machine.until(lambda: store.received() > GIB // 4, "a quarter of both")
        site.machine.run("sh", "-c", f"kill -KILL {pid}")
        assert store.objects() == {}
        site.until_stored(nvr, store)
        assert site.restarts() == 1
        assert store.received() <= GIB + 2 * CHUNK
        assert store.uploads() == 2
    counted("crash points")


def test_a_second_signal_ends_it_at_once(site: Site, store: Store, counted: Counted) -> None:
    with site.nvr("--cameras", "1", "--clips", "0") as nvr:
        nvr.add("Porch", size=8 * CHUNK)
        store.slow_down(3600)  # no answer to the first chunk: a drain would wait for it
        site.start()
        site.machine.until(lambda: store.received() >= CHUNK, "the first chunk")
        site.machine.systemctl("stop", "--no-block", UNIT)
        site.machine.until(lambda: site.said("draining"), "the begin of the drain")
        assert not site.is_active() and site.pid
        site.machine.systemctl("kill", "--signal=TERM", UNIT)
        site.machine.until(lambda: not site.pid, "the end")
        assert site.said("stopping at once")
        site.machine.until(lambda: site.machine.show(UNIT, "ActiveState") == "inactive", "success")
        store.full_speed()
        store.do("release")
        site.start()
        site.until_stored(nvr, store)
        assert store.received() <= 9 * CHUNK
        assert store.uploads() == 1
    counted("fault cases")


def test_one_that_cannot_stop_is_killed(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    site.inject("hang_loop")
    site.drop_in("impatient", "TimeoutStopSec=1")
    site.start()
    site.until_stored(nvr, store)
    begun = store.uploads()
    hang = site.tell_injection("hang")
    site.machine.until(lambda: not hang.exists(), "it hangs")
    site.stop()
    assert site.machine.show(UNIT, "Result") == "timeout"
    nvr.add("Porch")
    site.start()
    site.until_stored(nvr, store)
    assert store.uploads() == begun + 1
    counted("crash points")
