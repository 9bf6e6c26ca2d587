"""Having the pages of a process at hand before they are used (madvise(2))."""

from __future__ import annotations

import ctypes
from pathlib import Path

from imgfs.kernel.libc import LIBC

_MAPS = Path("/proc/self/maps")
_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""Since Linux 5.14."""


def own_pages() -> None:
    """Have every page in this process's tables, and what it shares with its parent since fork(2) copied.

    Else that is done one by one, by a fault each, as the pages are read or written first. Blocks for some ms; what the
    kernel does not do is left as it is.
    """
    for line in _MAPS.read_bytes().split(b"\n")[:-1]:  # a library's path is any bytes
        span, flags, *_ = line.split()
        start, end = (int(one, 16) for one in span.split(b"-"))
        advice = _POPULATE_WRITE if flags.startswith(b"rw-p") else _POPULATE_READ
        LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
