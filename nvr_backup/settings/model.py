"""The configuration as values: one frozen class per table, one field per key.

What a key may hold is `fields`, where its value comes from is `layers`; this module is the shape.
Unknown keys are refused everywhere. A `Settings` that exists is complete and free of
contradictions; making one from anything else raises ConfigError with every problem found, never
with a value in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WrapSerializer,
    model_validator,
)

from nvr_backup.keys import DEFAULT_TEMPLATE
from nvr_backup.settings import amounts, fields, limits, problems
from nvr_backup.uplink import UNLIMITED

DEFAULT_STATE_DIR: Final = Path("/var/lib/nvr-backup")
MAX_PARTS: Final = 100
"""Sources, and stores, in one configuration."""


class _Table(BaseModel):
    """What all tables share: frozen, closed, and silent about values in its errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=False,
    )


class Schedule(_Table):
    """When cycles run and how far they look. `every` or `cron` is set, never both."""

    every: amounts.Every | None = None
    cron: fields.Cron | None = None
    timezone: fields.TimeZone = "UTC"
    settle: amounts.Settle = timedelta(seconds=30)
    lookback: amounts.Lookback = timedelta(hours=2)
    backfill: amounts.Backfill = timedelta(hours=24)

    @model_validator(mode="before")
    @classmethod
    def _hourly(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "every" not in data and "cron" not in data:
            return {**data, "every": timedelta(hours=1)}
        return data

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which `cron` is read, and `transfer.upload_limit` if it was set."""
        return ZoneInfo(self.timezone)


class Transfer(_Table):
    """How clips travel; `chunk_size` in bytes. A worker needs memory for two chunks.

    `upload_limit` is for all workers and all stores behind the uplink together.
    """

    workers: amounts.Workers = 4
    chunk_size: amounts.ChunkSize = 8 * 1024 * 1024
    upload_limit: limits.UploadLimit = UNLIMITED


class CheckpointCare(_Table):
    """How the checkpoint itself is kept safe.

    `snapshots` is how many are kept beside it, `stores` names where one goes each day besides.
    """

    snapshots: amounts.Snapshots = 2
    stores: fields.Texts = ()


class Audit(_Table):
    """The daemon's own verification; `sample` in bytes, of each store."""

    every: amounts.AuditEvery = timedelta(days=1)
    sample: amounts.Sample = 128 * 1024 * 1024

    @property
    def interval(self) -> timedelta | None:
        """Between two audits; None: there are none."""
        return self.every if isinstance(self.every, timedelta) else None


class Log(_Table):
    """What is logged."""

    level: fields.LogLevel = "info"


class Cameras(_Table):
    """Shell patterns for camera names; a camera that both lists match is excluded."""

    include: fields.SomeTexts = ("*",)
    exclude: fields.Texts = ()


class ScryptedSource(_Table):
    """A Scrypted server. `url` is scheme, host and port, without a slash at its end.

    An empty user name stands for a server that lets this machine in without one; the password is
    then empty too.
    """

    kind: Literal["scrypted"]
    url: fields.Url
    username: fields.Text
    password: fields.Secret = SecretStr("")
    tls: Literal["verify", "insecure"] = "verify"
    tls_fingerprint: fields.Fingerprint | None = None
    cameras: Cameras = Cameras()
    stores: fields.SomeTexts | None = None


class GcsStore(_Table):
    """A Google Cloud Storage bucket, or one behind a compatible `endpoint`.

    An object's name is `prefix` followed by the object key: a prefix that is not empty ends in a
    slash here, whether or not it was written with one.
    """

    kind: Literal["gcs"]
    bucket: fields.Bucket
    credentials_file: fields.KeyFile | None = None
    prefix: fields.Prefix = ""
    endpoint: fields.Endpoint = ""
    key_template: fields.KeyTemplate = DEFAULT_TEMPLATE


class DirectoryStore(_Table):
    """A folder, on a local disk or a mounted share."""

    kind: Literal["directory"]
    path: fields.FilePath
    key_template: fields.KeyTemplate = DEFAULT_TEMPLATE


# A second kind of source: Annotated[ScryptedSource | OtherSource, Field(discriminator="kind")],
# and a line in TABLES.
SourceSettings = ScryptedSource
StoreSettings = Annotated[GcsStore | DirectoryStore, Field(discriminator="kind")]

TABLES: Final[Mapping[tuple[str, ...], tuple[type[BaseModel], ...]]] = MappingProxyType(
    {
        ("schedule",): (Schedule,),
        ("transfer",): (Transfer,),
        ("checkpoint",): (CheckpointCare,),
        ("audit",): (Audit,),
        ("log",): (Log,),
        ("sources", "*"): (ScryptedSource,),
        ("sources", "*", "cameras"): (Cameras,),
        ("stores", "*"): (GcsStore, DirectoryStore),
    }
)
"""Every table below the top by its path, with the classes it may be; `*` is a name."""


_KINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"sources": ("scrypted",), "stores": ("gcs", "directory")}
)


