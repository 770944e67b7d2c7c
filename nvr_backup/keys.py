"""From a clip to its object key: the name under which it can be found for ever.

Pure text, no I/O. Whatever a camera is called and whatever a source uses as an id, the key is
relative, in Unicode NFC, free of characters that break file systems, object stores or shells, and
bounded in bytes. A key never depends on anything but the template and the clip, and is never
computed anew for a clip that has one (the checkpoint keeps it), so this module must never be asked
where a stored clip is.

Sources: Google Cloud Storage's object naming rules (1 to 1,024 bytes of UTF-8, no CR or LF, not
"." or "..", not below `.well-known/acme-challenge/`, better without `# [ ] * ?` and control
characters) and what SMB shares refuse in names (`< > : " | ? * \\`).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from nvr_backup.model import Clip, to_ms

__all__ = [
    "DEFAULT_TEMPLATE",
    "MAX_KEY_BYTES",
    "MAX_PREFIX_BYTES",
    "PLACEHOLDERS",
    "RESERVED",
    "candidates",
    "check_prefix",
    "check_template",
    "day_of",
    "named",
    "object_key",
    "pattern_of",
    "safe_name",
    "spellings",
    "start_of",
    "told_by",
    "with_extension",
]

DEFAULT_TEMPLATE: Final = "{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4"

RESERVED: Final = "_nvr-backup/"
"""Keys that begin so are the program's own, not clips."""

MAX_COMPONENT_BYTES: Final = 200
"""Of one path component; 255 is the file systems' limit, the rest is for a store's own suffixes."""
MAX_KEY_BYTES: Final = 800
"""Of a key as made here; with the longest prefix it stays below the 1,024 of object stores."""
MAX_PREFIX_BYTES: Final = 200

_SUFFIX_DIGITS: Final = (8, 16, 32)
"""How much of the clip's hash the second, third and fourth candidate carry."""
_LONGEST_SUFFIX: Final = 1 + _SUFFIX_DIGITS[-1]
_EXTENSION_ROOM: Final = 8
"""Bytes kept free for an extension that is longer than `.mp4`."""

_EXTENSION: Final = ".mp4"
_VIDEO_EXTENSIONS: Final = (".mp4", ".mov", ".mkv", ".webm", ".ts", ".m2ts")
"""Those of the containers that `mp4` knows."""

_REPLACED: Final = frozenset('/\\<>:"|?*#[]')
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Letters and marks that show nothing; the format characters (category Cf) are dropped too."""


def _digest(*parts: str | int | None) -> str:
    """64 hexadecimal digits; JSON keeps the parts apart and takes any text, surrogates too."""
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def _harmless(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf" or character in _INVISIBLE:
        return ""
    if category == "Zs":
        return " "
    point = ord(character)
    is_noncharacter = point & 0xFFFE == 0xFFFE or 0xFDD0 <= point <= 0xFDEF
    if character in _REPLACED or category in {"Cc", "Cs", "Zl", "Zp"} or is_noncharacter:
        return "_"
    return character


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, never splitting a character from its combining marks."""
    if len(text.encode()) <= limit:
        return text
    kept = text.encode()[:limit].decode(errors="ignore")
    end = len(kept)
    while end and unicodedata.combining(text[end]):
        end -= 1
    return kept[:end] or kept  # nothing but marks: any boundary is as good


def safe_name(name: str, *, limit: int = MAX_COMPONENT_BYTES) -> str:
    """A name as one path component of at most `limit` bytes; "" when nothing of it is usable.

    Separators and characters that stores or shares refuse become `_`, invisible ones vanish, every
    kind of blank becomes a space, runs of dots become one dot; leading dots and blanks and
    trailing ones go. The result is NFC, and making it safe again changes nothing.
    """
    composed = unicodedata.normalize("NFC", name)
    visible = "".join(map(_harmless, composed))
    text = re.sub(r"\.{2,}", ".", unicodedata.normalize("NFC", visible)).strip(" .")
    return _cut(text, limit).rstrip(" .")


def _fitted(text: str, limit: int) -> str:
    """An id made safe; what was cut off lives on as a short hash, so that ids stay distinct."""
    whole = safe_name(text, limit=len(text.encode(errors="surrogatepass")) * 3 + 1)
    if len(whole.encode()) <= limit:
        return whole
    return f"{safe_name(text, limit=limit - 9)}_{_digest(text)[:8]}"


def _camera_name(clip: Clip, limit: int) -> str:
    return safe_name(clip.camera.name, limit=limit) or f"camera-{_digest(clip.camera.id)[:8]}"


def _camera_id(clip: Clip, limit: int) -> str:
    return _fitted(clip.camera.id, limit) or f"camera-{_digest(clip.camera.id)[:8]}"


