"""The limits in SEMANTICS.md are those of the code."""

from __future__ import annotations

import importlib
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/reference/SEMANTICS.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `(imgfs\.[\w.]+)` \|$", PAGE.partition("## Limits")[2], re.MULTILINE)
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def number(text: str) -> int:
    """`4,096 bytes`, `64 KiB` or `2^53 bytes` as a number."""
    figure, _, unit = text.partition(" ")
    base, _, exponent = figure.replace(",", "").partition("^")
    return int(base) ** int(exponent or 1) * UNITS.get(unit, 1)


def constant(name: str) -> object:
    """The value of a constant of a module, or of a field of a dataclass whose fields have defaults."""
    above, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(above), last)
    except ModuleNotFoundError:
        owner = constant(above)
        assert isinstance(owner, type)
        assert is_dataclass(owner)
        return getattr(owner(), last)


def test_limits_are_listed() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize(("what", "limit", "name"), ROWS, ids=[name for _, _, name in ROWS])
def test_a_limit_is_the_constant(what: str, limit: str, name: str) -> None:
    assert number(limit) == constant(name), what
