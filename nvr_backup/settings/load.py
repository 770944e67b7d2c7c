"""The one way from a file and an environment to `Settings`.

pydantic-settings joins the layers, `Settings` checks what comes out. Reads; never writes, never
connects. Whatever goes wrong is one ConfigError for the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nvr_backup.errors import ConfigError
from nvr_backup.settings.layers import CredentialsLayer, EnvironmentLayer, FileLayer, Raw
from nvr_backup.settings.model import Settings
from nvr_backup.settings.original import OriginalLayer, in_use
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


class _Merged(BaseSettings):
    """All layers joined, with any key and any value: checking them is for `Settings`.

    `Settings` is no BaseSettings itself, because validating one drops the `Place` and reads all
    sources anew (docs/decisions/0005-settings.md).
    """

    model_config = SettingsConfigDict(extra="allow")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_own: PydanticBaseSettingsSource,
        **_own_by_name: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Credentials over environment over file; without a file, over the original's variables.

        The library's own sources stay out: they look at the process behind the caller's back.
        """
        given = init_settings()
        place, path, environ = given["place"], given["path"], given["environ"]
        lowest = FileLayer(place, path) if path else OriginalLayer(place, environ)
        environment = EnvironmentLayer(place, environ, lowest.table)
        credentials = CredentialsLayer(place, environ, lowest.table, environment.table)
        return credentials, environment, lowest


def read_layers(path: Path | None, environ: Mapping[str, str]) -> tuple[Raw, Place]:
    """The table of all layers, unchecked, and the `Place` to validate it with.

    What is wrong already is in the place; ConfigError for a file or a folder of credentials that
    cannot be read, and when there is no configuration at all.
    """
    path = path.absolute() if path else None
    title, folder = (str(path), path.parent) if path else ("The environment", Path.cwd())
    place = Place(title, folder, {}, [], [])
    given: dict[str, Any] = {"place": place, "path": path, "environ": environ}
    raw = _Merged(**given).model_extra or {}
    if not path and not raw and not place.problems:
        raise ConfigError(
            "There is no configuration.",
            hint=f"Copy config.example.toml to {DEFAULT_CONFIG} and adapt it, "
            "or name a file with --config or NVR_BACKUP_CONFIG.",
        )
    if path and (ignored := in_use(environ)):
        place.warnings.append(
            f"{', '.join(ignored)} have no effect: there is a configuration file, {path}."
        )
    return raw, place


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The configuration of the file, overridden by the environment, then by credentials.

    Without a file (`path` None) the original script's variables are the lowest layer. Raises
    ConfigError with every problem found. Opens the credential files that are configured, so that
    `check-config` finds an unusable one; remarks are in `Settings.warnings`.
    """
    raw, place = read_layers(path, environ)
    return Settings.model_validate(raw, context=place)
