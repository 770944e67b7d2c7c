"""docs/monitoring.md against the program: every message with its levels and fields, both ways."""

from __future__ import annotations

import ast
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from nvr_backup import journal
from nvr_backup.errors import Blocked, Transient, Unfit
from nvr_backup.logs import LOUD_FAILURES, configure
from tests.support.fakes import clip_at, mp4
from tests.support.wired import Wired
from tests.test_logs import _restore_logging  # noqa: F401 - puts the logging of others back

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text("utf-8")

LEVELS = frozenset({"debug", "info", "warning", "error", "critical", "exception"})
TROUBLES: Mapping[str, frozenset[str]] = {
    "failed": frozenset({"warning", "debug"}),
    "recovered": frozenset({"info"}),
}
ADDED = {"failed": {"failures"}, "recovered": {"failures", "lasted_seconds"}}
"""What `logs.Troubles` adds to a message."""

BOUND = frozenset({"source", "camera", "clip", "store", "key", "cycle"})
"""Given where they apply, by `log.bind` or as context; the messages below are held to them too."""
COUNTS = frozenset({"waiting", "set_aside"})
"""Passed on as a whole (`**counts`)."""

# A text of its own for each loss, and one that is sent by nobody's logger.
NOT_BY_A_LOGGER = {"log entries lost": ({"warning"}, {"entries"})}


@dataclass
class Message:
    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def calls(tree: ast.AST) -> Iterator[tuple[str, set[str], set[str]]]:
    """Message, levels and literal fields of each place that logs."""
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        chosen: set[str] = set()  # say = log.debug if … else log.warning
        pairs: dict[str, str] = {}  # say, what = (log.debug, "…") if … else (log.info, "…")
        for node in ast.walk(scope):
            match node:
                case ast.Assign(
                    targets=[ast.Name("say")],
                    value=ast.IfExp(body=ast.Attribute(attr=one), orelse=ast.Attribute(attr=other)),
                ):
                    chosen = {one, other}
                case ast.Assign(
                    targets=[ast.Tuple([ast.Name("say"), ast.Name("what")])],
                    value=ast.IfExp(
                        body=ast.Tuple([ast.Attribute(attr=one), ast.Constant(str(text))]),
                        orelse=ast.Tuple([ast.Attribute(attr=other), ast.Constant(str(more))]),
                    ),
                ):
                    pairs = {text: one, more: other}
        for node in ast.walk(scope):
            match node:
                case ast.Call(
                    ast.Attribute(value, level), [ast.Constant(str(text)), *_], keywords
                ) if level in LEVELS and logs(value):
                    yield text, {level}, named(keywords)
                case ast.Call(ast.Name("say"), [ast.Constant(str(text)), *_], keywords) if chosen:
                    yield text, chosen, named(keywords)
                case ast.Call(ast.Name("say"), [ast.Name("what")], keywords):
                    for text, level in pairs.items():
                        yield text, {level}, named(keywords)
                case ast.Call(
                    ast.Attribute(_, ("failed" | "recovered") as kind),
                    [_, _, ast.Constant(str(text))],
                    keywords,
                ):
                    yield text, set(TROUBLES[kind]), named(keywords) | ADDED[kind]


def logs(value: ast.expr) -> bool:
    """Whether this is what messages are sent through, by its name."""
    return re.search(r"(\blog|_log|logger)(\(\))?$", ast.unparse(value)) is not None


def named(keywords: list[ast.keyword]) -> set[str]:
    return {keyword.arg for keyword in keywords if keyword.arg} - {"stack", "exc_info"}


def in_the_program() -> dict[str, Message]:
    found: dict[str, Message] = defaultdict(Message)
    for path in (ROOT / "nvr_backup").rglob("*.py"):
        for text, levels, fields in calls(ast.parse(path.read_text("utf-8"))):
            found[text].levels |= levels
            found[text].fields |= fields
    for text, (levels, fields) in NOT_BY_A_LOGGER.items():
        found[text] = Message(set(levels), set(fields))
    return dict(found)


