"""What a plain file cannot say about itself: checksum, content type, metadata, generation.

One small JSON file for each object, under a name derived from the key, so that neither a strange
file system's rules for names nor a long key matters. It is durable before its object becomes
visible. A sidecar that does not fit its object (another size: somebody changed the file) describes
nothing, and an object without one is still an object; it must never make footage unreadable.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

from nvr_backup.model import StoredObject
from nvr_backup.stores.directory.files import (
    PRIVATE,
    Folders,
    closing,
    remove,
    sync_folder,
    walk_to,
)
from nvr_backup.stores.directory.site import FORMAT, OBJECTS, PARTIAL, read_file, write_file

_LIMIT_BYTES = 1024 * 1024
_CRC_HEX_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is kept beside an object."""

    key: str
    size: int
    crc32c: int
    generation: str
    content_type: str
    metadata: Mapping[str, str]

    def describes(self, size: int) -> StoredObject:
        """The object under the key, whose file has `size` bytes."""
        return StoredObject(
            key=self.key,
            size=size,
            crc32c=self.crc32c,
            generation=self.generation,
            content_type=self.content_type,
            metadata=self.metadata,
        )


def describe(root: int, key: str, size: int) -> StoredObject:
    """The object of `size` bytes under `key`, with whatever its sidecar adds."""
    sidecar = load(root, key)
    if sidecar is None or sidecar.size != size:
        return StoredObject(key=key, size=size)
    return sidecar.describes(size)


def load(root: int, key: str) -> Sidecar | None:
    """The sidecar of a key; None when there is none or it cannot be understood."""
    shard, name = _place_of(key)
    try:
        folder = walk_to(root, (PRIVATE, OBJECTS, shard))
    except FileNotFoundError:
        return None
    with closing(folder):
        content = read_file(folder, name, _LIMIT_BYTES)
    sidecar = None if content is None else _parse(content)
    return sidecar if sidecar is not None and sidecar.key == key else None


def save(root: int, folders: Folders, sidecar: Sidecar) -> None:
    """Write a sidecar durably, replacing what a vanished object of that key may have left."""
    shard, name = _place_of(sidecar.key)
    aside = sidecar.generation.encode() + b".json"
    with (
        closing(folders.make(root, (PRIVATE, PARTIAL))) as partial,
        closing(folders.make(root, (PRIVATE, OBJECTS, shard))) as folder,
    ):
        remove(partial, aside)
        try:
            write_file(partial, aside, _content(sidecar))
            os.replace(aside, name, src_dir_fd=partial, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                remove(partial, aside)
            raise
        sync_folder(folder)


def erase(root: int, key: str) -> None:
    """Remove a key's sidecar; absent is no error."""
    shard, name = _place_of(key)
    with suppress(FileNotFoundError), closing(walk_to(root, (PRIVATE, OBJECTS, shard))) as folder:
        remove(folder, name)


def _place_of(key: str) -> tuple[bytes, bytes]:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return digest[:2].encode(), digest[2:].encode() + b".json"


def _content(sidecar: Sidecar) -> bytes:
    return json.dumps(
        {
            "format": FORMAT,
            "key": sidecar.key,
            "size": sidecar.size,
            "crc32c": f"{sidecar.crc32c:0{_CRC_HEX_DIGITS}x}",
            "generation": sidecar.generation,
            "content_type": sidecar.content_type,
            "metadata": dict(sidecar.metadata),
        },
        indent=1,
    ).encode()


def _parse(content: bytes) -> Sidecar | None:
    try:
        value = json.loads(content)
        metadata = {str(name): str(text) for name, text in value["metadata"].items()}
        return Sidecar(
            key=str(value["key"]),
            size=int(value["size"]),
            crc32c=int(value["crc32c"], 16),
            generation=str(value["generation"]),
            content_type=str(value["content_type"]),
            metadata=MappingProxyType(metadata),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
