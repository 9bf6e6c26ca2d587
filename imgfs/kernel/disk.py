"""System calls about filesystems that Python lacks: syncfs(2), and the unique number of a mount (statx(2))."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from imgfs.kernel.libc import AT_FDCWD, LIBC, last_error
from imgfs.kernel.proc import boot_id

_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE, _MASK_AT, _MNT_ID_AT = 256, 0, 144


def sync_filesystem(path: Path) -> None:
    """Sync the filesystem of `path` to disk. Blocks. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.syncfs(descriptor):
            raise last_error(str(path))
    finally:
        os.close(descriptor)


def mount_number(path: str | Path) -> int | None:
    """Return the unique number of the topmost mount at `path`; None before Linux 6.8, or if the path is missing."""
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if LIBC.statx(AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, found):
        return None
    if not int.from_bytes(found.raw[_MASK_AT : _MASK_AT + 4], sys.byteorder) & _STATX_MNT_ID_UNIQUE:
        return None
    return int.from_bytes(found.raw[_MNT_ID_AT : _MNT_ID_AT + 8], sys.byteorder)


def era(path: Path) -> str | None:
    """Return a text that changes with every boot and every mount of the filesystem of `path`; None before Linux 6.8.

    A crash of the machine starts a new era, a crash of a process does not.
    """
    number = mount_number(path)
    return None if number is None else f"{boot_id()} {number}"
