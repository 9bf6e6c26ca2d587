"""JSON arrays as they are read and written: the same as at once, and never as a whole."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.cli import array as room
from imgfs.cli.array import array_text, read_array

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


class Pieces(io.StringIO):
    """Gives no more than `piece` characters at a time, and tells how many it gave."""

    def __init__(self, text: str, piece: int) -> None:
        super().__init__(text)
        self._piece = piece

    def read(self, size: int | None = -1, /) -> str:
        return super().read(min(size or -1, self._piece) if size and size > 0 else self._piece)


@given(st.lists(VALUES, max_size=4), st.integers(1, 9), st.sampled_from([None, 2]))
def test_what_is_read_in_any_pieces_is_what_is_there(values: list[object], piece: int, indent: int | None) -> None:
    assert list(read_array(Pieces(f" {json.dumps(values, indent=indent)}\n", piece))) == values


@given(st.lists(VALUES, max_size=4))
def test_what_is_written_in_pieces_is_what_json_writes(values: list[object]) -> None:
    assert "".join(array_text(values)) == json.dumps(values, indent=2)


@pytest.mark.parametrize(
    "text", ["", "{}", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1] 2", '["a', "[1]]", "null", "[nul]", "[{]"]
)
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        list(read_array(io.StringIO(text)))


def test_values_come_before_the_rest_is_read_and_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PIECE", 100)
    file = io.StringIO(json.dumps([{"number": number} for number in range(1000)]))
    for number, value in enumerate(read_array(file)):
        assert value == {"number": number}
        assert file.tell() <= (number + 12) * 20, "at most a piece ahead"
