"""Clips into a bucket of Google Cloud Storage, or of a server that speaks its JSON API.

The way of a clip is `upload`; `store` is the rest of the port; `replies` knows what the server's
answers mean. See `docs/decisions/0001-gcs-resumable-json.md`.
"""

from nvr_backup.stores.gcs.settings import GcsSettings
from nvr_backup.stores.gcs.store import open_store

__all__ = ["GcsSettings", "open_store"]
