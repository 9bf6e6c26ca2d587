"""Numbers of system calls by name, as libseccomp has them for this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

_LIBRARY = "libseccomp.so.2"


def numbers_of(names: Iterable[str], library: str = _LIBRARY) -> dict[str, int]:
    """The number of each name, below zero where this machine has none; nothing where libseccomp is not installed."""
    try:
        resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name
    except (OSError, AttributeError):
        return {}
    resolve.argtypes, resolve.restype = [ctypes.c_char_p], ctypes.c_int
    return {name: resolve(name.encode()) for name in names}
