"""The journal's own form: what goes over its socket, read by a parser made from its documentation.

A real datagram socket stands for journald, a real stream socket for stderr.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from nvr_backup.cli import exits
from nvr_backup.errors import ConfigError
from nvr_backup.journal import field_name, is_journal, prefixed, sentence
from nvr_backup.logs import LOUD_FAILURES, Floods, Level, configure, of_cycle
from nvr_backup.redaction import MAX_TEXT
from tests.test_logs import _restore_logging  # noqa: F401 - puts the logging of others back

log = structlog.get_logger()

# Not taken from the code: https://systemd.io/JOURNAL_NATIVE_PROTOCOL and fcntl(2).
FIELD = re.compile(rb"[A-Z][A-Z0-9_]{0,63}")
F_GET_SEALS, SEAL, SHRINK, GROW, WRITE = 1034, 1, 2, 4, 8

Fields = dict[str, list[str]]


def parsed(data: bytes) -> Fields:
    """One entry of the native protocol; anything that journald would not take is an error."""
    found: Fields = {}
    rest = data
    while rest:
        line, end, rest = rest.partition(b"\n")
        assert end, f"no line end after {line[:100]!r}"
        name, is_text, value = line.partition(b"=")
        if not is_text:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert len(value) == size
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert FIELD.fullmatch(name), f"journald drops the field {name!r}"
        found.setdefault(name.decode(), []).append(value.decode("utf-8"))
    return found


class Journald:
    """The receiving end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.files = 0

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def take(self) -> Fields | None:
        """The next entry, None if there is none."""
        try:
            data, files, flags, _ = socket.recv_fds(self._socket, 1 << 20, 4)
        except BlockingIOError:
            return None
        assert not flags & socket.MSG_TRUNC
        if files:
            self.files += 1
            (file,) = files
            try:
                assert data == b"", "a file with a payload beside it is refused"
                assert fcntl.fcntl(file, F_GET_SEALS) == SEAL | SHRINK | GROW | WRITE
                data = os.pread(file, os.fstat(file).st_size, 0)
            finally:
                os.close(file)
        return parsed(data)

    def entries(self) -> list[Fields]:
        found = []
        while (entry := self.take()) is not None:
            found.append(entry)
        return found


@dataclass
class Unit:
    """A process as systemd starts it: stderr is a socket to the journal, which is named to it."""

    journald: Journald
    stderr: TextIO
    far_end: socket.socket

    @property
    def environ(self) -> dict[str, str]:
        found = os.fstat(self.stderr.fileno())
        return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}

    def configure(self, level: Level = "debug") -> None:
        configure(level, self.stderr, environ=self.environ, journal=str(self.journald.path))

    def printed(self) -> bytes:
        """What came over stderr so far."""
        found = bytearray()
        with suppress(BlockingIOError):
            while part := self.far_end.recv(1 << 20):
                found += part
        return bytes(found)

    def one(self) -> Fields:
        """The single entry there is; nothing went to stderr."""
        (entry,) = self.journald.entries()
        assert self.printed() == b""
        return entry


@pytest.fixture
def unit() -> Iterator[Unit]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are too long for a socket's name
        journald = Journald(Path(folder) / "socket")
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        far.setblocking(False)
        with near, far, open(near.fileno(), "w", closefd=False, encoding="utf-8") as stderr:
            yield Unit(journald, stderr, far)
        journald.close()


# What an entry says


