"""The index of a layer: reads back as written, and damage of any kind is noticed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import StorageFailed
from imgfs.layers import index as room
from imgfs.layers.entry import Entry, Extent, Kind
from imgfs.layers.index import decode_index, encode_index

NUMBERS = st.integers(0, 2**32 - 2)
ENTRIES = st.builds(
    Entry,
    st.binary(max_size=20),
    st.sampled_from(Kind),
    st.integers(0, 0o7777),
    NUMBERS,
    NUMBERS,
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=20),
    NUMBERS,
    NUMBERS,
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=2).map(tuple),
    st.none() | st.lists(st.builds(Extent, NUMBERS, NUMBERS, NUMBERS), max_size=3).map(tuple),
)
SOME = [Entry(b"a", Kind.DIRECTORY, 0o755), Entry(b"a/b", Kind.REGULAR, 0o644, 1, 2, 3, 4, 512)]


@given(st.lists(ENTRIES, max_size=5))
def test_what_is_written_is_read_back(entries: list[Entry]) -> None:
    assert decode_index(encode_index(entries)) == entries


@given(st.data())
def test_no_cut_and_no_flipped_bit_passes(data: st.DataObject) -> None:
    good = bytearray(encode_index(SOME))
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytes([*good[:at], good[at] ^ (1 << data.draw(st.integers(0, 7))), *good[at + 1 :]])
    for damaged in (flipped, bytes(good[:at]), bytes(good) + b"\0"):
        with pytest.raises(StorageFailed, match="damaged or of another version"):
            decode_index(damaged)


@pytest.mark.parametrize("payload", [b"", b"\xc0", msgspec.msgpack.encode([1]), msgspec.msgpack.encode([[b"a", 99]])])
def test_a_sound_sum_over_something_else_does_not_pass_either(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    class Other:
        def encode(self, _: object) -> bytes:
            return payload

    monkeypatch.setattr(room, "_encoder", Other())
    with pytest.raises(StorageFailed, match="layer index"):
        decode_index(encode_index([]))