def _clip_id(clip: Clip, limit: int) -> str:
    return _fitted(clip.id, limit) or f"clip-{_digest(clip.id)[:8]}"


def _source(clip: Clip, limit: int) -> str:
    return _fitted(clip.camera.source, limit) or "source"


def _time(pattern: str) -> Callable[[Clip, int], str]:
    def text(clip: Clip, _limit: int) -> str:
        return clip.start.strftime(pattern)

    return text


def _year(clip: Clip, _limit: int) -> str:
    return f"{clip.start.year:04d}"  # strftime does not pad years below 1000 everywhere


PLACEHOLDERS: Final[Mapping[str, tuple[int, Callable[[Clip, int], str]]]] = MappingProxyType(
    {
        "source": (48, _source),
        "cameraName": (96, _camera_name),
        "cameraId": (48, _camera_id),
        "clipId": (48, _clip_id),
        "yyyy": (4, _year),
        "MM": (2, _time("%m")),
        "dd": (2, _time("%d")),
        "HH": (2, _time("%H")),
        "mm": (2, _time("%M")),
        "ss": (2, _time("%S")),
        "HH-mm-ss": (8, _time("%H-%M-%S")),
    }
)
"""What a template may name: the most bytes it can become, and its text for a clip."""

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_TIMES: Final = frozenset({"yyyy", "MM", "dd", "HH", "mm", "ss", "HH-mm-ss"})
_TO_THE_SECOND: Final = ({"yyyy", "MM", "dd", "HH-mm-ss"}, {"yyyy", "MM", "dd", "HH", "mm", "ss"})


def _check_literal(text: str, what: str) -> None:
    """ValueError unless every component of `text` is already as `safe_name` would leave it."""
    if text.startswith("/"):
        raise ValueError(f"{what} must be relative: it must not begin with a slash")
    for component in text.split("/"):
        if not component:
            raise ValueError(f"{what} must not have an empty part (two slashes, or one at its end)")
        if component.startswith(".") or ".." in component:
            raise ValueError(f'{what} must not have a part that begins with a dot, or ".."')
        if component != safe_name(component):
            raise ValueError(
                f"{what} has a part that is not safe as a name everywhere: no control characters, "
                'none of < > : " | ? * \\ # [ ], no blank or dot at its end, in Unicode NFC, '
                f"at most {MAX_COMPONENT_BYTES} bytes"
            )


def check_prefix(prefix: str) -> str:
    """The prefix as a store puts it before every key: "" or ending in one slash; ValueError."""
    folder = prefix.removesuffix("/")
    if not prefix:
        return ""
    _check_literal(folder, "the prefix")
    if len(folder.encode()) + 1 > MAX_PREFIX_BYTES:
        raise ValueError(f"the prefix must not be longer than {MAX_PREFIX_BYTES} bytes")
    return folder + "/"


def check_template(template: str) -> str:
    """The template unchanged, or ValueError saying what is wrong with it.

    A template that passes makes safe keys of bounded length for every clip there can be, and tells
    clips apart: it has the start to the second, or the clip's id.
    """
    names = _PLACEHOLDER.findall(template)
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for name in names:
        if name not in PLACEHOLDERS:
            raise ValueError(f"{{{name[:32]}}} is not a placeholder; there are {known}")
    if "{" in (rest := _PLACEHOLDER.sub("", template)) or "}" in rest:
        raise ValueError(f"has a brace that belongs to no placeholder; there are {known}")
    if not template.endswith(_EXTENSION):
        raise ValueError(f"must end in {_EXTENSION} (another container gets its own extension)")
    if "clipId" not in names and not any(parts <= set(names) for parts in _TO_THE_SECOND):
        raise ValueError(
            "cannot tell clips apart: it needs {clipId}, or the date and the time to the second "
            "({yyyy}, {MM}, {dd} and {HH-mm-ss})"
        )
    _check_literal(_PLACEHOLDER.sub("x", template), "the template")
    if template.startswith(RESERVED):
        raise ValueError(f"must not begin with {RESERVED}: the program keeps its own there")
    _check_length(template)
    return template


def _check_length(template: str) -> None:
    longest = [
        len(_PLACEHOLDER.sub("", component).encode())
        + sum(PLACEHOLDERS[name][0] for name in _PLACEHOLDER.findall(component))
        for component in template.split("/")
    ]
    room = MAX_COMPONENT_BYTES - _LONGEST_SUFFIX - _EXTENSION_ROOM
    if max(longest) > room:
        raise ValueError(f"can make a part of {max(longest)} bytes; at most {room} are possible")
    whole = sum(longest) + len(longest) - 1
    room = MAX_KEY_BYTES - _LONGEST_SUFFIX - _EXTENSION_ROOM
    if whole > room:
        raise ValueError(f"can make a key of {whole} bytes; at most {room} are possible")


