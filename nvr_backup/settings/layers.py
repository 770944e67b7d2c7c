"""Where the configuration's values come from: file, environment, credentials, in rising order.

Everything here produces one raw table and remembers which variable or credential set a key; what a
value may be is not decided here. Nothing is read from the process behind the caller's back: the
environment is an argument. Values are never put into a message.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nvr_backup.errors import ConfigError
from nvr_backup.settings.fields import FromEnvironment
from nvr_backup.settings.problems import Place, Problem, shown, suggestion

PREFIX: Final = "NVR_BACKUP_"
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_SECRET_BYTES: Final = 64 * 1024

Raw = dict[str, Any]

# NVR_BACKUP_CONFIG names the file; the rest is what Kubernetes puts into every container beside a
# service called nvr-backup.
_NOT_SETTINGS: Final = re.compile(r"CONFIG|SERVICE_(HOST|PORT)(_.*)?|PORT(_.*)?", re.IGNORECASE)

_SECRET_KEYS: Final = {"sources": "password", "stores": "credentials_file"}
"""What a credential may set, by section; `credentials_file` becomes the credential's own path."""


# The file


def read_file(path: Path) -> tuple[Raw, bool]:
    """The file's table, and whether every user of this machine may read it; ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file.",
            hint="Copy config.example.toml there and adapt it, or name another with --config.",
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a possible file name"
        raise ConfigError(
            f"{path} cannot be read ({reason}).",
            hint="The user that nvr-backup runs as must be able to read this file.",
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes: not a configuration.")
    return _parsed(path, _decoded(path, content)), bool(mode & stat.S_IROTH)


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    # Outside the handler: the decoder's error carries the whole file.
    raise ConfigError(f"{path}, line {line}: is not UTF-8 text.")


def _parsed(path: Path, text: str) -> Raw:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # The parser's own text may quote keys and characters, but only its position is safe.
        message = str(error)
    position = re.search(r"\(at line (\d+), column (\d+)\)", message)
    line = int(position[1]) if position else text.count("\n") + 1
    column = f", column {position[2]}" if position else ""
    twice = " a key or table that is already there," if "overwrite" in message.lower() else ""
    raise ConfigError(
        f"{path}, line {line}{column}: is not valid TOML.",
        hint=f"Look for{twice} a text without quotes, an open quote or bracket at or before it.",
    )


def holds_password(raw: Mapping[str, Any]) -> bool:
    """Whether any source has a password in this table."""
    sources = raw.get("sources")
    return isinstance(sources, Mapping) and any(
        isinstance(source, Mapping) and source.get("password") for source in sources.values()
    )


# The environment


def add_environment(raw: Raw, environ: Mapping[str, str], place: Place) -> None:
    """Put every `NVR_BACKUP_…` variable into `raw`; an empty one counts as not set."""
    for variable in sorted(environ):
        rest = variable[len(PREFIX) :]
        if not variable.upper().startswith(PREFIX) or _NOT_SETTINGS.fullmatch(rest):
            continue
        if environ[variable] == "":
            continue
        parts = rest.lower().split("__")
        if not all(parts):
            place.problems.append(
                Problem(shown(variable), "is not NVR_BACKUP_TABLE__KEY with single names between")
            )
            continue
        if parts[0] in ("sources", "stores") and len(parts) > 1:
            section = raw.get(parts[0])
            parts[1] = _configured_name(section, parts[1])
            if not isinstance(section, Mapping) or parts[1] not in section:
                place.origins[".".join(parts[:2])] = f"environment variable {variable}"
        path = ".".join(parts)
        if path in place.origins and place.origins[path].startswith("environment variable "):
            place.problems.append(Problem(path, f"is set twice, the second time by {variable}"))
        elif _put(raw, parts, FromEnvironment(environ[variable])):
            place.origins[path] = f"environment variable {variable}"
        else:
            place.problems.append(
                Problem(path, f"cannot be set by {variable}: the key above it is no table")
            )


def _configured_name(section: object, name: str) -> str:
    """The configured name that a variable means: variables cannot hold a `-` everywhere."""
    names = [str(known) for known in section] if isinstance(section, Mapping) else []
    if name in names:
        return name
    same = [known for known in names if known.replace("-", "_") == name.replace("-", "_")]
    return same[0] if same else name


def _put(raw: Raw, parts: list[str], value: str) -> bool:
    table: Any = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return False
    table[parts[-1]] = value
    return True


# Credentials


def add_credentials(raw: Raw, environ: Mapping[str, str], place: Place) -> None:
    """Put the secrets of `$CREDENTIALS_DIRECTORY` into `raw`, for parts that are configured.

    Who owns these files and their mode is systemd's affair (it differs between versions).
    """
    folder = (
        Path(environ["CREDENTIALS_DIRECTORY"]) if environ.get("CREDENTIALS_DIRECTORY") else None
    )
    if folder is None:
        return
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"The credentials in {folder} cannot be listed ({error.strerror}).",
            hint="CREDENTIALS_DIRECTORY is set by systemd (LoadCredential); unset it elsewhere.",
        ) from None
    expected = _expected_credentials(raw)
    for name in names:
        if name in expected:
            _add_credential(raw, folder / name, place)
        elif name.partition(".")[0] in _SECRET_KEYS:
            place.warnings.append(
                f"The credential {shown(name)} belongs to nothing that is configured and is not "
                f"used.{suggestion(name, expected)}"
            )


def _expected_credentials(raw: Raw) -> list[str]:
    return [
        f"{section}.{name}.{key}"
        for section, key in _SECRET_KEYS.items()
        if isinstance(raw.get(section), Mapping)
        for name, part in raw[section].items()
        if isinstance(part, Mapping)
    ]


def _add_credential(raw: Raw, path: Path, place: Place) -> None:
    section, name, key = path.name.split(".")
    value = str(path)
    if key == "password":
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SECRET_BYTES + 1)
            value = content.decode().removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            place.problems.append(Problem(path.name, f"the credential cannot be read ({reason})"))
            return
        if len(content) > MAX_SECRET_BYTES:
            place.problems.append(Problem(path.name, "the credential is too large for a password"))
            return
    raw[section][name][key] = value
    place.origins[path.name] = f"credential {path.name}"
