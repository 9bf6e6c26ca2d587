"""What is on its way in: one record for each running transfer, read by status files and metrics."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest


@dataclass(slots=True)
class Transfer:
    """A running download: `offset` of `total` bytes are here, since `started` (seconds since the epoch)."""

    digest: Digest
    total: int
    source: str
    offset: int = 0
    started: float = field(default_factory=time.time)

    def moved(self, count: int) -> None:
        """`count` more bytes came in."""
        self.offset += count


class Transfers:
    """All running transfers, and how many bytes ever came in."""

    def __init__(self) -> None:
        self._running: dict[Digest, Transfer] = {}
        self.bytes_fetched = 0
        self.completed = 0

    def __iter__(self) -> Iterator[Transfer]:
        return iter(list(self._running.values()))

    def get(self, digest: Digest) -> Transfer | None:
        """The running transfer of `digest`, or None."""
        return self._running.get(digest)

    @contextmanager
    def running(self, descriptor: Descriptor, source: str) -> Generator[Transfer]:
        """A transfer for as long as the context lasts."""
        transfer = self._running[descriptor.digest] = Transfer(descriptor.digest, descriptor.size, source)
        try:
            yield transfer
            self.completed += 1
        finally:
            self.bytes_fetched += transfer.offset
            if self._running.get(descriptor.digest) is transfer:
                del self._running[descriptor.digest]
