"""The kinds of plugins of this room."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.failures import Failures
from imgfs.plugins.contract import Kind
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.images import Images
from imgfs.transfer.layers import Layers
from imgfs.transfer.listings import Listings
from imgfs.transfer.progress import Transfers
from imgfs.transfer.push.pushes import Pushes
from imgfs.transfer.referrers import Referrers
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.running import TransferReporter
from imgfs.transfer.status import StatusReporter


@dataclass(frozen=True, slots=True)
class Transferring:
    """The objects that fetch images, from a name to a snapshot, and report on it."""

    transfers: Transfers
    running: TransferReporter
    failures: Failures
    blobs: Blobs
    layers: Layers
    documents: Documents
    images: Images
    resolver: Resolver
    referrers: Referrers
    listings: Listings
    status: StatusReporter


TRANSFER = Kind("transfer", Transferring)
PUSH = Kind("push", Pushes)
