"""The kinds of plugins of this room, and its plugins: transfers in both directions, and views of chains."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.failures import Failures
from imgfs.images.plugin import CATALOG, NAMES
from imgfs.layers.compression import Compressions
from imgfs.layers.plugin import COMPRESSION, LAYERS
from imgfs.leases.plugin import LEASES
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.program import CONFIG
from imgfs.registry.plugin import REGISTRY
from imgfs.snapshots.plugin import CHAINS, VIEWS
from imgfs.snapshots.views import Views
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.image_status import StatusReporter
from imgfs.transfer.images import Images
from imgfs.transfer.layers import Layers
from imgfs.transfer.listings import Listings
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.passes import Passes
from imgfs.transfer.push.pushes import Pushes
from imgfs.transfer.referrers import ReferrerFetcher
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.transfer_status import TransferReporter
from imgfs.transfer.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Transferring:
    """The objects that fetch images, from a name to a snapshot, and report on it."""

    local: LocalState
    transfers: Transfers
    running: TransferReporter
    failures: Failures
    blobs: Blobs
    layers: Layers
    documents: Documents
    images: Images
    resolver: Resolver
    referrers: ReferrerFetcher
    listings: Listings
    status: StatusReporter


TRANSFER = Kind("transfer", Transferring)
PUSH = Kind("push", Pushes)


def _transfer(context: Context) -> Transferring:
    content, known, holds = context.one(CONTENT), context.one(CATALOG), context.one(LEASES)
    names, registry, nursery = context.one(NAMES), context.one(REGISTRY), context.nursery
    transfers, failures, passes = Transfers(), Failures(), Passes()
    local = LocalState(content, context.one(INGESTS), context.one(LAYERS), known, failures, holds.pins)
    blobs = Blobs(local, registry, transfers, passes, nursery)
    compressions = Compressions(context.all(COMPRESSION))
    layers = Layers(local, compressions, blobs, registry, transfers, passes, nursery)
    documents = Documents(content, known, blobs, context.one(CONFIG).chosen_platform)
    images = Images(local, context.one(CHAINS), documents, blobs, layers, holds.uses.touched)
    resolver = Resolver(names, known, documents, registry, failures, nursery, holds.pins)
    status = StatusReporter(local, documents, images, names, transfers)
    referrers = ReferrerFetcher(known, documents, registry, failures, nursery, holds.pins)
    listings = Listings(registry, failures, nursery)
    running = TransferReporter(names, holds.pins)
    return Transferring(
        local,
        transfers,
        running,
        failures,
        blobs,
        layers,
        documents,
        images,
        resolver,
        referrers,
        listings,
        status,
    )


def _pushes(context: Context) -> Pushes:
    transfer = context.one(TRANSFER)
    return Pushes(
        transfer.local,
        transfer.documents,
        transfer.blobs,
        transfer.referrers,
        context.one(REGISTRY),
        transfer.transfers,
        context.nursery,
    )


def _views(context: Context) -> Views:
    return Views(context.one(CHAINS), context.one(TRANSFER).images, context.nursery)


REGISTRIES = Plugin(
    TRANSFER,
    "registries",
    _transfer,
    requires=(CONTENT, INGESTS, LAYERS, COMPRESSION, NAMES, CATALOG, REGISTRY, CHAINS, LEASES, CONFIG),
)
OUTGOING = Plugin(PUSH, "registries", _pushes, requires=(TRANSFER, REGISTRY))
MERGED = Plugin(VIEWS, "merged", _views, requires=(CHAINS, TRANSFER))
