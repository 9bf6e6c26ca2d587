"""A state directory with real stores for gc tests, without a registry."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import trio

from imgfs.content import labels
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.database.database import Database
from imgfs.disk.durable import make_directory
from imgfs.execution.containers import Containers
from imgfs.execution.records.records import ContainerRecords
from imgfs.gc.collector import Collector
from imgfs.gc.evictor import Evictor
from imgfs.gc.stores import GarbageStores
from imgfs.images import catalog, names
from imgfs.layers.store import LayerStore
from imgfs.leases import clock
from imgfs.leases import store as leases
from imgfs.leases.pins import Pins
from imgfs.leases.resource import Resource
from imgfs.oci.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.rootfs.metadata import MetadataImages
from imgfs.snapshots import graph, rows
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views

SCHEMAS = (names.SCHEMA, catalog.SCHEMA, graph.SCHEMA, rows.SCHEMA, leases.SCHEMA, clock.SCHEMA, labels.SCHEMA)
HERE = Source("registry.test", "team/app")


class Nobody:
    """A layer provider that must not be called."""

    async def provide(self, layers: object) -> list[object]:
        raise AssertionError("nothing is fetched here")


class World:
    """GarbageStores with a collector and an evictor. `now` is the time of leases and of the access clock, in ns."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        make_directory(root)
        self.now = 1_000
        self.used: set[Resource] = set()
        self.forgotten: set[Digest] = set()
        self.database = Database(root / "imgfs.db", SCHEMAS)
        self.names = names.Names(self.database)
        self.catalog = catalog.Catalog(self.database)
        self.graph = graph.SnapshotGraph(self.database)
        self.content = ContentStore(root, labels.Labels(self.database))
        self.ingests = IngestStore(self.content, nursery)
        self.layers = LayerStore(root)
        self.snapshots = SnapshotStore(root, self.database, self.graph, lambda _: None)
        self.views = Views(self.graph, Nobody(), nursery)
        self.images = MetadataImages(root)
        self.leases = leases.Leases(self.database, lambda: self.now)
        self.pins = Pins()
        self.clock = clock.AccessClock(self.database, lambda: self.now)
        self.containers = Containers(ContainerRecords(root), keep_deleted=3600)
        self.introduce(
            GarbageStores(
                names=self.names,
                catalog=self.catalog,
                content=self.content,
                ingests=self.ingests,
                layers=self.layers,
                graph=self.graph,
                views=self.views,
                snapshots=self.snapshots,
                images=self.images,
                leases=self.leases,
                pins=self.pins,
                clock=self.clock,
                containers=self.containers,
                labels=self.content.labels,
                in_use=self._in_use,
                forgotten=self.forgotten.update,
            )
        )

    def introduce(self, stores: GarbageStores) -> None:
        """Make the collector and the evictor use `stores`."""
        self.stores, running = stores, trio.Lock()
        self.collector = Collector(stores, running)
        self.evictor = Evictor(stores, running)

    async def _in_use(self) -> set[Resource]:
        return self.used

    def close(self) -> None:
        self.layers.close()
        self.database.close()

    async def blob(self, data: bytes) -> Digest:
        """Store a blob."""
        digest = Digest.of(data)
        await self.content.add(digest, data)
        return digest

    async def tar(self, data: bytes) -> Digest:
        """Store a layer."""
        diff_id = Digest.of(data)
        with self.layers.writer() as writer:
            writer.append(data)
            writer.seal()
            writer.adopt(diff_id)
            writer.make_durable()
        return diff_id

    async def proven(self, blob: Descriptor, diff_id: Digest) -> None:
        """Record that `blob` unpacks to `diff_id` and has a source."""
        await self.catalog.prove_diff_id(blob, diff_id)
        await self.catalog.add([blob], [HERE])

    async def image(self, name: str, *layers: bytes) -> Digest:
        """Store an image of these layers as a pull leaves it: the layers unpacked, and a source for every blob."""
        blobs = [descriptor(b"blob of " + data, OCI_LAYER) for data in layers]
        diff_ids = [await self.tar(data) for data in layers]
        made_config, made = config(diff_ids), manifest(config(diff_ids), blobs)
        for data in (made_config, made):
            await self.blob(data)
        await self.catalog.add([descriptor(made_config, OCI_CONFIG), descriptor(made, OCI_MANIFEST), *blobs], [HERE])
        for one, diff_id in zip(blobs, diff_ids, strict=True):
            await self.proven(one, diff_id)
        await self.graph.record(list(zip(blobs, diff_ids, strict=True)))
        if name:
            await self.names.put(name, Digest.of(made))
        return Digest.of(made)

    def temporary(self) -> list[Path]:
        """Return the temporary files of the state directory."""
        return list(self.content.root.rglob(".tmp-*"))

    def stored(self) -> set[str]:
        """Return the digests of all stored blobs and the diff IDs of all stored layers."""
        return {info.digest for info in self.content} | {layer.diff_id for layer in self.layers}


def descriptor(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(Digest.of(data), len(data), media_type)


def config(diff_ids: Iterable[Digest]) -> bytes:
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    return json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()


def manifest(of: bytes, layers: Iterable[Descriptor]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _json(descriptor(of, OCI_CONFIG)),
            "layers": [_json(layer) for layer in layers],
        }
    ).encode()


def index(children: Iterable[Descriptor]) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_json(child) for child in children]}
    ).encode()


def _json(of: Descriptor) -> dict[str, str | int]:
    return {"digest": of.digest, "size": of.size, "mediaType": of.media_type}
