"""What a run of crashes measured: told at its end, never asserted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


class Figures:
    """Counts by name, and seconds from which the middle and the longest are told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}

    def clear(self) -> None:
        """Begin anew."""
        self.counts.clear()
        self.seconds.clear()

    def took(self, what: str, seconds: float) -> None:
        """Note a time."""
        self.seconds.setdefault(what, []).append(seconds)

    def lines(self) -> Iterator[str]:
        """All of it, for people."""
        yield from (f"{what}: {count}" for what, count in sorted(self.counts.items()))
        for what, times in self.seconds.items():
            middle = sorted(times)[len(times) // 2]
            yield f"{what}: median {middle:.2f} s, longest {max(times):.2f} s of {len(times)}"


FIGURES = Figures()