def test_an_entry(unit: Unit) -> None:
    unit.configure()
    with of_cycle(datetime(2026, 3, 1, 15, tzinfo=UTC)):
        log.warning(
            "clip failed",
            source="home",
            camera="Küche",
            clip="c-1",
            store="nas",
            key="Küche/2026/03/01/18-20-05.mp4",
            reason="The link was lost.",
            hint="Wait.",
            attempt=2,
            bytes=12_345_678,
            retry_in_seconds=61,
            verified=False,
            nothing=None,
            empty="",
        )
    said = "clip failed: Küche/2026/03/01/18-20-05.mp4 → nas: The link was lost. Wait. "
    assert unit.one() == {
        "MESSAGE": [said + "(attempt 2, 12.3 MB, retry in 61 s, not verified)"],
        "PRIORITY": ["4"],
        "SYSLOG_IDENTIFIER": ["nvr-backup"],
        "SYSLOG_FACILITY": ["3"],
        "WHAT": ["clip failed"],
        "SOURCE": ["home"],
        "CAMERA": ["Küche"],
        "CLIP_ID": ["c-1"],
        "STORE": ["nas"],
        "OBJECT_KEY": ["Küche/2026/03/01/18-20-05.mp4"],
        "REASON": ["The link was lost."],
        "HINT": ["Wait."],
        "ATTEMPT": ["2"],
        "BYTES": ["12345678"],
        "RETRY_IN_SECONDS": ["61"],
        "VERIFIED": ["false"],
        "CYCLE": ["2026-03-01T15:00:00Z"],
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")],
)
def test_the_priority_is_the_level(unit: Unit, level: str, priority: str) -> None:
    unit.configure()
    getattr(log, level)("x")
    assert unit.one()["PRIORITY"] == [priority]


def test_a_traceback_is_part_of_its_entry(unit: Unit) -> None:
    unit.configure()
    try:
        raise ValueError("Porch\nPRIORITY=7")
    except ValueError:
        log.exception("broken", camera="Porch")
    entry = unit.one()
    first, second, *_, last = entry["MESSAGE"][0].split("\n")
    assert first == "broken: Porch"
    assert second == "Traceback (most recent call last):"
    assert last == "PRIORITY=7"  # as Python prints it, and yet no field
    assert entry["PRIORITY"] == ["3"]
    assert entry["WHAT"] == ["broken"]
    assert "EXCEPTION" not in entry


def test_stacks_keep_their_lines(unit: Unit) -> None:
    unit.configure()
    log.critical("hung", parts=["the scheduler", "x"], stack="a:\n\tb\x1b[31m\n")
    entry = unit.one()
    assert entry["MESSAGE"] == ["hung (parts the scheduler, x)\na:\n\tb\\x1b[31m\n"]
    assert entry["PARTS"] == ["the scheduler, x"]
    assert "STACK" not in entry


def test_libraries_too(unit: Unit) -> None:
    unit.configure()
    with bound_contextvars(store="offsite"):
        logging.getLogger("aiohttp.x").error("two\nlines, password=%s", "hunter2")
    entry = unit.one()
    assert entry["MESSAGE"] == ["two (logger aiohttp.x)\nlines, password=[redacted]"]
    assert entry["PRIORITY"] == ["3"]
    assert entry["LOGGER"] == ["aiohttp.x"]
    assert entry["STORE"] == ["offsite"]
    assert "WHAT" not in entry


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"message": "cycle started"}, "cycle started"),
        ({"camera": "Porch"}, "m: Porch"),
        ({"camera": "Porch", "store": "nas"}, "m: Porch → nas"),
        ({"key": "Porch/1.mp4", "camera": "Porch", "store": "nas"}, "m: Porch/1.mp4 → nas"),
        ({"key": "1.mp4", "camera": "Porch"}, "m: Porch, 1.mp4"),
        ({"part": "stores.nas", "store": "nas", "reason": "Full."}, "m: stores.nas: Full."),
        (
            {"setting": "log.level", "old": "info", "new": "debug"},
            "m: log.level (old info, new debug)",
        ),
        ({"remark": "Careful."}, "m: Careful."),
        ({"cameras": 3, "set_aside": 0}, "m (cameras 3, set aside 0)"),
        ({"bytes": 0}, "m (0 B)"),
        ({"bytes": 1500}, "m (1.5 kB)"),
        ({"confirmed_bytes": 2_000_000_000}, "m (confirmed 2.0 GB)"),
        ({"seconds": 0.25}, "m (0.2 s)"),
        ({"blocked_seconds": 3600}, "m (blocked 60 min)"),
        ({"seconds": 9000}, "m (2.5 h)"),
        ({"mb_per_s": 3.84}, "m (3.8 MB/s)"),
        ({"verified": True}, "m (verified)"),
        ({"what": {"a": [1]}}, 'm (what {"a": [1]})'),
    ],
)
def test_sentences(fields: dict[str, Any], said: str) -> None:
    entry = {"time": "t", "level": "info", "message": "m", "source": "home", "clip": "c"} | fields
    assert sentence(entry | {"cycle": "2026"}) == said


