"""The progress of one push."""

from __future__ import annotations

import msgspec

from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.transfer.transfers import Transfers


class PushFigures(msgspec.Struct, frozen=True):
    """The progress of a push: `done` of `total` bytes of the blobs known so far; `running` blobs are in flight."""

    total: int
    done: int
    running: int


class PushProgress:
    """Tracks the blobs of one push to `place`."""

    def __init__(self, transfers: Transfers, place: Source) -> None:
        self._transfers = transfers
        self._place = place
        self._wanted: dict[Digest, int] = {}
        self._done: set[Digest] = set()

    def want(self, digest: Digest, size: int) -> None:
        """Add a blob that the push needs."""
        self._wanted[digest] = size

    def arrived(self, digest: Digest) -> None:
        """Record that the target has the blob."""
        self._done.add(digest)

    def tell(self) -> PushFigures:
        """Return the present figures."""
        missing = self._wanted.keys() - self._done
        running = [one for one in self._transfers if one.digest in missing and one.goes_to(self._place)]
        done = sum(self._wanted[digest] for digest in self._done) + sum(one.offset for one in running)
        return PushFigures(sum(self._wanted.values()), done, len(running))
