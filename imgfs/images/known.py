"""Which digests the catalogue may know something of: what it certainly knows nothing of costs no query.

A lookup of a digest that nobody has goes before each commit of an ingest, and a trip to the database is as long as all
else that is done for one.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from imgfs.oci.digest import Digest

DIGITS = 5
"""Of a digest's hex: a bit for each number that they make, 128 KiB in all. Of 100,000 digests one in eleven others is
taken for known, and asked for."""


class Known:
    """A set that only grows, and may say yes where it should say no. Until it `is_complete`, it says nothing else."""

    def __init__(self, beginnings: Iterable[str] = ()) -> None:
        """With all digests whose hex begins so. What is no hex is passed over: no digest begins so."""
        self._bits = bytearray(1 << (4 * DIGITS - 3))
        self.is_complete = False
        for beginning in beginnings:
            with suppress(ValueError):
                self._add(beginning)

    def __contains__(self, digest: Digest) -> bool:
        number = int(digest.hex[:DIGITS], 16)
        return not self.is_complete or bool(self._bits[number >> 3] & 1 << (number & 7))

    def add(self, digests: Iterable[Digest]) -> None:
        """Say yes to these."""
        for digest in digests:
            self._add(digest.hex[:DIGITS])

    def complete(self, others: Known) -> None:
        """Say yes to the others too, which are all there were before anything was added."""
        both = int.from_bytes(self._bits) | int.from_bytes(others._bits)
        self._bits[:] = both.to_bytes(len(self._bits))
        self.is_complete = True

    def _add(self, beginning: str) -> None:
        number = int(beginning, 16)
        self._bits[number >> 3] |= 1 << (number & 7)
