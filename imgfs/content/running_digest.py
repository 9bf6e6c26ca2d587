"""The digest of bytes that are still coming: a value that grows, and reading a file's prefix into it.

hashlib's state cannot be saved, so after a restart the prefix on disk is hashed again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Protocol

from imgfs.oci.digest import Digest

PIECE = 4 << 20
"""Bytes hashed in one go: long enough to be at disk speed, short enough to be interrupted."""


class _Hash(Protocol):
    @property
    def name(self) -> str: ...
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> _Hash: ...


@dataclass(frozen=True, slots=True)
class RunningDigest:
    """The hash of the first `position` bytes. Never changed, only replaced: so it is always of whole pieces."""

    position: int
    _hash: _Hash

    @classmethod
    def start(cls, algorithm: str) -> RunningDigest:
        """Of no bytes yet."""
        return cls(0, hashlib.new(algorithm))

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self._hash.name

    @property
    def digest(self) -> Digest:
        """The digest of the first `position` bytes."""
        return Digest(f"{self.algorithm}:{self._hash.hexdigest()}")

    def after(self, piece: bytes | bytearray | memoryview) -> RunningDigest:
        """With `piece` appended; for a thread."""
        longer = self._hash.copy()
        longer.update(piece)
        return RunningDigest(self.position + len(piece), longer)

    def read_on(self, file: int, end: int) -> RunningDigest:
        """With the next piece of an open file, up to `end`; for a thread. Raises OSError, also if the file is short."""
        piece = os.pread(file, min(PIECE, end - self.position), self.position)
        if not piece:
            raise OSError(5, f"the file ends at byte {self.position}, expected {end}")
        return self.after(piece)
