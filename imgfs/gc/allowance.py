"""How much users may still write into content/ingest under a quota: more is refused before it is taken.

What imgfs gets by itself is not: a read must not fail because its image is larger than what is left. That is made room
for behind it (room.py).
"""

from __future__ import annotations

import math
from contextlib import suppress

import trio

from imgfs.errors import ImgfsError, NoSpace
from imgfs.gc.limits import Limits
from imgfs.gc.room import Room

CHUNK = 64 << 20
"""Bytes that may be written until the disk is looked at again: by as much may pulls meanwhile make the sum wrong."""
PATIENCE = 5.0
"""Seconds until room is made again where that was in vain: for who writes on and on, refused."""


class Allowance:
    """Counts down what may come; without a quota that costs nothing."""

    def __init__(self, room: Room, limits: Limits) -> None:
        self._room = room
        self._quota = limits.quota
        self._left = 0 if limits.quota else math.inf
        self._turn = trio.Lock()
        self._vain = -math.inf

    async def take(self, size: int) -> None:
        """Count `size` bytes that come now. Raises NoSpace where the quota is used up and no room can be made."""
        if size > self._left:
            async with self._turn:
                if size > self._left:
                    self._left = min(await self._stock(size), max(CHUNK, size))
        self._left -= size

    async def check(self, size: int) -> None:
        """Raise NoSpace unless `size` bytes could come now: for what is declared, and not here yet."""
        if self._quota:
            async with self._turn:
                await self._stock(size)

    async def _stock(self, size: int) -> int:
        """How many bytes are left, which are `size` at least; room is made for them if need be."""
        left = self._quota - await self._room.used()
        if left < size <= self._quota and trio.current_time() > self._vain + PATIENCE:
            with suppress(ImgfsError):  # the sum tells
                await self._room.free(size - left)
            left = self._quota - await self._room.used()
            self._vain = trio.current_time() if left < size else self._vain
        if left < size:
            raise NoSpace(
                f"content: {size} bytes are to come and {max(left, 0)} are left of quota_bytes, {self._quota}; remove "
                "something, or raise the quota"
            )
        return left
