"""How far one push is: what it wants, of what is there and what is on its way."""

from __future__ import annotations

import msgspec

from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.transfer.progress import Transfers


class Told(msgspec.Struct, frozen=True):
    """How far a push is: `done` of `total` bytes of the blobs that are known so far, `running` of them on their way."""

    total: int
    done: int
    running: int


class Progress:
    """How far one push to `place` is."""

    def __init__(self, transfers: Transfers, place: Source) -> None:
        self._transfers = transfers
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
        running = [one for one in self._transfers if one.digest in missing and one.goes_to(self._place)]
        done = sum(self._wanted[digest] for digest in self._done) + sum(one.offset for one in running)
        return Told(sum(self._wanted.values()), done, len(running))
