"""Google's OAuth token endpoint for service accounts, and what a token then allows.

Follows developers.google.com/identity/protocols/oauth2/service-account: a JWT signed with RS256,
`aud` = the token endpoint, valid for at most an hour. The signature is verified with
`cryptography` itself, not with the library that the client signs with.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.gcs_double.answers import Refused, forbidden, json_answer, refuse

PERMISSIONS = frozenset(
    {
        "storage.buckets.get",
        "storage.buckets.update",
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.get",
        "storage.objects.list",
        "storage.objects.update",
    }
)
CREATOR = frozenset({"storage.objects.create"})
"""What the role Storage Object Creator amounts to, for our purposes."""

_SCOPE = "https://www.googleapis.com/auth/"
_WRITE = {f"{_SCOPE}devstorage.{name}" for name in ("read_write", "full_control")} | {
    f"{_SCOPE}cloud-platform"
}
_READ = _WRITE | {f"{_SCOPE}devstorage.read_only", f"{_SCOPE}cloud-platform.read-only"}
_READING = {"storage.objects.get", "storage.objects.list", "storage.buckets.get"}

LONGEST_ASSERTION_SECONDS = 3600
SKEW_SECONDS = 60
GOOGLE_TOKEN_URI = "https://oauth2.googleapis.com/token"
"""Google's own library names this audience whatever the key file's token_uri says."""

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(slots=True)
class Account:
    """A service account; `permissions` may be changed at any time."""

    email: str
    permissions: frozenset[str]
    key_id: str
    public_key: rsa.RSAPublicKey
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: an account with a token, or (where tokens are not required) anybody."""

    who: str
    permissions: frozenset[str]
    scopes: frozenset[str]

    def may(self, permission: str) -> bool:
        return permission in self.permissions and self._in_scope(permission)

    def _in_scope(self, permission: str) -> bool:
        return bool(self.scopes & (_READ if permission in _READING else _WRITE))

    def require(self, permission: str) -> None:
        """Refused 403 that names the permission, or the token's scope."""
        if not self._in_scope(permission):
            raise refuse(
                403,
                "Request had insufficient authentication scopes.",
                reason="insufficientPermissions",
                headers={
                    "WWW-Authenticate": 'Bearer realm="https://accounts.google.com/", '
                    'error="insufficient_scope"'
                },
            )
        if permission not in self.permissions:
            raise forbidden(self.who, permission)


@dataclass(frozen=True, slots=True)
class _Token:
    account: Account
    scopes: frozenset[str]
    expires: float


