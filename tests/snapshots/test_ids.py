"""Valid keys and names of snapshots."""

from __future__ import annotations

import os

import pytest

from imgfs.errors import Invalid
from imgfs.oci.digest import Digest
from imgfs.snapshots.ids import active_id, check_key, check_name

GOOD = ["a", "web-1", "nginx:1.27", "extract 1 sha256:abc", "-f", ".hidden", "ü", "n" * 255, "a:b", "md5:12", "a@b"]
BAD = ["", ".", "..", "a/b", "/", "a\0", "a\n", "\x7f", "\x85", "n" * 256, "ü" * 128, "\udfff\ud800"]
DIGESTS = [
    Digest.of(b"x"),
    f"{Digest.of(b'x')}@linux-amd64",
    Digest.of(b"x", "sha512"),
    "sha256:short",
    "blake3:" + "0" * 64,
    "multihash+base58:" + "a" * 40,
]


@pytest.mark.parametrize("text", [*GOOD, os.fsdecode(b"\xff raw")])
def test_a_file_name_is_a_valid_key_and_name(text: str) -> None:
    check_key(text)
    check_name(text)


@pytest.mark.parametrize("text", BAD)
def test_names_that_are_not_file_names_are_refused(text: str) -> None:
    for check in (check_key, check_name):
        with pytest.raises(Invalid):
            check(text)


@pytest.mark.parametrize("text", [*DIGESTS, "active"])
def test_digests_and_active_are_valid_keys_but_not_names(text: str) -> None:
    with pytest.raises(Invalid):
        check_name(text)
    check_key(text)


def test_an_active_snapshots_id_is_its_path() -> None:
    assert active_id("k") == "active/k"