def test_field_names() -> None:
    names = {
        "clip": "CLIP_ID",
        "key": "OBJECT_KEY",
        "camera": "CAMERA",
        "source": "SOURCE",
        "store": "STORE",
        "bytes": "BYTES",
        "cycle": "CYCLE",
        "retry_in_seconds": "RETRY_IN_SECONDS",
        "_pid": "PID",
        "2nd-try": "ND_TRY",
        "größe": "GR_SSE",
        "___": "FIELD",
        "": "FIELD",
        "priority": "X_PRIORITY",
        "unit": "X_UNIT",
        "object_pid": "X_OBJECT_PID",
        "code_line": "X_CODE_LINE",
        "a" * 100: "A" * 64,
    }
    assert {name: field_name(name) for name in names} == names


# Nobody can smuggle anything in


def test_a_cameras_name_is_nothing_but_a_value(unit: Unit) -> None:
    unit.configure()
    nasty = "Porch\nPRIORITY=0\n_SYSTEMD_UNIT=ssh.service\nCAMERA=Yard\x00\x1b[2J\u202e=x"
    log.warning("clip failed", camera=nasty, key=f"{nasty}/1.mp4", reason=f"{nasty} is gone.")
    entry = unit.one()
    assert set(entry) == {
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY", "WHAT"),
        *("CAMERA", "OBJECT_KEY", "REASON"),
    }
    assert entry["PRIORITY"] == ["4"]
    assert len(entry["CAMERA"]) == 1
    for values in entry.values():
        assert "\n" not in values[0]
        assert not set(values[0]) & set("\x00\x1b\u202e")


def test_no_secrets(unit: Unit) -> None:
    unit.configure()
    log.info("login", url="https://u:hunter2@h/", token="hunter2", key="x?upload_id=hunter2")
    assert "hunter2" not in str(unit.one())


@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(
    st.text(max_size=30),
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["message", "MESSAGE", "priority", "stack", "level"]),
        st.text(max_size=30) | st.integers() | st.floats() | st.lists(st.text(max_size=5)),
        max_size=5,
    ),
)
def test_anything_makes_one_entry(unit: Unit, message: str, fields: dict[str, Any]) -> None:
    unit.configure()
    fields.pop("event", None)
    fields.pop("exc_info", None)
    log.warning(message, **fields)
    entry = unit.one()
    assert entry["PRIORITY"] == ["4"]
    assert entry["SYSLOG_IDENTIFIER"] == ["nvr-backup"]
    assert len(entry["MESSAGE"]) == 1


# Large, lost, late


def test_a_large_entry_is_a_sealed_file(unit: Unit) -> None:
    unit.configure()
    long = "\U0001f600" * MAX_TEXT
    log.info("large", text=long, again=long)
    entry = unit.one()
    assert unit.journald.files == 1
    assert entry["TEXT"] == entry["AGAIN"] == [long]
    log.info("small")
    assert unit.one()["MESSAGE"] == ["small"]
    assert unit.journald.files == 1


def test_without_journald_every_line_on_stderr_has_its_priority(unit: Unit) -> None:
    unit.configure()
    unit.journald.close()
    try:
        raise ValueError("x" * 100_000)
    except ValueError:
        log.exception("broken", camera="Porch")
    log.info("small")
    *lines, last, end = unit.printed().decode().split("\n")
    assert end == ""
    assert last == "<6>small"
    assert lines[:2] == ["<3>broken: Porch", "<3>Traceback (most recent call last):"]
    assert len(lines) > 10
    for line in lines:
        assert line.startswith("<3>")
        assert len(line.encode()) < 48 * 1024
    assert "".join(line[3:] for line in lines).count("x") >= MAX_TEXT - 1000


