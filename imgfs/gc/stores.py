"""The stores that garbage collection looks into, introduced by the daemon, and the pulse of their roots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from dataclasses import dataclass, field

from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.execution.containers import Containers
from imgfs.gc.totals import Totals
from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.layers.store import LayerStore
from imgfs.leases.clock import AccessClock
from imgfs.leases.pins import Pins
from imgfs.leases.resource import Resource
from imgfs.leases.store import Leases
from imgfs.oci.digest import Digest
from imgfs.rootfs.metadata import MetadataImages
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views

Labels = Callable[[Digest], Mapping[str, str | bytes]]
"""The labels of a stored blob; empty for one that has none."""


@dataclass(frozen=True, slots=True)
class Stores:
    """`in_use` says what is open, mounted or on its way to its place right now; it is asked at each mark.

    `forgotten` is told what is neither here nor known of any more, so that nobody goes on from what he remembers.
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
    labels: Labels
    in_use: Callable[[], Awaitable[Set[Resource]]]
    forgotten: Callable[[Collection[Digest]], None]
    patience: float = 7 * 86400.0
    """Seconds after which an unfinished write that nobody goes on with is garbage."""
    totals: Totals = field(default_factory=Totals)

    def version(self) -> tuple[int, ...]:
        """Changes whenever there may be a root more; costs nothing."""
        return self.names.version, self.snapshots.version, self.leases.version, self.pins.version
