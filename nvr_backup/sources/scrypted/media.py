"""Where a clip's bytes are: from what the server says to one http(s) URL, and whether it is ours.

The order is the official UI's: the listed href, else the media object, by its MIME type. A token
goes to the NVR's own origin only, and nothing but http and https is ever fetched. It must never
let a whole clip come through the RPC link, and its URLs must never be logged or kept: they may be
signed.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from yarl import URL

from nvr_backup.errors import Suspect, Unfit
from nvr_backup.sources.scrypted.listing import LONGEST_URL

LOCAL_URI: Final = "text/x-local-uri"
SCHEME_PREFIX: Final = "x-scrypted/x-scrypted-scheme-"
URL_TYPES: Final = frozenset(
    {
        LOCAL_URI,
        "text/x-insecure-local-uri",
        "text/x-uri",
        f"{SCHEME_PREFIX}http",
        f"{SCHEME_PREFIX}https",
    }
)
"""Their data is a URL. (Converting an http one would load the clip into the server's RAM.)"""

FILE_TYPE: Final = f"{SCHEME_PREFIX}file"
RECIPES: Final = frozenset(
    {
        "x-scrypted/x-ffmpeg-input",
        "x-scrypted/x-scrypted-request-stream",
        "x-scrypted/x-scrypted-rtc-signaling-channel",
        "text/x-media-url",
    }
)
"""Instructions for making a stream; fetched, they are JSON and not a video."""

OWN_PATH: Final = "/endpoint/"
"""Every path a plugin can serve at begins so."""


@dataclass(frozen=True, slots=True)
class Location:
    """A URL to GET; `own` means that it is the NVR's, which alone may see our token."""

    url: URL = field(repr=False)
    own: bool


class Rpc(Protocol):
    """What is needed of a link."""

    async def ask(self, target: Any, method: str, *args: Any) -> Any: ...

    async def convert(self, media: Any, mime_type: str) -> Any: ...


class Turns(Protocol):
    """A limit on how many clips the server may hold in its RAM for us."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *error: Any) -> Any: ...


async def locate(
    link: Rpc, media: Any, origin: URL, *, turns: Turns, stack: AsyncExitStack
) -> Location:
    """The location of a media object's bytes.

    What the server has to hold in its RAM waits for its turn, which ends with `stack`. Raises
    Unfit for media that is no file by its own declaration, Suspect for an answer without sense,
    and what the link raises.
    """
    kind = _mime_type(media)
    if kind in RECIPES:
        raise Unfit(
            f"The camera's plugin offers this clip as {kind}: a recipe for a stream, no file.",
            hint="It can be backed up only if the plugin is set to offer files.",
        )
    if kind in URL_TYPES:
        return location(await link.ask(media, "getData"), origin)
    if kind == FILE_TYPE:
        return rewritten(await link.convert(media, LOCAL_URI), origin)
    if kind.startswith(SCHEME_PREFIX):
        raise Unfit(f"The camera's plugin offers this clip under a scheme no one can fetch: {kind}")
    await stack.enter_async_context(turns)
    return rewritten(await link.convert(media, LOCAL_URI), origin)


def _mime_type(media: Any) -> str:
    # An unknown attribute of a proxy is a method object, so only text counts.
    kind = getattr(media, "mimeType", None)
    if not isinstance(kind, str) or not kind.isprintable() or len(kind) > 200:
        raise Suspect("The camera's plugin answered with something that is no media object.")
    return kind.partition(";")[0].strip().lower()


def location(text: Any, origin: URL, base: URL | None = None) -> Location:
    """Where a URL leads that a plugin gave us; relative ones are relative to `base`, or the NVR.

    An absolute one whose path is a plugin's endpoint is the NVR's own, whatever host it names: the
    host is the server's idea of itself (once literally `undefined`). Raises Suspect when it is no
    http or https URL.
    """
    url = _parse(text, base or origin)
    if url.origin() == origin or (base is None and url.raw_path.startswith(OWN_PATH)):
        return Location(_at(origin, url), own=True)
    return Location(url, own=False)


def rewritten(text: Any, origin: URL) -> Location:
    """Where a converted URL leads: always to the NVR, whatever host it names."""
    return Location(_at(origin, _parse(text, origin)), own=True)


def _parse(text: Any, base: URL) -> URL:
    if isinstance(text, bytes) and len(text) <= LONGEST_URL:
        text = text.decode("utf-8", "replace")
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_URL:
        raise Suspect("The camera's plugin gave no usable address for the clip.")
    # A signature is over the exact text, so what is fit for the wire is left as it is.
    as_is = all("!" <= c <= "~" for c in text)
    try:
        given = URL(text, encoded=as_is)
        url = given if given.scheme else base.join(given)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise Suspect("The camera's plugin gave an address that is neither http nor https.")
    return url.with_fragment(None)


def _at(origin: URL, url: URL) -> URL:
    """Path and query of `url` at `origin`, byte for byte."""
    return URL(f"{origin}{url.raw_path_qs}", encoded=True)
