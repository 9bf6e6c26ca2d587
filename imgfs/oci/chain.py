"""Chain IDs (image-spec, config.md, "Layer ChainID"): the name of a stack of applied layers."""

from __future__ import annotations

from collections.abc import Sequence

from imgfs.oci.digest import Digest

EMPTY = Digest.of(b"")
"""The chain ID that imgfs gives to an image without layers: the digest of nothing."""


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chain ID of each prefix of `diff_ids`, base first."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """The chain ID of the whole of `diff_ids`."""
    return chain_ids(diff_ids)[-1] if diff_ids else EMPTY
