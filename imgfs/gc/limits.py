"""How much the state directory may take, and how much of the disk is to stay free."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SLACK = 20
"""A limit that is passed is made room for by its twentieth more, so that the next byte does not pass it again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`quota` bytes of blobs and layers at most, `free` bytes and `free_percent` of the disk at least; 0: no limit."""

    quota: int = 0
    free: int = 0
    free_percent: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.quota or self.free or self.free_percent)

    def need(self, used: int, available: int, size: int) -> int:
        """How many bytes must go, when `used` are taken here and `available` of the disk's `size` are free."""
        lowest = self.lowest(size)
        over = used - self.quota if self.quota else 0
        short = lowest - available
        return max(over + self.quota // _SLACK if over > 0 else 0, short + lowest // _SLACK if short > 0 else 0)

    def lowest(self, size: int) -> int:
        """How many bytes of a disk of `size` are to be kept free."""
        return max(self.free, math.ceil(size * self.free_percent / 100))
