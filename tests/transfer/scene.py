"""The daemon's rooms without its mount: real stores in a directory, a real client, and the registry in memory.

`clock` moves by hand or with the client's waits between tries. A test in which time matters must request the fixture
`mock_clock` itself, because the run takes its clock from that fixture.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.aio.flight import MEMORY
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.database.database import Database
from imgfs.disk.durable import make_directory
from imgfs.failures import Failures
from imgfs.images import catalog, names
from imgfs.layers.store import LayerStore
from imgfs.leases.pins import Pins
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference
from imgfs.registry.client import Registry
from imgfs.registry.limits import Limits
from imgfs.snapshots import graph
from imgfs.snapshots.views import Views
from imgfs.testing.build import AMD64, BuiltIndex, Image
from imgfs.testing.registry import FakeRegistry
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.image_status import StatusReporter
from imgfs.transfer.images import Images
from imgfs.transfer.layers import Layers
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.passes import Passes
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.transfers import Transfers
from tests.support.compressions import COMPRESSIONS

REPOSITORY = "team/app"
DEFAULTS = Limits()


class Scene:
    """Every room, connected to the others as in the daemon."""

    def __init__(self, root: Path, fake: FakeRegistry, clock: MockClock, nursery: trio.Nursery, limits: Limits) -> None:
        self.root = root
        self.fake = fake
        self.clock = clock
        self.nursery = nursery
        make_directory(root)
        self.database = Database(root / "imgfs.db", [names.SCHEMA, catalog.SCHEMA, graph.SCHEMA])
        self.names = names.Names(self.database)
        self.catalog = catalog.Catalog(self.database)
        self.graph = graph.SnapshotGraph(self.database)
        self.content = ContentStore(root)
        self.stored = LayerStore(root)
        self.transfers, self.failures = Transfers(), Failures()
        self.client = Registry(limits=limits, sleep=self._sleep)
        self.ingests = IngestStore(self.content, nursery)
        self.local = LocalState(self.content, self.ingests, self.stored, self.catalog, self.failures, Pins())
        shared = self.client, self.transfers, Passes(), nursery
        self.blobs = Blobs(self.local, *shared)
        self.layers = Layers(self.local, COMPRESSIONS, self.blobs, *shared)
        self.documents = Documents(self.content, self.catalog, self.blobs, AMD64)
        self.resolver = Resolver(self.names, self.catalog, self.documents, self.client, self.failures, nursery, Pins())
        self.images = Images(self.local, self.graph, self.documents, self.blobs, self.layers)
        self.views = Views(self.graph, self.images, nursery)
        self.status = StatusReporter(self.local, self.documents, self.images, self.names, self.transfers)

    async def _sleep(self, seconds: float) -> None:
        self.clock.jump(seconds)
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close files and tables."""
        self.stored.close()
        self.database.close()

    def reference(self, tag: str = "1", repository: str = REPOSITORY) -> Reference:
        """A tag at the registry."""
        return Reference(self.fake.host, repository, tag)

    async def resolved(self, made: Image | BuiltIndex, tag: str = "1", repository: str = REPOSITORY) -> Digest:
        """Put an image into the registry and resolve its tag."""
        made.add_to(self.fake, repository, tag)
        return await self.resolver.resolve(self.reference(tag, repository))

    async def pulled(self, made: Image | BuiltIndex, tag: str = "1", repository: str = REPOSITORY) -> Digest:
        """Resolve an image and pull all of it. Then clear the log of requests."""
        digest = await self.resolved(made, tag, repository)
        await self.images.pull(digest)
        self.fake.reset()
        return digest

    async def stalled(self) -> None:
        """Wait until an answer of the registry has stalled and every task waits."""
        await trio.to_thread.run_sync(self.fake.valve.wait_arrival, abandon_on_cancel=True)
        await wait_all_tasks_blocked(0.01)

    async def all_durable(self) -> None:
        """Wait until every stored layer is durable."""
        for layer in self.stored:
            await self.layers.wait_durable(layer)

    def forget_failures(self) -> None:
        """Advance the clock so far that remembered failures expire."""
        self.clock.jump(MEMORY + 0.1)

    def temporary(self) -> list[Path]:
        """Return the temporary files of the state directory."""
        return list(self.root.rglob(".tmp-*"))


@asynccontextmanager
async def opened(root: Path, fake: FakeRegistry, clock: MockClock, limits: Limits = DEFAULTS) -> AsyncIterator[Scene]:
    """A scene for as long as the context lasts; opening `root` again is a restart of the daemon."""
    async with trio.open_nursery() as nursery:
        scene = Scene(root, fake, clock, nursery, limits)
        async with scene.client:
            yield scene
            nursery.cancel_scope.cancel()
    scene.close()