def _parts(parts: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ValueError(
            f"must hold at least one table such as [{info.field_name}.home], at most {MAX_PARTS}"
        )
    return MappingProxyType(dict(parts))


_AS_DICT: Final = WrapSerializer(lambda parts, handler: handler(dict(parts)))


def _place(store: GcsStore | DirectoryStore) -> tuple[object, ...]:
    if isinstance(store, GcsStore):
        return (store.kind, store.endpoint, store.bucket, store.prefix)
    return (store.kind, Path(os.path.normpath(store.path)))


class Settings(_Table):
    """The whole configuration. `warnings` are remarks for the operator, not errors."""

    state_dir: fields.FilePath = DEFAULT_STATE_DIR
    schedule: Schedule = Schedule(every=timedelta(hours=1))
    transfer: Transfer = Transfer()
    checkpoint: CheckpointCare = CheckpointCare()
    audit: Audit = Audit()
    log: Log = Log()
    sources: Annotated[Mapping[fields.PartName, SourceSettings], AfterValidator(_parts), _AS_DICT]
    stores: Annotated[Mapping[fields.PartName, StoreSettings], AfterValidator(_parts), _AS_DICT]
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems_at_once(
        cls, data: Any, handler: ModelWrapValidatorHandler[Settings], info: ValidationInfo
    ) -> Settings:
        """Raise one ConfigError with everything that is wrong.

        Pydantic's own error never leaves this method: its text can repeat values.
        """
        place = info.context if isinstance(info.context, problems.Place) else None
        found = problems.contradictions(data)
        settings: Settings | None = None
        try:
            settings = handler(data)
        except ValidationError as error:
            found = [*problems.translated(error, known_keys(), _KINDS), *found]
        else:
            found += problems.same_place({n: _place(s) for n, s in settings.stores.items()})
        if place:
            found = [*place.problems, *found]
        if settings is None or found:
            raise problems.config_error(found, place)
        if place:
            settings._warnings = tuple(place.warnings)
        return settings

    @property
    def warnings(self) -> tuple[str, ...]:
        """Remarks found while loading, for the operator; empty when there are none."""
        return self._warnings

    @property
    def upload_zone(self) -> ZoneInfo | None:
        """Where `transfer.upload_limit` reads its times: as the schedule does, or None: here."""
        return self.schedule.zone if "timezone" in self.schedule.model_fields_set else None

    def stores_of(self, source: str) -> tuple[str, ...]:
        """The names of the stores a source's clips go to, in the order of the configuration."""
        chosen = self.sources[source].stores
        return tuple(name for name in self.stores if chosen is None or name in chosen)


def known_keys() -> tuple[str, ...]:
    """Every key there is by its path, names as `*`: `schedule.every`, `sources.*.url`."""
    top = [name for name in Settings.model_fields if name not in ("sources", "stores")]
    tables = {path[0] for path in TABLES if len(path) == 1}
    found = [name for name in top if name not in tables]
    for path, classes in TABLES.items():
        for table in classes:
            names = [name for name in table.model_fields if (*path, name) not in TABLES]
            found.extend(".".join((*path, name)) for name in names)
    return tuple(dict.fromkeys(found))