def test_nothing_ever_waits_and_what_was_lost_is_said(unit: Unit) -> None:
    """Neither journald nor the reader of stderr takes anything: entries are counted, then told."""
    unit.configure()
    written = 3000
    for number in range(written):  # would block for ever here, if it did
        log.info("busy", number=number, filler="x" * 1000)
    printed = unit.printed().decode()
    entries = unit.journald.entries()
    numbers = [int(entry["NUMBER"][0]) for entry in entries]
    whole = [line for line in printed.split("\n")[:-1] if line.startswith("<6>busy")]
    assert numbers == list(range(len(entries)))
    assert 0 < len(whole) < written
    log.info("again")
    lost, again = unit.journald.entries()
    assert again["MESSAGE"] == ["again"]
    assert lost["WHAT"] == ["log entries lost"]
    assert lost["PRIORITY"] == ["4"]
    assert int(lost["ENTRIES"][0]) == written - len(entries) - len(whole)
    log.info("once more")
    assert unit.one()["MESSAGE"] == ["once more"]


def test_a_line_that_was_cut_off_does_not_take_the_next_one_with_it(unit: Unit) -> None:
    unit.configure()
    unit.journald.close()
    log.info("first", a="a" * 60_000, b="b" * 60_000, c="c" * 60_000, d="d" * 60_000)
    assert not unit.printed().endswith(b"\n"), "the socket took it all: nothing was cut off"
    log.info("second")
    assert unit.printed() == b"\n<4>log entries lost (entries 1)\n<6>second\n"


def test_stderr_stays_as_it_was(unit: Unit) -> None:
    """Others write to it too, and must not meet a socket that suddenly does not block."""
    unit.configure()
    unit.journald.close()
    before = fcntl.fcntl(unit.stderr.fileno(), fcntl.F_GETFL)
    log.info("x")
    assert fcntl.fcntl(unit.stderr.fileno(), fcntl.F_GETFL) == before
    unit.stderr.write("from others\n")
    unit.stderr.flush()
    assert unit.printed() == b"<6>x\nfrom others\n"


def test_a_journald_that_starts_anew_is_found(unit: Unit) -> None:
    unit.configure()
    log.info("first")
    unit.journald.close()
    log.info("second")
    again = Journald(unit.journald.path)
    log.info("third")
    assert [entry["MESSAGE"] for entry in again.entries()] == [["third"]]
    assert unit.printed() == b"<6>second\n"
    again.close()


def test_no_descriptor_is_left_behind(unit: Unit) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    unit.configure()
    before = count()
    for _ in range(3):
        unit.configure()
        log.info("x")
        log.info("large", a="\U0001f600" * MAX_TEXT)
        unit.journald.entries()
    unit.journald.close()
    log.info("fallback")
    assert count() == before - 1  # journald's own


