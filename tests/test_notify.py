"""What reaches the service manager, over a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvr_backup.notify import STATUS_BYTES, Notifier
from tests.support.notify_socket import NotifySocket


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "notify") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
        yield manager


@pytest.fixture
def notifier(manager: NotifySocket) -> Iterator[Notifier]:
    with Notifier.from_environment() as notifier:
        yield notifier


def test_every_message_is_a_datagram_of_its_own(manager: NotifySocket, notifier: Notifier) -> None:
    assert notifier.listening
    notifier.ready()
    notifier.status("3 cameras safe")
    notifier.alive()
    notifier.extend(1.5)
    notifier.stopping()
    assert manager.said() == [
        "READY=1",
        "STATUS=3 cameras safe",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1",
    ]


def test_a_reload_says_when_it_began_by_the_monotonic_clock(
    manager: NotifySocket, notifier: Notifier
) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    (message,) = manager.said()
    first, second = message.split("\n")
    assert first == "RELOADING=1"
    name, value = second.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("name", ["Hoftür", "玄関", "🎥", "\ud800"])
def test_a_status_may_have_any_character(
    manager: NotifySocket, notifier: Notifier, name: str
) -> None:
    notifier.status(f"{name} blocked")
    assert manager.said() == [f"STATUS={name} blocked".encode("utf-8", "replace").decode()]
    assert notifier.lost == 0


def test_a_status_is_one_line_and_cannot_smuggle_a_message(
    manager: NotifySocket, notifier: Notifier
) -> None:
    notifier.status("a\nREADY=1\rb\u2028c")
    assert manager.said() == ["STATUS=a READY=1 b c"]


def test_a_long_status_is_cut_between_characters(manager: NotifySocket, notifier: Notifier) -> None:
    notifier.status("€" * STATUS_BYTES)
    assert manager.said() == ["STATUS=" + "€" * (STATUS_BYTES // 3)]


def test_a_manager_that_does_not_read_holds_nothing_up(
    manager: NotifySocket, notifier: Notifier
) -> None:
    while not notifier.lost:
        notifier.status("x" * 1000)  # until its queue is full
    notifier.ready()
    assert notifier.lost == 2
    assert len(manager.said()) > 1
    notifier.ready()
    assert manager.said()[-1] == "READY=1"


def test_a_manager_that_went_away_ends_nothing(manager: NotifySocket, notifier: Notifier) -> None:
    manager.path.unlink()
    manager.__exit__(None, None, None)
    notifier.ready()
    assert notifier.lost == 1


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_said(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)
    notifier.ready()
    assert not notifier.listening
    assert notifier.lost == 0
    assert notifier.watchdog_seconds is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify's socket
def test_an_address_that_nobody_has_is_no_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not Notifier.from_environment().listening


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # Linux chooses an abstract address
        address = manager.getsockname()
        assert address[:1] == b"\0"
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + address[1:].decode())
        with Notifier.from_environment() as notifier:
            notifier.ready()
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_watchdog_is_ours_or_not(
    manager: NotifySocket, usec: str, pid: str | None, seconds: float | None
) -> None:
    environ = manager.environ | {"WATCHDOG_USEC": usec}
    if pid is not None:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "own" else pid
    with Notifier.from_environment(environ) as notifier:
        assert notifier.watchdog_seconds == seconds
