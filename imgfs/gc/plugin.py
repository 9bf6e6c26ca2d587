"""The kind of plugin that frees space, and the built-in one: collection and eviction over all stores."""

from __future__ import annotations

from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.execution.plugin import CONTAINERS
from imgfs.gc.space import SpaceKeeper
from imgfs.gc.stores import GarbageStores, InUse
from imgfs.images.plugin import CATALOG, NAMES
from imgfs.layers.plugin import LAYERS
from imgfs.leases.plugin import LEASES
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.program import CONFIG
from imgfs.rootfs.plugin import METADATA, ROOTFS
from imgfs.snapshots.plugin import CHAINS, SNAPSHOTS, VIEWS
from imgfs.transfer.plugin import TRANSFER

GC = Kind("gc", SpaceKeeper)


def _space_keeper(context: Context) -> SpaceKeeper:
    content, transfer, holds = context.one(CONTENT), context.one(TRANSFER), context.one(LEASES)
    containers = context.one(CONTAINERS)
    stores = GarbageStores(
        names=context.one(NAMES),
        catalog=context.one(CATALOG),
        content=content,
        ingests=context.one(INGESTS),
        layers=context.one(LAYERS),
        graph=context.one(CHAINS),
        views=context.one(VIEWS),
        snapshots=context.one(SNAPSHOTS),
        images=context.one(METADATA),
        leases=holds.leases,
        pins=holds.pins,
        clock=holds.uses,
        containers=containers,
        labels=content.labels,
        in_use=InUse(content, transfer.transfers, transfer.layers, context.one(ROOTFS), containers),
        forgotten=transfer.documents.forget,
        patience=context.one(CONFIG).ingest_idle_seconds,
    )
    return SpaceKeeper(context.state, stores)


MARK = Plugin(
    GC,
    "mark",
    _space_keeper,
    requires=(
        NAMES,
        CATALOG,
        CONTENT,
        INGESTS,
        LAYERS,
        CHAINS,
        VIEWS,
        SNAPSHOTS,
        METADATA,
        LEASES,
        CONTAINERS,
        TRANSFER,
        ROOTFS,
        CONFIG,
    ),
)
