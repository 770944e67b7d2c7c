"""The one way from a file and an environment to `Settings`.

Reads; never writes, never connects. Whatever goes wrong is one ConfigError for the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nvr_backup.errors import ConfigError
from nvr_backup.settings import layers, original
from nvr_backup.settings.model import Settings
from nvr_backup.settings.problems import Place

DEFAULT_CONFIG: Final = Path("/etc/nvr-backup/config.toml")


def find_config(option: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file to load: `--config`, `NVR_BACKUP_CONFIG`, the default, or None.

    The first two are taken at their word, existing or not; the default only where it exists.
    """
    if option is not None:
        return option
    if named := environ.get("NVR_BACKUP_CONFIG"):
        return Path(named)
    try:
        return DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None
    except OSError:  # a folder we may not look into: loading it says so
        return DEFAULT_CONFIG


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The configuration of the file, overridden by the environment, then by credentials.

    Without a file (`path` None) the original script's variables are the lowest layer. Raises
    ConfigError with every problem found. Opens the credential files that are configured, so that
    `check-config` finds an unusable one; remarks are in `Settings.warnings`.
    """
    if path is None:
        place = Place("The environment", Path.cwd(), {}, [], [])
        raw = original.read(environ, place) if original.in_use(environ) else {}
    else:
        path = path.absolute()
        place = Place(str(path), path.parent, {}, [], [])
        raw, is_open = layers.read_file(path)
        if is_open and layers.holds_password(raw):
            place.warnings.append(
                f"{path} holds a password and is readable by every user of this machine. "
                f"Run: chmod o= {path}"
            )
        if ignored := original.in_use(environ):
            place.warnings.append(
                f"{', '.join(ignored)} have no effect: there is a configuration file, {path}."
            )
    layers.add_environment(raw, environ, place)
    layers.add_credentials(raw, environ, place)
    if path is None and not raw and not place.problems:
        raise ConfigError(
            "There is no configuration.",
            hint=f"Copy config.example.toml to {DEFAULT_CONFIG} and adapt it, "
            "or name a file with --config or NVR_BACKUP_CONFIG.",
        )
    return Settings.model_validate(raw, context=place)
