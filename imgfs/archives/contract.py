"""What archives need of the world: bytes that come, a store, a way to the blobs, and somebody to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest

Moved = Callable[[int], object]
"""Told of each piece how many bytes it had."""
SoFar = Callable[[int], object]
"""Told how many bytes went by so far."""


class Payload(Protocol):
    """The bytes of one file of an archive, once through."""

    @property
    def size(self) -> int:
        """How many there are, in bytes."""
        ...

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end only. Raises Truncated, Malformed."""
        ...

    def rewind(self) -> bool:
        """Begin again at the first byte; False where bytes that went by are gone (a pipe, a compressed tar)."""
        ...


class ArchiveStore(Protocol):
    """Where blobs go. What it holds is verified, and survives a power cut."""

    def size_of(self, digest: Digest) -> int | None:
        """The size of a stored blob in bytes; None if it is not stored."""
        ...

    def put(self, digest: Digest, data: Payload) -> None:
        """Store a blob whose digest is known; nothing is read if it is stored already. Raises VerificationFailed."""
        ...

    def take(self, name: str, data: Payload) -> Digest:
        """Store a file whose digest its bytes will tell. `name` is where an interrupted one is found again."""
        ...

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a stored blob, short only at its end."""
        ...


class ArchiveBlobs(Protocol):
    """How a walk over documents comes to the blobs that they mention."""

    def ensure(self, descriptor: Descriptor) -> None:
        """See to it that the blob can be had. Raises NotFound, VerificationFailed where its size is another."""
        ...

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """The whole of a small blob. Raises NotFound, VerificationFailed, TooLarge over `limit` bytes."""
        ...
