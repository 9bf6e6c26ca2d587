"""openat2(2): opening a path as if a directory were the root, whatever links, `..` and races are on the way."""

from __future__ import annotations

import ctypes
import errno
import os

from imgfs.kernel.libc import LIBC, last_error

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_TRIES = 32
"""How often the kernel may say that a directory was moved while it went through `..`."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open `path` with the directory `root` (a descriptor) for its `/`; links are followed, none leads out of it.

    Returns a descriptor of the caller's, closed on exec. Blocks as open(2) does; raises OSError.
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
