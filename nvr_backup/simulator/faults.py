"""Faults by name: armed with a count and a filter, each recording that it happened.

A fault is armed by a test and taken by the part of the simulator where it strikes. A test that
arms a fault ends by asserting that it happened (`happened`, or `unexercised` for all of them at
once). It must never strike unless armed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

LINK: Final = MappingProxyType(
    {
        "drop_link": "the link breaks on the next RPC call (on=: only on that method)",
        "black_hole": "from the next RPC call on, the link swallows everything (on=)",
        "silent_link": "a new link never sends the system state, as while the server starts",
        "refuse_link": "engine.io answers status= (503)",
        "login_error": "POST /login answers status= (500)",
        "login_html": "POST /login answers a proxy's HTML page with 200",
    }
)
LISTING: Final = MappingProxyType(
    {
        "listing_error": "getVideoClips throws message=",
        "slow_listing": "getVideoClips answers after seconds= (5) of the simulator's clock",
        "hang_listing": "getVideoClips is never answered (the link stays alive)",
        "empty_listing": "a swallowed error: no clips",
        "listing_outside": "the window is ignored: every clip of the camera",
        "listing_duplicates": "every clip twice",
        "listing_unsorted": "in a shuffled order",
        "listing_no_duration": "no clip has a duration",
        "listing_missing_fields": "plus clips without id, without startTime, without anything",
        "listing_garbage": "plus clips with absurd fields, and things that are no clips",
        "listing_not_a_list": "value= (None) in place of the list",
        "growing_clip": "before it is listed, the latest clip grows by seconds= (5)",
        "listing_short": "the first keep= (1) clips only, oldest first",
    }
)
CLIP: Final = MappingProxyType(
    {
        "clip_error": "getVideoClip throws message=",
        "hang_clip": "getVideoClip is never answered (the link stays alive)",
        "convert_error": "convertMediaObject throws message=",
        "plugin_dead": "the camera's plugin is dead: calls throw, its HTTP answers 500",
    }
)
BODY: Final = MappingProxyType(
    {
        "unauthorized": "HTTP 401, as for an expired token",
        "not_found": "HTTP 404",
        "server_error": "HTTP status= (500), retry_after= (seconds) if given",
        "hang_http": "no answer at all until released",
        "html_page": "HTTP 200 with an HTML error page",
        "empty_body": "HTTP 200 without a body",
        "stall_body": "nothing more after at_bytes= until released",
        "cut_body": "connection reset after at_bytes=",
        "early_end": "a clean end of a chunked body after at_bytes=",
        "length_too_large": "Content-Length by= (1000) more than what comes, then the end",
        "length_too_small": "Content-Length by= (1000) less than what comes",
        "wrong_bytes": "the byte at at_bytes= is another",
        "slow_body": "seconds= (0.1) of the simulator's clock between pieces",
        "overload": "a piece takes seconds= (0.02) of the simulator's clock to read, and by= (5) "
        "times as long while more than parallel= (2) are read at once (only that counts)",
        "restart_in_body": "the NVR restarts after at_bytes=, down for down= (0) seconds",
        "drop_link_in_body": "the RPC links break after at_bytes=; the body goes on",
    }
)
FAULTS: Final = MappingProxyType({**LINK, **LISTING, **CLIP, **BODY})
"""Every fault with what it does and its options.

`at_bytes` counts the bytes of the response it strikes (not of the clip, where that was asked for
from the middle), defaults to half of them, and is never beyond the last.
"""

MOST_ARMED: Final = 1000
"""So many faults can be armed at once."""

_OPTIONS: Final = frozenset(
    ["on", "status", "message", "seconds", "value", "keep", "retry_after", "at_bytes", "by", "down"]
) | {"parallel"}


@dataclass(slots=True)
class Armed:
    """One armed fault: strikes `times` times (None: always) after `skip` matches let pass."""

    name: str
    times: int | None
    camera: str | None
    clip: str | None
    skip: int
    options: Mapping[str, Any] = field(default_factory=dict)
    struck: int = 0

    def matches(self, name: str, subjects: frozenset[str], on: str | None) -> bool:
        """Whether it would strike here. A filter names a camera or clip by any of its names."""
        return (
            self.name == name
            and self.times != self.struck
            and (self.camera is None or self.camera in subjects)
            and (self.clip is None or self.clip in subjects)
            and self.options.get("on") in (None, on)
        )

    def get(self, option: str, default: Any) -> Any:
        """An option's value."""
        return self.options.get(option, default)


class Faults:
    """What is armed and what has happened."""

    def __init__(self) -> None:
        self._armed: list[Armed] = []
        self._happened: Counter[str] = Counter()
        self._struck = asyncio.Event()
        self._release = asyncio.Event()

    def arm(
        self,
        name: str,
        *,
        times: int | None = 1,
        camera: str | None = None,
        clip: str | None = None,
        skip: int = 0,
        **options: Any,
    ) -> Armed:
        """Let `name` of `FAULTS` strike the next `times` matches (None: until disarmed).

        `camera` is a name, device id or nativeId, `clip` a clip's id; `skip` matches pass first.
        Raises ValueError for a fault or an option that does not exist.
        """
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
        if unknown := set(options) - _OPTIONS:
            raise ValueError(f"no option {', '.join(sorted(unknown))} of a fault")
        if len(self._armed) >= MOST_ARMED:
            raise ValueError(f"more than {MOST_ARMED} faults armed")
        fault = Armed(name, times, camera, clip, skip, options)
        self._armed.append(fault)
        return fault

    def disarm(self, name: str | None = None) -> None:
        """Take back `name`, or everything. What has happened stays recorded."""
        self._armed = [a for a in self._armed if name not in (None, a.name)]

    def armed(self, name: str, *, subjects: frozenset[str] = frozenset()) -> Armed | None:
        """The armed fault of that name that could strike here; nothing has happened."""
        return next((one for one in self._armed if one.matches(name, subjects, None)), None)

    def take(
        self, *names: str, subjects: frozenset[str] = frozenset(), on: str | None = None
    ) -> Armed | None:
        """The first armed fault of `names` that strikes here, recorded as happened."""
        if not self._armed:
            return None
        for fault in self._armed:
            if not any(fault.matches(name, subjects, on) for name in names):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.struck += 1
            self._happened[fault.name] += 1
            self._struck.set()
            self._struck = asyncio.Event()
            return fault
        return None

    def happened(self, name: str) -> int:
        """How often it struck."""
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r}")
        return self._happened[name]

    async def wait_happened(self, name: str, count: int = 1) -> None:
        """Return once `name` has struck `count` times since the start; the caller sets a limit."""
        while self.happened(name) < count:
            await self._struck.wait()

    def counts(self) -> dict[str, int]:
        """Everything that struck, with how often."""
        return dict(self._happened)

    def unexercised(self) -> list[str]:
        """Armed faults that have not struck as often as armed (those armed for ever: not once)."""
        return [a.name for a in self._armed if a.struck < (1 if a.times is None else a.times)]

    def release(self) -> None:
        """End every stall and hang that goes on now."""
        self._release.set()
        self._release = asyncio.Event()

    async def wait_release(self) -> None:
        """Hold still until the next `release`."""
        await self._release.wait()
