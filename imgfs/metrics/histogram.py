"""How long things took: counts by bounds, at the price of a bisection for each."""

from __future__ import annotations

from bisect import bisect_left

SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Bounds for everything from an answer out of memory to a registry that is given up."""


class Histogram:
    """Counts of observed seconds. In one thread."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        """`bounds` ascend."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many lay at or below each bound and above the one before; the last is of those above all."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def copy(self) -> Histogram:
        """A copy that stays as it is."""
        made = Histogram(self.bounds)
        made.counts, made.sum = self.counts.copy(), self.sum
        return made
