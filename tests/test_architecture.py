"""The rules of docs/design.md that a reader of one file cannot see: who may import whom, and names.

Imports are read from the syntax trees, also those inside functions. Each rule is a function from
sources to complaints, so that the tests can show it something wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "nvr_backup"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({PACKAGE, "errors", "model", "clock", "redaction", "journal"}),
    frozenset(
        {
            "abreast",
            "chunks",
            "keys",
            "mp4",
            "metadata",
            "soundness",
            "database",
            "logs",
            "journal",
            "pulse",
            "notify",
        }
    ),
    frozenset({"ports", "planner", "overlap", "uplink", "retention"}),
    frozenset({"rows", "backlog", "findings", "healing", "lives"}),
    frozenset(
        {
            "transfer",
            "manners",
            "polite",
            "checkpoint",
            "connections",
            "report",
            "coverage",
            "snapshots",
            "deposits",
            "found",
        }
    ),
    frozenset({"pool", "inflight", "ledger", "scheduler", "survey"}),
    frozenset(
        {
            "prefixes",
            "footage",
            "layout",
            "arriving",
            "landing",
            "beside",
            "fetching",
            "restore",
            "joining",
            "evidence",
        }
    ),
    frozenset({"settings", "adapters"}),
    frozenset({"matching", "workplace", "rebuild"}),
    frozenset({"verification"}),
    frozenset({"cycle", "lookout", "safekeeping", "inquiry", "audit"}),
    frozenset({"verify"}),
    frozenset({"engine"}),
    frozenset({"headline", "vitals", "unit"}),
    frozenset({"service", "doctor", "demo"}),
    frozenset({"cli", "__main__"}),
)
"""Innermost first. A module imports from its own layer (never in a circle) and from inner ones."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

KINDS = frozenset({"sources", "stores"})
KNOWS_KINDS = frozenset({"adapters"})
"""The one place that knows which kinds of sources and stores there are."""
ADAPTERS_MAY = frozenset({PACKAGE, "model", "errors", "chunks", "ports", "clock"})
ADAPTERS_MUST_NOT = frozenset({"logging", "structlog"})
"""An adapter raises; the one place that decides logs."""
SILENCES_A_LIBRARY = frozenset({"sources.scrypted.transport"})
"""Hands a library that wants a logger one that drops everything; logs nothing itself."""
SIMULATOR_MAY = frozenset({PACKAGE, "model", "errors", "clock"})
STARTS_SIMULATOR = frozenset({"cli", "demo"})

LONGEST_MODULE = 400
LONGER: Mapping[str, str] = {
    "report.py": "every query of status, clips, explain and verify over the same rows",
}

FORBIDDEN_WORDS = frozenset({"job", "task", "manager", "helper", "util"})

Sources = Mapping[str, str]
"""Module names below the package ("stores.gcs.client", "" for the package itself) to their text."""


