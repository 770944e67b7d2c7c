"""Who we are to Google: the key file, checked before use, and the bearer token it yields.

gcloud-aio's `Token` speaks the OAuth flows; caching is ours, because its own retries in real time,
refreshes in a task nobody awaits, and lets one cancelled caller cancel the others. The contents
of a key file must never appear in a message.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from gcloud.aio.auth import Token

from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked, ConfigError
from nvr_backup.stores.gcs.replies import Unanswered, content, is_unclear, raised
from nvr_backup.stores.gcs.settings import GcsSettings, is_loopback

SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
"""The narrowest scope that allows to create, read, list and delete."""

FILE_BYTES_LIMIT: Final = 256 * 1024
TOKEN_SECONDS_LIMIT: Final = 10
USED_SHARE: Final = 0.9
"""A token is replaced after this share of its life; a 401 replaces it earlier."""

_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "service_account": ("client_email", "private_key"),
    "authorized_user": ("client_id", "client_secret", "refresh_token"),
    "external_account": ("audience", "credential_source", "subject_token_type", "token_url"),
    "impersonated_service_account": ("source_credentials", "service_account_impersonation_url"),
}
_ANOTHER_KEY: Final = (
    "Create a new JSON key for the service account and put it at this path, readable by the "
    "account that nvr-backup runs as."
)


def find_credentials(settings: GcsSettings, environment: Mapping[str, str]) -> Path | None:
    """The key file in use: the configured one, else Google's application default credentials.

    None means the metadata server of a Google machine (Google's order of precedence).
    """
    if settings.credentials_file is not None:
        return settings.credentials_file
    if named := environment.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return Path(named)
    home = environment.get("CLOUDSDK_CONFIG")
    folder = Path(home) if home else Path(environment.get("HOME") or "/") / ".config" / "gcloud"
    well_known = folder / "application_default_credentials.json"
    return well_known if well_known.exists() else None


def read_credentials(path: Path) -> dict[str, Any]:
    """The key file's content, complete and usable as far as can be told without the network.

    ConfigError otherwise: gcloud-aio would silently ask the metadata server instead.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(FILE_BYTES_LIMIT)
        key = json.loads(text)
    except OSError as err:
        raise _unusable(path, f"cannot be read ({err.strerror})") from err
    except (ValueError, RecursionError):
        # Without the cause: a decoding error carries the whole document.
        raise _unusable(path, "is not JSON") from None
    if not isinstance(key, dict) or key.get("type") not in _FIELDS:
        raise _unusable(path, f"has no known type (expected one of {', '.join(_FIELDS)})")
    missing = [name for name in _FIELDS[key["type"]] if not key.get(name)]
    if missing:
        raise _unusable(path, f"lacks {', '.join(missing)}")
    for name in ("token_uri", "token_url"):
        if name in key and not _is_safe(str(key[name])):
            raise _unusable(path, f"has a {name} that is not https://")
    if key["type"] == "service_account":
        _check_private_key(path, key["private_key"])
    return key


class NoToken(Exception):
    """There is no access token at the moment; `outcome` says why."""

    def __init__(self, outcome: Unanswered) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Bearer:
    """Yields the access token; one request for it at a time, shared by all who wait.

    To gcloud-aio's `Storage` it is the `Token`. The file is read anew for every token, so that a
    replaced key needs no restart.
    """

    def __init__(self, path: Path | None, session: aiohttp.ClientSession, clock: Clock) -> None:
        self._path = path
        self._session = session
        self._clock = clock
        self._lock = asyncio.Lock()
        self._value = ""
        self._replace_at = 0.0

    async def get(self) -> str:
        """A token believed valid. Raises Blocked when the credentials are no good, or NoToken."""
        async with self._lock:
            if not self._value or self._clock.monotonic() >= self._replace_at:
                self._value = await self._fetch()
            return self._value

    def forget(self, header: str) -> None:
        """The server refused a request with this Authorization; a newer token stays."""
        if header == f"Bearer {self._value}":
            self._value = ""

    async def _fetch(self) -> str:
        try:
            token = await self._token()
            answer = await token.refresh(timeout=TOKEN_SECONDS_LIMIT)
        except aiohttp.ClientResponseError as err:
            raise self._refused(err) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            if self._path is None:
                raise Blocked(
                    "There are no Google credentials on this machine.",
                    hint="Set credentials_file to a service account's JSON key.",
                ) from err
            raise NoToken(
                Unanswered(f"no access token: {type(err).__name__}", sent=False)
            ) from None
        except (jwt.PyJWTError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise self._blocked(f"yielded no access token ({type(err).__name__})") from None
        self._replace_at = self._clock.monotonic() + answer.expires_in * USED_SHARE
        return str(answer.value)

    async def _token(self) -> Token:
        file = None
        if self._path is not None:
            try:
                key = await asyncio.to_thread(read_credentials, self._path)
            except ConfigError as err:
                raise Blocked(err.message, hint=err.hint) from err
            file = io.StringIO(json.dumps(key))
        return Token(service_file=file, session=self._session, scopes=[SCOPE])

    def _refused(self, err: aiohttp.ClientResponseError) -> NoToken | Blocked:
        """What the token server's error comes to."""
        said = raised(err)
        if isinstance(said, Unanswered) or (is_unclear(said) and err.status != 401):
            return NoToken(Unanswered(f"no access token: {err.status}", sent=False, answered=True))
        code = (content(said) or {}).get("error")
        named = f"{err.status} {code}" if isinstance(code, str) else str(err.status)
        return self._blocked(f"refused by Google ({named[:80]})")

    def _blocked(self, what: str) -> Blocked:
        if self._path is None:
            return Blocked(
                f"The credentials of this machine were {what}.",
                hint="Attach a service account to it, or set credentials_file.",
            )
        return Blocked(
            f"The credentials in {self._path} were {what}.",
            hint="Was the key revoked, or its account disabled? Is this machine's clock right? "
            + _ANOTHER_KEY,
        )


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"The credentials file {path} {why}.", hint=_ANOTHER_KEY)


def _is_safe(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def _check_private_key(path: Path, pem: object) -> None:
    try:
        load_pem_private_key(str(pem).encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _unusable(path, "holds a private_key that is not usable") from None
