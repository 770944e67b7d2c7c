"""What is wrong with a configuration, in words an operator can act on.

Every problem names its key by path and says what is expected. No text here ever contains a value
that was read: keys, names of variables and the words we expect are all it may show.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from pydantic import ValidationError

from nvr_backup.errors import ConfigError

MAX_LISTED: Final = 50
"""Problems listed in one message."""
_LONGEST_SHOWN: Final = 64

_EXPECTED: Final[Mapping[str, str]] = {
    "url": 'the server as scheme, host and port, such as "https://192.168.1.20:10443"',
    "username": 'the name to log in with ("" only for a server that asks for none)',
    "bucket": "the bucket's name",
    "path": "the folder's absolute path",
    "sources": "at least one table such as [sources.home]",
    "stores": "at least one table such as [stores.offsite]",
}


class Problem(NamedTuple):
    """One thing that is wrong: the key's path (`sources.home.url`) and the rest of a sentence."""

    path: str
    text: str


class Place(NamedTuple):
    """What is being loaded, given to all checks as pydantic's context.

    `title` names it, relative paths start at `folder`, `origins` says which variable or credential
    set a key's path. Checks add to `problems` and `warnings`. Settings made by code have no place;
    then no file is opened.
    """

    title: str
    folder: Path
    origins: dict[str, str]
    problems: list[Problem]
    warnings: list[str]


