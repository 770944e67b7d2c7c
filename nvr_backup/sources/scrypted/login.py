"""Logging in to Scrypted ourselves: the SDK hides why it failed and cannot do without a user.

`Login` keeps one token and renews it before it ends. It must never post credentials to a server
that has no account yet (they would make their sender its administrator), never hammer a server
with credentials it refused, and never put a secret into an error. Facts: `srv/scrypted-server-
main.ts` of koush/scrypted, as observed on 0.144.2.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked
from nvr_backup.sources.scrypted.settings import ScryptedSettings
from nvr_backup.sources.scrypted.tls import connection_failure

LARGEST_ANSWER: Final = 1 << 20
LONGEST_REASON: Final = 200
LONGEST_TOKEN: Final = 8192

DEFAULT_LIFE_SECONDS: Final = 86_400.0
SHORTEST_LIFE_SECONDS: Final = 60.0
RENEW_AFTER: Final = 0.9
"""Share of a token's life after which a new one is fetched."""

FIRST_DELAY_SECONDS: Final = 60.0
LONGEST_DELAY_SECONDS: Final = 3600.0


class CredentialsRefused(Blocked):
    """The server knows us and says no: the longest back-off there is."""


@dataclass(frozen=True, slots=True)
class Token:
    """What opens the NVR for a while; `renew_at` is in seconds of the monotonic clock."""

    authorization: str = field(repr=False)
    renew_at: float


class Login:
    """The one place that holds credentials and a token."""

    def __init__(
        self, settings: ScryptedSettings, session: aiohttp.ClientSession, clock: Clock
    ) -> None:
        self._settings = settings
        self._session = session
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token: Token | None = None
        self._refusal: CredentialsRefused | None = None
        self._refusals = 0
        self._quiet_until = 0.0

    async def token(self) -> Token:
        """A token that is good as far as we know. Raises Blocked with the server's own reason."""
        async with self._lock:
            if self._token is not None and self._clock.monotonic() < self._token.renew_at:
                return self._token
            if self._refusal is not None and self._clock.monotonic() < self._quiet_until:
                raise CredentialsRefused(self._refusal.message, hint=self._refusal.hint)
            try:
                self._token = await self._log_in()
            except CredentialsRefused as err:
                delay = min(FIRST_DELAY_SECONDS * 2.0**self._refusals, LONGEST_DELAY_SECONDS)
                self._refusals = min(self._refusals + 1, 16)
                self._quiet_until = self._clock.monotonic() + delay
                self._refusal = err
                raise
            self._refusal, self._refusals = None, 0
            return self._token

    def reject(self, token: Token) -> None:
        """The server refused `token`: the next `token()` logs in anew (unless someone has)."""
        if self._token is token:
            self._token = None

    async def _log_in(self) -> Token:
        settings = self._settings
        status, answer = await self._ask("GET")
        if status == 200 and not settings.username and not settings.password:
            if "authorization" in answer:  # SCRYPTED_DEFAULT_AUTHENTICATION
                return self._read_token(answer)
            raise CredentialsRefused(
                f"{settings.origin} wants a login, and none is configured.",
                hint=f"Set sources.{settings.name}.username and password.",
            )
        if status != 200 or not isinstance(answer.get("hasLogin"), bool):
            raise self._not_scrypted(status)
        if not answer["hasLogin"]:
            raise CredentialsRefused(
                f"{settings.origin} has no account yet; the password was not sent, because it "
                "would have made its sender the administrator.",
                hint="Open the address in a browser and create the administrator first.",
            )
        if settings.username:
            status, answer = await self._ask(
                "POST", {"username": settings.username, "password": settings.password}
            )
        else:
            status, answer = await self._ask("GET", bearer=settings.password)
            if status == 401:
                raise CredentialsRefused(
                    f"{settings.origin} refused the token given as password.",
                    hint="Take the user's current token, or set username and password.",
                )
        if status == 200 and "authorization" in answer:
            return self._read_token(answer)
        reason = self._reason(answer)
        if status != 200 or not reason:
            raise self._not_scrypted(status)
        raise CredentialsRefused(
            f"{settings.origin} refused the login of {settings.username!r}: {reason}",
            hint=f"Correct sources.{settings.name}.username and password.",
        )

    def _read_token(self, answer: dict[str, Any]) -> Token:
        text = answer["authorization"]
        if (
            not isinstance(text, str)
            or not text.startswith("Bearer ")
            or len(text) > LONGEST_TOKEN
            or not text.isprintable()
        ):
            raise self._not_scrypted(200)
        life = answer.get("expiration")
        seconds = DEFAULT_LIFE_SECONDS
        if isinstance(life, int | float) and not isinstance(life, bool) and life > 0:
            # Bounded before the division: a huge integer does not fit into a float.
            seconds = max(min(life, DEFAULT_LIFE_SECONDS * 1000) / 1000, SHORTEST_LIFE_SECONDS)
        return Token(text, self._clock.monotonic() + seconds * RENEW_AFTER)

    def _reason(self, answer: dict[str, Any]) -> str:
        """The server's own words, made safe to show."""
        text = answer.get("error")
        if not isinstance(text, str):
            return ""
        if self._settings.password:
            text = text.replace(self._settings.password, "…")
        return "".join(c for c in text[:LONGEST_REASON] if c.isprintable())

    def _not_scrypted(self, status: int) -> Blocked:
        origin = self._settings.origin
        if status >= 500 or status == 429:
            return Blocked(
                f"{origin} answered the login with HTTP {status}.",
                hint="It may be starting; if this stays, look at the NVR's own log.",
            )
        if 300 <= status < 400:
            return Blocked(
                f"{origin} redirects the login elsewhere; the password was not sent there.",
                hint="Set url to the address of Scrypted itself.",
            )
        return Blocked(
            f"{origin} did not answer /login as Scrypted does (HTTP {status}).",
            hint="Is url the address of a Scrypted server, and is no proxy in between?",
        )

    async def _ask(
        self, method: str, body: dict[str, str] | None = None, bearer: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of /login ({} when it is none); Blocked when unreachable."""
        limit = self._settings.connect_seconds
        try:
            async with self._session.request(
                method,
                self._settings.origin / "login",
                json=body,
                headers={"Authorization": f"Bearer {bearer}"} if bearer else None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=limit, sock_connect=limit),
            ) as response:
                return response.status, await _json_object(response)
        except (aiohttp.ClientError, OSError) as err:  # TimeoutError is an OSError
            raise await connection_failure(self._settings, err) from err


async def _json_object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        await response.content.readexactly(LARGEST_ANSWER)
    except asyncio.IncompleteReadError as err:
        try:
            value = json.loads(err.partial)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}
    return {}
