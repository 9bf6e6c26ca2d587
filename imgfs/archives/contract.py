"""The interfaces that archives use: the bytes of a file, a store of blobs, access to blobs, and progress callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest

Moved = Callable[[int], object]
"""Called with the size of each piece in bytes."""
SoFar = Callable[[int], object]
"""Called with the number of bytes processed so far."""


class Payload(Protocol):
    """The bytes of one file of an archive, read once from front to back."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; empty only at the end. Raises Truncated, Malformed."""
        ...

    def rewind(self) -> bool:
        """Go back to the first byte. Return False if that is not possible (a pipe, a compressed tar)."""
        ...


class ArchiveStore(Protocol):
    """The store that blobs go to. All of its content is verified and survives a power cut."""

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of a stored blob in bytes; None if it is not stored."""
        ...

    def put(self, digest: Digest, data: Payload) -> None:
        """Store a blob of known digest. Reads nothing if it is stored already. Raises VerificationFailed."""
        ...

    def take(self, name: str, data: Payload) -> Digest:
        """Store a file and return the digest of its bytes. An interrupted call can be resumed under the same `name`."""
        ...

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of a stored blob; fewer only at its end."""
        ...


class ArchiveBlobs(Protocol):
    """Access to the blobs that documents mention, for a walk over the documents."""

    def ensure(self, descriptor: Descriptor) -> None:
        """Make sure that the blob is available. Raises NotFound, and VerificationFailed if its size differs."""
        ...

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return all bytes of a small blob. Raises NotFound, VerificationFailed, and TooLarge over `limit` bytes."""
        ...