class Authority:
    """Issues and checks tokens. `life_seconds` is what new tokens live; `required` = no anonymous.

    `stated_life_seconds`, if set, is what the token endpoint claims instead of the truth.
    """

    def __init__(
        self,
        *,
        required: bool,
        life_seconds: float,
        now: Callable[[], float],
        anonymous_permissions: frozenset[str],
    ) -> None:
        self.required = required
        self.life_seconds = life_seconds
        self.stated_life_seconds: int | None = None
        self.anonymous_permissions = anonymous_permissions
        self.accounts: dict[str, Account] = {}
        self.issued = 0
        self._now = now
        self._tokens: dict[str, _Token] = {}

    def create(
        self, token_uri: str, *, name: str, permissions: frozenset[str]
    ) -> tuple[Account, dict[str, str]]:
        """A new account and the content of its key file."""
        key = _rsa_key(len(self.accounts))
        email = f"{name}@double-project.iam.gserviceaccount.com"
        account = Account(email, permissions, secrets.token_hex(20), key.public_key())
        self.accounts[email] = account
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return account, {
            "type": "service_account",
            "project_id": "double-project",
            "private_key_id": account.key_id,
            "private_key": private.decode(),
            "client_email": email,
            "client_id": str(10**20 + secrets.randbelow(10**20)),
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        }

    def expire_all(self) -> int:
        """Every token issued so far is expired from now on; how many there were."""
        count = len(self._tokens)
        self._tokens.clear()
        return count

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this Authorization header; Refused 401 where that is not good enough."""
        if authorization is None or (not self.required and not self._known(authorization)):
            if self.required:
                raise _unauthorized("Anonymous caller does not have access.", "required")
            return Caller("Anonymous caller", self.anonymous_permissions, frozenset(_WRITE))
        scheme, _, value = authorization.partition(" ")
        token = self._tokens.get(value) if scheme == "Bearer" else None
        if token is None or token.expires <= self._now() or not token.account.enabled:
            raise _unauthorized("Invalid Credentials", "authError")
        return Caller(token.account.email, token.account.permissions, token.scopes)

    def _known(self, authorization: str) -> bool:
        return authorization.removeprefix("Bearer ") in self._tokens

    def grant(self, form: dict[str, str], token_uri: str) -> web.Response:
        """The answer of the token endpoint."""
        if form.get("grant_type") != GRANT:
            return _oauth_error("unsupported_grant_type", "Invalid grant_type")
        try:
            account, scopes = self._verify(form.get("assertion", ""), token_uri)
        except _BadAssertion as err:
            return _oauth_error(err.error, str(err))
        value = f"ya29.{secrets.token_urlsafe(32)}"
        self._tokens[value] = _Token(account, scopes, self._now() + self.life_seconds)
        self.issued += 1
        stated = self.stated_life_seconds
        return json_answer(
            {
                "access_token": value,
                "expires_in": max(1, int(self.life_seconds)) if stated is None else stated,
                "token_type": "Bearer",
            }
        )

    def _verify(self, assertion: str, token_uri: str) -> tuple[Account, frozenset[str]]:
        header, claims, signed, signature = _parts(assertion)
        if header.get("alg") != "RS256":
            raise _BadAssertion("invalid_grant", "Invalid JWT: only RS256 is supported.")
        account = self.accounts.get(str(claims.get("iss")))
        if account is None or not account.enabled:
            raise _BadAssertion("invalid_grant", "Invalid grant: account not found")
        if header.get("kid") not in (None, account.key_id):
            raise _BadAssertion("invalid_grant", "Invalid JWT Signature.")
        try:
            account.public_key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature as err:
            raise _BadAssertion("invalid_grant", "Invalid JWT Signature.") from err
        if claims.get("aud") not in (token_uri, GOOGLE_TOKEN_URI):
            raise _BadAssertion("invalid_grant", "Invalid JWT: wrong audience.")
        now, issued, expires = time.time(), claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int | float) or not isinstance(expires, int | float):
            raise _BadAssertion("invalid_grant", "Invalid JWT: iat and exp are required.")
        if (
            issued > now + SKEW_SECONDS
            or expires < now - SKEW_SECONDS
            or not 0 < expires - issued <= LONGEST_ASSERTION_SECONDS
        ):
            raise _BadAssertion(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable "
                "timeframe. Check your iat and exp values in the JWT claim.",
            )
        scopes = frozenset(str(claims.get("scope", "")).split())
        if not scopes:
            raise _BadAssertion(
                "invalid_scope", "Invalid OAuth scope or ID token audience provided."
            )
        return account, scopes


class _BadAssertion(Exception):
    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error


def _parts(assertion: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    try:
        head, body, signature = assertion.split(".")
        header, claims = json.loads(_unbase64(head)), json.loads(_unbase64(body))
        if not isinstance(header, dict) or not isinstance(claims, dict):
            raise _BadAssertion("invalid_grant", "Invalid JWT.")
        return header, claims, f"{head}.{body}".encode(), _unbase64(signature)
    except (ValueError, binascii.Error) as err:
        raise _BadAssertion("invalid_grant", "Invalid JWT.") from err


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _oauth_error(error: str, description: str) -> web.Response:
    return json_answer({"error": error, "error_description": description}, status=400)


def _unauthorized(message: str, reason: str) -> Refused:
    return refuse(
        401,
        message,
        reason=reason,
        location=("header", "Authorization"),
        headers={"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'},
    )


@cache
def _rsa_key(number: int) -> rsa.RSAPrivateKey:
    """The key of a double's n-th account; made once per process, because making one is slow."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def write_key_file(path: Path, content: dict[str, str]) -> None:
    """Write a key file with mode 0600, as Google's tools do."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
