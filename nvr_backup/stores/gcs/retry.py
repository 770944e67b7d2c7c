"""How long one step of the exchange is tried again before it becomes an error.

Full-jitter back-off between 0.5 and 32 s, bounded in time and in number since the last progress.
It must never wait for ever, and never wait through anything but the clock it was given.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final

from nvr_backup.clock import Clock
from nvr_backup.stores.gcs.replies import (
    Outcome,
    Reply,
    exhausted,
    is_unclear,
    refusal,
    retry_after,
)

FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 32.0
ATTEMPTS_LIMIT: Final = 20
"""Failures in a row without progress; the bound where failing takes no time."""

TOKENS_LIMIT: Final = 2
"""A second 401 in a row came with a fresh token: the credentials are not accepted."""


class RetryBudget:
    """Patience for one step; `doing` names it in the error, `host` the server."""

    def __init__(
        self, clock: Clock, *, seconds: float, doing: str, host: str, attempts: int = ATTEMPTS_LIMIT
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._attempts = attempts
        self._doing = doing
        self._host = host
        self.progressed()

    def progressed(self) -> None:
        """The store holds more than before: everything counts anew."""
        self._failures = 0
        self._unauthorized = 0
        self._answered = False
        self._since: float | None = None

    def heard(self) -> None:
        """The server answered something: it is there, whatever becomes of this step."""
        self._answered = True

    async def clear(self, request: Callable[[], Awaitable[Outcome]]) -> Reply:
        """The first clear answer to `request`; raises like `again` when there is none in time."""
        while not isinstance(outcome := await request(), Reply) or is_unclear(outcome):
            await self.again(outcome)
        self.heard()
        return outcome

    async def again(self, outcome: Outcome) -> None:
        """Return when it is time for another attempt after `outcome`.

        Raises Blocked when there was no answer at all or the credentials are refused, Transient
        otherwise, once the budget is used up or the server asks for a longer pause than is left.
        """
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        self._failures += 1
        if isinstance(outcome, Reply) or outcome.answered:
            self.heard()
        if isinstance(outcome, Reply) and outcome.status == 401:
            self._unauthorized += 1
            if self._unauthorized >= TOKENS_LIMIT:
                raise refusal(outcome, doing=self._doing)
            return  # the client has dropped its token: nothing to wait for
        wish = retry_after(outcome, self._clock.now())
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self._failures - 1))
        pause = max(random.uniform(0.0, longest), wish or 0.0)  # noqa: S311 - not cryptography
        left = self._since + self._seconds - now
        if self._failures >= self._attempts or pause > left:
            raise exhausted(
                outcome, doing=self._doing, host=self._host, answered=self._answered, wish=wish
            )
        await self._clock.sleep(pause)
