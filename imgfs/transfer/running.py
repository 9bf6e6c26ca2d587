"""What is on its way, told: the facts behind `.imgfs/transfers/` and `imgfs status`."""

from __future__ import annotations

import msgspec

from imgfs.images.names import Names
from imgfs.leases.pins import Pins
from imgfs.leases.resource import Kind, content
from imgfs.oci.digest import Digest
from imgfs.transfer.progress import Direction, Transfer


class TransferStatus(msgspec.Struct, frozen=True):
    """A running transfer: `offset` of `total` bytes are there, `rate` bytes a second, done in `eta` seconds.

    `names` are those of images that somebody is getting here now and that need it, as far as that is known; `ref` is
    the ingest it fills, if it fills one. `started` is ns since the epoch. `attempts` counts the first try too, `error`
    is what ended the last that failed.
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
    """Tells of transfers, and for whom they are. Never waits."""

    def __init__(self, names: Names, pins: Pins) -> None:
        self._names = names
        self._pins = pins

    def status(self, one: Transfer) -> TransferStatus:
        """How a transfer stands at this moment."""
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
        """The names of images that are worked on together with `digest`: who gets one here pins all of it."""
        beside = self._pins.beside(content(digest))
        images = [Digest(one.id) for one in beside if one.kind is Kind.CONTENT]
        return sorted(name.name for image in images for name in self._names.of(image))
