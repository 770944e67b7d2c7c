"""A daemon that hangs is ended by systemd, with its stack in the journal, and started again."""

from __future__ import annotations

from tests.conftest import Counted
from tests.systemd.site import UNIT, Nvr, Site, Store


def test_a_hung_event_loop(site: Site, nvr: Nvr, store: Store, counted: Counted) -> None:
    site.inject("hang_loop")
    site.drop_in("soon", "WatchdogSec=2", "RestartSec=100ms")
    site.start()
    pid = site.pid
    site.until_stored(nvr, store)
    site.tell_injection("hang")
    site.machine.until(lambda: site.restarts() == 1 and site.is_active(), "a restart")
    assert site.pid != pid
    killed = [text for text in site.machine.messages("-u", UNIT) if "atchdog timeout" in text]
    assert len(killed) == 1
    stack = [str(entry["MESSAGE"]) for entry in site.of_daemon("-p", "err")]
    assert any("this_never_returns" in line for line in stack), stack
    # The new one works.
    nvr.add("Porch")
    site.machine.systemctl("kill", "--signal=USR1", UNIT)
    site.until_stored(nvr, store)
    counted("fault cases")


def test_a_hung_supervisor(site: Site, nvr: Nvr, store: Store, counted: Counted) -> None:
    """The event loop turns, so a bare timer would feed the watchdog for ever."""
    site.inject("hang_pool")
    site.drop_in("soon", "WatchdogSec=2", "RestartSec=100ms")
    site.start()
    pid = site.pid
    site.until_stored(nvr, store)
    site.tell_injection("hang")
    site.machine.until(lambda: site.restarts() == 1 and site.is_active(), "a restart")
    assert site.pid != pid
    assert any("atchdog timeout" in text for text in site.machine.messages("-u", UNIT))
    (hung,) = site.of_daemon("-p", "crit")
    assert "pool" in str(hung["MESSAGE"])
    assert "this_never_comes" in str(hung)
    counted("fault cases")


def test_an_idle_daemon_is_left_alone(site: Site, nvr: Nvr, store: Store) -> None:
    site.drop_in("soon", "WatchdogSec=1")
    site.start()
    site.until_stored(nvr, store)
    pid = site.pid
    fed: set[str] = set()
    while len(fed) < 4:  # each feeding has a time of its own
        fed.add(site.machine.show(UNIT, "WatchdogTimestampMonotonic"))
        assert (site.pid, site.restarts()) == (pid, 0)
