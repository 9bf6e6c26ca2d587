"""A metric family: one metric with all its samples. `exposition` writes families as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from imgfs.metrics.histogram import Histogram

Kind = Literal["counter", "gauge", "histogram"]
Values = Mapping[tuple[str, ...], float]
"""Values by label values. The label values are in the order of the label names."""

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the text format: the metric's name with `suffix`, the labels, the value."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its samples.

    A counter only grows while the daemon runs; a gauge can rise and fall. Raises ValueError if a name is not valid in
    the text format.
    """

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        names = [name for sample in self.samples for name, _ in sample.labels]
        if not _METRIC.match(self.name) or not all(map(_LABEL.match, names)):
            raise ValueError(f"metric {self.name!r} with labels {sorted(set(names))}: no names of the text format")


def counter(name: str, help: str, labels: tuple[str, ...], values: Values) -> Family:
    """Return a family of values that only grow; `name` ends in `_total`."""
    return Family(name, "counter", help, _samples(labels, values))


def gauge(name: str, help: str, labels: tuple[str, ...], values: Values) -> Family:
    """Return a family of current values, which can rise and fall."""
    return Family(name, "gauge", help, _samples(labels, values))


def histogram(name: str, help: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Histogram]) -> Family:
    """Return a family of durations; `name` ends in `_seconds`."""
    lines = (
        line for said, one in sorted(values.items()) for line in _buckets(tuple(zip(labels, said, strict=True)), one)
    )
    return Family(name, "histogram", help, tuple(lines))


def _samples(labels: tuple[str, ...], values: Values) -> tuple[Sample, ...]:
    return tuple(Sample("", tuple(zip(labels, said, strict=True)), value) for said, value in sorted(values.items()))


def _buckets(labels: tuple[tuple[str, str], ...], one: Histogram) -> Iterator[Sample]:
    """Yield the samples of a histogram. Each bucket includes the counts of all lower buckets."""
    counted = list(accumulate(one.counts))
    for bound, count in zip((*one.bounds, math.inf), counted, strict=True):
        yield Sample("_bucket", (*labels, ("le", number(bound))), count)
    yield Sample("_sum", labels, one.sum)
    yield Sample("_count", labels, counted[-1])


def number(value: float) -> str:
    """Return `value` as the text format writes it: whole numbers without a decimal point."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))
