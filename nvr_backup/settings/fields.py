"""The kinds of values a key of the configuration can hold, each with its check.

A check says what is expected, in words that complete "sources.home.url: …". It must never repeat
the value it refuses: a secret may have been pasted into the wrong line, and these texts end up in
logs.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import zoneinfo
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, urlsplit

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo

from nvr_backup import keys
from nvr_backup.settings.problems import Place

MAX_TEXT: Final = 1024
"""Characters of a text that has no other limit."""
MAX_LIST: Final = 1000
MAX_KEY_FILE_BYTES: Final = 64 * 1024


class FromEnvironment(str):
    """A text that came from an environment variable: it may stand for a number or a list."""

    __slots__ = ()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError('must be text in quotes ("…")')  # noqa: TRY004 - pydantic wants it
    if len(value) > MAX_TEXT:
        raise ValueError(f"must not be longer than {MAX_TEXT} characters")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("must not hold control characters or line ends")
    return str(value)


def _filled(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


# Texts with a meaning


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]

Text = Annotated[str, BeforeValidator(_text)]
FilledText = Annotated[str, BeforeValidator(_text), AfterValidator(_filled)]


def _secret(value: object) -> object:
    _filled(_text(value.get_secret_value() if isinstance(value, SecretStr) else value))
    return value


Secret = Annotated[SecretStr, BeforeValidator(_secret)]


def _cron(value: str) -> str:
    fields = value.split()
    if len(fields) != 5:
        raise ValueError(
            "must have five fields (minute, hour, day of the month, month, day of the week), "
            'such as "0 2 * * *" for every night at two'
        )
    try:
        next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(
            f'is not a cron expression: {str(error).lower()}; "0 2 * * *" is one'
        ) from None
    except StopIteration:
        raise ValueError("never comes up: no such day is ever reached") from None
    return " ".join(fields)


Cron = Annotated[str, BeforeValidator(_text), AfterValidator(_cron)]


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = {name.casefold(): name for name in zoneinfo.available_timezones()}
        if not known:
            raise ValueError(
                "cannot be looked up: this system has no time zone data; install tzdata"
            ) from None
        close = difflib.get_close_matches(value.casefold(), list(known), n=1)
        hint = f' Did you mean "{known[close[0]]}"?' if close else ""
        raise ValueError(
            f'is not a known time zone; expected a name such as "Europe/Berlin" or "UTC".{hint}'
        ) from None
    return value


TimeZone = Annotated[str, BeforeValidator(_text), AfterValidator(_timezone)]


_HOST_LABEL: Final = re.compile(r"[^\W_]([\w-]{0,61}[^\W_])?")


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return False
        return True
    return len(host) <= 253 and all(
        _HOST_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")
    )


def _split(value: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(
            "is not a URL; expected https://HOST:PORT with a port from 1 to 65535"
        ) from None
    return parts, port


def _origin(value: str) -> str:
    """Scheme, host and port alone, lower-case, without a slash at the end."""
    if any(character.isspace() for character in value):
        raise ValueError("must not contain blanks")
    parts, port = _split(value)
    if parts.scheme not in ("http", "https") or not value.lower().startswith(parts.scheme + "://"):
        raise ValueError("must begin with https:// or http://, such as https://192.168.1.20:10443")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password: they have keys of their own")
    host = parts.hostname or ""
    if not host:
        raise ValueError("has no host; expected https://HOST:PORT")
    if not _is_host(host) or port == 0:
        raise ValueError("has no usable host name, address or port; expected https://HOST:PORT")
    if parts.path not in ("", "/") or "?" in value or "#" in value:
        raise ValueError(
            "must be scheme, host and port alone (https://HOST:PORT), "
            "without path, query or fragment"
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


Url = Annotated[str, BeforeValidator(_text), AfterValidator(_origin)]
Endpoint = Annotated[
    str, BeforeValidator(_text), AfterValidator(lambda value: _origin(value) if value else "")
]


def _fingerprint(value: str) -> str:
    algorithm, _, digits = value.strip().partition(":")
    plain = digits.replace(":", "").replace(" ", "").lower()
    if algorithm.strip().lower() != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise ValueError(
            'must be "sha256:" and the 64 hexadecimal digits of the certificate\'s SHA-256 '
            "(colons between them are fine)"
        )
    return f"sha256:{plain}"


Fingerprint = Annotated[str, BeforeValidator(_text), AfterValidator(_fingerprint)]


def _bucket(value: str) -> str:
    if value.startswith("gs://") or "/" in value:
        raise ValueError("must be the bucket's bare name, without gs:// and without a path")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", value) or any(
        len(part) > 63 for part in value.split(".")
    ):
        raise ValueError(
            "is not a bucket name: 3 to 63 lower-case letters, digits, - and _, "
            "beginning and ending with a letter or digit"
        )
    return value


Bucket = Annotated[str, BeforeValidator(_text), AfterValidator(_bucket)]
Prefix = Annotated[str, BeforeValidator(_text), AfterValidator(keys.check_prefix)]
KeyTemplate = Annotated[str, BeforeValidator(_text), AfterValidator(keys.check_template)]

_PART_NAME: Final = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
MAX_PART_NAME: Final = 40


def _part_name(value: object) -> str:
    text = _text(value)
    if not _PART_NAME.fullmatch(text) or len(text) > MAX_PART_NAME:
        raise ValueError(
            "this name must be lower-case letters and digits, with single - or _ between them, "
            f"at most {MAX_PART_NAME}"
        )
    return text


PartName = Annotated[str, BeforeValidator(_part_name)]
"""What a source or a store is called; every one of them is reachable from the environment."""


# Lists


def _list(value: object) -> object:
    if isinstance(value, FromEnvironment):
        value = _list_from_text(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError('must be a list such as ["Porch", "Garage*"]')  # noqa: TRY004
    if len(value) > MAX_LIST:
        raise ValueError(f"must not have more than {MAX_LIST} entries")
    return tuple(value)


def _list_from_text(value: str) -> object:
    """A JSON list, or names with commas between them."""
    if not value.strip().startswith("["):
        return [part.strip() for part in value.split(",")]
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('is not a list; expected ["Porch", "Garage*"] or Porch,Garage*') from None


def _some(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError("must not be an empty list")
    if len(set(value)) < len(value):
        raise ValueError("names the same thing twice")
    return value


Texts = Annotated[tuple[FilledText, ...], BeforeValidator(_list)]
SomeTexts = Annotated[tuple[FilledText, ...], BeforeValidator(_list), AfterValidator(_some)]


# Files


def _path(value: object, info: ValidationInfo) -> Path:
    text = str(value) if isinstance(value, Path) else _filled(_text(value))
    if text.startswith("~"):
        raise ValueError("must be written out: ~ is not expanded")
    folder = info.context.folder if isinstance(info.context, Place) else Path()
    return Path(folder, text)


FilePath = Annotated[Path, BeforeValidator(_path)]


def _key_file(path: Path, info: ValidationInfo) -> Path:
    """Look into the service account's key file; nothing of its content is ever repeated."""
    if not isinstance(info.context, Place):
        return path
    expected = "expected the JSON key file of a service account"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
            mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {expected}") from None
    if len(content) > MAX_KEY_FILE_BYTES:
        raise ValueError(f"{path} is too large; {expected}")
    try:
        key = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON; {expected}") from None
    if not isinstance(key, dict) or key.get("type") != "service_account":
        raise ValueError(f'{path} is JSON, but its "type" is not "service_account"; {expected}')
    for name in ("client_email", "private_key"):
        if not isinstance(key.get(name), str) or not key[name]:
            raise ValueError(f'{path} has no "{name}"; {expected}, as it was downloaded')
    if mode & 0o007:
        info.context.warnings.append(
            f"{path} holds a private key and is open to every user of this machine. "
            f"Run: chmod o= {path}"
        )
    return path


KeyFile = Annotated[Path, BeforeValidator(_path), AfterValidator(_key_file)]
