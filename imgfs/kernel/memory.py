"""Populating the pages of a process before they are used (madvise(2))."""

from __future__ import annotations

import ctypes
from pathlib import Path

from imgfs.kernel.libc import LIBC

_MAPS = Path("/proc/self/maps")
_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""Since Linux 5.14."""


def own_pages() -> None:
    """Map every page of this process, and copy the writable pages that it shares with its parent since fork(2).

    Otherwise each page takes a fault at its first use. Blocks for some milliseconds. Pages that the kernel does not
    populate stay as they are.
    """
    for line in _MAPS.read_bytes().split(b"\n")[:-1]:  # the path of a library may be any bytes
        span, flags, *_ = line.split()
        start, end = (int(one, 16) for one in span.split(b"-"))
        advice = _POPULATE_WRITE if flags.startswith(b"rw-p") else _POPULATE_READ
        LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
