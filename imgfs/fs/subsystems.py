"""What the tree shows: the subsystems that a kind of directory asks, one value each. The daemon introduces them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.aio.flight import Flights
from imgfs.check.mender import Mender
from imgfs.config import Config
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.execution.containers import Containers
from imgfs.failures import Failures
from imgfs.fs.node import Shown
from imgfs.fs.served import Served
from imgfs.gc.allowance import Allowance
from imgfs.gc.collector import Collector
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
from imgfs.transfer.images import Images
from imgfs.transfer.listings import Listings
from imgfs.transfer.progress import Transfers
from imgfs.transfer.push.pushes import Pushes
from imgfs.transfer.referrers import Referrers
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.running import TransferReporter
from imgfs.transfer.status import StatusReporter


@dataclass(frozen=True, slots=True)
class BlobSubsystems:
    """Of a blob as a file, in content/ and as a document of an image: what is here, and how the rest is fetched."""

    shown: Shown
    failures: Failures
    content: ContentStore
    catalog: Catalog
    blobs: Blobs
    transfers: Transfers


@dataclass(frozen=True, slots=True)
class IngestSubsystems:
    """Of content/ingest/."""

    shown: Shown
    failures: Failures
    ingests: IngestStore
    allowance: Allowance
    blobs: Blobs


@dataclass(frozen=True, slots=True)
class ChainSubsystems:
    """Of image chains, in snapshots/ and below: what they consist of, how it comes here, and who shows it."""

    shown: Shown
    failures: Failures
    graph: SnapshotGraph
    layers: LayerStore
    images: Images
    views: Views
    rootfs: Rootfs
    snapshots: SnapshotStore
    """Who labels chains, and knows what users put upon them."""
    owner: tuple[int, int] | None
    """Whose every file of a view is, if it is one user's."""


@dataclass(frozen=True, slots=True)
class UserSubsystems:
    """Of users' own snapshots, in snapshots/ and snapshots/active/."""

    shown: Shown
    failures: Failures
    snapshots: SnapshotStore
    rootfs: Rootfs
    containers: Containers
    """What runs on an active one."""
    works: Flights[None]
    """Changes of snapshots. Who is interrupted leaves one at once; it ends at the next step that can be left out."""
    private_parents: dict[tuple[int, bytes], str] = field(default_factory=dict[tuple[int, bytes], str])
    """Links that `ln -sfn` makes beside an active snapshot's `parent` before it renames them, by its number and the
    link's name: unlisted, gone with the daemon."""
    layer_sizes: dict[int, int] = field(default_factory=dict[int, int])
    """Bytes of `layer.tar` of committed ones, by number, as far as somebody asked."""


@dataclass(frozen=True, slots=True)
class ImageSubsystems:
    """Of images/: names, the images behind them, and what registries say of both."""

    shown: Shown
    failures: Failures
    names: Names
    resolver: Resolver
    is_resolving: bool
    """Whether a name that is not registered is looked up at its registry."""
    listings: Listings
    documents: Documents
    images: Images
    status: StatusReporter
    referrers: Referrers
    pushes: Pushes
    blob_files: BlobSubsystems
    chains: ChainSubsystems
    private: dict[str, Digest] = field(default_factory=dict[str, Digest])
    """Links that `ln -sfn` makes beside a name before it renames them: unlisted, never asked for, gone with the daemon.
    """


@dataclass(frozen=True, slots=True)
class ContainerSubsystems:
    """Of containers/: the containers, and the snapshots that go with them."""

    shown: Shown
    failures: Failures
    containers: Containers
    snapshots: SnapshotStore
    rootfs: Rootfs
    works: Flights[None]
    """As in UserSubsystems, and the same."""


@dataclass(frozen=True, slots=True)
class ControlSubsystems:
    """Of .imgfs/: the daemon about itself, and the doors to what it does for everybody."""

    shown: Shown
    state: Path
    settings: str
    """The options in force and where each is from, as TOML."""
    plugins: Mapping[str, Report]
    describe: Callable[[], bytes]
    metrics: Callable[[], Awaitable[bytes]]
    collector: Collector
    leases: Leases
    mender: Mender
    transfers: Transfers
    running: TransferReporter
    containers: Containers
    chains: ChainSubsystems


@dataclass(frozen=True, slots=True)
class Subsystems:
    """Of the whole tree."""

    shown: Shown
    config: Config
    served: Served
    space: Callable[[], Awaitable[Space]]
    """What `df` says of the tree."""
    images: ImageSubsystems
    blob_files: BlobSubsystems
    ingests: IngestSubsystems
    chains: ChainSubsystems
    users: UserSubsystems
    containers: ContainerSubsystems
    control: ControlSubsystems
