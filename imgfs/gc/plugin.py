"""Collecting and evicting, over the stores of this state directory."""

from __future__ import annotations

from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.execution.plugin import CONTAINERS
from imgfs.gc.kinds import GC
from imgfs.gc.room import Room
from imgfs.gc.stores import Stores
from imgfs.gc.using import Using
from imgfs.images.plugin import CATALOG, NAMES
from imgfs.layers.plugin import LAYERS
from imgfs.leases.kinds import LEASES
from imgfs.plugins.contract import Context, Plugin
from imgfs.plugins.program import CONFIG
from imgfs.rootfs.kinds import METADATA, ROOTFS
from imgfs.snapshots.kinds import CHAINS, SNAPSHOTS, VIEWS
from imgfs.transfer.plugin import TRANSFER


def _room(context: Context) -> Room:
    content, transfer, holds = context.one(CONTENT), context.one(TRANSFER), context.one(LEASES)
    containers = context.one(CONTAINERS)
    stores = Stores(
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
        in_use=Using(content, transfer.transfers, transfer.layers, context.one(ROOTFS), containers),
        forgotten=transfer.documents.forget,
        patience=context.one(CONFIG).ingest_idle_seconds,
    )
    return Room(context.state, stores)


MARK = Plugin(
    GC,
    "mark",
    _room,
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
