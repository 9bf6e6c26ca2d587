"""Attributes of the root directory. An overlay shows those of its upper, so the upper gets the parent's attributes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from imgfs.disk.durable import fsync_path
from imgfs.errors import from_os

_OBEYED = ("trusted.", "user.overlay.", "user.fuseoverlayfs.")
"""Attributes of a lower root that belong to overlayfs."""


@dataclass(frozen=True, slots=True)
class RootAttributes:
    """The attributes of a root directory: permission bits, owner, mtime in nanoseconds, extended attributes."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def root_of(upper: Path) -> RootAttributes:
    """Return the attributes of another snapshot's root. Blocks. Raises NoSpace, StorageFailed."""
    try:
        status = os.stat(upper)
        names = [name for name in os.listxattr(upper) if not name.startswith(_OBEYED)]
        xattrs = tuple((os.fsencode(name), os.getxattr(upper, name)) for name in sorted(names))
    except OSError as error:
        raise from_os(error, str(upper)) from None
    return RootAttributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def apply_root(upper: Path, root: RootAttributes) -> None:
    """Give the root of `upper` the attributes `root`, durably. Blocks. Raises NoSpace, StorageFailed."""
    try:
        status = os.stat(upper)
        if (status.st_uid, status.st_gid) != (root.uid, root.gid):
            os.chown(upper, root.uid, root.gid)
        for name, value in root.xattrs:
            os.setxattr(upper, name, value)
        os.chmod(upper, root.mode)
        os.utime(upper, ns=(root.mtime, root.mtime))
        fsync_path(upper)
    except OSError as error:
        raise from_os(error, str(upper)) from None
