"""Figures that a run of crashes measured. They are reported at its end and never asserted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


class Figures:
    """Counts by name, and durations, of which the median and the longest are reported."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}

    def clear(self) -> None:
        """Reset all figures."""
        self.counts.clear()
        self.seconds.clear()

    def took(self, what: str, seconds: float) -> None:
        """Record a duration."""
        self.seconds.setdefault(what, []).append(seconds)

    def lines(self) -> Iterator[str]:
        """Return the report for people, line by line."""
        yield from (f"{what}: {count}" for what, count in sorted(self.counts.items()))
        for what, times in self.seconds.items():
            middle = sorted(times)[len(times) // 2]
            yield f"{what}: median {middle:.2f} s, longest {max(times):.2f} s of {len(times)}"


FIGURES = Figures()
