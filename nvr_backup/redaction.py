"""Taking secrets and terminal tricks out of whatever is about to be logged.

The last line of defence, not the first: messages are written without secrets in them. What slips
through (a library's exception, a URL in a traceback) is recognised by its name or its shape. This
module must never raise for any value and never let time grow with the square of a text's length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

MASK: Final = "[redacted]"
MAX_TEXT: Final = 64 * 1024
"""Characters of one text that are logged; a traceback is far shorter."""
MAX_DEPTH: Final = 6
MAX_ITEMS: Final = 100
"""Entries of a list or a mapping that are logged."""

_SECRET_WORDS: Final = re.compile(
    r"password|passwd|passphrase|pwd|secret|token|authorization|cookie|session|signature"
)
_SECRET_NAMES: Final = re.compile(r"apikey|privatekey|uploadid|credentials?")
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

_NAMES: Final = (
    r"(?:password|passwd|passphrase|pwd|secret|token|authorization|signature|credential|"
    r"upload_id|session(?:[_-]?(?:id|uri|url|key))?|api[_-]?key|private[_-]?key)"
)
_QUOTED: Final = "|".join(
    (
        r'"(?:[^"\\]|\\.)*(?:"|\Z)',
        r"'(?:[^'\\]|\\.)*(?:'|\Z)",
        r'\\+"(?:[^"\\]|\\[^"])*(?:\\*"|\Z)',  # JSON inside a JSON text
    )
)
_BARE: Final = r"[^\s&\"'<>]+"

_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # A private key, also with its line ends written as \n, also cut off.
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}-----|\Z)", re.S
        ),
        MASK,
    ),
    # A header, to the end of its line.
    (
        re.compile(r"""(?i)((?:authorization|cookie)["']?\s{0,4}[:=]\s{0,4})[^\r\n]+"""),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer\s{1,4})[^\s\"',;{]+(?:\{[^}\r\n]{0,512}\}?)?"), rf"\1{MASK}"),
    # Scrypted's tokens: a hash, `#`, then JSON; plain or percent-encoded.
    (re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{64}(?:#|%23)(?:\{|%7B)[^\s}]{0,512}\}?"), MASK),
    # Google's access tokens, and JSON Web Tokens.
    (re.compile(r"\bya29\.[\w.-]+"), MASK),
    (re.compile(r"\beyJ[\w-]{8,512}\.[\w-]+(?:\.[\w-]*)?"), MASK),
    # User name and password in a URL; also when an unencoded slash stands in the password.
    (re.compile(r"(://)[^/?#\s]{0,1024}@"), rf"\1{MASK}@"),
    (re.compile(r"(://)[^\s/:@?#]{1,256}:(?!\d{1,5}[/?#])[^\s@]{0,1024}@"), rf"\1{MASK}@"),
    # name=value in a query, a form or a command; "name": value in JSON and in a dict's repr.
    (
        re.compile(rf"(?i)({_NAMES}(?:\\*[\"'])?\s{{0,4}}(?:=|%3D)\s{{0,4}})(?:{_QUOTED}|{_BARE})"),
        rf"\1{MASK}",
    ),
    (re.compile(rf"(?i)({_NAMES}\\*[\"']\s{{0,4}}:\s{{0,4}})(?:{_QUOTED}|{_BARE})"), rf"\1{MASK}"),
)


def redacted(whole: str) -> str:
    """The text without anything that looks like a secret, cut to MAX_TEXT characters."""
    kept = whole[:MAX_TEXT]
    for shape, replacement in _SHAPES:
        kept = shape.sub(replacement, kept)
    return kept if len(whole) <= MAX_TEXT else f"{kept}… ({len(whole)} characters)"


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret (`scryptedToken`, `session_uri`, `password`)."""
    if any(_SECRET_WORDS.fullmatch(word.lower()) for word in _WORD.findall(name)):
        return True
    joined = "".join(character for character in name.lower() if character.isalnum())
    return _SECRET_NAMES.fullmatch(joined) is not None


def visible(raw: str, *, lines: bool = False) -> str:
    """Control, format and undecodable characters as escapes: a camera's name cannot steer a
    terminal or fake a second log line. `lines` keeps line ends and tabs (tracebacks)."""
    if raw.isprintable():
        return raw
    kept = "\n\t" if lines else ""
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in raw
    )


def plain(name: str, value: object, depth: int = 0) -> object:
    """A value of a field as JSON can show it, without secrets; never raises."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return MASK
    match value:
        case str():
            shown: object = visible(redacted(value))
        case int() if type(value) is int:
            shown = value if abs(value) < 2**63 else "(a huge number)"
        case float():
            shown = value if math.isfinite(value) else str(value)
        case datetime():
            shown = value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case bytes() | bytearray() | memoryview():
            shown = f"({len(value)} bytes)"
        case _:
            shown = _compound(value, depth)
    return shown


def _compound(value: object, depth: int) -> object:
    try:
        if depth < MAX_DEPTH and isinstance(value, Mapping):
            items = list(value.items())[:MAX_ITEMS]
            return {text(key): plain(text(key), part, depth + 1) for key, part in items}
        if depth < MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
            return [plain("", part, depth + 1) for part in list(value)[:MAX_ITEMS]]
    except Exception as error:  # noqa: BLE001 - a foreign mapping may raise anything
        return _unshowable(value, error)
    return text(value)


def text(value: object, *, lines: bool = False) -> str:
    """Any value as harmless text; `lines` keeps its line ends. Never raises."""
    try:
        shown = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else str(value)
    except Exception as error:  # noqa: BLE001 - a foreign __str__ may raise anything
        return _unshowable(value, error)
    return visible(redacted(shown), lines=lines)


def _unshowable(value: object, error: Exception) -> str:
    return f"({type(value).__name__} cannot be shown: {type(error).__name__})"