def suggestion(written: str, known: Iterable[str]) -> str:
    """` Did you mean "…"?`, or "" when nothing known is close to what was written."""
    close = difflib.get_close_matches(written.lower(), list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


def shown(part: object) -> str:
    """A key as it may stand in a path: bare where TOML allows that, else quoted and cut."""
    text = str(part)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        return text
    return json.dumps(text[:_LONGEST_SHOWN])


def config_error(found: Sequence[Problem], place: Place | None) -> ConfigError:
    """One message with every problem, each once, on a line of its own when there are several."""
    origins = place.origins if place else {}
    lines = list(dict.fromkeys(f"{p.path}: {p.text}{_origin(p.path, origins)}" for p in found))
    title = place.title if place else "The configuration"
    if len(lines) == 1:
        return ConfigError(f"{title} cannot be used: {lines[0]}")
    more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    listed = "".join(f"\n  {line}" for line in [*lines[:MAX_LISTED], *more])
    return ConfigError(f"{title} cannot be used, it has {len(lines)} problems:{listed}")


def _origin(path: str, origins: Mapping[str, str]) -> str:
    key = path.partition("[")[0]
    for known, origin in origins.items():
        if known == key or known.startswith(key + "."):
            return f" ({origin})"
    table = origins.get(key.rpartition(".")[0])  # a whole part that only a variable names
    return f" ({table})" if table else ""


# From pydantic's errors to ours


def translated(
    error: ValidationError, known: Sequence[str], kinds: Mapping[str, Sequence[str]]
) -> list[Problem]:
    """Pydantic's findings in our words.

    `known` are all keys by path with `*` for names, `kinds` the kinds of sources and of stores.
    """
    return [
        _translated(cast("Mapping[str, Any]", details), known, kinds)
        for details in error.errors(include_url=False, include_input=False)
    ]


def _translated(
    details: Mapping[str, Any], known: Sequence[str], kinds: Mapping[str, Sequence[str]]
) -> Problem:
    loc = [part for part in details["loc"] if part != "[key]"]
    if len(loc) > 2 and loc[2] in kinds.get(str(loc[0]), ()):
        del loc[2]  # pydantic's own mark of the kind it chose
    what = str(details["type"])
    if what.startswith("union_tag"):
        loc.append("kind")
    elif what == "extra_forbidden":
        return Problem(_dotted(loc), _unknown(loc, known))
    return Problem(_dotted(loc), _text(what, loc, details, kinds))


def _text(
    what: str,
    loc: Sequence[str | int],
    details: Mapping[str, Any],
    kinds: Mapping[str, Sequence[str]],
) -> str:
    one_of = " or ".join(f'"{kind}"' for kind in kinds.get(str(loc[0]), ()))
    match what:
        case "value_error":
            text = str(details["ctx"]["error"])
        case "missing" | "union_tag_not_found":
            expected = one_of if loc[-1] == "kind" else _EXPECTED.get(str(loc[-1]), "a value")
            text = f"is missing; expected {expected}"
        case "union_tag_invalid":
            text = f"must be {one_of}"
        case "literal_error":
            text = f"must be {str(details['ctx']['expected']).replace(chr(39), chr(34))}"
        case "model_type" | "model_attributes_type" | "dict_type" | "mapping_type":
            table = ".".join(map(shown, loc))
            text = f"must be a table, such as [{table}], with keys of its own"
        case _:
            text = "has a value of the wrong type"
    return text


def _dotted(loc: Sequence[str | int]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{shown(part)}" if path else shown(part)
    return path or "configuration"


def _unknown(loc: Sequence[str | int], known: Sequence[str]) -> str:
    """An unknown key: a near miss, a key of another kind, or one that belongs elsewhere."""
    pattern = [str(part) for part in loc]
    if pattern[0] in ("sources", "stores") and len(pattern) > 1:
        pattern[1] = "*"
    depth = len(pattern) - 1
    beside = {
        parts[depth]
        for parts in (key.split(".") for key in known)
        if len(parts) > depth and parts[:depth] == pattern[:depth]
    }
    written = pattern[-1]
    if written in beside:
        return f"is not a key of this kind of {pattern[0].removesuffix('s')}"
    elsewhere = [key for key in known if key.split(".")[-1] == written.lower()]
    if elsewhere:
        return f'is not a known key here. Did you mean "{elsewhere[0].replace("*", "NAME")}"?'
    if hint := suggestion(written, sorted(beside)):
        return f"is not a known key.{hint}"
    return f"is not a known key; there are {', '.join(sorted(beside)) or 'none here'}"


# What no single key can tell


def contradictions(data: object) -> list[Problem]:
    """What does not fit together in a raw configuration, however wrong the rest of it is."""
    if not isinstance(data, Mapping):
        return []
    limited_by_day = isinstance(_table(data, "transfer").get("upload_limit"), Mapping)
    found = list(_schedule(_table(data, "schedule"), limited_by_day=limited_by_day))
    stores = _table(data, "stores")
    for section in ("sources", "stores"):
        found.extend(_similar_names(section, _table(data, section)))
    for name, source in _table(data, "sources").items():
        if isinstance(source, Mapping):
            found.extend(_source(f"sources.{shown(name)}", source, stores))
    found.extend(_checkpoint(_table(data, "checkpoint"), stores))
    return found


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def _schedule(schedule: Mapping[str, Any], *, limited_by_day: bool) -> Iterator[Problem]:
    if schedule.get("every") is not None and schedule.get("cron") is not None:
        yield Problem("schedule.cron", "contradicts schedule.every: keep one of the two")
    in_use = schedule.get("cron") is not None or limited_by_day
    if schedule.get("timezone") is not None and not in_use:
        yield Problem(
            "schedule.timezone",
            "has no meaning without schedule.cron, or a transfer.upload_limit by the time of day: "
            "remove it",
        )


def _similar_names(section: str, parts: Mapping[str, Any]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for name in map(str, parts):
        other = first.setdefault(name.replace("-", "_"), name)
        if other != name:
            yield Problem(
                f"{section}.{shown(name)}",
                f"differs from {section}.{shown(other)} only in - and _, "
                "which environment variables cannot tell apart: rename one",
            )


def _source(path: str, source: Mapping[str, Any], stores: Mapping[str, Any]) -> Iterator[Problem]:
    if source.get("username") and source.get("password") is None:
        name = path.partition(".")[2]
        variable = f"NVR_BACKUP_SOURCES__{name.upper().replace('-', '_')}__PASSWORD"
        yield Problem(
            f"{path}.password",
            f'is missing; give it as credential "{path}.password" (systemd LoadCredential), '
            f"as environment variable {variable}, or in the file",
        )
    if source.get("username") == "" and source.get("password"):
        yield Problem(f"{path}.username", "is empty although there is a password")
    pinned = source.get("tls_fingerprint") is not None
    if pinned and source.get("tls") == "insecure":
        yield Problem(f"{path}.tls_fingerprint", f'contradicts {path}.tls = "insecure": keep one')
    if pinned and str(source.get("url")).lower().startswith("http:"):
        yield Problem(f"{path}.tls_fingerprint", "has no meaning with an http:// url")
    yield from _no_stores(f"{path}.stores", source.get("stores"), stores)


def _checkpoint(table: Mapping[str, Any], stores: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _no_stores("checkpoint.stores", table.get("stores"), stores)
    if table.get("stores") and str(table.get("snapshots")) == "0":
        yield Problem("checkpoint.stores", "has nothing to bring there: checkpoint.snapshots is 0")


def _no_stores(path: str, chosen: object, stores: Mapping[str, Any]) -> Iterator[Problem]:
    """Names in a list of stores that are none."""
    for index, name in enumerate(chosen if isinstance(chosen, (list, tuple)) else ()):
        if isinstance(name, str) and name not in stores:
            known = ", ".join(map(shown, stores)) or "none"
            yield Problem(
                f"{path}[{index}]",
                f"is not the name of a store; there are {known}."
                + suggestion(name, map(str, stores)),
            )


def same_place(places: Mapping[str, object]) -> list[Problem]:
    """Stores that are one and the same place (`places`: by name, anything comparable)."""
    found: list[Problem] = []
    names = list(places)
    for index, name in enumerate(names):
        for other in names[:index]:
            if places[other] == places[name]:
                found.append(
                    Problem(f"stores.{name}", f"is the same place as stores.{other}: keep one")
                )
                break
    return found
