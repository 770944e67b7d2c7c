"""A Scrypted server as a `ports.ClipSource`.

What becomes of a clip that cannot be had, in order:

- the server cannot be reached, refuses us, or a link cannot be re-established → Blocked;
- a link, a call or a body breaks off, or the plugin answers 5xx → Transient;
- the clip is still listed, but there is no body under its address, or not a video → Suspect: a
  recorder that starts looks like this for a while, so it takes patience to set it aside;
- the clip is not listed any more by a listing that does list other clips, and asking for it by its
  id fails, too → Unfit: the NVR's retention took it. An empty listing proves nothing, so without
  any other clip in sight it stays Transient;
- its camera is not at the NVR any more → Unfit; it is there but offers no clips now (its plugin
  starts) → Transient. *Listing* such cameras is Transient in both cases: that must never look like
  an empty listing.

Nothing here may be logged. No URL is used after `FRESH_SECONDS`, nor kept past the next listing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from nvr_backup.clock import Clock
from nvr_backup.errors import Suspect, Transient, Unfit
from nvr_backup.model import Camera, Clip, Window, from_ms, to_ms
from nvr_backup.ports import ClipBody, ClipSource
from nvr_backup.sources.scrypted import devices, listing, media
from nvr_backup.sources.scrypted.body import Bodies, HttpBody, NotServed
from nvr_backup.sources.scrypted.link import Link, RemoteError
from nvr_backup.sources.scrypted.listing import Entry, Listing
from nvr_backup.sources.scrypted.login import Login
from nvr_backup.sources.scrypted.reconnect import Reconnect
from nvr_backup.sources.scrypted.settings import ScryptedSettings
from nvr_backup.sources.scrypted.tls import foreign_session, own_session

FRESH_SECONDS: Final = 180.0
"""How long a listed entry is good for a fetch: hrefs are signed for minutes."""

MOST_FRESH: Final = 4096
MOST_CAMERAS: Final = 4096
NARROW: Final = timedelta(minutes=1)
"""How far around a clip we look for it."""

AHEAD: Final = timedelta(minutes=30)
"""A clip is looked for together with those after it: they are mostly the next to be fetched."""

RECENT: Final = listing.LONGEST_QUERY

TURN_SECONDS: Final = 10.0
"""A clip is looked for beside a listing that has not come to its end after so long."""

_KILLED: Final = "killed"
"""In the message of every call to a plugin that died; the server restarts it within a minute."""


@asynccontextmanager
async def open_source(settings: ScryptedSettings, clock: Clock) -> AsyncIterator[ClipSource]:
    """A source for one Scrypted server; nothing is connected before its first use."""
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(own_session(settings))
        foreign = await stack.enter_async_context(foreign_session())
        login = Login(settings, own, clock)
        reconnect = Reconnect(settings, login, clock)
        stack.push_async_callback(reconnect.aclose)
        yield ScryptedSource(settings, clock, reconnect, Bodies(settings, login, own, foreign))


class _CameraGone(Transient):
    """The NVR has no such camera at the moment."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a clip before it is fetched."""

    entry: Entry | None
    fresh: bool
    others: bool = False


