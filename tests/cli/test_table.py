"""Facts as text."""

from __future__ import annotations

import pytest

from imgfs.cli.table import human_seconds, human_size, render_table, short_digest, utc_time


def test_columns_are_aligned_and_lines_end_without_spaces() -> None:
    text = render_table(("NAME", "N", "NOTE"), [("a", "100", ""), ("longer", "7", "x")], right={1})
    assert text.splitlines() == ["NAME      N  NOTE", "a       100", "longer    7  x"]


def test_a_cell_cannot_break_its_line() -> None:
    assert render_table(("A",), [("x\n\x1b[31my",)]) == "A\nx \ufffd[31my"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (57_249_000, "57.2 MB")],
)
def test_sizes_are_decimal_and_never_reach_1000(count: int, text: str) -> None:
    assert human_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (3599.6, "1h00m"),
        (7530, "2h05m"),
        (360_000, "100h00m"),
    ],
)
def test_times_left_are_as_rough_as_an_estimate(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_digest_is_shortened_to_twelve_digits() -> None:
    assert short_digest("sha256:" + "0123456789abcdef" * 4) == "sha256:0123456789ab"


def test_time_is_utc_for_programs() -> None:
    assert utc_time(1_700_000_000_999_999_999) == "2023-11-14T22:13:20Z"
