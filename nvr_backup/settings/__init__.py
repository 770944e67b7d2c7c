"""The configuration: TOML file, environment and credentials become one frozen `Settings`.

`quantities` reads durations, sizes and rates, `fields`, `amounts` and `limits` check single values,
`model` is the shape, `problems` puts into words what is wrong, `layers` and `original` are
pydantic-settings' sources, `load` joins them and is the one way in, `changes` compares two
configurations. Nothing here may ever show a secret: not in an error, not in a repr, not in a
comparison.
"""

from nvr_backup.settings.changes import Change, changes
from nvr_backup.settings.limits import format_limit
from nvr_backup.settings.load import DEFAULT_CONFIG, find_config, load_settings, read_layers
from nvr_backup.settings.model import (
    Cameras,
    CheckpointCare,
    DirectoryStore,
    GcsStore,
    Log,
    Schedule,
    ScryptedSource,
    Settings,
    SourceSettings,
    StoreSettings,
    Transfer,
    known_keys,
)
from nvr_backup.settings.quantities import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

__all__ = [
    "DEFAULT_CONFIG",
    "Cameras",
    "Change",
    "CheckpointCare",
    "DirectoryStore",
    "GcsStore",
    "Log",
    "Schedule",
    "ScryptedSource",
    "Settings",
    "SourceSettings",
    "StoreSettings",
    "Transfer",
    "changes",
    "find_config",
    "format_duration",
    "format_limit",
    "format_size",
    "known_keys",
    "load_settings",
    "parse_duration",
    "parse_size",
    "read_layers",
]
