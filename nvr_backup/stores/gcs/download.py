"""The bytes of an object, received piece by piece.

A connection that breaks is taken up again at the byte reached, pinned to the generation that was
begun, so that the bytes of two objects never mix. Memory in use is one read buffer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from nvr_backup.errors import Transient, Unfit
from nvr_backup.stores.gcs.client import FAILURES, GcsClient
from nvr_backup.stores.gcs.replies import (
    Outcome,
    Unanswered,
    is_bucket_missing,
    is_unclear,
    refusal,
)
from nvr_backup.stores.gcs.retry import RetryBudget


async def download(
    client: GcsClient, name: str, *, offset: int, generation: str, budget: RetryBudget, doing: str
) -> AsyncIterator[bytes]:
    """Bytes of the object `name` from `offset` on; none when it is not longer than that.

    `generation` "" means the one that is there. Raises Unfit when there is no such object, Blocked
    or Transient otherwise.
    """
    position = offset
    while True:
        query = {"alt": "media", **({"generation": generation} if generation else {})}
        headers = {"Range": f"bytes={position}-"} if position else {}
        opened: aiohttp.ClientResponse | Outcome = await client.open(
            client.object_address(name, query), headers=headers
        )
        if isinstance(opened, aiohttp.ClientResponse):
            generation = generation or opened.headers.get("X-Goog-Generation", "")
            skip = position if opened.status == 200 else 0  # the range was not granted
            try:
                async for piece in opened.content.iter_any():
                    rest = piece[skip:]
                    skip -= len(piece) - len(rest)
                    if rest:
                        position += len(rest)
                        budget.progressed()
                        yield rest
            except FAILURES as err:
                opened.close()
                await budget.again(client.failed(err))
                continue
            finally:
                opened.close()
            if skip:
                raise Transient(f"{doing}: the object is shorter than {position} bytes.")
            return
        if not isinstance(opened, Unanswered) and not is_unclear(opened):
            if opened.status == 416:
                return
            if opened.status == 404 and not is_bucket_missing(opened):
                raise Unfit(f"{doing}: there is no such object.")
            raise refusal(opened, doing=doing)
        await budget.again(opened)
