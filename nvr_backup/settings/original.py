"""The environment of the original backup script, read as a configuration without any file.

Whoever ran the script can start this program with the same variables. Names and meanings are
fixed; a missing one is reported by its own name. Values are never put into a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nvr_backup.settings.problems import Place, Problem

SOURCE: Final = "scrypted"
STORE: Final = "gcs"
"""The names of the one source and the one store that the script's variables describe."""

DEFAULT_PORT: Final = 10443
"""Scrypted's HTTPS port."""

_PATHS: Final[Mapping[str, str]] = {
    "SCRYPTED_HOST": f"sources.{SOURCE}.url",
    "SCRYPTED_USER": f"sources.{SOURCE}.username",
    "SCRYPTED_PASSWORD": f"sources.{SOURCE}.password",
    "ALLOW_SELF_SIGNED": f"sources.{SOURCE}.tls",
    "GCS_BUCKET_NAME": f"stores.{STORE}.bucket",
    "GCS_KEYFILE_PATH": f"stores.{STORE}.credentials_file",
    "STATE_FILE_PATH": "state_dir",
    "LOG_LEVEL": "log.level",
}

TELLTALES: Final = (
    "SCRYPTED_HOST",
    "SCRYPTED_USER",
    "SCRYPTED_PASSWORD",
    "GCS_PROJECT_ID",
    "GCS_BUCKET_NAME",
    "GCS_KEYFILE_PATH",
)
"""Variables that nobody sets for another program."""

_YES: Final = frozenset({"true", "1", "yes", "on"})
_NO: Final = frozenset({"false", "0", "no", "off"})
_LEVELS: Final = {"warn": "warning", "critical": "error", "fatal": "error", "trace": "debug"}


def in_use(environ: Mapping[str, str]) -> list[str]:
    """Which of the script's variables are set and not empty."""
    return [name for name in TELLTALES if environ.get(name)]


def read(environ: Mapping[str, str], place: Place) -> dict[str, Any]:
    """The raw configuration that the script's variables stand for."""
    given = {name: environ[name].strip() for name in _PATHS if environ.get(name, "").strip()}
    if "SCRYPTED_PASSWORD" in given:
        given["SCRYPTED_PASSWORD"] = environ["SCRYPTED_PASSWORD"]
    place.origins.update({path: f"environment variable {name}" for name, path in _PATHS.items()})
    source: dict[str, Any] = {"kind": "scrypted"}
    store: dict[str, Any] = {"kind": "gcs"}
    raw: dict[str, Any] = {"sources": {SOURCE: source}, "stores": {STORE: store}}
    for name, value in given.items():
        match name:
            case "SCRYPTED_HOST":
                source["url"] = _url(value)
            case "ALLOW_SELF_SIGNED":
                if (tls := _tls(value, place)) is not None:
                    source["tls"] = tls
            case "STATE_FILE_PATH":
                raw["state_dir"] = str(Path(value).parent)
            case "LOG_LEVEL":
                raw["log"] = {"level": _LEVELS.get(value.lower(), value)}
            case _:
                section, _, key = _PATHS[name].rpartition(".")
                (source if section.startswith("sources") else store)[key] = value
    return raw


def _url(host: str) -> str:
    """A URL from `host`, `host:port`, an IPv6 address with or without brackets, or a URL."""
    if "://" in host:
        return host
    host = host.rstrip("/")
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    has_port = ":" in host.rpartition("]")[2]
    return f"https://{host}" if has_port else f"https://{host}:{DEFAULT_PORT}"


def _tls(value: str, place: Place) -> str | None:
    if value.lower() in _YES:
        return "insecure"
    if value.lower() in _NO:
        return "verify"
    place.problems.append(Problem(_PATHS["ALLOW_SELF_SIGNED"], "must be true or false"))
    return None