def object_key(template: str, clip: Clip) -> str:
    """The clip's plain key: the template filled in, its times in UTC.

    The template must have passed `check_template`; ValueError for an unknown placeholder.
    """

    def fill(match: re.Match[str]) -> str:
        if match[1] not in PLACEHOLDERS:
            raise ValueError(f"{{{match[1]}}} is not a placeholder of an object key")
        limit, text = PLACEHOLDERS[match[1]]
        return text(clip, limit)

    # Values cannot hold a slash, so the components are the template's own. Each is made safe once
    # more as a whole, because two safe neighbours can meet as ".." or as a composable pair.
    return "/".join(
        safe_name(_PLACEHOLDER.sub(fill, component)) for component in template.split("/")
    )


def candidates(template: str, clip: Clip) -> Iterator[str]:
    """Keys to try in this order: the plain one, then some with ever more of the clip's hash.

    Deterministic, distinct, few. The hash is over the clip's identity (source, camera id, clip id,
    start and end in milliseconds), so two clips with the same plain key part at the second.
    """
    plain = object_key(template, clip)
    yield plain
    end = None if clip.end is None else to_ms(clip.end)
    digest = _digest(clip.camera.source, clip.camera.id, clip.id, to_ms(clip.start), end)
    stem = plain.removesuffix(_EXTENSION)
    for digits in _SUFFIX_DIGITS:
        yield f"{stem}_{digest[:digits]}{_EXTENSION}"


def day_of(template: str, key: str) -> date | None:
    """The day (UTC) that a key made from the template names; None when it tells none."""
    told = told_by(template, key) or {}
    try:
        return date(int(told["yyyy"]), int(told["MM"]), int(told["dd"]))
    except (KeyError, ValueError):
        return None


def start_of(template: str, key: str) -> datetime | None:
    """When the clip began (UTC), as its key tells; None when it does not, to the second."""
    told, day = told_by(template, key) or {}, day_of(template, key)
    hours, minutes, seconds = told.get("HH-mm-ss", "--").split("-")
    try:
        at = time(
            int(told.get("HH", hours)), int(told.get("mm", minutes)), int(told.get("ss", seconds))
        )
    except ValueError:
        return None
    return None if day is None else datetime.combine(day, at, UTC)


def told_by(template: str, key: str) -> Mapping[str, str] | None:
    """What a key says for each placeholder of the template it was made from; None: of another.

    The texts are as the key has them: made safe, and cut where they were long.
    """
    match = _pattern(template).fullmatch(key)
    return None if match is None else named(match)


def named(match: re.Match[str]) -> dict[str, str]:
    """The placeholders' texts in a match of `pattern_of`."""
    return {name.replace("_", "-"): text for name, text in match.groupdict().items()}


def pattern_of(text: str) -> str:
    """A regular expression of what this part of a template becomes, a group a placeholder."""
    seen: set[str] = set()

    def group(name: str) -> str:
        content = "-".join(f"[0-9]{{{len(part)}}}" for part in name.split("-"))
        if name not in _TIMES:
            content = "[^/]+"
        if name in seen:
            return content
        seen.add(name)
        return f"(?P<{name.replace('-', '_')}>{content})"

    parts = _PLACEHOLDER.split(text)
    return "".join(group(part) if at % 2 else re.escape(part) for at, part in enumerate(parts))


@lru_cache(maxsize=100)
def _pattern(template: str) -> re.Pattern[str]:
    """What every key made from the template matches, whatever its extension or hash."""
    return re.compile(
        pattern_of(template.removesuffix(_EXTENSION))
        + r"(?:_[0-9a-f]{8}|_[0-9a-f]{16}|_[0-9a-f]{32})?"
        + "(?:"
        + "|".join(map(re.escape, _VIDEO_EXTENSIONS))
        + ")"
    )


def spellings(keys: Iterable[str]) -> Iterator[str]:
    """Each key with every extension that a video's object may have."""
    for key in keys:
        for extension in _VIDEO_EXTENSIONS:
            yield with_extension(key, extension)


def with_extension(key: str, extension: str) -> str:
    """The key with another video container's extension (`.mkv`); ValueError unless like that."""
    if not re.fullmatch(r"\.[a-z0-9]{1,7}", extension):
        raise ValueError("an extension is a dot and one to seven lower-case letters or digits")
    if key.endswith(extension):
        return key
    for known in _VIDEO_EXTENSIONS:
        if key.endswith(known):
            return key.removesuffix(known) + extension
    return key + extension
