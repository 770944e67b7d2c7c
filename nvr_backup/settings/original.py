"""The environment of the original backup script, read as a configuration without any file.

Whoever ran the script can start this program with the same variables. Names and meanings are
fixed; a missing one is reported by its own name. Values are never put into a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nvr_backup.settings.layers import Layer
from nvr_backup.settings.problems import Place

SOURCE: Final = "scrypted"
STORE: Final = "gcs"
"""The names of the one source and the one store that the script's variables describe."""

DEFAULT_PORT: Final = 10443
"""Scrypted's HTTPS port."""

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "SCRYPTED_HOST": ("sources", SOURCE, "url"),
    "SCRYPTED_USER": ("sources", SOURCE, "username"),
    "SCRYPTED_PASSWORD": ("sources", SOURCE, "password"),
    "ALLOW_SELF_SIGNED": ("sources", SOURCE, "tls"),
    "GCS_BUCKET_NAME": ("stores", STORE, "bucket"),
    "GCS_KEYFILE_PATH": ("stores", STORE, "credentials_file"),
    "STATE_FILE_PATH": ("state_dir",),
    "LOG_LEVEL": ("log", "level"),
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

_TLS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("true", "1", "yes", "on"), "insecure"),
    **dict.fromkeys(("false", "0", "no", "off"), "verify"),
}
_LEVELS: Final = {"warn": "warning", "critical": "error", "fatal": "error", "trace": "debug"}


def in_use(environ: Mapping[str, str]) -> list[str]:
    """Which of the script's variables are set and not empty."""
    return [name for name in TELLTALES if environ.get(name)]


class OriginalLayer(Layer):
    """The configuration that the script's variables stand for; empty when none is in use."""

    def __init__(self, place: Place, environ: Mapping[str, str]) -> None:
        super().__init__(place)
        if not in_use(environ):
            return
        self.table.update(sources={SOURCE: {"kind": "scrypted"}}, stores={STORE: {"kind": "gcs"}})
        for name, keys in _KEYS.items():
            origin, written = f"environment variable {name}", environ.get(name, "")
            place.origins[".".join(keys)] = origin  # a missing one is reported by its name too
            if not written.strip():
                continue
            if value := _meaning(name, written):
                self.put(keys, value, origin)
            else:
                self.refuse(".".join(keys), "must be true or false")


def _meaning(name: str, written: str) -> str | None:
    """A variable's text as our own configuration writes it; None for neither yes nor no."""
    value = written.strip()
    match name:
        case "SCRYPTED_PASSWORD":
            return written
        case "SCRYPTED_HOST":
            return _url(value)
        case "ALLOW_SELF_SIGNED":
            return _TLS.get(value.lower())
        case "STATE_FILE_PATH":
            return str(Path(value).parent)
        case "LOG_LEVEL":
            return _LEVELS.get(value.lower(), value)
        case _:
            return value


def _url(host: str) -> str:
    """A URL from `host`, `host:port`, an IPv6 address with or without brackets, or a URL."""
    if "://" in host:
        return host
    host = host.rstrip("/")
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    has_port = ":" in host.rpartition("]")[2]
    return f"https://{host}" if has_port else f"https://{host}:{DEFAULT_PORT}"
