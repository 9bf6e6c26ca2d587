"""Worker threads for work that would block the event loop (CPU work, disk work, syncs), and file reads that use them.

Each kind of work has its own limiter, so that a slow disk does not delay hashing or the other way round. Syncs have one
too, because concurrent syncs share a flush of the disk. A thread cannot be cancelled and its caller waits for it, so
each call must be short: one piece, one fsync, one query. A read that the page cache can answer needs no thread
(preadv2(2) with RWF_NOWAIT, 5 us).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from imgfs.errors import StorageFailed, from_os

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CPU = trio.CapacityLimiter(2 * (os.cpu_count() or 1) + 2)
_DISK = trio.CapacityLimiter(16)
_SYNC = trio.CapacityLimiter(16)


async def run_cpu(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run `function` in a thread for CPU work (hash, inflate, parse). Cancellation waits for its end."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=_CPU)


async def run_disk(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run `function` in a thread for blocking file work. Cancellation waits for its end."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=_DISK)


async def run_sync(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run `function` in a thread for syncs of many files at once. Cancellation waits for its end."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=_SYNC)


AHEAD = 512 << 10
"""Bytes that are read into the page cache together when the disk must be read."""


def read_cached(file: int, size: int, offset: int) -> bytearray | None:
    """Return `size` bytes if all of them are in the page cache, else None."""
    buffer = bytearray(size)
    try:
        got = os.preadv(file, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        # Not cached, or the filesystem does not support RWF_NOWAIT. The read in a thread reports a real error.
        return None
    return buffer if got == size else None


async def read_at(file: int, size: int, offset: int, subject: str) -> bytes | bytearray:
    """Return exactly `size` bytes from `offset`.

    Raises StorageFailed, which names `subject`, if the file is shorter.
    """
    cached = read_cached(file, size, offset)
    return cached if cached is not None else await run_disk(read_exactly, file, size, offset, subject)


def read_exactly(file: int, size: int, offset: int, subject: str) -> bytes:
    """As `read_at`, but blocks."""
    try:
        # A reader of one small file of a tar usually reads its neighbours next, so read ahead.
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
