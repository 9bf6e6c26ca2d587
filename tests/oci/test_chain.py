"""Chain IDs, by the image specification's definition and its worked example."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from imgfs.oci.digest import EMPTY, Digest, chain_id, chain_ids

DIGESTS = st.lists(st.binary(min_size=1, max_size=4).map(Digest.of), max_size=8)
"""The chain ID for no layers. It differs from that of an empty tar, although both are an empty root filesystem."""


def specified(diff_ids: list[Digest]) -> str:
    """ChainID(L0|...|Ln) = Digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln)), as the specification defines it."""
    if len(diff_ids) == 1:
        return diff_ids[0]
    return "sha256:" + hashlib.sha256(f"{specified(diff_ids[:-1])} {diff_ids[-1]}".encode()).hexdigest()


def test_the_vectors_of_identity_chain_id() -> None:
    # opencontainers/image-spec, identity/chainid_test.go: the digests of "a", "b" and "c".
    a, b, c = (Digest.of(letter) for letter in (b"a", b"b", b"c"))
    assert chain_ids([a, b, c]) == [a, Digest.of(f"{a} {b}".encode()), Digest.of(f"{chain_id([a, b])} {c}".encode())]


def test_a_base_layer_is_its_own_chain_and_no_layer_has_the_empty_one() -> None:
    base = Digest.of(b"base")
    assert chain_id([base]) == base
    assert chain_ids([]) == []
    assert chain_id([]) == EMPTY == Digest.of(b"")


@given(DIGESTS.filter(bool))
def test_every_prefix_has_the_chain_id_of_the_definition(diff_ids: list[Digest]) -> None:
    assert chain_ids(diff_ids) == [specified(diff_ids[: n + 1]) for n in range(len(diff_ids))]


@given(DIGESTS, DIGESTS)
def test_different_stacks_have_different_chain_ids(one: list[Digest], other: list[Digest]) -> None:
    assert (chain_id(one) == chain_id(other)) == (one == other)
