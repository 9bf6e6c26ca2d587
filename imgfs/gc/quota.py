"""How much callers may still write into content/ingest under a quota: a write beyond it is refused before it begins.

The quota does not refuse what imgfs fetches: a read must not fail because its image is larger than the space that is
left. SpaceKeeper frees space after such a fetch (space.py).
"""

from __future__ import annotations

import math
from contextlib import suppress

import trio

from imgfs.errors import ImgfsError, NoSpace
from imgfs.gc.space import SpaceKeeper, SpaceLimits

CHUNK = 64 << 20
"""Bytes to write until the disk is measured again. Pulls beside the writer can make the count wrong by as much."""
PATIENCE = 5.0
"""Seconds until space is freed again after a run that freed too little: for a caller that retries a refused write."""


class WriteQuota:
    """Counts down the bytes that callers may write; without a quota this costs nothing."""

    def __init__(self, space: SpaceKeeper, limits: SpaceLimits) -> None:
        self._space = space
        self._quota = limits.quota
        self._left = 0 if limits.quota else math.inf
        self._measuring = trio.Lock()
        self._failed = -math.inf
        """When a run last freed too little (trio's clock)."""

    async def take(self, size: int) -> None:
        """Count `size` bytes that are about to be written. Raises NoSpace if the quota has no space for them."""
        if size > self._left:
            async with self._measuring:
                if size > self._left:
                    self._left = min(await self._measure(size), max(CHUNK, size))
        self._left -= size

    async def check(self, size: int) -> None:
        """Raise NoSpace unless `size` bytes could be written now: for a declared total whose bytes come later."""
        if self._quota:
            async with self._measuring:
                await self._measure(size)

    async def _measure(self, size: int) -> int:
        """The bytes that are left, at least `size`; frees space for them if necessary. Raises NoSpace."""
        left = self._quota - await self._space.used()
        if left < size <= self._quota and trio.current_time() > self._failed + PATIENCE:
            with suppress(ImgfsError):  # the second measurement shows the result
                await self._space.free(size - left)
            left = self._quota - await self._space.used()
            self._failed = trio.current_time() if left < size else self._failed
        if left < size:
            raise NoSpace(
                f"content: {size} bytes are to come and {max(left, 0)} are left of quota_bytes, {self._quota}; remove "
                "something, or raise the quota"
            )
        return left