def test_no_descriptor_left_is_no_reason_to_be_silent(
    unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    unit.configure()
    monkeypatch.setattr("nvr_backup.journal.os.memfd_create", none_left)
    log.info("large", a="\U0001f600" * MAX_TEXT)
    assert unit.printed().startswith(b"<6>large")


def test_closed_streams_break_nothing(unit: Unit) -> None:
    unit.configure()
    unit.journald.close()
    unit.far_end.close()
    log.error("nobody is there")
    unit.stderr.close()
    log.error("not even a stream")
    logging.getLogger("x").error("here too")


# When it is the journal


def test_the_journal_is_known_by_device_and_inode(unit: Unit) -> None:
    right = unit.environ["JOURNAL_STREAM"]
    device, inode = right.split(":")
    assert is_journal(unit.stderr, {"JOURNAL_STREAM": right})
    for wrong in ("", ":", "x", f"{device}:", f":{inode}", f"{device}:{inode}1", f"1{right}"):
        assert not is_journal(unit.stderr, {"JOURNAL_STREAM": wrong}), wrong
    assert not is_journal(unit.stderr, {})


def test_a_stderr_that_was_redirected_gets_json(unit: Unit, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as file:
        configure("info", file, environ=unit.environ, journal=str(unit.journald.path))
        log.info("here")
        assert unit.journald.entries() == []
        assert '"message": "here"' in (tmp_path / "log").read_text()


def test_a_form_that_was_asked_for_is_kept(unit: Unit) -> None:
    configure("info", unit.stderr, "json", environ=unit.environ, journal=str(unit.journald.path))
    log.info("here")
    assert unit.journald.entries() == []
    assert b'"message": "here"' in unit.printed()


def test_streams_without_a_descriptor_are_not_the_journal(
    unit: Unit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_journal(sys.stderr, unit.environ)
    unit.stderr.close()
    assert not is_journal(unit.stderr, {"JOURNAL_STREAM": "0:0"})


# A process's last words


def as_daemon(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", unit.stderr)
    for name, value in unit.environ.items():
        monkeypatch.setenv(name, value)


def test_last_words_have_their_priority_on_every_line(
    unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_daemon(unit, monkeypatch)
    exits.complain(ConfigError("No such key: stor.", hint="Did you mean stores?"))
    exits.say("Going on.")
    assert unit.printed() == (
        b"<3>nvr-backup: No such key: stor.\n<3>  Did you mean stores?\n<6>Going on.\n"
    )
    assert unit.journald.entries() == []


@pytest.mark.parametrize("hears", [True, False])
def test_a_bug_is_one_entry_with_its_traceback(
    unit: Unit, monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    as_daemon(unit, monkeypatch)
    unit.configure()
    if not hears:
        unit.journald.close()
    with pytest.raises(SystemExit) as ended:
        try:
            raise KeyError("a\nb")
        except KeyError:
            exits.report_bug()
    assert ended.value.code == 70
    if hears:
        (entry,) = unit.journald.entries()
        assert entry["PRIORITY"] == ["2"]
        said = entry["MESSAGE"][0].splitlines()
        assert unit.printed() == b""
    else:
        printed = unit.printed().decode().splitlines()
        assert all(line.startswith("<2>") for line in printed)
        said = [line.removeprefix("<2>") for line in printed]
    assert said[0].startswith("ended by a bug: Clips that were recorded as stored are safe")
    assert said[1] == "Traceback (most recent call last):"
    assert said[-1].startswith("KeyError")


def test_last_words_elsewhere_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    exits.complain(ConfigError("No."))
    assert capsys.readouterr().err == "nvr-backup: No.\n"


def test_prefixes() -> None:
    assert prefixed("a\n\nb", 3) == "<3>a\n<3>\n<3>b\n"
    assert prefixed("", 6) == "<6>\n"
    long = prefixed("x" * 20_000, 6).splitlines()
    assert [len(line) for line in long] == [8195, 8195, 3619]


# Which cycle


async def test_a_cycle_is_said_by_all_its_branches(unit: Unit) -> None:
    unit.configure()

    async def branch() -> None:
        await asyncio.sleep(0)
        log.info("inner")

    with of_cycle(None):
        log.info("outside")
    with of_cycle(datetime(2026, 3, 1, 15, 0, 0, 999_999, tzinfo=UTC)):
        async with asyncio.TaskGroup() as group:
            group.create_task(branch())
    log.info("after")
    assert [entry.get("CYCLE") for entry in unit.journald.entries()] == [
        None,
        ["2026-03-01T15:00:00Z"],
        None,
    ]


# Floods


def test_a_flood_is_cut_until_something_works() -> None:
    floods = Floods(limit=2)
    said = [floods.failed("porch", "lost") for _ in range(4)]
    assert said == [True, True, False, False]
    assert floods.at("porch")
    assert floods.failed("porch", "refused"), "another kind is news"
    assert floods.failed("yard", "lost"), "and so is another place"
    assert not floods.at("yard")
    floods.worked("porch")
    assert not floods.at("porch")
    assert floods.failed("porch", "lost")
    assert LOUD_FAILURES == 10


def test_floods_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvr_backup.logs.MAX_TROUBLES", 3)
    floods = Floods(limit=1)
    for place in range(5):
        floods.failed(place, "x")
    assert [floods.at(place) for place in range(5)] == [False] * 5
    assert floods.failed(0, "x"), "the place longest unheard of was forgotten"
    for kind in range(5):
        floods.failed(9, kind)
    assert not floods.failed(9, 0)
