"""docs/commands.md and `--help` against the commands themselves: complete, true, 80 columns."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nvr_backup.cli import app
from nvr_backup.cli.exits import CODES, Code
from tests.cli.kit import Desk, run

DOCUMENT = (Path(__file__).parents[2] / "docs" / "commands.md").read_text("utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def section(name: str) -> str:
    match = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/commands.md has no section {name}"
    return match[1]


def options(name: str) -> set[str]:
    return {
        text
        for parameter in COMMANDS[name].params
        for text in parameter.opts
        if text.startswith("--")
    } - {"--help"}


def examples(text: str) -> list[list[str]]:
    """Command lines of this program, cut at the shell's operators."""
    found = []
    for line in re.findall(r"^ *(?:\w+=\S+ )?nvr-backup (.+)$", text, re.MULTILINE):
        words = shlex.split(re.split(r" [|>&]", line)[0])
        if words and words[0] in COMMANDS:
            found.append(words)
    return found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    text = section(name)
    common = {"--config"}
    if name in {"status", "doctor", "explain"}:
        common.add("--json")
    for option in options(name) - common:
        assert option in text, f"{name} {option} is not in docs/commands.md"
    for option in re.findall(r"^\| (`-.*?`) \|", text, re.MULTILINE):
        for one in re.findall(r"--[a-z-]+", option):
            assert one in options(name), f"{name} has no {one}"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_example_is_a_command_line_that_is_understood(name: str) -> None:
    help_text = run(name, "--help").out
    found = examples(help_text) + examples(section(name))
    assert found, f"{name} has no example"
    for words in found:
        command = COMMANDS[words[0]]
        with command.make_context(words[0], words[1:], resilient_parsing=False):
            pass


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)])
def test_help_fits_a_terminal_and_has_both_names(arguments: tuple[str, ...]) -> None:
    shown = run(*arguments, "--help").out
    assert shown == run(*arguments, "-h").out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "\b" not in shown


def test_the_list_of_commands_is_not_cut_off() -> None:
    assert "..." not in run("--help").out.replace("[ARGS]...", "")


def test_every_exit_code_is_documented() -> None:
    for code in Code:
        assert re.search(rf"^  {int(code)} ", CODES, re.MULTILINE), code
        assert re.search(rf"^\| {int(code)} \|", DOCUMENT, re.MULTILINE), code


def test_the_keys_of_the_status_are_documented(desk: Desk) -> None:
    desk.clip(5)
    desk.cycle()
    found = desk("status", "--json").json
    text = section("status")
    for key in found:
        assert f"`{key}`" in text, key
    for key in found["cameras"][0]:
        assert re.search(rf"`(cameras\[\])?\.{key}`", text), key


def test_the_keys_of_clips_and_explain_are_documented(desk: Desk) -> None:
    desk.clip(5)
    desk.fail("x")
    for key in desk("clips", "--json").json[0]:
        assert f"`{key}`" in section("clips"), key
    [explained] = desk("explain", "porch-5", "--json").json
    assert set(explained) - set(desk("clips", "--json").json[0]) == {"confirmed_bytes", "history"}
    for key in explained["history"][0]:
        assert f"`{key}`" in section("explain"), key
