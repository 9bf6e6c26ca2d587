"""The stores that garbage collection looks into, and what is in use at the moment."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.execution.containers import Containers
from imgfs.gc.report import GarbageTotals
from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.layers.store import LayerStore
from imgfs.leases.clock import AccessClock
from imgfs.leases.pins import Pins
from imgfs.leases.resource import Resource, content, layer, snapshot
from imgfs.leases.store import Leases
from imgfs.oci.digest import Digest, is_digest
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views
from imgfs.transfer.layers import Layers
from imgfs.transfer.transfers import Transfers

_DESCRIPTORS = "/proc/self/fd"

BlobLabels = Callable[[Digest], Mapping[str, str | bytes]]
"""Returns the labels of a stored blob; empty if it has none."""


@dataclass(frozen=True, slots=True)
class GarbageStores:
    """The stores, as the plugin passes them.

    `in_use` returns what is open, mounted or being stored; each mark calls it again. `forgotten` receives digests that
    the catalogue no longer knows and that are not stored, so that the daemon drops what it remembers of them.
    """

    names: Names
    catalog: Catalog
    content: ContentStore
    ingests: IngestStore
    layers: LayerStore
    graph: SnapshotGraph
    views: Views
    snapshots: SnapshotStore
    images: MetadataImages
    leases: Leases
    pins: Pins
    clock: AccessClock
    containers: Containers
    labels: BlobLabels
    in_use: Callable[[], Awaitable[Set[Resource]]]
    forgotten: Callable[[Collection[Digest]], None]
    patience: float = 7 * 86400.0
    """Seconds after which an unfinished write without a writer is garbage."""
    totals: GarbageTotals = field(default_factory=GarbageTotals)

    def version(self) -> tuple[int, ...]:
        """A value that changes whenever a root may have been added; costs nothing."""
        return self.names.version, self.snapshots.version, self.leases.version, self.pins.version


class InUse:
    """What is in use now: mounted chains and those of containers, blobs that are open or fetched, layers being synced.

    Open files come from the kernel (/proc/self/fd), so no caller has to report the handles that it opens.
    """

    def __init__(
        self, stored: ContentStore, transfers: Transfers, fetcher: Layers, rootfs: Rootfs, containers: Containers
    ) -> None:
        self._stored = stored
        self._transfers = transfers
        self._fetcher = fetcher
        self._rootfs = rootfs
        self._containers = containers

    async def __call__(self) -> Set[Resource]:
        """The resources in use, as pins name them."""
        return {
            *map(content, await run_disk(open_blobs, self._stored)),
            *(content(transfer.digest) for transfer in self._transfers),
            *map(layer, self._fetcher.syncing()),
            *map(snapshot, self._rootfs.shown()),
            *map(snapshot, await self._containers.holdings.chains()),
        }


def open_blobs(stored: ContentStore) -> list[Digest]:
    """The stored blobs that this process has open; blocks."""
    found: list[Digest] = []
    for name in os.listdir(_DESCRIPTORS):
        try:
            path = Path(os.readlink(f"{_DESCRIPTORS}/{name}"))
        except OSError:
            continue  # closed since the listing, as is the descriptor of the listing itself
        text = f"{path.parent.parent.name}:{path.name}"
        if is_digest(text) and stored.path(Digest(text)) == path:
            found.append(Digest(text))
    return found
