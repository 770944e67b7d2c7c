"""`systemctl reload`: synchronous, refused when the file is broken, and no transfer notices it."""

from __future__ import annotations

from tests.conftest import Counted
from tests.systemd.site import CHUNK, CONFIG, MIB, PASSWORD, UNIT, Nvr, Site, Store

CLIP = 12 * CHUNK + 4321


def signals(site: Site) -> int:
    """How often the daemon has read its configuration again."""
    return len(site.said("reloaded"))


def test_a_reload_in_the_middle_of_a_transfer(site: Site, store: Store, counted: Counted) -> None:
    with site.nvr("--cameras", "1", "--clips", "0") as nvr:
        nvr.add("Porch", size=CLIP)
        store.slow_down(0.4)
        site.start()
        pid = site.pid
        site.machine.until(lambda: store.received() > CHUNK, "the first chunk")
        site.configure(transfer={"workers": 3}, log={"level": "debug"})
        site.machine.systemctl("reload", UNIT)
        # It is synchronous: what the daemon says of it is said, once, when the command returns.
        assert signals(site) == 1
        (change,) = [entry for entry in site.said("changed") if "workers" in str(entry)]
        assert "3" in str(change["MESSAGE"])
        assert site.pid == pid
        assert store.objects() == {}, "the transfer ended before the reload: make the clip larger"
        store.full_speed()
        site.until_stored(nvr, store)
        assert store.received() == CLIP  # not a byte twice
        assert (site.pid, site.restarts()) == (pid, 0)
    counted("fault cases")


def test_a_broken_file_is_refused_and_the_daemon_never_hears_of_it(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    site.start()
    site.until_stored(nvr, store)
    pid, status = site.pid, site.status_text()
    for broken in ("not toml", "[sources.home]\nkind = 'scrypted'\n", None):
        if broken is None:  # the file is good and the daemon may not read it
            site.configure()
            site.machine.path(CONFIG).chmod(0o600)
        else:
            site.machine.write(CONFIG, broken)
        refused = site.machine.run("systemctl", "reload", UNIT, code=None)
        assert refused.returncode != 0
    said = site.of_daemon("-p", "err")
    assert any(CONFIG in str(entry["MESSAGE"]) for entry in said)
    assert signals(site) == 0
    assert not site.said("refused")
    assert site.is_active()
    assert (site.pid, site.status_text(), site.restarts()) == (pid, status, 0)
    # It goes on with what it has; a reload with a good file works again.
    nvr.add("Porch")
    site.machine.systemctl("kill", "--signal=USR1", UNIT)
    site.until_stored(nvr, store)
    site.configure(schedule={"every": "2h"})
    site.machine.systemctl("reload", UNIT)
    assert signals(site) == 1
    assert site.pid == pid
    counted("fault cases", 3)


def test_a_changed_secret_is_said_to_have_changed_and_no_more(
    site: Site, nvr: Nvr, store: Store
) -> None:
    """A secret in the file: credentials are systemd's, and change with a restart."""
    site.password("")  # an empty credential counts as not set
    home = {"password": PASSWORD}
    site.configure(**{"sources.home": home})
    site.start()
    site.until_stored(nvr, store)
    home["password"] = "another one: 81735"
    site.configure(**{"sources.home": home}, transfer={"chunk_size": "4MiB"})
    site.machine.systemctl("reload", UNIT)
    changed = [str(entry) for entry in site.said("changed")]
    assert any("sources.home.password" in entry for entry in changed)
    assert any("4MiB" in entry or str(4 * MIB) in entry for entry in changed)
    journal = site.machine.run("journalctl", "--all", "--output=export").stdout
    assert "81735" not in journal
    assert PASSWORD not in journal


def test_the_state_folder_cannot_change_at_run_time(site: Site, nvr: Nvr, store: Store) -> None:
    site.start()
    site.until_stored(nvr, store)
    site.machine.write(CONFIG, 'state_dir = "/var/lib/elsewhere"\n' + site.text())
    site.machine.systemctl("reload", UNIT)
    (warning,) = site.of_daemon("-p", "warning..warning")
    assert "state_dir" in str(warning["MESSAGE"])
    assert site.is_active()
