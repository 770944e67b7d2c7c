"""A store that is a folder: a local disk, a USB disk, or a NAS share that is mounted here.

The footage lies under the root as ordinary files at the path that is their key, so a restore is a
plain copy. What else this store must remember (checksum, content type, metadata, unfinished
uploads) lies in one hidden folder, `.nvr-backup`, described in `docs/decisions/0002-*.md`.
It must never replace a file, never show an unfinished one, and never mistake the empty mount point
of an absent NAS for the store.
"""

from nvr_backup.stores.directory.settings import DirectorySettings
from nvr_backup.stores.directory.store import DirectoryStore, open_store

__all__ = ["DirectorySettings", "DirectoryStore", "open_store"]
