"""What the tree shows: every subsystem that a directory may ask, handed to the nodes as one value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.aio.flight import Flights
from imgfs.check.mender import Mender
from imgfs.config import Config
from imgfs.content.ingests import IngestStore
from imgfs.content.store import ContentStore
from imgfs.execution.containers import Containers
from imgfs.fs.node import Shown
from imgfs.fs.served import Served
from imgfs.gc.allowance import Allowance
from imgfs.gc.room import Room
from imgfs.gc.space import Space
from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.layers.store import LayerStore
from imgfs.leases.store import Leases
from imgfs.oci.digest import Digest
from imgfs.plugins.running import Report
from imgfs.rootfs.rootfs import Rootfs
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.failures import Failures
from imgfs.transfer.images import Images
from imgfs.transfer.listings import Listings
from imgfs.transfer.progress import Transfers
from imgfs.transfer.push.pushes import Pushes
from imgfs.transfer.referrers import Referrers
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.running import TransferReporter
from imgfs.transfer.status import StatusReporter


@dataclass(frozen=True, slots=True)
class Subsystems:
    """The daemon introduces them; the tree only asks. `owner` maps every file of a view to one user, if set."""

    config: Config
    settings: str
    """The options in force and where each is from, as TOML."""
    state: Path
    shown: Shown
    plugins: Mapping[str, Report]
    names: Names
    catalog: Catalog
    content: ContentStore
    ingests: IngestStore
    layers: LayerStore
    graph: SnapshotGraph
    views: Views
    snapshots: SnapshotStore
    rootfs: Rootfs
    containers: Containers
    leases: Leases
    room: Room
    allowance: Allowance
    mender: Mender
    documents: Documents
    resolver: Resolver
    referrers: Referrers
    listings: Listings
    images: Images
    blobs: Blobs
    transfers: Transfers
    running: TransferReporter
    pushes: Pushes
    failures: Failures
    status: StatusReporter
    space: Callable[[], Awaitable[Space]]
    """What `df` says of the tree."""
    served: Served
    metrics: Callable[[], Awaitable[bytes]]
    describe: Callable[[], bytes]
    works: Flights[None]
    """Changes of snapshots. Who is interrupted leaves one at once; it ends at the next step that can be left out."""
    owner: tuple[int, int] | None = None
    private: dict[str, Digest] = field(default_factory=dict[str, Digest])
    """Links that `ln -sfn` makes beside a name before it renames them: unlisted, never asked for, gone with the daemon.
    """
    private_parents: dict[tuple[int, bytes], str] = field(default_factory=dict[tuple[int, bytes], str])
    """The same beside an active snapshot's `parent`: by its number and the link's name."""
    layer_sizes: dict[int, int] = field(default_factory=dict[int, int])
    """Bytes of `layer.tar` of users' committed snapshots, by number, as far as somebody asked."""
