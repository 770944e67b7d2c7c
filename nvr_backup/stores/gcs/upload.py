"""One object on its way into Google Cloud Storage: in one request, or through a session.

After any unclear answer the store is asked what it holds before a byte is sent again, so nothing
is sent twice in vain and nothing is believed that the store did not say. It must never replace an
object, never report one as stored whose size and CRC32C the store did not confirm, and never let
a session's URI into a message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from nvr_backup.chunks import Chunk, Progress
from nvr_backup.clock import Clock
from nvr_backup.errors import Blocked, KeyTaken, StartOver
from nvr_backup.model import StoredObject, UploadState
from nvr_backup.ports import Record
from nvr_backup.stores.gcs.client import GcsClient
from nvr_backup.stores.gcs.destination import Destination, Found
from nvr_backup.stores.gcs.replies import (
    LOST_SESSION,
    Outcome,
    Reply,
    is_corrupt,
    is_taken,
    is_unclear,
    may_have_acted,
    persisted,
    quoted,
    refusal,
)
from nvr_backup.stores.gcs.retry import RetryBudget
from nvr_backup.stores.gcs.session import QUANTUM, QUERY, Ending, initiation, part, single

SESSION_LIFE: Final = timedelta(days=6)
"""Google keeps a session for a week; a day is left for finishing."""

_DONE: Final = frozenset({200, 201})


class GcsUpload:
    """A `ports.Upload`. Single use; after an error only `discard` makes sense."""

    def __init__(
        self,
        client: GcsClient,
        clock: Clock,
        destination: Destination,
        *,
        single_limit: int,
        state: UploadState,
        record: Record,
    ) -> None:
        self._client = client
        self._clock = clock
        self._destination = destination
        self._single_limit = single_limit
        self._state = state
        self._record = record
        # Bytes not yet acknowledged (references to the chunks' pieces), and the progress at the
        # ends of those chunks that the store has not confirmed whole.
        self._waiting = Chunk(0)
        self._marks: deque[Progress] = deque()
        # Whether a request that creates the object failed in some way (so that what lies there is
        # worth a look), and whether it may have been carried out all the same.
        self._tried = False
        self._maybe_created = False
        self._stored: StoredObject | None = None

    @property
    def confirmed(self) -> int:
        return self._waiting.start

    @property
    def stored(self) -> StoredObject | None:
        return self._stored

    async def resume(self) -> None:
        """Find out what became of the recorded upload; StartOver when it cannot go on."""
        state, doing = self._state, self._destination.step("going on")
        self._tried = self._maybe_created = state.total is not None
        if not state.session:
            self._stored = (await self._look()).ours
            return
        if self._clock.now() - state.created_at > SESSION_LIFE:
            self._stored = await self._without_session("too old")
            return
        if not self._client.owns_session(state.session):
            raise StartOver(f"{doing}: the upload session belongs to another store.")
        reply = await self._clear(self._destination.budget("going on"), await self._query())
        held = persisted(reply) if reply.status == 308 else None
        if held is None:
            self._stored = await self._conclude(reply, of_session=True)
        elif held < state.offset:
            raise StartOver(f"{doing}: the store lost bytes it had confirmed.")
        else:
            self._waiting = Chunk(held)

    async def send(self, chunk: Chunk) -> None:
        self._take(chunk)
        self._marks.append(chunk.after)
        await self._open_session()
        await self._acknowledge(self.confirmed)
        # What is left below a quantum (after an odd partial commit) goes with the next chunk.
        until = self.confirmed + self._waiting.size // QUANTUM * QUANTUM
        budget = self._destination.budget("sending")
        while self.confirmed < until:
            if await self._step(until, None, budget) is not None:
                raise KeyTaken(
                    f"{self._destination.step('sending')}: it was finished before.", maybe_ours=True
                )

    async def finish(self, chunk: Chunk) -> StoredObject:
        ending = Ending(chunk.end, chunk.after.crc32c)
        doing = "finishing"
        if self.confirmed > ending.total:
            raise StartOver(
                f"{self._destination.step(doing)}: the store holds more than the whole clip."
            )
        self._take(chunk)
        in_one = not self._state.session and self._waiting.size <= self._single_limit
        if not in_one:
            await self._open_session()
        await self._note(total=ending.total, total_crc32c=ending.crc32c)
        budget = self._destination.budget(doing)
        if in_one:
            self._stored = await self._send_single(ending, budget)
            return self._stored
        while (stored := await self._step(ending.total, ending, budget)) is None:
            pass
        self._stored = stored
        return stored

    async def discard(self) -> None:
        session = self._state.session
        if self._stored is None and session and self._client.owns_session(session):
            self._state = replace(self._state, session="")
            await self._destination.courtesy(self._client.send("DELETE", session))

    # -- through a session --------------------------------------------------------------------

    async def _open_session(self) -> None:
        if self._state.session:
            return
        doing = "opening an upload"
        budget = self._destination.budget(doing)
        headers, body = initiation(self._destination.new)
        address = self._address("resumable")
        opening = partial(self._client.send, "POST", address, headers=headers, body=body)
        session = None
        while not session:
            reply = await budget.clear(opening)
            if reply.status not in _DONE:
                await self._conclude(reply)
                raise KeyTaken(f"{self._destination.step(doing)}: it is there.", maybe_ours=True)
            session = reply.headers.get("Location")
            if not session:
                await budget.again(reply)
        if not self._client.owns_session(session):
            raise Blocked(
                f"{self._destination.step(doing)}: the store named an upload address on another "
                "server or bucket.",
                hint="Check the store's endpoint (an emulator's external URL must match it).",
            )
        start = {"offset": 0, "crc32c": 0, "inspection": ""}
        await self._note(session=session, created_at=self._clock.now(), **start)

    async def _step(
        self, until: int, ending: Ending | None, budget: RetryBudget
    ) -> StoredObject | None:
        """Send what is waiting up to `until`, once, and take in what the store then holds.

        Returns the object when it is finished, None to go on; a step without progress has cost
        patience.
        """
        before = self.confirmed
        headers, body = part(self._waiting, until, ending)
        sent = await self._client.send("PUT", self._state.session, headers=headers, body=body)
        reply = await self._clear(budget, sent)
        if ending is not None and reply is not sent:
            self._failed_to_create(sent)
        held = persisted(reply) if reply.status == 308 else None
        if held is None:
            return await self._conclude(reply, of_session=True)
        if not before <= held <= until:
            raise StartOver(
                f"{self._destination.step('sending')}: the store claims to hold {held} bytes, "
                f"but {before} were confirmed and {until} sent."
            )
        await self._acknowledge(held)
        if held > before:
            budget.progressed()
        elif reply is sent:
            await budget.again(reply)
        return None

    async def _query(self) -> Outcome:
        return await self._client.send("PUT", self._state.session, headers=QUERY)

    async def _clear(self, budget: RetryBudget, outcome: Outcome) -> Reply:
        """`outcome` if it is clear, else the first clear answer to what the session holds."""
        while not isinstance(outcome, Reply) or self._says_nothing(outcome):
            await budget.again(outcome)
            outcome = await self._query()
        budget.heard()
        return outcome

    def _says_nothing(self, reply: Reply) -> bool:
        if reply.status == 308:
            return persisted(reply) is None
        if reply.status in _DONE:
            return self._destination.described(reply) is None
        return is_unclear(reply)

    def _take(self, chunk: Chunk) -> None:
        if chunk.start > self._waiting.end:
            raise ValueError(f"a gap: {self._waiting.end} bytes are here, then {chunk.start}")
        chunk.drop_until(min(self._waiting.end, chunk.end))
        for piece in chunk:
            self._waiting.append(piece)

    async def _acknowledge(self, held: int) -> None:
        self._waiting.drop_until(held)
        passed: Progress | None = None
        while self._marks and self._marks[0].offset <= held:
            passed = self._marks.popleft()
        if passed is not None:
            await self._note(
                offset=passed.offset, crc32c=passed.crc32c, inspection=passed.inspection
            )

    # -- in one request -----------------------------------------------------------------------

    async def _send_single(self, ending: Ending, budget: RetryBudget) -> StoredObject:
        """Like a session's last request; only that, after an unclear answer, there is no session
        to ask: looking under the key takes its place where the permission is there."""
        address = self._address("multipart")
        while True:
            headers, body = single(self._destination.new, self._waiting, ending)
            outcome = await self._client.send("POST", address, headers=headers, body=body)
            if isinstance(outcome, Reply) and not self._says_nothing(outcome):
                return await self._conclude(outcome)
            self._failed_to_create(outcome)
            await budget.again(outcome)
            if may_have_acted(outcome):
                found = await self._destination.look(ending, budget)
                if found.ours is not None:
                    return found.ours

    def _failed_to_create(self, outcome: Outcome) -> None:
        self._tried = True
        self._maybe_created = self._maybe_created or may_have_acted(outcome)

    # -- what an answer comes to --------------------------------------------------------------

    async def _conclude(self, reply: Reply, *, of_session: bool = False) -> StoredObject:
        """The object, if `reply` or a look says that it is there as sent; else raises."""
        doing = self._destination.step("finishing" if self._maybe_created else "sending")
        if reply.status in _DONE:
            return await self._verified(reply)
        if is_corrupt(reply):
            raise StartOver(f"{doing}: the bytes did not arrive as sent{quoted(reply)}.")
        if of_session and reply.status in LOST_SESSION:
            return await self._without_session(f"gone ({reply.status})")
        if not is_taken(reply):
            raise refusal(reply, doing=doing)
        found = await self._look()
        if found.ours is not None:
            return found.ours
        maybe_ours = self._maybe_created and not found.known
        raise KeyTaken(f"{doing}: the key already holds an object.", maybe_ours=maybe_ours)

    async def _without_session(self, why: str) -> StoredObject:
        """The object, if the last request of a session that is `why` did arrive; else raises."""
        found = await self._look()
        if found.ours is not None:
            return found.ours
        if self._maybe_created and not found.known:
            # We may not look, but whether another upload can be opened tells if the key is taken.
            self._state = replace(self._state, session="")
            await self._open_session()
            await self.discard()
        raise StartOver(f"{self._destination.step('going on')}: the upload session is {why}.")

    async def _look(self) -> Found:
        """What lies under the key, if an earlier attempt gives a reason to look."""
        if not self._tried:
            return Found(None, known=True)
        budget = self._destination.budget("looking whether it arrived")
        return await self._destination.look(self._expected(), budget)

    async def _verified(self, reply: Reply) -> StoredObject:
        doing = self._destination.step("finishing")
        found = self._destination.described(reply)
        if found is None:
            raise AssertionError("an answer without an object is not clear")
        expected = self._expected()
        if expected is None and found.size > max(self._state.offset, self._waiting.end):
            # More than was confirmed as far as is on record: it was finished, and an older
            # checkpoint was put back since. It must not be removed. Nor is it believed to be whole
            # (an emulator finalises what it has when it is asked): a new upload meets it under the
            # key, and then it is looked at.
            raise StartOver(f"{doing}: the upload was finished before, which is not on record.")
        if self._destination.is_sent(found, expected):
            return found
        await self._destination.remove(found)
        if found.crc32c is None:
            raise Blocked(
                f"{doing}: the store reports no CRC32C, so nothing can be verified.",
                hint="Use an endpoint that returns the checksums of its objects.",
            )
        raise StartOver(f"{doing}: the store's size or CRC32C is not that of the bytes sent.")

    def _expected(self) -> Ending | None:
        total, crc32c = self._state.total, self._state.total_crc32c
        return None if total is None or crc32c is None else Ending(total, crc32c)

    def _address(self, kind: str) -> str:
        return self._client.upload_address(kind, self._destination.new.replaces)

    async def _note(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        await self._record(self._state)
