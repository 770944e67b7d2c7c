"""Where the configuration's values come from: one source for pydantic-settings per layer.

Each reads one table and remembers which variable or credential set a key. It does not decide what
a value may be, takes the environment as an argument, and never puts a value into a message.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic_settings import BaseSettings, InitSettingsSource

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


class _Unshown(Raw):
    """A table whose repr has no values: PYDANTIC_SETTINGS_DEBUG logs the repr of every layer."""

    def __repr__(self) -> str:
        return "{...}"


class Layer(InitSettingsSource):
    """What all layers share: a table that is filled when the layer is made, the lowest one first.

    The library asks the highest layer first. But what a name in the environment or in the
    credentials means depends on what the layers below describe.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(BaseSettings, {})  # any class: a key need not be a field
        self.place = place
        self.table = self.init_kwargs = _Unshown()

    def put(self, keys: Sequence[str], value: str, origin: str) -> None:
        """Set the key at the end of `keys`; a message about it will name `origin`."""
        table: Raw = self.table
        for name in keys[:-1]:
            table = table.setdefault(name, {})
        table[keys[-1]] = value
        self.place.origins[".".join(keys)] = origin

    def refuse(self, path: str, text: str) -> None:
        """Say what is wrong here, together with everything else that is wrong."""
        self.place.problems.append(Problem(path, text))


def _section(table: Raw, name: str) -> Mapping[str, Any]:
    value = table.get(name)
    return value if isinstance(value, Mapping) else {}


# The file


class FileLayer(Layer):
    """The TOML file; ConfigError when it cannot be read or is not TOML."""

    def __init__(self, place: Place, path: Path) -> None:
        super().__init__(place)
        content, is_open = _content(path)
        self.table.update(_parsed(path, content))
        sources = _section(self.table, "sources").values()
        if is_open and any(isinstance(part, Mapping) and part.get("password") for part in sources):
            place.warnings.append(
                f"{path} holds a password and is readable by every user of this machine. "
                f"Run: chmod o= {path}"
            )


def _content(path: Path) -> tuple[bytes, bool]:
    """The file's bytes, and whether every user of this machine may read them."""
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
    return content, bool(mode & stat.S_IROTH)


def _parsed(path: Path, content: bytes) -> Raw:
    what, hint, line = "valid TOML", "", str(content.count(b"\n") + 1)
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        what, line = "UTF-8 text", str(content.count(b"\n", 0, error.start) + 1)
    except (RecursionError, ValueError) as error:
        # The parser's own text may quote keys and characters: only its position is safe.
        said = str(error)
        if position := re.search(r"\(at line (\d+, column \d+)\)", said):
            line = position[1]
        twice = "a key or table that is already there, " if "overwrite" in said.lower() else ""
        hint = f"Look for {twice}a text without quotes, an open quote or bracket at or before it."
    # Outside the handlers, because those errors carry the file.
    raise ConfigError(f"{path}, line {line}: is not {what}.", hint=hint)


# The environment


class EnvironmentLayer(Layer):
    """Every `NVR_BACKUP_…` variable, known or not; an empty one counts as not set."""

    def __init__(self, place: Place, environ: Mapping[str, str], below: Raw) -> None:
        super().__init__(place)
        self._below = below
        for variable in sorted(environ):
            rest = variable[len(PREFIX) :]
            if not variable.upper().startswith(PREFIX) or _NOT_SETTINGS.fullmatch(rest):
                continue
            if value := environ[variable]:
                self._add(variable, rest.lower().split("__"), FromEnvironment(value))

    def _add(self, variable: str, keys: list[str], value: str) -> None:
        origin = f"environment variable {variable}"
        if not all(keys):
            self.refuse(shown(variable), "is not NVR_BACKUP_TABLE__KEY with single names between")
            return
        if keys[0] in _SECRET_KEYS and len(keys) > 1:
            keys[1] = self._configured_name(keys[0], keys[1])
            if keys[1] not in _section(self._below, keys[0]):
                self.place.origins.setdefault(".".join(keys[:2]), origin)
        path = ".".join(keys)
        below, beside = _table_of(self._below, keys), _table_of(self.table, keys)
        if below is None or beside is None:
            self.refuse(path, f"cannot be set by {variable}: the key above it is no table")
        elif keys[-1] in beside:
            self.refuse(path, f"is set twice, the second time by {variable}")
        else:
            self.put(keys, value, origin)

    def _configured_name(self, section: str, name: str) -> str:
        """The configured name that a variable means: variables cannot hold a `-` everywhere."""
        known = [*_section(self._below, section), *_section(self.table, section)]
        return next((k for k in known if k.replace("-", "_") == name.replace("-", "_")), name)


def _table_of(raw: Raw, keys: Sequence[str]) -> Mapping[str, Any] | None:
    """The table that the last of `keys` belongs into; None when there is something else."""
    table: Any = raw
    for key in keys[:-1]:
        table = table.get(key, {}) if isinstance(table, Mapping) else None
    return table if isinstance(table, Mapping) else None


# Credentials


class CredentialsLayer(Layer):
    """The secrets in `$CREDENTIALS_DIRECTORY`, for parts that the layers below describe.

    An empty one counts as not set: the unit hands over all that it knows of, used or not. Who owns
    these files and their mode is systemd's affair (it differs between versions).
    """

    def __init__(self, place: Place, environ: Mapping[str, str], *below: Raw) -> None:
        super().__init__(place)
        if not environ.get("CREDENTIALS_DIRECTORY"):
            return
        folder = Path(environ["CREDENTIALS_DIRECTORY"])
        expected = {
            f"{section}.{name}.{key}": (section, name, key)
            for section, key in _SECRET_KEYS.items()
            for table in below
            for name, part in _section(table, section).items()
            if isinstance(part, Mapping)
        }
        try:
            found = sorted(entry.name for entry in folder.iterdir())
        except OSError as error:
            raise ConfigError(
                f"The credentials in {folder} cannot be listed ({error.strerror}).",
                hint="systemd sets CREDENTIALS_DIRECTORY (LoadCredential); unset it elsewhere.",
            ) from None
        for name in found:
            if name.partition(".")[0] in _SECRET_KEYS and _is_empty(folder / name):
                continue
            if name in expected:
                self._add(folder / name, expected[name])
            elif name.partition(".")[0] in _SECRET_KEYS:
                place.warnings.append(
                    f"The credential {shown(name)} belongs to nothing that is configured and is "
                    f"not used.{suggestion(name, expected)}"
                )

    def _add(self, path: Path, keys: Sequence[str]) -> None:
        try:
            value = _password(path) if keys[-1] == "password" else str(path)
        except OSError as error:
            reason = error.strerror
        except UnicodeDecodeError:
            reason = "not UTF-8 text"
        except ValueError as error:
            reason = str(error)
        else:
            self.put(keys, value, f"credential {path.name}")
            return
        self.refuse(path.name, f"the credential cannot be read ({reason})")


def _is_empty(path: Path) -> bool:
    """Whether a credential has no characters but line ends; False when it cannot be read."""
    try:
        with path.open("rb") as file:
            return not file.read(MAX_SECRET_BYTES).strip(b"\r\n")
    except OSError:
        return False


def _password(path: Path) -> str:
    """The file's text without one line end."""
    with path.open("rb") as file:
        content = file.read(MAX_SECRET_BYTES + 1)
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError("too large for a password")
    return content.decode().removesuffix("\n").removesuffix("\r")
