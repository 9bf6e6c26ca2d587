"""Mending beside readers, over the rooms of this state directory."""

from __future__ import annotations

from imgfs.check.mender import MendedStores, Mender
from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.images.plugin import CATALOG
from imgfs.layers.plugin import LAYERS
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.rescue.keeper import KEEPER
from imgfs.rescue.rebuild import TABLES
from imgfs.rootfs.plugin import METADATA, ROOTFS
from imgfs.snapshots.plugin import CHAINS
from imgfs.transfer.plugin import TRANSFER

CHECK = Kind("check", Mender)


def _mender(context: Context) -> Mender:
    transfer = context.one(TRANSFER)
    wards = MendedStores(
        content=context.one(CONTENT),
        ingests=context.one(INGESTS),
        layers=context.one(LAYERS),
        metadata=context.one(METADATA),
        rootfs=context.one(ROOTFS),
        graph=context.one(CHAINS),
        catalog=context.one(CATALOG),
        documents=transfer.documents,
        blobs=transfer.blobs,
        provider=transfer.images,
        keeper=context.one(KEEPER),
    )
    return Mender(context.state, context.one(TABLES), wards)


MEND = Plugin(
    CHECK,
    "mend",
    _mender,
    requires=(CONTENT, INGESTS, LAYERS, METADATA, ROOTFS, CHAINS, CATALOG, TRANSFER, KEEPER, TABLES),
)
