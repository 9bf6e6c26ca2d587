"""The objects of other rooms that each part of the tree uses, grouped in one value per part. assembly/ makes them."""

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
from imgfs.fs.statistics import FuseStatistics
from imgfs.gc.collector import Collector
from imgfs.gc.quota import WriteQuota
from imgfs.gc.space import DiskSpace
from imgfs.images.catalog import Catalog
from imgfs.images.names import Names
from imgfs.layers.store import LayerStore
from imgfs.leases.store import Leases
from imgfs.oci.digest import Digest
from imgfs.plugins.started import PluginReport
from imgfs.rootfs.rootfs import Rootfs
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.image_status import StatusReporter
from imgfs.transfer.images import Images
from imgfs.transfer.listings import Listings
from imgfs.transfer.push.pushes import Pushes
from imgfs.transfer.referrers import ReferrerFetcher
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.transfer_status import TransferReporter
from imgfs.transfer.transfers import Transfers


@dataclass(frozen=True, slots=True)
class BlobSubsystems:
    """For blobs as files, in content/ and as documents of an image."""

    shown: Shown
    failures: Failures
    content: ContentStore
    catalog: Catalog
    blobs: Blobs
    transfers: Transfers


@dataclass(frozen=True, slots=True)
class IngestSubsystems:
    """For content/ingest/."""

    shown: Shown
    failures: Failures
    ingests: IngestStore
    allowance: WriteQuota
    blobs: Blobs


@dataclass(frozen=True, slots=True)
class ChainSubsystems:
    """For image chains, in snapshots/ and below."""

    shown: Shown
    failures: Failures
    graph: SnapshotGraph
    layers: LayerStore
    images: Images
    views: Views
    rootfs: Rootfs
    snapshots: SnapshotStore
    """Labels of chains, and the users' snapshots on top of them."""
    owner: tuple[int, int] | None
    """The user and group that own every file of a view, if the daemon is an ordinary user's."""


@dataclass(frozen=True, slots=True)
class UserSubsystems:
    """For users' snapshots, in snapshots/ and snapshots/active/."""

    shown: Shown
    failures: Failures
    snapshots: SnapshotStore
    rootfs: Rootfs
    containers: Containers
    """The containers that run on active snapshots."""
    works: Flights[None]
    """Changes of snapshots in progress. An interrupted caller leaves at once; the change ends at its next safe step."""
    private_parents: dict[tuple[int, bytes], str] = field(default_factory=dict[tuple[int, bytes], str])
    """Links that `ln -sfn` makes beside an active snapshot's `parent` before it renames them, by snapshot number and
    name. They are unlisted and in memory only.
    """
    layer_sizes: dict[int, int] = field(default_factory=dict[int, int])
    """Known sizes of `layer.tar` of committed snapshots in bytes, by snapshot number."""


@dataclass(frozen=True, slots=True)
class ImageSubsystems:
    """For images/."""

    shown: Shown
    failures: Failures
    names: Names
    resolver: Resolver
    is_resolving: bool
    """Whether a lookup of an unregistered name asks its registry."""
    listings: Listings
    documents: Documents
    images: Images
    status: StatusReporter
    referrers: ReferrerFetcher
    pushes: Pushes
    blob_files: BlobSubsystems
    chains: ChainSubsystems
    private: dict[str, Digest] = field(default_factory=dict[str, Digest])
    """Links that `ln -sfn` makes beside a name before it renames them. They are unlisted, in memory only, and never
    looked up at a registry.
    """


@dataclass(frozen=True, slots=True)
class ContainerSubsystems:
    """For containers/."""

    shown: Shown
    failures: Failures
    containers: Containers
    snapshots: SnapshotStore
    rootfs: Rootfs
    works: Flights[None]
    """The same object as in UserSubsystems."""


@dataclass(frozen=True, slots=True)
class ControlSubsystems:
    """For .imgfs/."""

    shown: Shown
    state: Path
    settings: str
    """The options in force and their origins, as TOML."""
    plugins: Mapping[str, PluginReport]
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
    """For the whole tree."""

    shown: Shown
    config: Config
    statistics: FuseStatistics
    space: Callable[[], Awaitable[DiskSpace]]
    """The numbers that `df` shows for the tree."""
    images: ImageSubsystems
    blob_files: BlobSubsystems
    ingests: IngestSubsystems
    chains: ChainSubsystems
    users: UserSubsystems
    containers: ContainerSubsystems
    control: ControlSubsystems
