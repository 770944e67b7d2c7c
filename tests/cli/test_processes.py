"""The commands as real processes: signals, pipes, terminals, and bytes compared with the NVR's."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import (
    COMMAND,
    PATIENCE,
    Nvr,
    configuration,
    environment,
    finish,
    footage,
    running,
    simulated,
)

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture
def nvr() -> Iterator[Nvr]:
    with simulated("--clips", "3", "--clip-size", "600K") as nvr:
        yield nvr


# -- run ------------------------------------------------------------------------------------------


def test_a_daemons_life(nvr: Nvr, tmp_path: Path) -> None:
    """Cycle, status beside it, a second engine, SIGUSR1, SIGHUP twice, SIGTERM."""
    config = configuration(tmp_path, nvr)
    with running("run", "--config", str(config)) as daemon:
        assert daemon.until("cycle finished")["stored"] == 9
        assert set(footage(tmp_path / "footage").values()) == nvr.digests()

        beside = finish("status", "--config", str(config), "--json")
        assert (beside.returncode, beside.stderr) == (0, "")
        found = json.loads(beside.stdout)
        assert found["engine"] == {"running": True, "process": daemon.pid}
        assert [camera["stored"] for camera in found["cameras"]] == [3, 3, 3]

        for command in ("run", "once"):
            second = finish(command, "--config", str(config))
            assert second.returncode == 75, second.stderr
            assert f"kill -USR1 {daemon.pid}" in second.stderr

        nvr.order("clips", camera="porch", count=1, start_ms=_an_hour_ago())
        daemon.send(signal.SIGUSR1)
        daemon.until("cycle asked for")
        assert daemon.until("cycle finished")["stored"] == 1

        configuration(tmp_path, nvr, workers="0")
        daemon.send(signal.SIGHUP)
        refused = daemon.until("reload refused, the old configuration stays")
        assert "transfer.workers" in refused["reason"]

        configuration(tmp_path, nvr, workers="3", level="debug")
        daemon.send(signal.SIGHUP)
        for key, old, new in (("log.level", "info", "debug"), ("transfer.workers", "2", "3")):
            changed = daemon.until("changed")
            assert (changed["setting"], changed["old"], changed["new"]) == (key, old, new)
        daemon.until("reloaded")
        daemon.send(signal.SIGUSR1)
        assert daemon.until("watermark")["level"] == "debug"

        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
        assert json.loads(daemon.lines[-1])["message"] == "stopped"


def test_sigterm_drains_and_the_next_run_goes_on(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    nvr.order("faults", name="stall_body", times=1, at_bytes=550_000)
    with running("run", "--config", str(config)) as daemon:
        while nvr.ask("faults")["happened"].get("stall_body", 0) < 1:
            daemon.line()
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    messages = [json.loads(line)["message"] for line in daemon.lines]
    assert messages.count("clip paused") == 1
    assert messages[-1] == "stopped"
    nvr.order("release")
    done = finish("once", "--config", str(config), "--json")
    assert (done.returncode, json.loads(done.stdout)["waiting"]) == (0, 0)
    assert set(footage(tmp_path / "footage").values()) == nvr.digests()


def test_a_second_signal_ends_it_at_once(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    nvr.order("faults", name="hang_listing", times=3)
    with running("run", "--config", str(config)) as daemon:
        daemon.until("cycle started")
        daemon.send(signal.SIGINT)
        daemon.until("draining")
        daemon.send(signal.SIGINT)
        assert daemon.end() in (0, 130)  # 0 when the drain was quicker
    assert all(line.startswith("{") for line in daemon.lines), "".join(daemon.lines)


def test_an_invalid_configuration_is_78(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr, workers="0")
    done = finish("run", "--config", str(config))
    assert done.returncode == 78
    assert "transfer.workers" in done.stderr
    assert not (tmp_path / "state").exists()


# -- once -----------------------------------------------------------------------------------------


def test_once_in_a_pipe(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    done = finish("once", "--config", str(config))
    assert done.returncode == 0
    assert done.stdout.startswith("9 clips stored (5.5 MB in ")
    assert "\x1b" not in done.stdout + done.stderr
    assert all(json.loads(line) for line in done.stderr.splitlines())
    assert set(footage(tmp_path / "footage").values()) == nvr.digests()


def test_once_names_a_clip_that_is_no_video(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    nvr.order("faults", name="html_page", times=1)
    done = finish("once", "--config", str(config), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["stored"], len(found["failed"])) == (8, 1)
    assert found["failed"][0]["reason"]


def test_once_with_a_wrong_password_is_69(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr, password="nonsense-9")
    done = finish("once", "--config", str(config))
    assert done.returncode == 69
    assert "sources.home cannot be used" in done.stdout
    assert "nonsense-9" not in done.stdout + done.stderr


def test_once_without_an_nvr_is_69_and_doctor_says_why(tmp_path: Path) -> None:
    with simulated("--clips", "0") as gone:
        config = configuration(tmp_path, gone)
    assert finish("once", "--config", str(config)).returncode == 69
    found = finish("doctor", "--config", str(config))
    assert found.returncode == 1
    assert "fail  sources.home: " in found.stdout


def test_doctor_of_a_healthy_setup(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    found = finish("doctor", "--config", str(config), "--json")
    assert found.returncode == 0, found.stdout
    assert {one["level"] for one in json.loads(found.stdout)} == {"ok"}
    assert footage(tmp_path / "footage") == {}


def on_a_terminal(*arguments: str, interrupt_at: bytes | None = None) -> tuple[int, bytes]:
    """Run a command on a pseudo terminal of 80 columns; the exit code and all it wrote."""
    master, slave = pty.openpty()
    more = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(**more)
    )
    os.close(slave)
    written = b""
    try:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the terminal's last user is gone
                break
            if not piece:
                break
            written += piece
            if interrupt_at is not None and interrupt_at in written:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
        return process.wait(PATIENCE), written
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_once_on_a_terminal_shows_its_progress(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    nvr.order("faults", name="slow_body", times=4, seconds=0.3)
    code, written = on_a_terminal("once", "--config", str(config))
    assert code == 0
    assert b"Backing up" in written
    assert "━".encode() in written
    assert b"9 clips stored" in written
    assert b'{"time"' not in written


def test_once_interrupted_drains_and_says_so(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    nvr.order("faults", name="stall_body", times=9, at_bytes=300_000)
    code, written = on_a_terminal("once", "--config", str(config), interrupt_at=b"300.0 kB")
    assert code == 130
    assert b"Interrupted; the next time goes on from here." in written
    nvr.order("disarm")
    nvr.order("release")
    assert finish("once", "--config", str(config)).returncode == 0
    assert set(footage(tmp_path / "footage").values()) == nvr.digests()


def test_a_status_is_watched_in_place_and_in_a_pipe(nvr: Nvr, tmp_path: Path) -> None:
    config = configuration(tmp_path, nvr)
    assert finish("once", "--config", str(config)).returncode == 0
    code, written = on_a_terminal(
        "status", "--watch", "--config", str(config), interrupt_at=b"\x1b[2K"
    )  # a line is erased: it was drawn a second time
    assert code == 0
    assert written.count(b"Backlog") >= 2
    with running("status", "--watch", "--config", str(config), read="stdout") as watching:
        while sum(line.startswith("Engine") for line in watching.lines) < 2:
            watching.line()
        watching.send(signal.SIGINT)
        assert watching.end() == 0


# -- demo and simulate ----------------------------------------------------------------------------


def test_the_demo_twice_on_the_same_folder(tmp_path: Path) -> None:
    demo = ("demo", "--once", "--dir", str(tmp_path / "demo"))
    first = finish(*demo)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "72 clips stored, 72 identical to what the simulated NVR holds." in first.stdout
    assert "\x1b" not in first.stdout
    files = footage(tmp_path / "demo" / "footage")
    assert len(files) == len(set(files.values())) == 72

    again = finish(*demo)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "From before: 72 clips stored, 72 identical" in again.stdout
    assert footage(tmp_path / "demo" / "footage") == files

    looked = finish("status", "--config", str(tmp_path / "demo" / "config.toml"))
    assert looked.returncode == 0, looked.stdout
    assert "Porch" in looked.stdout


def test_the_demo_notices_what_is_not_identical(tmp_path: Path) -> None:
    demo = ("demo", "--once", "--dir", str(tmp_path))
    assert finish(*demo).returncode == 0
    folder = tmp_path / "footage"
    spoilt, deleted, *_ = sorted(footage(folder))
    data = bytearray((folder / spoilt).read_bytes())
    data[-1] ^= 1
    (folder / spoilt).write_bytes(data)
    (folder / deleted).unlink()
    (folder / "stray.mp4").write_bytes(b"x")
    done = finish(*demo)
    assert done.returncode == 1
    assert "72 clips stored, 70 identical" in done.stdout
    for text in (f"{spoilt} differs", f"{deleted} differs", "stray.mp4 is a stray"):
        assert text in done.stdout


def test_the_demo_goes_on_until_it_is_interrupted(tmp_path: Path) -> None:
    with running("demo", "--dir", str(tmp_path), read="stdout") as demo:
        while "New ones follow every ten seconds; Ctrl-C ends." not in demo.line():
            pass
        demo.send(signal.SIGINT)
        assert demo.end() == 0
    assert any("identical to what the simulated NVR holds" in line for line in demo.lines[-3:])


def test_the_demo_keeps_out_of_other_folders(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    done = finish("demo", "--once", "--dir", str(tmp_path))
    assert done.returncode == 78
    assert "is not empty and was not made by the demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_simulate_prints_what_a_configuration_needs(tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    with running(
        "simulate", "--port", "0", "--tls", "--clips", "2", "--cameras", "4", read="stdout"
    ) as nvr:
        while "tls_fingerprint" not in nvr.line():
            pass
        text = "".join(nvr.lines)
        snippet = text[text.index("[sources.") :]
        source = tomllib.loads(snippet)["sources"]["simulated"]
        assert source["url"].startswith("https://127.0.0.1:")
        assert source["url"] in text.splitlines()[0]
        config = tmp_path / "config.toml"
        config.write_text(
            f'state_dir = "state"\n{snippet}\n[stores.nas]\nkind = "directory"\npath = "footage"\n'
        )
        done = finish("once", "--config", str(config), "--json")
        assert (done.returncode, json.loads(done.stdout)["stored"]) == (0, 8), done.stderr
        nvr.send(signal.SIGINT)
        assert nvr.end() == 0


def test_simulate_on_a_taken_port() -> None:
    with simulated("--clips", "0") as other:
        done = finish("simulate", "--port", other.url.rpartition(":")[2])
    assert done.returncode == 1
    assert done.stderr.startswith("nvr-backup: Cannot listen on 127.0.0.1:")


def _an_hour_ago() -> int:
    import time

    return int((time.time() - 3600) * 1000)