class ScryptedSource:
    """See `ports.ClipSource`; `open_source` makes one."""

    def __init__(
        self, settings: ScryptedSettings, clock: Clock, reconnect: Reconnect, bodies: Bodies
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._reconnect = reconnect
        self._bodies = bodies
        self._one_listing = asyncio.Lock()
        self._one_in_server_ram = asyncio.Semaphore(1)
        self._entries: OrderedDict[tuple[str, str, datetime], tuple[float, Entry]] = OrderedDict()
        self.left_out: dict[str, int] = {}
        """Camera id → unusable entries in its latest listing."""

    # -- cameras and listings -----------------------------------------------------------------

    async def cameras(self) -> Sequence[Camera]:
        """See `ports.ClipSource`; makes a round trip, so a dead link is found out here."""
        link = await self._reconnect.link()
        try:
            await link.beat()
        except RemoteError:
            pass  # an error is an answer, too: the link is alive
        except Transient:
            # The link was dead without knowing it: once more, with a new one.
            await link.aclose()
            link = await self._reconnect.link()
        return devices.cameras(link.devices, self._settings)

    async def clips(self, camera: Camera, window: Window) -> AsyncIterator[Clip]:
        """See `ports.ClipSource`. A camera that is not there (any more) is Transient."""
        if window.start < from_ms(0):
            window = Window(from_ms(0), window.end)
        seam = listing.Seam()
        left_out = 0
        for part in listing.parts(window):
            async with self._one_listing:
                listed = await self._list(camera, listing.with_margin(part))
            left_out += listed.left_out
            entries = seam.take(part, listed)
            self._remember(entries)
            for entry in entries:
                yield entry.clip
        if camera.id in self.left_out or len(self.left_out) < MOST_CAMERAS:
            self.left_out[camera.id] = left_out

    async def _list(self, camera: Camera, stretch: Window) -> Listing:
        """Ask the plugin once; all of its answer or Transient."""
        options = {"startTime": to_ms(stretch.start), "endTime": to_ms(stretch.end)}
        link = await self._reconnect.link()
        device = await self._device(link, camera)
        if device is None:
            raise _CameraGone(
                f"The camera {camera.name!r} is not at the NVR, so its clips cannot be listed.",
                hint="If it was removed for good, nothing needs to be done.",
            )
        try:
            limit = self._settings.listing_seconds
            raw = await link.call(device, "getVideoClips", options, limit=limit)
        except RemoteError as err:
            raise Transient(f"Listing the clips of {camera.name!r} failed: {err}") from err
        if not isinstance(raw, list):
            raise Transient(f"The NVR's listing of {camera.name!r} is no list.")
        return listing.read(raw, camera)

    async def _device(self, link: Link, camera: Camera) -> Any:
        """The camera's device, None when it is gone; Transient while it offers no clips."""
        device_id = devices.stable_ids(link.devices).get(camera.id)
        if device_id is None:
            return None
        if not devices.has_clips(link.devices[device_id]):
            raise Transient(
                f"The camera {camera.name!r} offers no clips at the moment.",
                hint="Its plugin may be starting; if this stays, look at the plugin's log.",
            )
        try:
            return await link.device(device_id)
        except RemoteError as err:
            raise Transient(f"The camera {camera.name!r} cannot be asked: {err}") from err

    # -- bodies -------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, clip: Clip, *, offset: int = 0) -> AsyncIterator[ClipBody]:
        """See `ports.ClipSource` and this module's first lines."""
        async with AsyncExitStack() as stack:
            yield await self._open(stack, clip, offset)

    async def _open(self, stack: AsyncExitStack, clip: Clip, offset: int) -> HttpBody:
        found = await self._find(clip, relist=False)
        if found.fresh:
            attempt = await stack.enter_async_context(AsyncExitStack())
            try:
                return await self._fetch(attempt, clip, found, offset)
            except (NotServed, RemoteError):
                # What we remembered may be outdated: fetch what is listed now.
                await attempt.aclose()
                found = await self._find(clip, relist=True)
        try:
            return await self._fetch(stack, clip, found, offset)
        except (NotServed, RemoteError) as err:
            raise self._not_to_be_had(clip, found, err) from err

    async def _fetch(
        self, stack: AsyncExitStack, clip: Clip, found: _Found, offset: int
    ) -> HttpBody:
        origin = self._settings.origin
        entry = found.entry
        if entry is not None and entry.href is not None:
            where = media.location(entry.href, origin)
        else:
            link = await self._reconnect.link()
            device = await self._device(link, clip.camera)
            if device is None:
                raise Unfit(
                    f"The camera {clip.camera.name!r} is no longer at the NVR, nor is this clip.",
                    hint="If the camera comes back, retry the clip.",
                )
            fetch_id = clip.id if entry is None else entry.fetch_id
            thing = await link.ask(device, "getVideoClip", fetch_id)
            if thing is None:
                raise NotServed(404)
            where = await media.locate(
                link, thing, origin, turns=self._one_in_server_ram, stack=stack
            )
        return await self._bodies.open(stack, where, offset)

    async def _find(self, clip: Clip, *, relist: bool) -> _Found:
        """The clip's entry: remembered, or from ever wider listings around its start."""
        remembered = self._entries.get(_key(clip))
        if remembered is not None:
            listed_at, known = remembered
            if not relist and self._clock.monotonic() - listed_at < FRESH_SECONDS:
                return _Found(known, fresh=True)
            del self._entries[_key(clip)]
        others = False
        for stretch in self._stretches(clip):
            try:
                async with self._turn():
                    listed = await self._list(clip.camera, stretch)
            except _CameraGone:
                break
            self._remember(listed.entries)
            entry = listing.match(clip, listed.entries)
            if entry is not None:
                return _Found(entry, fresh=False, others=True)
            others = others or bool(listed.entries)
        return _Found(None, fresh=False, others=others)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One listing at a time; but a plugin that hangs must not hold up the clips of others."""
        queued = asyncio.ensure_future(self._one_listing.acquire())
        patience = asyncio.ensure_future(self._clock.sleep(TURN_SECONDS))
        try:
            try:
                await asyncio.wait({queued, patience}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                queued.cancel()
                patience.cancel()
                await asyncio.wait({queued, patience})
            yield
        finally:
            if not queued.cancelled():
                self._one_listing.release()

    def _stretches(self, clip: Clip) -> list[Window]:
        start = max(clip.start, from_ms(0) + NARROW) - NARROW
        end = clip.start if clip.end is None else clip.end
        until = max(end + NARROW, start + AHEAD)
        narrow = Window(start, min(until, start + listing.LONGEST_QUERY))
        now = self._clock.now()
        return [narrow, Window(start, start + listing.LONGEST_QUERY), Window(now - RECENT, now)]

    def _remember(self, entries: Sequence[Entry]) -> None:
        now = self._clock.monotonic()
        for entry in entries[-MOST_FRESH:]:
            key = _key(entry.clip)
            self._entries[key] = (now, entry)
            self._entries.move_to_end(key)
        while self._entries:
            listed_at, _ = next(iter(self._entries.values()))
            if len(self._entries) <= MOST_FRESH and now - listed_at < FRESH_SECONDS:
                break
            self._entries.popitem(last=False)

    def _not_to_be_had(self, clip: Clip, found: _Found, err: Exception) -> Exception:
        what = f"The clip of {clip.camera.name!r} from {clip.start:%Y-%m-%d %H:%M:%S} UTC"
        if _KILLED in str(err):
            return Transient(f"{what} cannot be had: the camera's plugin died.")
        if found.entry is not None:
            return Suspect(
                f"{what} is listed by the NVR, but it is not served ({err}).",
                hint="File names with blanks or non-ASCII characters are one known cause.",
            )
        if found.others:
            return Unfit(
                f"{what} is gone at the NVR: it is not listed any more, and not served ({err}).",
                hint="Most likely the NVR's retention took it.",
            )
        return Transient(f"{what} cannot be had, and the NVR lists nothing to judge by ({err}).")


def _key(clip: Clip) -> tuple[str, str, datetime]:
    return clip.camera.id, clip.id, clip.start
