"""What an OSError of the store's file system means for the clip and for the store.

Translates at the adapter's edge; it must never swallow an error, and never call a fault of the
whole store a fault of one clip.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from nvr_backup.errors import Blocked, NvrBackupError, Transient, Unfit

_FULL = "Free some space (delete old footage) or give the store a bigger disk."
_PERMISSION = (
    "Make the folder writable for the user nvr-backup runs as (chown -R), and name it in "
    "ReadWritePaths= if its systemd unit restricts paths."
)
_READ_ONLY = (
    "Mount it read-write, or name the folder in ReadWritePaths= of the systemd unit; a disk that "
    "turned read-only by itself usually has errors (see dmesg)."
)
_SICK = "Check the disk, its cable or the network to the NAS (see dmesg), then mount it again."
_NAME = (
    "This file system cannot hold such a name: rename the camera at the source, or change the "
    "store's key template."
)

_BLOCKED = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the disk quota is used up", "Raise the quota, or delete old footage."),
    errno.EROFS: ("the file system is read-only", _READ_ONLY),
    errno.EACCES: ("permission denied", _PERMISSION),
    errno.EPERM: ("operation not permitted", _PERMISSION),
    errno.ESTALE: ("the share was taken away under us (stale file handle)", _SICK),
    errno.ENOTSUP: (
        "its file system can neither make hard links nor rename without replacing",
        "Use another one: ext4, xfs, btrfs, exFAT, NFS and SMB can.",
    ),
    errno.EIO: ("input/output error", _SICK),
}
_TRANSIENT = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY}
)
_UNFIT = {
    errno.ENAMETOOLONG: ("its name is too long for this file system", _NAME),
    errno.EINVAL: ("its name has characters this file system refuses", _NAME),
    errno.EILSEQ: ("its name has characters this file system refuses", _NAME),
    errno.EFBIG: (
        "it is larger than this file system allows for one file",
        "FAT32 ends at 4 GiB: format the disk with ext4 or exFAT.",
    ),
    errno.ELOOP: (
        "a folder on its way is a symbolic link, which this store does not follow",
        "Replace the link by a real folder, or make its target a store of its own.",
    ),
    errno.ENOTDIR: (
        "a file or a symbolic link stands where its folder must be",
        "Move it out of the way, then retry the clip.",
    ),
    errno.EXDEV: (
        "its folder is another file system (a mount or a subvolume) than the store's root",
        "Make that folder a store of its own, or give the whole store one file system.",
    ),
}


def translate(err: OSError, root: str, key: str | None) -> NvrBackupError:
    """The error of `errors.py` for `err`; without a `key` nothing can be the clip's own fault.

    An errno nobody foresaw is the store's fault: everything waits and nothing is lost.
    """
    code = err.errno if err.errno is not None else 0
    if key is not None and code in _UNFIT:
        reason, hint = _UNFIT[code]
        return Unfit(f"{key!r} cannot be kept in {root}: {reason}.", hint=hint)
    what = f"Keeping {key!r} in {root} failed" if key is not None else f"The store {root} failed"
    if code in _TRANSIENT:
        return Transient(f"{what}: {os.strerror(code)}.")
    reason, hint = _BLOCKED.get(code, (err.strerror or str(err), _SICK))
    return Blocked(f"{what}: {reason}.", hint=hint)


@contextmanager
def translated(root: str, key: str | None = None) -> Iterator[None]:
    """Around every touch of the disk: OSErrors leave as errors of `errors.py`."""
    try:
        yield
    except OSError as err:
        raise translate(err, root, key) from err
