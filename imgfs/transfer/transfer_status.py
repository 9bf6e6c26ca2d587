"""The status of running transfers, as `.imgfs/transfers/` and `imgfs status` show it."""

from __future__ import annotations

import msgspec

from imgfs.images.names import Names
from imgfs.leases.pins import Pins
from imgfs.leases.resource import ResourceKind, content
from imgfs.oci.digest import Digest
from imgfs.transfer.transfers import Direction, Transfer


class TransferStatus(msgspec.Struct, frozen=True):
    """A running transfer: `offset` of `total` bytes have arrived, at `rate` bytes a second; `eta` is in seconds.

    `names` are the known names of images that are being fetched and need this blob. `ref` is the ingest that receives
    the bytes, if there is one. `started` is in nanoseconds since the epoch. `attempts` includes the first one; `error`
    is the message of the last failed attempt.
    """

    name: str
    direction: Direction
    digest: str
    ref: str | None
    names: list[str]
    host: str
    repository: str
    total: int
    offset: int
    rate: int
    eta: float | None
    started: int
    attempts: int
    error: str | None


class TransferReporter:
    """Reports running transfers and the images that need them. Never blocks."""

    def __init__(self, names: Names, pins: Pins) -> None:
        self._names = names
        self._pins = pins

    def status(self, one: Transfer) -> TransferStatus:
        """Return the current status of a transfer."""
        eta = one.eta
        return TransferStatus(
            name=one.name,
            direction=one.direction,
            digest=one.digest,
            ref=one.ref or None,
            names=self._wanting(one.digest),
            host=one.host,
            repository=one.repository,
            total=one.total,
            offset=one.offset,
            rate=round(one.rate),
            eta=None if eta is None else round(eta, 1),
            started=round(one.started * 1e9),
            attempts=one.attempts,
            error=one.error,
        )

    def _wanting(self, digest: Digest) -> list[str]:
        """Return the names of images whose fetch needs `digest`. A fetch pins all blobs of its image together."""
        beside = self._pins.beside(content(digest))
        images = [Digest(one.id) for one in beside if one.kind is ResourceKind.CONTENT]
        return sorted(name.name for image in images for name in self._names.of(image))
