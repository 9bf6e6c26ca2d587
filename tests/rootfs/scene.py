"""Chains of stored layers, and all the parts of a Rootfs except the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from imgfs.database.database import Database
from imgfs.execution.records.records import ContainerRecords
from imgfs.kernel.probe import Capabilities, Capability
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.rootfs.kernel import Kernel
from imgfs.rootfs.lowers import ChainSources
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs
from imgfs.rootfs.terms import Terms
from imgfs.snapshots import graph, rows
from imgfs.snapshots.graph import Snapshot, SnapshotGraph, SnapshotLayer
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import View, Views
from imgfs.testing.build import BuiltLayer as Made
from imgfs.testing.images import Dir, File, layer
from tests.layers.passes import described, stored

YES = Capability()
ALL = Capabilities(YES, YES, YES, YES)
BASE = layer([Dir("d"), File("d/file", b"base\n" * 1000)])
TOP = layer([File("top", b"top\n")])


class Provider:
    """Provides the layers of a store, counts the calls, and raises `error` if it is set."""

    def __init__(self, store: LayerStore) -> None:
        self.store = store
        self.asked = 0
        self.error: Exception | None = None

    async def provide(self, layers: Sequence[SnapshotLayer]) -> list[Layer]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return [self.store.get(one.diff_id) for one in layers]


class Scene:
    """One state directory. `start` starts a new daemon on it, without the memory of the last one."""

    def __init__(self, state: Path, kernel: Kernel, nursery: trio.Nursery) -> None:
        self.state = state
        self.kernel = kernel
        self.nursery = nursery
        self.database = Database(state / "imgfs.db", [graph.SCHEMA, rows.SCHEMA])
        self.start()

    def start(self, capabilities: Capabilities = ALL, *, is_root: bool = True) -> Rootfs:
        self.layers = LayerStore(self.state)
        self.graph = SnapshotGraph(self.database)
        self.provider = Provider(self.layers)
        self.views = Views(self.graph, self.provider, self.nursery)
        self.snapshots = SnapshotStore(self.state, self.database, self.graph, lambda path: None)
        self.images = MetadataImages(self.state)
        terms = Terms("/mnt", capabilities, is_root, trusted=True)
        self.rootfs = Rootfs(
            terms,
            ChainSources(self.graph, self.layers, self.views, self.images),
            self.snapshots,
            ContainerRecords(self.state),
            self.nursery,
            self.kernel,
        )
        return self.rootfs

    async def chain(self, *layers: Made) -> Snapshot:
        """Return the snapshot of these layers, after storing them."""
        for one in layers:
            await stored(self.layers, one)
        return await self.graph.record([(described(one), one.diff_id) for one in layers])

    async def view(self, *layers: Made) -> View:
        return await self.views.get(await self.chain(*layers))
