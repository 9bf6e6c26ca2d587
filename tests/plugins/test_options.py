"""Facts as TOML files that every reader can parse, whatever values a plugin provides."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.plugins.options import render

PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), PLAIN | st.lists(PLAIN)))
def test_plain_facts_come_back_as_they_are(facts: dict[str, object]) -> None:
    assert tomllib.loads(render(facts)) == facts


@pytest.mark.parametrize(("value", "told"), [(None, "null"), ({"a": 1}, '{"a":1}'), ([None], "[null]"), (1j, "1j")])
def test_what_toml_cannot_say_is_a_text(value: object, told: str) -> None:
    assert tomllib.loads(render({"it": value})) == {"it": told}
