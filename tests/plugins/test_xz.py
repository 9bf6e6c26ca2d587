"""The example plugin: xz as another compression, tested against the contract of decompressors."""

from __future__ import annotations

import lzma
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgfs_xz_layers import Xz

from imgfs.errors import Malformed, TooLarge
from imgfs.layers.compression import PIECE_MAX
from tests.layers.tars import pieces

DATA = b"".join(b"line %d\n" % (number * number % 977) for number in range(3000))
PACKED = lzma.compress(DATA)


def unpack(data: bytes, cuts: Iterable[int] = (), memory_mib: int = 128) -> bytes:
    stream = Xz(memory_mib)
    out = [bytes(made) for piece in pieces(data, cuts) for made in stream.feed(piece)]
    assert all(len(made) <= PIECE_MAX for made in out)
    stream.close()
    return b"".join(out)


@given(st.lists(st.integers(0, len(PACKED)), max_size=8).map(sorted))
def test_cuts_anywhere_do_not_matter(cuts: list[int]) -> None:
    assert unpack(PACKED, cuts) == DATA


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 700))
def test_streams_and_padding_may_follow(parts: list[bytes], fours: int, step: int) -> None:
    packed = b"".join(lzma.compress(part) + bytes(4 * fours) for part in parts)
    assert unpack(packed, range(step, len(packed), step)) == b"".join(parts)


def test_a_bomb_comes_in_bounded_pieces() -> None:
    assert unpack(lzma.compress(bytes(5 * PIECE_MAX))) == bytes(5 * PIECE_MAX)


@pytest.mark.parametrize(
    "data", [b"", PACKED[:-1], PACKED[:100], PACKED + b"\0" * 3, PACKED + b"rest", b"x" * 100, b"\0" * 8]
)
def test_what_breaks_the_rules_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(data, range(1, len(data), 50))


def test_a_dictionary_over_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge, match="more than 1 MiB"):
        unpack(lzma.compress(DATA, preset=9), memory_mib=1)
