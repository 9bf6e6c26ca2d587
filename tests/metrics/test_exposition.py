"""Metrics in Prometheus's text format parse back to the same values, with any text in the labels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.metrics.exposition import render
from imgfs.metrics.family import Family, counter, gauge, histogram
from imgfs.metrics.histogram import SECONDS, Histogram
from tests.support.exposition import Metric, parse

TEXTS = st.text('\\"\n\r\t\0{}=,# abn\u00e9\u2028\U0001f4be', max_size=20)
NUMBERS = st.one_of(
    st.integers(0, 1 << 70), st.floats(0, allow_nan=False), st.sampled_from([0.1, 1e-9, 1e22, math.inf, 1 << 53])
)
NAMES = st.builds(str.__add__, st.sampled_from("aZ_:"), st.text("bY9_:", max_size=6))
LABELS = st.lists(
    st.builds(str.__add__, st.sampled_from("aZ"), st.text("bY9_", max_size=6)),
    max_size=3,
    unique=True,
)


def observed(seconds: list[float]) -> Histogram:
    made = Histogram()
    for one in seconds:
        made.observe(one)
    return made


OBSERVED = st.lists(st.one_of(st.floats(0, 1e6), st.sampled_from(SECONDS)), max_size=30)


@st.composite
def families(draw: st.DrawFn) -> Family:
    name, help, labels = draw(NAMES), draw(TEXTS), tuple(draw(LABELS))
    keys = st.tuples(*[TEXTS] * len(labels))
    kind = draw(st.sampled_from(["counter", "gauge", "histogram"]))
    if kind == "histogram":
        seconds = draw(st.dictionaries(keys, OBSERVED, max_size=4))
        return histogram(name, help, labels, {key: observed(one) for key, one in seconds.items()})
    values = draw(st.dictionaries(keys, NUMBERS, max_size=6))
    return (counter if kind == "counter" else gauge)(name, help, labels, values)


@given(st.lists(families(), max_size=6, unique_by=lambda one: one.name))
def test_any_family_parses_back_to_the_same_values(made: list[Family]) -> None:
    found = parse(render(made))
    assert list(found) == [one.name for one in made]
    for family in made:
        metric = found[family.name]
        assert (metric.kind, metric.help) == (family.kind, family.help)
        expected = {(one.suffix, tuple(sorted(one.labels))): float(one.value) for one in family.samples}
        assert metric.samples == pytest.approx(expected, rel=0, abs=0)


@given(OBSERVED)
def test_an_observation_equal_to_a_bound_counts_in_that_bucket(seconds: list[float]) -> None:
    found = parse(render([histogram("h", "", ("a",), {("x",): observed(seconds)})]))["h"]
    for bound in SECONDS:
        le = str(int(bound)) if bound >= 1 else repr(bound)
        assert found.value("_bucket", a="x", le=le) == sum(one <= bound for one in seconds)
    assert found.value("_count", a="x") == len(seconds)
    assert found.value("_sum", a="x") == pytest.approx(math.fsum(seconds))


def test_the_text_matches_the_exposition_format() -> None:
    label = 'quote " slash \\ line\n'
    text = render([counter("x_total", "two\nlines \\", ("host",), {(label,): 3}), gauge("y", "", (), {(): 0.5})])
    assert text == (
        '# HELP x_total two\\nlines \\\\\n# TYPE x_total counter\nx_total{host="quote \\" slash \\\\ line\\n"} 3\n'
        "# HELP y \n# TYPE y gauge\ny 0.5\n"
    )


@pytest.mark.parametrize(("name", "label"), [("a b", "x"), ("1a", "x"), ("a", "x-y"), ("a", "__x"), ("a\n", "x")])
def test_an_invalid_metric_or_label_name_is_refused(name: str, label: str) -> None:
    with pytest.raises(ValueError, match="no names of the text format"):
        gauge(name, "", (label,), {("v",): 1})


@pytest.mark.parametrize(
    "text",
    [
        "x 1\n",
        "# HELP x h\nx 1\n",
        "# HELP x h\n# TYPE x gauge\nx 1",
        "# HELP x h\n# TYPE x gauge\ny 1\n",
        "# HELP x h\n# TYPE x gauge\nx 1\nx 2\n",
        '# HELP x h\n# TYPE x gauge\nx{a="\\q"} 1\n',
        '# HELP x h\n# TYPE x gauge\nx{a="1" b="2"} 1\n',
        "# HELP x h\n# TYPE x counter\nx -1\n",
        '# HELP x h\n# TYPE x histogram\nx_bucket{le="1"} 2\nx_bucket{le="+Inf"} 1\nx_sum 1\nx_count 1\n',
        '# HELP x h\n# TYPE x histogram\nx_bucket{le="1"} 1\nx_sum 1\nx_count 1\n',
    ],
)
def test_the_parser_of_this_test_is_strict(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_observations_do_not_change_an_earlier_copy_of_a_histogram() -> None:
    made = observed([0.5])
    copy = made.copy()
    made.observe(0.5)
    assert (sum(copy.counts), copy.sum) == (1, 0.5)


def test_metrics_are_equal_by_value() -> None:
    assert parse("# HELP x h\n# TYPE x gauge\nx 1\n") == {"x": Metric("x", "h", "gauge", {("", ()): 1.0})}
