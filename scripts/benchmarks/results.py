"""The measurements: rows of samples with their failures. Owns medians and the JSON form; judges nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Unit(StrEnum):
    SECONDS = "s"
    MICROSECONDS = "us"
    PER_SECOND = "/s"
    MEGABYTES_PER_SECOND = "MB/s"
    MEGABYTES = "MB"
    BYTES = "bytes"
    REQUESTS = "requests"
    FLUSHES = "flushes"

    @property
    def more_is_better(self) -> bool:
        return self in (Unit.PER_SECOND, Unit.MEGABYTES_PER_SECOND)


@dataclass
class Row:
    """One contestant in one case of one experiment."""

    experiment: str
    case: str
    contestant: str
    unit: Unit
    samples: list[float] = field(default_factory=list[float])
    failures: list[str] = field(default_factory=list[str])
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def best(self) -> float | None:
        """The minimum, or the maximum of a rate."""
        if not self.samples:
            return None
        return max(self.samples) if self.unit.more_is_better else min(self.samples)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median, "best": self.best}


class Results:
    """All rows, in the order in which they were first used."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Row] = {}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def row(self, experiment: str, case: str, contestant: str, unit: Unit) -> Row:
        """Return the row with this name. The first call makes it."""
        return self._rows.setdefault((experiment, case, contestant), Row(experiment, case, contestant, unit))

    def median(self, experiment: str, case: str, contestant: str) -> float | None:
        row = self._rows.get((experiment, case, contestant))
        return row.median if row else None

    def least(self, experiment: str, case: str, contestants: Iterable[str]) -> float | None:
        """Return the smallest median of several contestants, or None if none has a median."""
        medians = [self.median(experiment, case, name) for name in contestants]
        return min((median for median in medians if median is not None), default=None)

    def most(self, experiment: str, case: str, contestants: Iterable[str]) -> float | None:
        """Return the largest median of several contestants, or None if none has a median."""
        medians = [self.median(experiment, case, name) for name in contestants]
        return max((median for median in medians if median is not None), default=None)

    def cases(self, experiment: str) -> list[str]:
        return list(dict.fromkeys(row.case for row in self if row.experiment == experiment))
