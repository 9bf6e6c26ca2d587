"""Content digests (image-spec, descriptor.md, "Digests"): parsed before they become a path, a URL or a key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from imgfs.errors import Invalid

HEX_LENGTH = {"sha256": 64, "sha512": 128}
_PATTERN = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")


class Hash(Protocol):
    """A running hash, as hashlib makes them."""

    @property
    def name(self) -> str: ...
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class Digest(str):
    """`algorithm:hex` of a known algorithm, exact length, lower case. Build it with `parse` or `of`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Check `text` and return it as a digest; raises Invalid."""
        if not _PATTERN.match(text):
            raise Invalid(f"digest {text[:140]!r}: expected sha256: or sha512: and lower-case hex of full length")
        return cls(text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @classmethod
    def from_hash(cls, running: Hash) -> Digest:
        """The digest of everything `running` was fed so far."""
        return cls(f"{running.name}:{running.hexdigest()}")

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """Twelve hex digits, for people."""
        return self.hex[:12]

    def new_hash(self) -> Hash:
        """An empty running hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)


def is_digest(text: str) -> bool:
    """Whether `text` is a well-formed digest."""
    return _PATTERN.match(text) is not None


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
