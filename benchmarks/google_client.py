"""Google's own Python client at the same work; run by an interpreter that has google-cloud-storage.

    python google_client.py ENDPOINT URL...     each body is streamed into an object, 4 at a time
    python google_client.py                     imports only, to tell what the start costs

It stands alone: that interpreter knows nothing of this project.
"""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CHUNK_BYTES = 8 * 1024 * 1024
"""As nvr-backup's; the client's own 100 MiB would be held in memory."""

TRANSFERS = 4


class Received:
    """A response's body, as the file that `upload_from_file` wants."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._at = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""
        pieces: list[bytes] = []
        while size > 0 and (piece := self._raw.read(size)):
            pieces.append(piece)
            size -= len(piece)
            self._at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def tell(self) -> int:
        """How much was read."""
        return self._at


def main() -> None:
    """Carry what the command line names."""
    requests = importlib.import_module("requests")
    adapters = importlib.import_module("requests.adapters")
    storage = importlib.import_module("google.cloud.storage")
    credentials = importlib.import_module("google.auth.credentials")
    if len(sys.argv) < 3:
        return
    client = storage.Client(
        project="bench",
        credentials=credentials.AnonymousCredentials(),
        client_options={"api_endpoint": sys.argv[1]},
    )
    bucket = client.bucket("footage")
    session = requests.Session()
    session.mount("http://", adapters.HTTPAdapter(pool_maxsize=TRANSFERS))

    def carry(url: str) -> None:
        with session.get(url, stream=True, timeout=60) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length")
            blob = bucket.blob(url.rpartition("/")[2], chunk_size=CHUNK_BYTES)
            blob.upload_from_file(
                Received(response.raw),
                size=None if length is None else int(length),
                content_type="video/mp4",
                checksum="crc32c",
            )

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(carry, sys.argv[2:]))


if __name__ == "__main__":
    main()
