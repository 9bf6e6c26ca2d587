"""What is on its way out: one record for each blob that is sent, and what a push knows of its own."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from imgfs.images.source import Source
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest


@dataclass(slots=True)
class Sending:
    """A running upload: `offset` of `total` bytes are on their way or there, since `started` (seconds since 1970)."""

    digest: Digest
    total: int
    place: Source
    offset: int = 0
    started: float = field(default_factory=time.time)

    def advance(self, count: int) -> None:
        """`count` more bytes were sent."""
        self.offset += count

    def at(self, offset: int) -> None:
        """It goes on from `offset`, whatever was sent before."""
        self.offset = offset


class Sendings:
    """All running uploads."""

    def __init__(self) -> None:
        self._running: dict[tuple[Digest, Source], Sending] = {}

    def __iter__(self) -> Iterator[Sending]:
        return iter(list(self._running.values()))

    def get(self, digest: Digest, place: Source) -> Sending | None:
        """The running upload of a blob to a place."""
        return self._running.get((digest, place))

    @contextmanager
    def begin(self, descriptor: Descriptor, place: Source) -> Generator[Sending]:
        """An upload for as long as the context lasts."""
        sending = self._running[descriptor.digest, place] = Sending(descriptor.digest, descriptor.size, place)
        try:
            yield sending
        finally:
            self._running.pop((descriptor.digest, place), None)


class Told(msgspec.Struct, frozen=True):
    """How far a push is: `done` of `total` bytes of the blobs that are known so far, `running` of them on their way."""

    total: int
    done: int
    running: int


class Progress:
    """How far one push to `place` is."""

    def __init__(self, sendings: Sendings, place: Source) -> None:
        self._sendings = sendings
        self._place = place
        self._wanted: dict[Digest, int] = {}
        self._done: set[Digest] = set()

    def want(self, digest: Digest, size: int) -> None:
        """A blob has to get there."""
        self._wanted[digest] = size

    def arrived(self, digest: Digest) -> None:
        """It is there."""
        self._done.add(digest)

    def tell(self) -> Told:
        """The figures of now."""
        missing = self._wanted.keys() - self._done
        running = [one for digest in missing if (one := self._sendings.get(digest, self._place))]
        done = sum(self._wanted[digest] for digest in self._done) + sum(one.offset for one in running)
        return Told(sum(self._wanted.values()), done, len(running))
