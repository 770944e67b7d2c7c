"""What the operator decides about a directory store. It must never touch the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    """Where the footage goes.

    `path` is absolute and must exist: the store never creates its root, because below the mount
    point of an absent NAS that would silently fill the system disk. `used_before` says that clips
    were stored here in the past (the checkpoint knows): a root without this store's marker is then
    not a first use but the wrong folder. `reserve_bytes` is what must be free for `probe` to call
    the store usable; `stall_seconds` is how long one step (at most one chunk, or 32 MiB read) may
    take before the disk or the NAS counts as not answering.
    """

    name: str
    path: Path
    used_before: bool = False
    reserve_bytes: int = 64 * MIB
    stall_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise ValueError(f"the path of a directory store must be absolute, not {self.path}")
