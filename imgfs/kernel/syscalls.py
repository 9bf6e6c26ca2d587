"""System call numbers by name, from libseccomp for this architecture."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

_LIBRARY = "libseccomp.so.2"


def numbers_of(names: Iterable[str], library: str = _LIBRARY) -> dict[str, int]:
    """Return the number of each name. A name that this architecture lacks has a negative number.

    Returns an empty dict if libseccomp is not installed.
    """
    try:
        resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name
    except (OSError, AttributeError):
        return {}
    resolve.argtypes, resolve.restype = [ctypes.c_char_p], ctypes.c_int
    return {name: resolve(name.encode()) for name in names}
