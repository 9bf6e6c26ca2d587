"""A strict parser of Prometheus's text format 0.0.4, independent of imgfs's writer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ENDS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
_ESCAPES = {"\\": "\\", "n": "\n", '"': '"'}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metric:
    """One metric, with its `samples` by suffix and sorted labels."""

    name: str
    help: str
    kind: str = ""
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict[tuple[str, Labels], float])

    def value(self, suffix: str = "", **labels: str) -> float:
        """Return one sample. Raises KeyError if it does not exist."""
        return self.samples[suffix, tuple(sorted(labels.items()))]


def parse(text: str) -> dict[str, Metric]:
    """Return all metrics by name. Raises ValueError for everything that a parser of the format may refuse."""
    metrics: dict[str, Metric] = {}
    if text and not text.endswith("\n"):
        raise ValueError("the last line has no end")
    current: Metric | None = None
    for line in text.split("\n")[:-1]:
        word = line.split(" ", 3)
        if line.startswith("# HELP "):
            current = Metric(_whole(_NAME, word[2]), _unescaped(word[3] if len(word) > 3 else "", '"'))
            if current.name in metrics:
                raise ValueError(f"{current.name}: a second HELP")
            metrics[current.name] = current
        elif line.startswith("# TYPE "):
            if current is None or current.name != word[2] or current.kind or current.samples:
                raise ValueError(f"{line!r}: TYPE is not between HELP and samples")
            if word[3] not in _ENDS:
                raise ValueError(f"{line!r}: unknown type")
            current.kind = word[3]
        else:
            _add(current, line)
    for metric in metrics.values():
        _check(metric)
    return metrics


def _whole(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text!r}: is no name")
    return text


def _unescaped(text: str, never: str = "") -> str:
    """Undo the escapes. Those in `never` are not escapes here."""
    made, rest = "", iter(text)
    for letter in rest:
        if letter == "\\":
            escaped = next(rest, "")
            if escaped not in _ESCAPES or escaped in never:
                raise ValueError(f"{text!r}: unknown escape")
            made += _ESCAPES[escaped]
        else:
            made += letter
    return made


def _add(metric: Metric | None, line: str) -> None:
    found = _NAME.match(line)
    if metric is None or not metric.kind or found is None:
        raise ValueError(f"{line!r}: is not behind HELP and TYPE")
    suffix = found[0].removeprefix(metric.name)
    if not found[0].startswith(metric.name) or suffix not in _ENDS[metric.kind]:
        raise ValueError(f"{line!r}: is no sample of {metric.name}")
    labels, rest = _labels(line[found.end() :])
    key = suffix, tuple(sorted(labels.items()))
    if key in metric.samples or not rest.startswith(" "):
        raise ValueError(f"{line!r}: is there twice, or has no value")
    metric.samples[key] = _number(rest[1:])


def _number(text: str) -> float:
    if text in ("+Inf", "-Inf", "NaN"):
        return float(text)
    if not re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text):
        raise ValueError(f"{text!r}: is no number")
    return float(text)


def _labels(text: str) -> tuple[dict[str, str], str]:
    if not text.startswith("{"):
        return {}, text
    found: dict[str, str] = {}
    text = text[1:]
    while not text.startswith("}"):
        name, quoted, text = text.partition('="')
        value = re.match(r'((?:[^"\\]|\\.)*)"', text)
        if not quoted or value is None or _whole(_LABEL, name) in found:
            raise ValueError(f"{text!r}: is no label")
        found[name] = _unescaped(value[1])
        text = text[value.end() :]
        if text.startswith(","):
            text = text[1:]
        elif not text.startswith("}"):
            raise ValueError(f"{text!r}: neither another label nor their end")
    return found, text[1:]


def _check(metric: Metric) -> None:
    if not metric.kind:
        raise ValueError(f"{metric.name}: has no TYPE")
    if metric.kind == "counter" and not all(value >= 0 for value in metric.samples.values()):
        raise ValueError(f"{metric.name}: a counter below 0")
    if metric.kind == "histogram":
        _check_histogram(metric)


def _check_histogram(metric: Metric) -> None:
    series: dict[Labels, list[tuple[float, float]]] = {}
    for (suffix, labels), value in metric.samples.items():
        if suffix == "_bucket":
            bound = dict(labels)["le"]
            rest = tuple(label for label in labels if label[0] != "le")
            series.setdefault(rest, []).append((_number(bound), value))
    if set(series) != {labels for suffix, labels in metric.samples if suffix == "_count"}:
        raise ValueError(f"{metric.name}: buckets and counts are not of the same things")
    for labels, buckets in series.items():
        bounds, counts = [bound for bound, _ in buckets], [count for _, count in buckets]
        whole = bounds[-1] == math.inf and counts[-1] == metric.samples["_count", labels]
        if (
            bounds != sorted(set(bounds))
            or counts != sorted(counts)
            or not whole
            or ("_sum", labels) not in metric.samples
        ):
            raise ValueError(f"{metric.name}: {labels}: buckets do not add up")
