"""Worker threads for what would hold the event loop: CPU work, the disk, and syncs, each behind its own limiter.

Limiters of their own, because a slow disk must not keep hashes waiting and the other way round, and syncs are the more
the cheaper: those that wait together share a flush of the disk. A thread cannot be cancelled:
callers wait for it, so what runs here is short (one piece, one fsync, one query).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CPU = trio.CapacityLimiter(2 * (os.cpu_count() or 1) + 2)
_DISK = trio.CapacityLimiter(16)
_SYNC = trio.CapacityLimiter(16)


async def run_cpu(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run `function` in a thread for CPU work (hash, inflate, parse). Cancellation waits for it to end."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=_CPU)


async def run_disk(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run `function` in a thread for blocking file work. Cancellation waits for it to end."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=_DISK)


async def run_sync(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run `function` in a thread for syncs of many files at once. Cancellation waits for it to end."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=_SYNC)