def rows(section: str) -> Iterator[list[str]]:
    """The tables of a section, without their heads."""
    match = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/monitoring.md has no section {section}"
    for line in match[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            yield cells


def in_the_document() -> dict[str, tuple[list[str], set[str]]]:
    return {
        says.strip("`"): (levels.split(", "), set(re.findall(r"`(\w+)`", fields)))
        for says, levels, fields, _ in rows("Messages")
    }


PROGRAM, DESCRIBED = in_the_program(), in_the_document()
FIELDS = {name for first, _ in rows("Fields") for name in re.findall(r"`(\w+)`", first)}


def upper(names: set[str]) -> set[str]:
    return {journal.field_name(name) for name in names}


def test_every_message_is_described_and_no_other() -> None:
    assert DESCRIBED.keys() == PROGRAM.keys()
    assert len(DESCRIBED) == sum(1 for _ in rows("Messages")), "one is there twice"


@pytest.mark.parametrize("text", sorted(PROGRAM))
def test_levels_and_fields_are_those_of_the_program(text: str) -> None:
    levels, fields = DESCRIBED[text]
    program = PROGRAM[text]
    assert set(levels) == program.levels
    assert levels[0] != "debug" or len(levels) == 1, "the usual one first"
    assert fields >= upper(program.fields), "not described"
    assert fields <= upper(program.fields | BOUND | COUNTS), "not in the program"


def test_every_field_is_explained_and_no_other() -> None:
    program = set().union(*(message.fields for message in PROGRAM.values()))
    always = {"WHAT", "LOGGER", "PRIORITY", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY"}
    assert upper(program | BOUND | COUNTS) | always == FIELDS


def test_the_names_that_commands_use_are_fixed() -> None:
    """Scripts rely on them: written down here, not taken from the code."""
    names = {
        "camera": "CAMERA",
        "clip": "CLIP_ID",
        "key": "OBJECT_KEY",
        "source": "SOURCE",
        "store": "STORE",
        "bytes": "BYTES",
        "cycle": "CYCLE",
    }
    assert {name: journal.field_name(name) for name in names} == names


def test_there_are_ten_commands_and_they_ask_for_what_there_is() -> None:
    section = re.search(r"^## Ten commands\n.*?```sh\n(.*?)```", DOCUMENT, re.M | re.S)
    assert section is not None
    commands = [line for line in section[1].splitlines() if not line.startswith("#")]
    assert len(commands) == 10
    for line in commands:
        for what in re.findall(r'WHAT="?([a-z ]+[a-z])"?', line):
            assert what in DESCRIBED, line
        for name in re.findall(r"\b([A-Z_]{3,})=", line):
            assert name in FIELDS, line


def test_every_message_is_a_fixed_text() -> None:
    """What a person can look up; what varies is in the fields."""
    varying = [
        f"{path.name}:{node.lineno}"
        for path in (ROOT / "nvr_backup").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and logs(node.func.value)
        and not (node.args and isinstance(node.args[0], ast.Constant))
        and path.name != "logs.py"  # passes on what `Troubles` is given
    ]
    assert varying == []


async def test_what_an_engine_really_says_is_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day with all kinds of trouble: the fields that are bound on the way, too."""
    wired = Wired(tmp_path, monkeypatch)
    out = io.StringIO()
    configure("debug", out, "json", clock=wired.clock)
    monkeypatch.setattr(wired, "log", structlog.get_logger)
    said: list[dict[str, Any]] = []

    def has(*texts: str) -> bool:
        said.extend(json.loads(line) for line in out.getvalue().splitlines()[len(said) :])
        return {entry["message"] for entry in said} >= set(texts)

    for number in range(6):
        wired.source.add(clip_at(1330 + number), mp4(500, seed=number + 1))
    wired.source.faults.arm("cameras", Transient("The link was lost."))
    wired.source.faults.arm("clips", Transient("The plugin is starting."))
    wired.source.faults.arm("open", Unfit("The clip is gone at the NVR."), Transient("Lost."))
    wired.store.faults.arm("put", Blocked("The disk is full.", hint="Make room."))
    async with wired.daemon():
        await wired.until(lambda: has("camera listed again", "source listed again"), step=300)
        await wired.until(lambda: len(wired.store.objects) == 5, step=30)
        await wired.until(lambda: has("recovered", "clip failed", "clip set aside"), step=30)
    assert has("source not listed", "camera not listed", "blocked", "clip stored", "watermark")
    assert not [entry for entry in said if "logger" in entry]
    wherever = {
        "clip": {"source", "camera", "clip", "store", "key"},
        "camera": {"source", "camera"},
    }
    for entry in said:
        text = entry["message"]
        fields = entry.keys() - {"time", "level", "message"}
        assert entry["level"] in DESCRIBED[text][0]
        assert upper(set(fields)) - DESCRIBED[text][1] <= upper(set(BOUND)), text
        assert fields >= wherever.get(text.partition(" ")[0], set()), text
        assert "part" not in entry or entry.keys() & {"source", "store"}, text
        assert "cycle" in fields or text in {"not probed", "still blocked", "recovered", "blocked"}
        assert entry.get("camera", "Porch") == "Porch", "a camera is called by its name"
    cycles = {entry["cycle"] for entry in said if "cycle" in entry}
    assert cycles == {
        entry["time"][:19] + "Z" for entry in said if entry["message"] == "cycle started"
    }


async def test_a_recorder_that_refuses_every_clip_does_not_flood_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = Wired(tmp_path, monkeypatch)
    clips = 100
    for number in range(clips):
        wired.source.add(clip_at(1330 + number / 10), mp4(500, seed=number + 1))
    wired.source.faults.arm("open", *[Transient(f"HTTP 500 ({n}).") for n in range(2 * clips)])
    async with wired.daemon():
        await wired.until(lambda: len(wired.said("clip failed")) >= clips, step=300)
        loud = [line for line in wired.lines if line["level"] != "debug"]
        assert len([line for line in loud if line["event"] == "clip failed"]) == LOUD_FAILURES
        assert len([line for line in loud if not line["event"].startswith("cycle ")]) < 50
        await wired.until(lambda: wired.said("clip stored"), step=300)
        wired.source.faults.arm("open", Transient("HTTP 500 (again)."))
        before = len(wired.said("clip failed"))
        await wired.until(lambda: len(wired.said("clip failed")) > before, step=60)
        assert wired.said("clip failed")[before]["level"] == "warning", "news, after one was stored"


async def test_no_chunk_has_a_message_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = Wired(tmp_path, monkeypatch)
    wired.source.add(clip_at(1330), mp4(20 * 256 * 1024))
    async with wired.daemon():
        await wired.until(lambda: wired.said("cycle finished"))
    assert len(wired.store.objects) == 1
    assert [line["event"] for line in wired.lines if "clip" in line["event"]] == [
        "clip started",
        "clip stored",
    ]
