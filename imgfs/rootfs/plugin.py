"""What is mounted over snapshots: EROFS by metadata images of the state directory, and overlays."""

from __future__ import annotations

from imgfs.execution.plugin import EXECUTION
from imgfs.layers.plugin import LAYERS
from imgfs.plugins.contract import Context, Plugin
from imgfs.rootfs.kinds import METADATA, ROOTFS, TERMS
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs
from imgfs.snapshots.kinds import CHAINS, SNAPSHOTS, VIEWS


def _rootfs(context: Context) -> Rootfs:
    return Rootfs(
        context.one(TERMS),
        context.one(METADATA),
        context.one(CHAINS),
        context.one(VIEWS),
        context.one(SNAPSHOTS),
        context.one(LAYERS),
        context.one(EXECUTION),
        context.nursery,
    )


EROFS = Plugin(METADATA, "erofs", lambda context: MetadataImages(context.state))
KERNEL = Plugin(ROOTFS, "kernel", _rootfs, requires=(TERMS, METADATA, CHAINS, VIEWS, SNAPSHOTS, LAYERS, EXECUTION))
