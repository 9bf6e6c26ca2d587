"""The kinds of plugins of this room, and its plugins: the metadata images, and the mounts over snapshots."""

from __future__ import annotations

from imgfs.execution.plugin import EXECUTION
from imgfs.layers.plugin import LAYERS
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.rootfs.lowers import ChainSources
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.plugin import CHAINS, SNAPSHOTS, VIEWS

ROOTFS = Kind("rootfs", Rootfs)
METADATA = Kind("metadata", MetadataImages)
TERMS = Kind("terms", Terms)


def _rootfs(context: Context) -> Rootfs:
    return Rootfs(
        context.one(TERMS),
        ChainSources(context.one(CHAINS), context.one(LAYERS), context.one(VIEWS), context.one(METADATA)),
        context.one(SNAPSHOTS),
        context.one(EXECUTION),
        context.nursery,
    )


EROFS = Plugin(METADATA, "erofs", lambda context: MetadataImages(context.state))
KERNEL = Plugin(ROOTFS, "kernel", _rootfs, requires=(TERMS, METADATA, CHAINS, VIEWS, SNAPSHOTS, LAYERS, EXECUTION))
