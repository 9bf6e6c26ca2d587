"""What was here when a cycle began. Only this is ever judged: what comes later is too young to be garbage.

A thing is the same only as long as the store holds the same object for it: what went and came back is young too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.status import IngestStatus
from imgfs.content.store import BlobInfo
from imgfs.gc.stores import Stores
from imgfs.gc.unfinished import Unfinished, abandoned, unfinished
from imgfs.layers.layer import Layer
from imgfs.oci.digest import Digest
from imgfs.snapshots.graph import Snapshot


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer, the bytes it takes on disk, and when it was stored (ns since the epoch)."""

    layer: Layer
    bytes: int
    stored: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """Everything, in the order of its names. `metadata` are chain IDs and bytes, `known` what the catalogue tells of.

    The Layers are held, so their descriptors stay open for as long as these are.
    """

    blobs: list[BlobInfo]
    layers: list[StoredLayer]
    unfinished: list[Unfinished]
    abandoned: list[tuple[IngestStatus, int]]
    """Unfinished writes that nobody goes on with, and the bytes they take."""
    chains: list[Snapshot]
    metadata: list[tuple[Digest, int]]
    known: set[Digest]
    unpacked: set[Digest]
    """Diff IDs of `layers`."""

    def bytes_of(self, blob: BlobInfo) -> int:
        """What goes with the blob alone: an uncompressed layer is one file with two names."""
        return 0 if blob.digest in self.unpacked else blob.allocated


async def candidates(stores: Stores) -> Candidates:
    """Look at everything that is here now. Raises StorageFailed."""
    chains = list(stores.graph)
    blobs = sorted(stores.content, key=lambda info: info.digest)
    settled = [layer for layer in stores.layers if stores.layers.is_settled(layer)]
    known = await stores.catalog.digests()
    layers = await run_disk(_measure, settled)
    metadata = sorted(await run_disk(stores.images.stored))
    return Candidates(
        blobs=blobs,
        layers=layers,
        unfinished=await unfinished(stores.ingests),
        abandoned=await abandoned(stores.ingests, stores.patience),
        chains=chains,
        metadata=metadata,
        known=known,
        unpacked={one.layer.diff_id for one in layers},
    )


def _measure(layers: Iterable[Layer]) -> list[StoredLayer]:
    found: list[StoredLayer] = []
    for layer in sorted(layers, key=lambda one: one.diff_id):
        try:
            status = os.stat(layer.tar)
        except FileNotFoundError:
            continue
        found.append(StoredLayer(layer, status.st_blocks * 512, status.st_mtime_ns))
    return found
