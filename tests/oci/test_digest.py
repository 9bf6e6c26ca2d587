"""Digests: well-formed ones, and malformed text that could become a path or a URL."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Invalid
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX * 2}"])
def test_both_algorithms_are_known(text: str) -> None:
    digest = Digest.parse(text)
    assert digest == text
    assert (digest.algorithm, digest.hex, digest.short) == (text[:6], text[7:], "0123456789ab")


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        f"sha256:{HEX * 2}",
        f"sha512:{HEX}",
        f"md5:{HEX[:32]}",
        f"sha384:{HEX}{HEX[:32]}",
        f"sha256:../{HEX[3:]}",
        f"sha256:{HEX[:-1]}/",
        f"sha256:{HEX[:-1]}\0",
        f"sha256:{HEX[:-1]}٣",
        f"sha256+b64:{HEX}",
        "sha256:" + "a" * 100_000,
    ],
)
def test_anything_else_is_refused_in_a_short_message(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(Invalid) as caught:
        Digest.parse(text)
    assert len(caught.value.message) < 1000


@given(st.binary(max_size=200), st.sampled_from(sorted(HEX_LENGTH)))
def test_computed_digests_are_well_formed(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert Digest.parse(str(digest)) == digest == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    running = digest.new_hash()
    running.update(data[:7])
    running.update(memoryview(data)[7:])
    assert Digest.from_hash(running) == digest


@given(st.text())
def test_parse_and_is_digest_agree(text: str) -> None:
    try:
        Digest.parse(text)
    except Invalid:
        assert not is_digest(text)
    else:
        assert is_digest(text)
