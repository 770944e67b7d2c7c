"""Logins and tokens of a simulated NVR, with the real server's status codes and lifetimes.

Bearer and query tokens die when the server restarts (their salt is the process's) and when their
time is over; the cookie and the user's long-lived token survive. On a server that nobody has set
up, a login with any credentials *creates the administrator*: that is recorded, so that a test can
assert that it never happens.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, unquote

from nvr_backup.clock import Clock
from nvr_backup.model import to_ms
from nvr_backup.simulator.settings import SimulatorSettings

COOKIE: Final = "login_user_token"
_LONGEST_LIFE_MS: Final = timedelta(days=365) // timedelta(milliseconds=1)


class InvalidToken(Exception):
    """A Bearer token was shown and it is not, or no longer, valid."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows to prove who it is."""

    authorization: str | None
    query_token: str | None
    cookie: str | None


class Gatekeeper:
    """Issues tokens and tells who may come in."""

    def __init__(self, settings: SimulatorSettings, clock: Clock) -> None:
        self._clock = clock
        self._settings = settings
        self._username = settings.username
        self._password = settings.password
        self.has_login = not settings.first_run
        self.administrators_created: list[str] = []
        self.attempts: Counter[str] = Counter()
        seed = f"long-lived/{settings.seed}/{settings.username}".encode()
        self.user_token: Final = hashlib.md5(seed, usedforsecurity=False).hexdigest()
        self._cookie_key = hashlib.sha256(seed).digest()
        self._salt = b""
        self.expire_all()

    def change_password(self, password: str) -> None:
        """From now on this one lets the user in; tokens stay valid, as on the real server."""
        self._password = password

    def expire_all(self) -> None:
        """Every Bearer and query token issued so far is worthless from now on."""
        self._salt = secrets.token_bytes(16)

    # -- POST /login, GET /login ---------------------------------------------------------------

    def login(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """The answer to POST /login and, on success, the cookie's value. Always HTTP 200.

        `attempts` counts the outcomes: "success", "wrong password", "no such user", "empty".
        """
        username, password = body.get("username"), body.get("password")
        if not self.has_login:
            if not username or not password:
                return self._refusal("empty", "Username and password must not be empty.")
            self.administrators_created.append(str(username))
            self.has_login = True
            self._username, self._password = str(username), str(password)
        if username != self._username:
            return self._refusal("no such user", "User does not exist.")
        if not isinstance(password, str) or not self._accepts(password):
            return self._refusal("wrong password", "Incorrect password.")
        self.attempts["success"] += 1
        max_age = body.get("maxAge")
        life_ms = max_age if isinstance(max_age, int) else self._life_ms
        claims = self._claims(life_ms)
        answer = self._tokens(claims)
        answer |= {
            "username": self._username,
            "expiration": life_ms,
            "externalAddresses": [],
            "addresses": [],
        }
        return answer, self._signed(claims)

    def whoami(self, shown: Shown) -> dict[str, Any]:
        """The answer to GET /login; InvalidToken stands for the empty 401."""
        if self.admits(shown, strict=True):
            answer = self._tokens(self._claims(self._life_ms))
            return answer | {
                "username": self._username,
                "expiration": self._life_ms,
                "token": self.user_token,
                "externalAddresses": [],
                "addresses": [],
            }
        return {
            "error": "Not logged in.",
            "hasLogin": self.has_login,
            "externalAddresses": [],
            "addresses": [],
        }

    # -- everything else -----------------------------------------------------------------------

    def admits(self, shown: Shown, *, strict: bool = False) -> bool:
        """Whether the request is a user's; with `strict` a bad Bearer raises InvalidToken."""
        scheme, _, token = (shown.authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            if self._valid(token):
                return True
            if strict:
                raise InvalidToken
            return False
        if shown.query_token and self._valid(shown.query_token):
            return True
        if shown.cookie and self._valid_cookie(shown.cookie):
            return True
        return self._settings.default_user

    # -- inside --------------------------------------------------------------------------------

    @property
    def _life_ms(self) -> int:
        return self._settings.token_life // timedelta(milliseconds=1)

    def _accepts(self, password: str) -> bool:
        return password in (self._password, self.user_token)

    def _refusal(self, outcome: str, error: str) -> tuple[dict[str, Any], None]:
        self.attempts[outcome] += 1
        return {"error": error, "hasLogin": self.has_login}, None

    def _claims(self, life_ms: int) -> str:
        claims = {"u": self._username, "t": to_ms(self._clock.now()), "d": life_ms}
        return json.dumps(claims, separators=(",", ":"))

    def _tokens(self, claims: str) -> dict[str, Any]:
        token = f"{self._hash(claims)}#{claims}"
        return {"authorization": f"Bearer {token}", "queryToken": {"scryptedToken": token}}

    def _hash(self, claims: str) -> str:
        return hashlib.sha256(self._salt + claims.encode()).hexdigest()

    def _valid(self, token: str) -> bool:
        if token == self.user_token:
            return True
        digest, _, claims = token.partition("#")
        return hmac.compare_digest(digest.encode(), self._hash(claims).encode()) and self._fresh(
            claims
        )

    def _fresh(self, claims: str) -> bool:
        """Only called for claims this server signed itself."""
        told = json.loads(claims)
        if told["d"] > _LONGEST_LIFE_MS:
            return False
        return bool(to_ms(self._clock.now()) <= told["t"] + told["d"])

    def _signed(self, claims: str) -> str:
        return quote(f"s:{claims}.{self._mac(claims)}", safe="")

    def _mac(self, claims: str) -> str:
        mac = hmac.digest(self._cookie_key, claims.encode(), "sha256")
        return base64.b64encode(mac).decode().rstrip("=")

    def _valid_cookie(self, cookie: str) -> bool:
        value = unquote(cookie)
        claims, _, mac = value.removeprefix("s:").rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(claims).encode()):
            return False
        return self._fresh(claims)
