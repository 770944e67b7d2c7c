"""What a Google Cloud Storage store is told, and which server that means.

Decides once, before anything is sent, where requests go and whether they carry credentials. It
must never let a bearer token leave in clear text, or go to a server the operator did not name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from nvr_backup.errors import ConfigError

MIB: Final = 1024 * 1024
GOOGLE_ROOT: Final = "https://storage.googleapis.com"
GOOGLE_DOMAIN: Final = "googleapis.com"
EMULATOR_VARIABLE: Final = "STORAGE_EMULATOR_HOST"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class GcsSettings:
    """One `[stores.NAME]` of kind "gcs".

    `prefix` is put before every key exactly as it is (end it with "/" to get a folder). Without a
    `credentials_file` Google's application default credentials apply. A clip of at most
    `chunk_size` bytes goes out in a single request. `stall_seconds`: how long neither a byte may
    leave nor an answer arrive. `retry_seconds`: how long one step is tried again without progress.
    `project` only appears in advice to the operator.
    """

    name: str
    bucket: str
    credentials_file: Path | None = None
    prefix: str = ""
    endpoint: str = ""
    project: str = ""
    chunk_size: int = 8 * MIB
    stall_seconds: float = 60.0
    connect_seconds: float = 20.0
    retry_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks the JSON API: `root` has no trailing slash.

    `google`: Google's own, any host below googleapis.com. `authenticated`: requests carry a
    bearer token; otherwise it is an emulator.
    """

    root: str
    google: bool
    authenticated: bool

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.root).netloc

    def accepts(self, address: str) -> bool:
        """Whether `address` (a session's, say) is on this very server, so that it may be asked.

        Google may name another of its hosts; anybody else must stay at scheme, host and port.
        """
        try:
            theirs, ours = urlsplit(address), urlsplit(self.root)
            if "@" in theirs.netloc:
                return False
            if self.google:
                return theirs.scheme == "https" and _is_google(theirs)
            return _server(theirs) == _server(ours)
        except ValueError:  # not an address at all (a port that is no number, say)
            return False


def find_endpoint(settings: GcsSettings, environment: Mapping[str, str]) -> Endpoint:
    """The server that `settings` mean; ConfigError when that is no address or not safe.

    Nothing configured is Google, or the emulator that STORAGE_EMULATOR_HOST names (never
    authenticated, as in Google's own libraries). A configured endpoint is authenticated when it
    is Google's or a credentials file goes with it.
    """
    emulator = "" if settings.endpoint else environment.get(EMULATOR_VARIABLE, "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    where = EMULATOR_VARIABLE if emulator else f"stores.{settings.name}.endpoint"
    root = (settings.endpoint or emulator or GOOGLE_ROOT).rstrip("/")
    parts = _parse(root, where)
    google = _is_google(parts)
    authenticated = not emulator and (google or settings.credentials_file is not None)
    if authenticated and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            f"{where} = {root!r} would send credentials unencrypted.",
            hint="Use https://, or leave out credentials_file if this is an emulator.",
        )
    return Endpoint(root, google, authenticated)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(root: str, where: str) -> SplitResult:
    wrong = ConfigError(
        f"{where} is not the address of a server.",
        hint='Expected "http://host:port" or "https://host", without user, query or fragment.',
    )
    try:
        parts = urlsplit(root)
        _ = parts.port
    except ValueError:
        raise wrong from None  # its text would repeat the address, which may hold a password
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise wrong
    if parts.query or parts.fragment:
        raise wrong
    return parts


def _is_google(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    return host == GOOGLE_DOMAIN or host.endswith(f".{GOOGLE_DOMAIN}")


def _server(parts: SplitResult) -> tuple[str, str, int | None]:
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
