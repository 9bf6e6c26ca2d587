"""A histogram of durations. Each observation costs one binary search in the bucket bounds."""

from __future__ import annotations

from bisect import bisect_left

SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Bucket bounds in seconds: from a reply out of memory up to a registry request that times out."""


class Histogram:
    """Counts of observed durations in seconds. Not thread-safe."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        """Create an empty histogram; `bounds` must be in ascending order."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations per bucket: above the previous bound, up to and including this bound. The last has no bound."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def copy(self) -> Histogram:
        """Return a copy that later observations do not change."""
        made = Histogram(self.bounds)
        made.counts, made.sum = self.counts.copy(), self.sum
        return made