def sources_of(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, text: str, known: Sources) -> Iterator[str]:
    """Full names of what `module` imports, modules of our own resolved as far as they are known."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{module or PACKAGE}: relative import")
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_ours = inner.startswith(f"{PACKAGE}.")
                yield (
                    inner if is_ours and inner.removeprefix(f"{PACKAGE}.") in known else node.module
                )


def ours(module: str, text: str, known: Sources) -> Iterator[str]:
    """Names below the package of what `module` imports of it."""
    for name in imports(module, text, known):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name.removeprefix(PACKAGE).removeprefix(".")


def top(module: str) -> str:
    """The part of the layout that a module belongs to."""
    return module.split(".", maxsplit=1)[0] or PACKAGE


def wrong_directions(sources: Sources) -> Iterator[str]:
    """Imports from an outer layer, in a circle, or of modules that no rule knows."""
    circle: dict[str, set[str]] = {}
    for module, text in sources.items():
        part = top(module)
        if part in KINDS or part == "simulator":
            continue
        if part not in LEVEL:
            yield f"{module}: has no place in LAYERS"
            continue
        for name in ours(module, text, sources):
            other = top(name)
            if other == part:
                continue
            circle.setdefault(part, set()).add(other)
            if other in KINDS:
                if part not in KNOWS_KINDS:
                    yield f"{module}: only {sorted(KNOWS_KINDS)} may import {name}"
            elif other == "simulator":
                if part not in STARTS_SIMULATOR:
                    yield f"{module}: only {sorted(STARTS_SIMULATOR)} may import the simulator"
            elif LEVEL.get(other, len(LAYERS)) > LEVEL[part]:
                yield f"{module}: {other} is further out"
    try:
        TopologicalSorter(circle).prepare()
    except CycleError as err:
        yield f"imports in a circle: {' → '.join(err.args[1])}"


def wrong_adapters(sources: Sources) -> Iterator[str]:
    """Adapters and the simulator that know more of the core than they may, or each other."""
    for module, text in sources.items():
        part = top(module)
        if part not in KINDS and part != "simulator":
            continue
        own = ".".join(module.split(".")[:2]) if part in KINDS else part
        may = ADAPTERS_MAY if part in KINDS else SIMULATOR_MAY
        for name in ours(module, text, sources):
            if name != own and not name.startswith(f"{own}.") and top(name) not in may:
                yield f"{module}: must not import {name}"
        if part in KINDS and module not in SILENCES_A_LIBRARY:
            for name in imports(module, text, sources):
                if top(name) in ADAPTERS_MUST_NOT:
                    yield f"{module}: an adapter does not log ({name})"


def words(name: str) -> Iterator[str]:
    """The words of a name, lower case, singular."""
    for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
        yield word.lower().removesuffix("s")


def wrong_names(sources: Sources) -> Iterator[str]:
    """Modules and classes named by a word that says nothing or that is another's."""
    for module, text in sources.items():
        names = [module.rpartition(".")[2]]
        names += [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
        for name in names:
            if found := FORBIDDEN_WORDS & set(words(name)):
                yield f"{module}: '{name}' is not our vocabulary ({', '.join(sorted(found))})"


def wrong_clocks(sources: Sources) -> Iterator[str]:
    """Places other than clock.py that ask the operating system for the time or wait on their own.

    `asyncio.sleep(0)` is no waiting. The simulator is a server of its own and may.
    """
    asking = {"datetime.now", "datetime.utcnow", "time.time", "time.monotonic", "time.sleep"}
    for module, text in sources.items():
        if module == "clock" or top(module) == "simulator":
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            sleeps = called == "asyncio.sleep" and ast.unparse(node.args[0]) != "0"
            if sleeps or called in asking:
                yield f"{module}:{node.lineno}: {called} instead of a Clock"


OURS = sources_of(ROOT / PACKAGE)


def test_dependencies_point_inwards() -> None:
    assert list(wrong_directions(OURS)) == []


def test_adapters_know_the_ports_and_nothing_above_them() -> None:
    assert list(wrong_adapters(OURS)) == []
    assert {name.split(".")[1] for name in OURS if re.match(r"(sources|stores)\..", name)} >= {
        "scrypted",
        "gcs",
        "directory",
    }


@pytest.mark.parametrize("folder", [PACKAGE, "tests", "benchmarks"])
def test_names_are_of_our_vocabulary(folder: str) -> None:
    assert list(wrong_names(sources_of(ROOT / folder))) == []


def test_time_is_passed_in() -> None:
    assert list(wrong_clocks(OURS)) == []


def test_every_module_says_what_it_is_for() -> None:
    assert [
        name for name, text in OURS.items() if text and not ast.get_docstring(ast.parse(text))
    ] == []


def test_no_module_outgrows_a_reader() -> None:
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST_MODULE or name in LONGER, f"{name} has {lines} lines: find a seam"
    assert all((ROOT / PACKAGE / name).exists() for name in LONGER)


CORE = {"": "", "model": "", "errors": "", "clock": "", "ports": "", "pool": "", "engine": ""}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"pool": "import nvr_backup.engine"}, "pool: engine is further out"),
        ({"pool": "from nvr_backup import engine"}, "pool: engine is further out"),
        ({"pool": "def f():\n    from nvr_backup.engine import Engine"}, "engine is further out"),
        ({"model": "from nvr_backup.ports import ClipStore"}, "model: ports is further out"),
        ({"model": "import nvr_backup.clock", "clock": "import nvr_backup.model"}, "in a circle"),
        (
            {"engine": "from nvr_backup.stores import gcs", "stores.gcs": ""},
            "may import stores.gcs",
        ),
        ({"engine": "from nvr_backup.simulator import Nvr", "simulator": ""}, "the simulator"),
        ({"misc": ""}, "misc: has no place"),
    ],
)
def test_a_wrong_direction_is_seen(more: dict[str, str], complaint: str) -> None:
    assert list(wrong_directions(CORE)) == []
    assert complaint in "\n".join(wrong_directions(CORE | more))


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("stores.nas.store", "from nvr_backup.engine import Engine", "must not import engine"),
        ("stores.nas.store", "from nvr_backup import pool", "must not import pool"),
        ("stores.nas", "from nvr_backup.stores.gcs import x", "must not import stores.gcs"),
        ("sources.nvr", "import logging", "an adapter does not log"),
        ("sources.nvr", "from structlog.typing import X", "an adapter does not log"),
        ("simulator.server", "from nvr_backup.ports import ClipBody", "must not import ports"),
    ],
)
def test_an_adapter_that_knows_too_much_is_seen(module: str, text: str, complaint: str) -> None:
    fine = {"stores.gcs": "import nvr_backup.ports\nfrom nvr_backup.stores.gcs.body import x"}
    assert list(wrong_adapters(CORE | fine)) == []
    assert complaint in "\n".join(wrong_adapters(CORE | fine | {module: text}))


@pytest.mark.parametrize(
    ("module", "text"),
    [("utils", ""), ("stores.helpers", ""), ("model", "class ClipManager: ..."), ("task_list", "")],
)
def test_a_forbidden_name_is_seen(module: str, text: str) -> None:
    assert len(list(wrong_names({module: text}))) == 1
    assert list(wrong_names({"multitasking": "class Jobless: ..."})) == []


@pytest.mark.parametrize(
    "text", ["datetime.now(UTC)", "time.monotonic()", "await asyncio.sleep(0.1)", "time.time()"]
)
def test_a_clock_of_its_own_is_seen(text: str) -> None:
    body = f"async def f():\n    x = {text}"
    assert len(list(wrong_clocks({"pool": body}))) == 1
    assert (
        list(wrong_clocks({"clock": body, "pool": "async def f():\n    await asyncio.sleep(0)"}))
        == []
    )
