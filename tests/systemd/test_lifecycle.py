"""Start, restart, stop and failure, as systemd sees them."""

from __future__ import annotations

from tests.conftest import Counted
from tests.systemd.site import CONFIG, CREDENTIALS, PASSWORD, RUN, UNIT, Nvr, Site, Store


def test_start_returns_when_the_daemon_is_ready(site: Site, nvr: Nvr, store: Store) -> None:
    site.inject("hold")
    starting = site.machine.start("systemctl", "start", UNIT)
    held = site.machine.path(f"{RUN}/held")
    site.machine.until(held.exists, "the daemon reached its checkpoint")
    assert site.machine.show(UNIT, "ActiveState") == "activating"
    assert starting.poll() is None
    site.tell_injection("go")
    assert starting.wait() == 0
    assert site.is_active()
    site.until_stored(nvr, store)


def test_a_start_may_take_long_while_it_makes_progress(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    """A large checkpoint is looked at, or migrated, before it is ready (EXTEND_TIMEOUT_USEC)."""
    site.inject("slow")
    site.drop_in("impatient", "TimeoutStartSec=5", "TimeoutStopSec=2", "RestartSec=1h")
    starting = site.machine.start("systemctl", "start", UNIT)
    begun = site.machine.until(lambda: site.moment("InactiveExit"), "the begin of the start")
    site.machine.until(lambda: site.uptime() - begun > 7, "more time than it has")
    assert starting.poll() is None
    site.tell_injection("go")
    assert starting.wait() == 0
    assert site.moment("ActiveEnter") - begun > 7
    site.until_stored(nvr, store)
    site.stop()
    # One that does not move is ended.
    starting = site.machine.start("systemctl", "start", UNIT)
    site.machine.until(site.machine.path(RUN).exists, "the begin of the start")
    site.tell_injection("idle")
    assert starting.wait() != 0
    assert site.machine.show(UNIT, "Result") == "timeout"
    counted("fault cases")


def test_a_start_without_the_nvr_comes_up_and_recovers(site: Site, store: Store) -> None:
    site.inject("hurry")
    site.start()
    assert site.is_active()
    site.machine.until(lambda: "home" in site.status_text(), "the source is named in the status")
    pid = site.pid
    with site.nvr("--cameras", "1", "--clips", "2") as nvr:
        site.until_stored(nvr, store)
        site.machine.until(lambda: "1 camera safe" in site.status_text(), "safe again")
    assert (site.pid, site.restarts()) == (pid, 0)


def test_the_status_is_a_line_for_people(site: Site, nvr: Nvr, store: Store) -> None:
    site.inject("hurry")
    site.start()
    site.until_stored(nvr, store)
    site.machine.until(lambda: "1 camera safe to" in site.status_text(), "the status")
    shown = site.machine.systemctl("status", UNIT)
    assert f'Status: "{site.status_text()}"' in shown
    assert "0 clips waiting" in shown
    assert "next cycle" in shown


def test_a_configuration_error_is_not_tried_again(site: Site, counted: Counted) -> None:
    site.drop_in("soon", "RestartSec=100ms")
    site.machine.write(CONFIG, "this is = not a configuration\n")
    failed = site.machine.run("systemctl", "start", UNIT, code=None)
    assert failed.returncode != 0
    assert site.machine.show(UNIT, "ActiveState") == "failed"
    assert site.machine.show(UNIT, "ExecMainStatus") == "78"
    assert site.restarts() == 0
    assert any(CONFIG in str(entry["MESSAGE"]) for entry in site.of_daemon("-p", "err"))
    counted("fault cases")


def test_a_credential_that_is_missing_is_not_tried_again(site: Site, counted: Counted) -> None:
    site.drop_in("soon", "RestartSec=100ms")
    site.machine.run("rm", f"{CREDENTIALS}/sources.home.password")
    failed = site.machine.run("systemctl", "start", UNIT, code=None)
    assert failed.returncode != 0
    # Systemd itself says so (243), or gives the daemon the unit's own empty one.
    assert site.machine.show(UNIT, "ExecMainStatus") in {"78", "243"}
    assert site.restarts() == 0
    assert any("sources.home.password" in text for text in site.messages("-p", "err"))
    counted("fault cases")


def test_a_killed_daemon_is_started_again(
    site: Site, nvr: Nvr, store: Store, counted: Counted
) -> None:
    site.drop_in("soon", "RestartSec=100ms")
    site.start()
    site.until_stored(nvr, store)
    pid = site.pid
    site.machine.run("sh", "-c", f"kill -KILL {pid}")
    site.machine.until(lambda: site.restarts() == 1 and site.is_active(), "a restart")
    assert site.pid != pid
    counted("fault cases")


def test_the_state_outlives_restarts(site: Site, nvr: Nvr, store: Store) -> None:
    site.start()
    site.until_stored(nvr, store)
    begun = store.uploads()
    site.stop()
    assert site.machine.show(UNIT, "Result") == "success"
    folder = "/var/lib/private/nvr-backup"
    assert site.machine.run("stat", "-c", "%a", folder).stdout.strip() == "700"
    site.start()
    pid = site.pid
    nvr.add("Porch")
    site.machine.systemctl("kill", "--signal=USR1", UNIT)
    site.until_stored(nvr, store)
    assert store.uploads() == begun + 1, "the new clip, and nothing again"
    assert site.machine.path(f"/proc/{pid}/status").read_text().count("Uid:\t0") == 0


def test_secrets_reach_the_daemon_and_nobody_else(site: Site, nvr: Nvr, store: Store) -> None:
    site.configure(log={"level": "debug"})
    site.start()
    site.until_stored(nvr, store)  # the password and the key were right
    site.machine.systemctl("reload", UNIT)
    key = site.machine.path(f"{CREDENTIALS}/stores.offsite.credentials_file").read_text()
    (secret_line,) = [line for line in key.split("\\n") if len(line) == 64][3:4]
    needles = [PASSWORD, secret_line]
    shown = [
        site.machine.run("journalctl", "--all", "--output=export").stdout,
        site.machine.systemctl("show", UNIT),
        site.machine.systemctl("status", "--full", UNIT),
        site.machine.systemctl("cat", UNIT),
    ]
    processes = set()
    for process in site.machine.path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                shown.append((process / name).read_text(errors="replace"))
            except OSError:
                continue
            processes.add(int(process.name))
    assert processes >= {1, site.pid}
    for needle in needles:
        assert len(needle) > 20
        assert not any(needle in text for text in shown)
    environ = site.machine.path(f"/proc/{site.pid}/environ").read_text()
    folder = environ.partition("CREDENTIALS_DIRECTORY=")[2].partition("\0")[0]
    peeking = ["setpriv", "--reuid", "65534", "--clear-groups"]
    for name in ("sources.home.password", "stores.offsite.credentials_file"):
        for file in (f"{folder}/{name}", f"{CREDENTIALS}/{name}"):
            assert site.machine.run(*peeking, "cat", file, code=None).returncode != 0
            assert site.machine.run("cat", file).stdout
    site.stop()
    assert not site.machine.path(folder).exists()


def test_a_second_daemon_of_the_same_checkpoint_is_refused(
    site: Site, nvr: Nvr, store: Store
) -> None:
    site.start()
    beside = site.machine.run("nvr-backup", "once", code=None)
    assert beside.returncode == 75, beside.stderr
    assert site.is_active()
