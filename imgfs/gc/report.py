"""What a run of garbage collection found and did, the same for a dry run."""

from __future__ import annotations

from typing import Literal

import msgspec

from imgfs.encoding import indented_json

Mode = Literal["collect", "evict"]
Sort = Literal["snapshot", "metadata", "layer", "blob", "ingest", "catalogue", "container"]
"""A chain's row; its metadata image; an uncompressed tar; a blob; a part of one; what is known of a digest; how a
deleted container ended."""


class Item(msgspec.Struct, frozen=True):
    """One thing: what it is, its chain ID, diff ID, digest, ref or ID, its bytes on disk, and why it is in the list."""

    kind: Sort
    id: str
    bytes: int
    why: str


class Report(msgspec.Struct, kw_only=True):
    """`kept` is what nothing refers to and stays all the same; `failed` what could not be removed this time.

    `refused` is a sentence where nothing was judged at all, else empty.
    """

    mode: Mode
    dry_run: bool = False
    refused: str = ""
    removed: list[Item] = []
    kept: list[Item] = []
    failed: list[Item] = []

    @property
    def bytes(self) -> int:
        """Disk that the removed things took. A reader who has one open still, keeps its disk until he closes it."""
        return sum(item.bytes for item in self.removed)

    def encode(self) -> bytes:
        """As JSON, with an end of line."""
        return indented_json(msgspec.structs.asdict(self) | {"bytes": self.bytes})
