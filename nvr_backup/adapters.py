"""Which kinds of sources and stores there are: settings of a kind → its adapter.

A new kind is a settings class and a branch in each of the two functions here.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import assert_never

from nvr_backup.clock import Clock
from nvr_backup.ports import Allow, ClipSource, ClipStore
from nvr_backup.settings import DirectoryStore, GcsStore, SourceSettings, StoreSettings
from nvr_backup.sources import scrypted
from nvr_backup.stores import directory, gcs


def open_source(
    name: str, settings: SourceSettings, clock: Clock
) -> AbstractAsyncContextManager[ClipSource]:
    """The source's adapter, to be entered; does not fail because the recorder is down."""
    return scrypted.open_source(
        scrypted.ScryptedSettings(
            name=name,
            url=settings.url,
            username=settings.username,
            password=settings.password.get_secret_value(),
            tls=settings.tls,
            tls_fingerprint=settings.tls_fingerprint,
            include=settings.cameras.include,
            exclude=settings.cameras.exclude,
        ),
        clock,
    )


def open_store(
    name: str,
    settings: StoreSettings,
    clock: Clock,
    *,
    chunk_size: int,
    used_before: bool,
    allow: Allow | None = None,
) -> AbstractAsyncContextManager[ClipStore]:
    """The store's adapter, to be entered; does not fail because the store is down.

    `chunk_size` in bytes; `used_before` says that the checkpoint knows objects in this store.
    `allow` limits what leaves over the uplink: a folder, on a disk or a share, is not behind it.
    """
    match settings:
        case GcsStore():
            return gcs.open_store(
                gcs.GcsSettings(
                    name=name,
                    bucket=settings.bucket,
                    credentials_file=settings.credentials_file,
                    prefix=settings.prefix,
                    endpoint=settings.endpoint,
                    chunk_size=chunk_size,
                ),
                clock,
                allow=allow,
            )
        case DirectoryStore():
            return directory.open_store(
                directory.DirectorySettings(name=name, path=settings.path, used_before=used_before),
                clock,
            )
        case _:
            assert_never(settings)
