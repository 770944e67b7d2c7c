"""The two ports: where clips come from and where objects go.

These docstrings are the contract. Every adapter, every fake and every test double passes the same
suites, `tests/contract/test_source.py` and `tests/contract/test_store.py`; a new adapter is one
fixture line there. A port never logs and never retries in silence for longer than its own stated
limits: it returns, or raises one of `errors` with a text for the operator.

The life of a connection belongs to the adapter's factory (`async with open_store(...) as store`),
behaviour to these Protocols. All methods may be called concurrently, unless said otherwise, and
may be cancelled at any await; after a cancellation the adapter is as usable as before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from nvr_backup.chunks import Chunk
from nvr_backup.model import Camera, Clip, StoredObject, UploadState, Window

__all__ = [
    "Allow",
    "Capabilities",
    "ClipBody",
    "ClipSource",
    "ClipStore",
    "Record",
    "Upload",
]


class ClipBody(Protocol):
    """The bytes of one clip, being received."""

    @property
    def size(self) -> int | None:
        """Size of the whole clip in bytes, from byte 0; None when the source does not say."""
        ...

    @property
    def offset(self) -> int:
        """Index of the first byte this body yields: the offset asked for, or 0 if not granted."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces as they arrive, none empty, none larger than about 1 MiB.

        Raises Transient when the transport fails or nothing arrives for the stall limit. A body
        that ends early may also end without any error (chunked encoding cannot tell).
        """
        ...


class ClipSource(Protocol):
    """A recorder, or anything else that lists and serves finished clips."""

    async def cameras(self) -> Sequence[Camera]:
        """All cameras with clips, after the include and exclude patterns; doubles as the probe.

        Ids are unique and stable (they survive a rename); names need not be unique. Raises
        Blocked when the source cannot be reached or refuses us; the text names the remedy.
        """
        ...

    def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
        """Every clip whose stretch touches `window`, each once, oldest start first.

        Filtering, deduplication and order are the adapter's duty: servers' filters are hints. Clips
        with unusable fields are left out; a missing end is None. Raises Transient when a
        listing fails: part of a listing must never look like all of it. An empty listing is not a
        proof that there are no clips (some servers swallow errors).
        """
        ...

    def open(self, clip: Clip, *, offset: int = 0) -> AbstractAsyncContextManager[ClipBody]:
        """Receive a clip, from `offset` on where the source can (else from 0: see `ClipBody`).

        Works for every clip ever listed, also one listed before a restart of this program or of
        the source. Raises Unfit when the clip is gone or is no video by its own declaration,
        Transient otherwise, Blocked when the whole source is unreachable or refuses us. Memory in
        use is independent of the clip's size.
        """
        ...


Record = Callable[[UploadState], Awaitable[None]]
"""Makes an upload's state durable; returns once it is."""


class Allow(Protocol):
    """Asked before bytes leave for a store."""

    @property
    def unlimited(self) -> bool:
        """Whether all may leave just now, unasked."""
        ...

    async def take(self, wanted: int) -> int:
        """Wait until some may leave; returns how many of those wanted, at least one."""
        ...


class Upload(Protocol):
    """One object on its way into a store: nothing of it is visible before `finish` returns."""

    @property
    def confirmed(self) -> int:
        """Bytes the store is known to hold; chunks are sent from their start or from here."""
        ...

    @property
    def stored(self) -> StoredObject | None:
        """Set at once when a resumed upload turns out to have been finished before."""
        ...

    async def send(self, chunk: Chunk) -> None:
        """Send a chunk that is not the last; returns when the store acknowledged all of it.

        Chunks follow each other without gap, from byte 0 or from the recorded offset of the
        state that was resumed; a prefix that the store already holds is dropped, not sent.
        Hiccups are retried inside, from the chunk itself, within the store's retry budget. After
        each acknowledgement the state is recorded. Raises StartOver when the session is lost,
        KeyTaken, Blocked, or Transient when the budget is used up (the upload stays resumable).
        """
        ...

    async def finish(self, chunk: Chunk) -> StoredObject:
        """Send the last chunk (it may be empty) and finalise the object, create-only.

        The state with total and checksum is recorded first. Returns the object as the store
        itself confirmed it, after size and CRC32C were compared with the chunk's; raises
        StartOver when they differ (the wrong object is not left under the key if the store let
        us prevent or remove it), else like `send`.
        """
        ...

    async def discard(self) -> None:
        """Give up for good: release the session and whatever was sent. Never raises Transient."""
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the store's key may do. Creating is not listed: without it a store is Blocked."""

    stat: bool
    list: bool
    read: bool
    delete: bool
    resume: bool


class ClipStore(Protocol):
    """A place where objects are created once and never replaced."""

    async def probe(self) -> Capabilities:
        """Ask, cheaply and without leaving anything behind, whether objects can be created here.

        Used at start, after Blocked, and by `doctor`. Raises Blocked with the reason and remedy.
        """
        ...

    def put(
        self,
        key: str,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        record: Record,
        resume: UploadState | None = None,
        replaces: str | None = None,
    ) -> AbstractAsyncContextManager[Upload]:
        """Begin, or with `resume` continue, the creation of an object.

        Nothing is sent before the first `send` or `finish`, except that a resumed session is
        asked what it holds: entering raises StartOver when the state cannot be continued. Leaving
        the block without `finish` or `discard` keeps the upload resumable where the store can,
        and releases all connections. An object that exists under the key is never changed:
        KeyTaken. Metadata values are text; a store must return them as given.

        `replaces` is the generation ("" if it has none) of an object that was found corrupt: it
        stays until the new one is whole and then gives way to it. KeyTaken when anything else lies
        there, when the store may not do that, and in some stores when nothing is there any more.
        """
        ...

    async def stat(self, key: str) -> StoredObject | None:
        """The object under the key, with its metadata, or None. Blocked without permission."""
        ...

    def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Every object whose key begins with `prefix`, with metadata, ordered by key."""
        ...

    def folders(self, prefix: str) -> AsyncIterator[str]:
        """What keys that begin with `prefix` have up to the next slash after it, slash included.

        Each once, ordered; keys without such a slash are not shown. A folder may turn out to hold
        no object. Costs what these folders cost, not what lies in them. Raises like `list`.
        """
        ...

    def read(
        self, key: str, *, offset: int = 0, generation: str | None = None
    ) -> AsyncIterator[bytes]:
        """The object's bytes from `offset` on, all of one generation: of the one that is given.

        Unfit when there is no such object, or not in this generation; no bytes when `offset` is
        its size or more. The bytes are as the store gives them: whoever reads compares them with
        what they should be. Silence is bounded by the store's stall limit. Blocked without
        permission.
        """
        ...

    async def delete(self, key: str, *, generation: str | None = None) -> None:
        """Remove an object, only in that generation if one is given; absent is no error."""
        ...
