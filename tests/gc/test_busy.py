"""Collect and evict in a loop while images are pulled, named and unnamed, and snapshots are committed on them."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from imgfs.failures import Failures
from imgfs.gc.stores import open_blobs
from imgfs.leases.resource import content, layer, snapshot
from imgfs.oci.digest import Digest, chain_ids
from imgfs.oci.reference import Reference
from imgfs.registry.client import Registry
from imgfs.snapshots.graph import Snapshot
from imgfs.snapshots.views import Views
from imgfs.testing.build import AMD64, Image
from imgfs.testing.images import File, image
from imgfs.testing.images import layer as made_layer
from imgfs.testing.registry import FakeRegistry
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.images import Images
from imgfs.transfer.layers import Layers
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.passes import Passes
from imgfs.transfer.resolver import Resolver
from imgfs.transfer.transfers import Transfers
from tests.gc.world import World
from tests.support.compressions import COMPRESSIONS

REPOSITORY = "team/app"
OPERATIONS = 200

POOL = [made_layer([File(f"f{n}", b"%d" % n * 5000)], ("gzip", "zstd", "none")[n % 3]) for n in range(8)]
IMAGES = [image([POOL[a], POOL[b]]) for a, b in itertools.permutations(range(8), 2)][:20]


class Busy(World):
    """A World with a registry."""

    def __init__(self, root: Path, fake: FakeRegistry, client: Registry, nursery: trio.Nursery) -> None:
        super().__init__(root, nursery)
        self.fake = fake
        self.transfers, failures = Transfers(), Failures()
        local = LocalState(self.content, self.ingests, self.layers, self.catalog, failures, self.pins)
        shared = client, self.transfers, Passes(), nursery
        blobs = Blobs(local, *shared)
        self.fetcher = Layers(local, COMPRESSIONS, blobs, *shared)
        documents = Documents(self.content, self.catalog, blobs, AMD64)
        self.resolver = Resolver(self.names, self.catalog, documents, client, failures, nursery, self.pins)
        self.pulling = Images(local, self.graph, documents, blobs, self.fetcher, self.clock.touched)
        self.views = Views(self.graph, self.pulling, nursery)
        self.introduce(replace(self.stores, views=self.views, forgotten=documents.forget))

    async def _in_use(self) -> set[object]:
        return {
            *map(content, open_blobs(self.content)),
            *(content(one.digest) for one in self.transfers),
            *map(layer, self.fetcher.syncing()),
        }

    async def pull(self, made: Image, name: str) -> tuple[Digest, Snapshot]:
        """Pull `made` by a `name` that no other operation uses, so that no other operation removes the name."""
        made.add_to(self.fake, REPOSITORY, name)
        digest = await self.resolver.resolve(Reference(self.fake.host, REPOSITORY, name))
        return digest, await self.pulling.pull(digest)

    def missing(self, made: Image) -> list[str]:
        """Return the parts of a pulled image that are missing, in memory or on disk."""
        blobs = [made.digest, Digest.of(made.config)]
        found = [str(one) for one in blobs if one not in self.content or not self.content.path(one).exists()]
        for diff_id in made.diff_ids:
            if diff_id not in self.layers or not self.layers.get(diff_id).tar.exists():
                found.append(f"layer {diff_id}")
        return found


@pytest.fixture
async def busy(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Busy]:
    async with trio.open_nursery() as nursery, Registry() as client:
        made = Busy(tmp_path / "state", registry, client, nursery)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


async def operate(world: Busy, number: int, limiter: trio.CapacityLimiter) -> None:
    """Pull an image, perhaps commit a snapshot on it, perhaps remove its name. A named image is always complete."""
    async with limiter:
        made = IMAGES[number * 7 % len(IMAGES)]
        _, chain = await world.pull(made, f"op{number}")
        assert not world.missing(made)
        assert world.graph.find(chain.chain_id)
        if number % 3 == 0:
            await world.snapshots.prepare(f"key{number}")
            await world.snapshots.set_parent(f"key{number}", chain.chain_id)
            await world.snapshots.commit(f"key{number}", f"done{number}")
        await trio.lowlevel.checkpoint()
        assert not world.missing(made)
        if number % 4:
            await world.names.remove(f"{world.fake.host}/{REPOSITORY}:op{number}")


async def test_nothing_that_a_root_reaches_is_ever_removed(busy: Busy) -> None:
    done, cycles, removed = trio.Event(), 0, 0

    async def collect() -> None:
        nonlocal cycles, removed
        while not done.is_set():
            report = await busy.collector.collect()
            assert not report.failed
            removed += len(report.removed)
            cycles += 1

    limiter = trio.CapacityLimiter(24)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        async with trio.open_nursery() as operations:
            for number in range(OPERATIONS):
                operations.start_soon(operate, busy, number, limiter)
        done.set()
    assert cycles > 2
    assert removed
    await busy.collector.collect()
    for number in range(0, OPERATIONS, 4):
        assert not busy.missing(IMAGES[number * 7 % len(IMAGES)])
    for number in range(0, OPERATIONS, 3):
        stack = busy.snapshots.stack(f"done{number}")
        assert stack.chain is not None
        chain = busy.graph.find(stack.chain)
        assert chain
        assert all(one.diff_id in busy.layers for one in busy.graph.layers(chain))
    for name in [one.name for one in busy.names]:
        await busy.names.remove(name)
    for info in list(busy.snapshots):
        await busy.snapshots.remove(info.id)
    await busy.collector.collect(everything=True)
    assert not busy.stored()
    assert not list(busy.graph)
    assert not await busy.catalog.digests()


async def test_a_pull_pins_its_blobs_layers_and_chains(busy: Busy) -> None:
    made = IMAGES[0]
    with busy.pins.noting() as noted:
        digest, _ = await busy.pull(made, "one")
    blobs = [digest, *made.blobs]
    assert {*map(content, blobs), *map(layer, made.diff_ids), *map(snapshot, chain_ids(made.diff_ids))} == noted
    assert len(busy.pins) == 0
    assert busy.clock.last_used(made.diff_ids[0])


async def test_a_reader_of_an_evicted_layer_fetches_it_again(busy: Busy) -> None:
    digest, chain = await busy.pull(IMAGES[0], "one")
    view = await busy.views.get(chain)
    report = await busy.evictor.evict(1 << 40)
    assert {Digest(item.id) for item in report.removed if item.kind == "layer"} == set(IMAGES[0].diff_ids)
    assert busy.views.kept(chain) is None
    node = view.tree.root.children[b"f0"]
    assert bytes(await view.data.read_at(node, 0, 1 << 20)) == b"0" * 5000
    busy.fake.reset()
    again = await busy.views.get(chain)
    assert bytes(await again.data.read_at(again.tree.root.children[b"f0"], 0, 1 << 20)) == b"0" * 5000
    assert busy.fake.requests("manifest") == 0
    assert await busy.pulling.pull(digest) == chain


async def test_a_collected_image_that_is_named_again_can_be_pulled_and_evicted(busy: Busy) -> None:
    made = IMAGES[0]
    digest, chain = await busy.pull(made, "one")
    name = next(iter(busy.names)).name
    await busy.names.remove(name)
    await busy.pull(IMAGES[1], "two")
    await busy.collector.collect()
    assert busy.missing(made)
    await busy.resolver.register(name, digest)
    again = await busy.pulling.pull(digest)
    assert (again.chain_id, busy.missing(made)) == (chain.chain_id, [])
    await busy.evictor.evict(1 << 40)
    assert await busy.views.get(again)


async def test_pulls_during_evictions_succeed(busy: Busy) -> None:
    done = trio.Event()

    async def evict() -> None:
        while not done.is_set():
            await busy.evictor.evict(1 << 40)

    async def pull(number: int) -> None:
        made = IMAGES[number % len(IMAGES)]
        digest, chain = await busy.pull(made, f"op{number}")
        with busy.pins.hold(content(digest), *map(layer, made.diff_ids)):
            await busy.pulling.pull(digest)
            assert not busy.missing(made)
            assert await busy.views.get(chain)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(evict)
        async with trio.open_nursery() as pulls:
            for number in range(40):
                pulls.start_soon(pull, number)
        done.set()


async def test_a_blob_that_is_open_is_in_use(busy: Busy) -> None:
    digest = await busy.blob(b"open")
    file = busy.content.open(digest)
    try:
        assert open_blobs(busy.content) == [digest]
    finally:
        os.close(file)
    assert open_blobs(busy.content) == []
