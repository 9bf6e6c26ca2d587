"""Open paths with a directory as the root (openat2(2)), safe against symbolic links, `..` and concurrent renames."""

from __future__ import annotations

import ctypes
import errno
import os

from imgfs.kernel.libc import LIBC, last_error

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_TRIES = 32
"""Attempts. The kernel returns EAGAIN when a rename races with the resolution of `..`."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open `path` with the directory `root` (a descriptor) as its `/`.

    Symbolic links are followed and cannot leave the root.

    Returns a close-on-exec descriptor that the caller owns. Blocks as open(2) does. Raises OSError.
    """
    how = _How(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), os.fsdecode(path))
    for _ in range(_TRIES):
        found = LIBC.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_long(root), path, ctypes.byref(how), ctypes.c_long(ctypes.sizeof(how))
        )
        if found >= 0:
            return found
        error = last_error(os.fsdecode(path))
        if error.errno not in (errno.EAGAIN, errno.EINTR):
            break
    raise error
