"""Reading files from the event loop without waiting for a disk.

What the page cache has comes at once (preadv2(2) with RWF_NOWAIT, 5 us and no thread); the rest goes through a thread.
"""

from __future__ import annotations

import os

from imgfs.aio.threads import run_disk
from imgfs.errors import StorageFailed, from_os

AHEAD = 512 << 10
"""Bytes that come into the page cache together when the disk has to be asked."""


def read_cached(file: int, size: int, offset: int) -> bytearray | None:
    """`size` bytes if all of them are in the page cache, else None."""
    buffer = bytearray(size)
    try:
        got = os.preadv(file, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        # Not cached, or a filesystem that cannot tell: the thread finds out, and names a real error.
        return None
    return buffer if got == size else None


async def read_at(file: int, size: int, offset: int, subject: str) -> bytes | bytearray:
    """Exactly `size` bytes from `offset`. Raises StorageFailed, naming `subject`, where the file is shorter."""
    cached = read_cached(file, size, offset)
    return cached if cached is not None else await run_disk(read_exactly, file, size, offset, subject)


def read_exactly(file: int, size: int, offset: int, subject: str) -> bytes:
    """As `read_at`, blocking."""
    try:
        # Whoever reads one small file of a tar reads its neighbours next: they come with it.
        os.posix_fadvise(file, offset, max(size, AHEAD), os.POSIX_FADV_WILLNEED)
        content = os.pread(file, size, offset)
        while len(content) < size:
            more = os.pread(file, size - len(content), offset + len(content))
            if not more:
                raise StorageFailed(f"{subject}: is cut short on disk; remove it and read again")
            content += more
    except OSError as error:
        raise from_os(error, subject) from None
    return content
