"""Content digests (image-spec, descriptor.md, "Digests") and chain IDs (config.md, "Layer ChainID").

A digest is parsed before it becomes a path, a URL or a key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from imgfs.errors import Invalid

HEX_LENGTH = {"sha256": 64, "sha512": 128}
_PATTERN = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")


class Hash(Protocol):
    """A running hash, as hashlib provides it."""

    @property
    def name(self) -> str: ...
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class Digest(str):
    """`algorithm:hex` with a known algorithm, exact length, lower case. Create it with `parse`, `of` or `from_hash`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Check `text` and return it as a digest. Raises Invalid."""
        if not _PATTERN.match(text):
            raise Invalid(f"digest {text[:140]!r}: expected sha256: or sha512: and lower-case hex of full length")
        return cls(text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of `data`."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @classmethod
    def from_hash(cls, running: Hash) -> Digest:
        """Return the digest of all bytes that `running` has hashed so far."""
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
        """The first twelve hex digits, for output."""
        return self.hex[:12]

    def new_hash(self) -> Hash:
        """Return an empty running hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)


def is_digest(text: str) -> bool:
    """Whether `text` is a well-formed digest."""
    return _PATTERN.match(text) is not None


EMPTY = Digest.of(b"")
"""The chain ID that imgfs uses for an image without layers: the digest of zero bytes."""


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Return the chain ID of each prefix of `diff_ids`, base first."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """Return the chain ID of all of `diff_ids`."""
    return chain_ids(diff_ids)[-1] if diff_ids else EMPTY
