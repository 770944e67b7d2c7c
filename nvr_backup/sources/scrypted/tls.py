"""Who is at the other end: certificate policy, sessions, and the words for a failed connection.

Verification is the default and is never loosened by itself; a pinned certificate replaces it. It
must never let a token follow a redirect, keep a cookie, or build an SSL context on the event loop
(57–85 ms each, measured): aiohttp's own contexts, made at import, are used throughout.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from types import SimpleNamespace
from typing import Final

import aiohttp
from yarl import URL

from nvr_backup.errors import Blocked
from nvr_backup.sources.scrypted.settings import ScryptedSettings, parse_fingerprint

READ_BUFFER: Final = 65_536
"""aiohttp's default buffer costs a third more CPU per GiB (measured)."""

PROBE_SECONDS: Final = 10.0
"""Limit for looking at a certificate that did not verify."""


class UnexpectedRedirect(aiohttp.ClientError):
    """The server redirected a request that must not be redirected."""


async def _refuse_redirect(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    params: aiohttp.TraceRequestRedirectParams,
) -> None:
    params.response.close()
    raise UnexpectedRedirect(f"redirected with HTTP {params.response.status}")


def certificate_policy(settings: ScryptedSettings) -> bool | aiohttp.Fingerprint:
    """aiohttp's `ssl` argument; a pinned certificate is checked before anything is sent."""
    if settings.tls_fingerprint is not None:
        pinned = parse_fingerprint(settings.tls_fingerprint, f"sources.{settings.name}")
        return aiohttp.Fingerprint(pinned)
    return settings.tls == "verify"


def own_session(settings: ScryptedSettings) -> aiohttp.ClientSession:
    """A session for the NVR itself. Threaded resolver: c-ares may not know `.local` names."""
    return _session(certificate_policy(settings))


def foreign_session() -> aiohttp.ClientSession:
    """A session for other hosts that an NVR refers to: always verified, never with a token."""
    return _session(True)


def _session(policy: bool | aiohttp.Fingerprint) -> aiohttp.ClientSession:
    guard = aiohttp.TraceConfig()
    guard.on_request_redirect.append(_refuse_redirect)
    connector = aiohttp.TCPConnector(ssl=policy, resolver=aiohttp.ThreadedResolver())
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "nvr-backup"},
        read_bufsize=READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=None),
        trace_configs=[guard],
    )


async def presented_fingerprint(origin: URL) -> str | None:
    """The fingerprint of the certificate that `origin` shows right now, unverified, or None."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context)
    except OSError:  # TimeoutError and ssl.SSLError are OSErrors too
        return None
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    return None if certificate is None else "sha256:" + hashlib.sha256(certificate).hexdigest()


async def connection_failure(settings: ScryptedSettings, err: Exception) -> Blocked:
    """The operator's words for an exception of aiohttp (or the OS) that kept us from the NVR."""
    if isinstance(err, aiohttp.ServerFingerprintMismatch | aiohttp.ClientSSLError):
        return await _not_trusted(settings.origin, err)
    return _not_reached(settings.origin, err)


async def _not_trusted(
    origin: URL, err: aiohttp.ServerFingerprintMismatch | aiohttp.ClientSSLError
) -> Blocked:
    if isinstance(err, aiohttp.ServerFingerprintMismatch):
        got = f"sha256:{err.got.hex()}"
        return Blocked(
            f"{origin} shows another certificate than the pinned one: expected "
            f"sha256:{err.expected.hex()}, got {got}.",
            hint=f'If the server\'s certificate was renewed, set tls_fingerprint = "{got}"; '
            "otherwise someone is in between.",
        )
    if isinstance(err, aiohttp.ClientConnectorCertificateError):
        shown = await presented_fingerprint(origin) or "sha256:…"
        return Blocked(
            f"The certificate of {origin} cannot be verified ({_verify_message(err)}); "
            f"it has the fingerprint {shown}.",
            hint=f'If this is your server, pin it with tls_fingerprint = "{shown}", or accept any '
            'certificate with tls = "insecure".',
        )
    return Blocked(
        f"{origin} does not speak TLS with us ({_os_text(err.os_error)}).",
        hint="Is this the port for https? Scrypted's own are 10443 (https) and 11080 (http).",
    )


def _not_reached(origin: URL, err: Exception) -> Blocked:
    match err:
        case aiohttp.ClientConnectorDNSError():
            return Blocked(
                f"The host name {origin.host} of the NVR cannot be resolved.",
                hint="Check url and the name server, or use the IP address.",
            )
        case aiohttp.ClientConnectorError():
            return Blocked(
                f"The NVR at {origin} cannot be reached ({_os_text(err.os_error)}).",
                hint="Is it on, and are the address and port of url right?",
            )
        case UnexpectedRedirect():
            return Blocked(
                f"{origin} redirects elsewhere; nothing was sent there.",
                hint="Set url to the address of Scrypted itself.",
            )
        case TimeoutError():
            return Blocked(
                f"The NVR at {origin} did not answer in time.",
                hint="It may be starting; if this stays, check it and the network.",
            )
        case _:
            return Blocked(
                f"The NVR at {origin} broke the connection off ({type(err).__name__}).",
                hint="It may be restarting; if this stays, check the scheme and port of url.",
            )


def _verify_message(err: aiohttp.ClientConnectorCertificateError) -> str:
    cause = err.certificate_error
    return str(getattr(cause, "verify_message", "")) or type(cause).__name__


def _os_text(err: OSError) -> str:
    return err.strerror or type(err).__name__
