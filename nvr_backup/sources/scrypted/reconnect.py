"""Keeping one live link: made at first use, replaced after a loss, with a growing pause in between.

While the pause lasts, a caller gets the remembered reason at once and the server is left alone. It
must never hold a dead link's resources, nor turn a failure into a success of waiting: it makes one
attempt and says how that went.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked
from nvr_backup.sources.scrypted.link import Link, safe_text
from nvr_backup.sources.scrypted.login import Login
from nvr_backup.sources.scrypted.settings import ScryptedSettings
from nvr_backup.sources.scrypted.tls import UnexpectedRedirect, connection_failure
from nvr_backup.sources.scrypted.transport import CONNECT_FAILURES

FIRST_DELAY_SECONDS: Final = 1.0
LONGEST_DELAY_SECONDS: Final = 60.0
"""Refused credentials wait longer than this: see `login`."""

HANDSHAKES: Final = 2
"""A server that is starting lets one handshake run into its limit; the next one works."""


class Reconnect:
    """Holds the link of a source."""

    def __init__(self, settings: ScryptedSettings, login: Login, clock: Clock) -> None:
        self._settings = settings
        self._login = login
        self._clock = clock
        self._lock = asyncio.Lock()
        self._link: Link | None = None
        self._failures = 0
        self._failure: Blocked | None = None
        self._quiet_until = 0.0

    async def link(self) -> Link:
        """A live link. Raises Blocked: during the pause, the last attempt's reason again."""
        if self._link is not None and self._link.alive:
            return self._link
        async with self._lock:
            if self._link is not None and self._link.alive:
                return self._link
            if self._failure is not None and self._clock.monotonic() < self._quiet_until:
                raise Blocked(self._failure.message, hint=self._failure.hint)
            await self._drop()
            try:
                self._link = await self._open()
            except Blocked as err:
                delay = min(FIRST_DELAY_SECONDS * 2.0**self._failures, LONGEST_DELAY_SECONDS)
                self._failures = min(self._failures + 1, 16)
                self._quiet_until = self._clock.monotonic() + delay
                self._failure = err
                raise
            self._failure, self._failures = None, 0
            return self._link

    async def aclose(self) -> None:
        """Close the link, if there is one."""
        async with self._lock:
            await self._drop()

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    async def _open(self) -> Link:
        last: Exception | None = None
        for _ in range(HANDSHAKES):
            token = await self._login.token()
            link = Link(self._settings, self._clock)
            started = False
            try:
                await link.start(token.authorization)
                started = True
            except CONNECT_FAILURES as err:
                last = err
                self._login.reject(token)  # tokens die when the server restarts
            finally:
                if not started:
                    await link.aclose()
            if started:
                return link
        raise await self._no_link(last) from last

    async def _no_link(self, err: Exception | None) -> Blocked:
        unreachable = isinstance(err, aiohttp.ClientConnectorError | UnexpectedRedirect)
        if err is not None and unreachable:
            return await connection_failure(self._settings, err)
        return Blocked(
            f"{self._settings.origin} accepted the login but opened no link ({safe_text(err)}).",
            hint="It may be starting. If this stays: may this user use Scrypted Core, and does a "
            "proxy in between allow WebSockets?",
        )
