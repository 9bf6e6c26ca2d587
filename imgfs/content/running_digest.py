"""The digest of bytes that are still arriving, as an immutable value.

hashlib cannot save its state, so after a restart the bytes on disk are hashed again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Protocol

from imgfs.oci.digest import Digest

PIECE = 4 << 20
"""Bytes hashed in one call. Large enough for disk speed, small enough for prompt cancellation."""


class _Hash(Protocol):
    @property
    def name(self) -> str: ...
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> _Hash: ...


@dataclass(frozen=True, slots=True)
class RunningDigest:
    """The hash of the first `position` bytes.

    It is never changed, only replaced, so a reader in another thread never sees a half-hashed piece.
    """

    position: int
    _hash: _Hash

    @classmethod
    def start(cls, algorithm: str) -> RunningDigest:
        """Return the digest of zero bytes."""
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
        """Return the digest with `piece` appended. Call it in a thread."""
        longer = self._hash.copy()
        longer.update(piece)
        return RunningDigest(self.position + len(piece), longer)

    def read_on(self, file: int, end: int) -> RunningDigest:
        """Return the digest with the next piece of an open file appended, up to offset `end`. Call it in a thread.

        Raises OSError, also if the file is shorter than `end`.
        """
        piece = os.pread(file, min(PIECE, end - self.position), self.position)
        if not piece:
            raise OSError(5, f"the file ends at byte {self.position}, expected {end}")
        return self.after(piece)
