"""What a Scrypted source is told: plain values, checked once, with the password out of every repr.

The core's own settings are mapped to this class by the composition root, so that the adapter knows
nothing of configuration files. It must never hold a connection or anything else that changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from yarl import URL

from nvr_backup.errors import ConfigError

_FINGERPRINT = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ScryptedSettings:
    """One Scrypted server. ConfigError when a value cannot be used.

    `url` is the server's address only (`https://192.168.1.20:10443`). `username` and `password`
    may be empty where the server logs everyone in (SCRYPTED_DEFAULT_AUTHENTICATION); a password
    without a user name is taken for the user's long-lived token. `include` and `exclude` are
    shell patterns compared, without regard to case, with a camera's name and id.
    """

    name: str
    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Literal["verify", "insecure"] = "verify"
    tls_fingerprint: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    stall_seconds: float = 60.0
    """No byte of a body for so long: the transfer has failed."""
    connect_seconds: float = 10.0
    """Limit of a TCP and TLS connect, of a login's answer, and of half the link's handshake."""
    rpc_seconds: float = 30.0
    """Limit of a call that does not list."""
    listing_seconds: float = 120.0
    """Limit of a listing's call, and of a conversion that moves a whole clip inside the server."""
    heartbeat_seconds: float = 30.0
    """Between two proofs that an idle link is alive."""
    heartbeat_limit_seconds: float = 15.0
    """A proof that takes longer means that the link is lost."""

    def __post_init__(self) -> None:
        where = f"sources.{self.name}"
        _check_url(self.url, where)
        if self.tls not in ("verify", "insecure"):
            raise ConfigError(f'{where}.tls must be "verify" or "insecure".')
        if self.tls_fingerprint is not None:
            parse_fingerprint(self.tls_fingerprint, where)
        if self.username and not self.password:
            raise ConfigError(f"{where}.password is missing.", hint="Set it, or remove username.")
        if self.password and not self.username and not _is_token(self.password):
            raise ConfigError(
                f"{where}.password without a username must be the user's token.",
                hint="Set username, or take the token that Scrypted shows for the user.",
            )
        for limit in (
            "stall_seconds",
            "connect_seconds",
            "rpc_seconds",
            "listing_seconds",
            "heartbeat_seconds",
            "heartbeat_limit_seconds",
        ):
            if not getattr(self, limit) > 0:
                raise ConfigError(f"{where}.{limit} must be greater than 0.")

    @property
    def origin(self) -> URL:
        """Scheme, host and port: what belongs to this server, and all that may see its tokens."""
        return URL(self.url).origin()


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _check_url(text: str, where: str) -> None:
    expected = 'It is the address alone, like "https://192.168.1.20:10443".'
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{where}.url is not a usable http or https address.", hint=expected)
    if url.user is not None or url.password is not None:
        raise ConfigError(
            f"{where}.url must not hold a user name or password.",
            hint="They have keys of their own: username and password.",
        )
    if url.path.strip("/") or url.query_string or url.fragment:
        raise ConfigError(f"{where}.url has a path or query.", hint=expected)


def parse_fingerprint(text: str, where: str) -> bytes:
    """The SHA-256 digest in `sha256:<64 hex digits>`, colons and case ignored; else ConfigError."""
    kind, _, digits = text.strip().lower().partition(":")
    found = _FINGERPRINT.fullmatch(f"{kind}:{digits.replace(':', '')}")
    if found is None:
        raise ConfigError(
            f"{where}.tls_fingerprint is not a SHA-256 fingerprint.",
            hint='It looks like "sha256:" and 64 hexadecimal digits, with or without colons.',
        )
    return bytes.fromhex(found[1])
