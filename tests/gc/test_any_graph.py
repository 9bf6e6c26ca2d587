"""In any graph, everything that a root reaches stays and everything else is removed.

The expected result comes from a direct, slow implementation of the definition.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.leases.resource import Resource, ResourceKind, content, layer, snapshot
from imgfs.oci.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from imgfs.oci.digest import EMPTY, Digest, chain_ids
from tests.gc.world import HERE, World, config, descriptor, index, manifest

LAYERS, MANIFESTS, INDEXES, PLAIN = 4, 4, 2, 4

TARS = [b"tar %d" % number for number in range(LAYERS)]
BLOBS = [b"blob %d" % number for number in range(LAYERS)]
LAYER_BLOBS = [descriptor(data, OCI_LAYER) for data in BLOBS]
DIFF_IDS = [Digest.of(data) for data in TARS]
NOTES = [b"note %d" % number for number in range(PLAIN)]


@dataclass
class Plan:
    """A generated state. Documents are bytes; sets hold digests, diff IDs or chain IDs."""

    manifests: list[list[int]]
    indexes: list[list[int]]
    stored: set[Digest] = field(default_factory=set)
    sourced: set[Digest] = field(default_factory=set)
    proven: set[int] = field(default_factory=set)
    tars: set[int] = field(default_factory=set)
    recorded: list[int] = field(default_factory=list)
    metadata: set[Digest] = field(default_factory=set)
    roots: list[Resource] = field(default_factory=list)
    labels: dict[Digest, dict[str, Digest]] = field(default_factory=dict)

    def config(self, number: int) -> bytes:
        return config(DIFF_IDS[one] for one in self.manifests[number])

    def manifest(self, number: int) -> bytes:
        return manifest(self.config(number), [LAYER_BLOBS[one] for one in self.manifests[number]])

    def index(self, number: int) -> bytes:
        return index([descriptor(self.manifest(one), OCI_MANIFEST) for one in self.indexes[number]])

    def chain(self, number: int) -> list[Digest]:
        return chain_ids([DIFF_IDS[one] for one in self.manifests[number]]) or [EMPTY]

    def everything(self) -> dict[Digest, tuple[bytes, str]]:
        """Return all blobs that may be stored, with their media types."""
        found = [(data, OCI_LAYER) for data in BLOBS] + [(data, "application/x-note") for data in NOTES]
        for number in range(len(self.manifests)):
            found += [(self.config(number), OCI_CONFIG), (self.manifest(number), OCI_MANIFEST)]
        found += [(self.index(number), OCI_INDEX) for number in range(len(self.indexes))]
        return {Digest.of(data): (data, kind) for data, kind in found}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    layers = st.lists(st.integers(0, LAYERS - 1), max_size=3)
    plan = Plan(
        draw(st.lists(layers, min_size=1, max_size=MANIFESTS)),
        [],
    )
    children = st.lists(st.integers(0, len(plan.manifests) - 1), max_size=3)
    plan.indexes = draw(st.lists(children, max_size=INDEXES))
    digests = sorted(plan.everything())
    configs = sorted({Digest.of(plan.config(number)) for number in range(len(plan.manifests))})
    notes = [Digest.of(data) for data in NOTES]
    documents = sorted(
        [*(Digest.of(plan.manifest(number)) for number in range(len(plan.manifests)))]
        + [Digest.of(plan.index(number)) for number in range(len(plan.indexes))] * 3
    )
    # Most blobs are stored and have a source. If few were stored, most references would lead nowhere.
    few = st.sets(st.sampled_from(digests), max_size=3)
    plan.stored = set(digests) - draw(few) - draw(st.sets(st.sampled_from(configs)))
    plan.sourced = set(digests) - draw(few)
    numbers = st.sets(st.integers(0, LAYERS - 1))
    plan.proven, plan.tars = draw(numbers), draw(numbers)
    plan.recorded = draw(st.lists(st.integers(0, len(plan.manifests) - 1), max_size=3, unique=True))
    chains = sorted({one for number in range(len(plan.manifests)) for one in plan.chain(number)})
    plan.metadata = draw(st.sets(st.sampled_from(chains)))
    resources = [*map(content, digests), *map(layer, DIFF_IDS), *map(snapshot, chains)]
    leading = st.sampled_from([*map(content, documents), *map(content, notes)])
    plan.roots = draw(st.lists(st.one_of(leading, st.sampled_from(resources)), min_size=1, max_size=3))
    keys = st.sampled_from(["root", "ref.content", "ref.content.1", "ref.snapshot.x", "bref.content"])
    ends = st.one_of(st.sampled_from(notes), st.sampled_from(digests))
    for source, key, target, chain in draw(st.lists(st.tuples(ends, keys, ends, st.sampled_from(chains)), max_size=6)):
        value = chain if key == "ref.snapshot.x" else target
        plan.labels.setdefault(source, {})[f"containerd.io/gc.{key}"] = value
    return plan


class Oracle:
    """Compute everything reachable by following each reference from each root."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.reached: set[tuple[str, str]] = set()
        self.configs = {Digest.of(plan.config(number)): number for number in range(len(plan.manifests))}
        self.manifests = {Digest.of(plan.manifest(number)): number for number in range(len(plan.manifests))}
        self.indexes = {Digest.of(plan.index(number)): number for number in range(len(plan.indexes))}
        self.parents: dict[Digest, Digest | None] = {}
        self.tops: dict[Digest, int | None] = {}
        for number in plan.recorded:
            chain = plan.chain(number)
            for position, one in enumerate(chain):
                self.parents[one] = chain[position - 1] if position else None
                self.tops[one] = plan.manifests[number][position] if plan.manifests[number] else None

    def _new(self, kind: str, id: str) -> bool:
        new = (kind, id) not in self.reached
        self.reached.add((kind, id))
        return new

    def resource(self, resource: Resource) -> None:
        if resource.kind is ResourceKind.CONTENT:
            self.image(Digest(resource.id), may_be_layer=True)
        elif resource.kind is ResourceKind.LAYER:
            self._new("layer", resource.id)
        else:
            self.chain(Digest(resource.id))

    def image(self, digest: Digest, *, may_be_layer: bool = False) -> None:
        self.blob(digest)
        if not self._new("image", digest) and not (may_be_layer and self._new("any", digest)):
            return
        here = digest in self.plan.stored
        if here and digest in self.indexes:
            for one in self.plan.indexes[self.indexes[digest]]:
                self.image(Digest.of(self.plan.manifest(one)))
        elif here and digest in self.manifests:
            self.manifest(self.manifests[digest])
        else:
            self.unpacked(digest)

    def manifest(self, number: int) -> None:
        layers = self.plan.manifests[number]
        self.blob(Digest.of(self.plan.config(number)))
        for one in layers:
            self.blob(LAYER_BLOBS[one].digest)
        if Digest.of(self.plan.config(number)) in self.plan.stored:
            for one in layers:
                self._new("layer", DIFF_IDS[one])
            for chain in self.plan.chain(number):
                self.chain(chain)
        else:
            for one in layers:
                self.unpacked(LAYER_BLOBS[one].digest)

    def unpacked(self, digest: Digest) -> None:
        for one in self.plan.proven:
            if LAYER_BLOBS[one].digest == digest:
                self._new("layer", DIFF_IDS[one])

    def chain(self, chain_id: Digest) -> None:
        new = self._new("chain", chain_id)
        if new and chain_id in self.parents:
            top, parent = self.tops[chain_id], self.parents[chain_id]
            if top is not None:
                self._new("layer", DIFF_IDS[top])
                self.blob(LAYER_BLOBS[top].digest)
            if parent is not None:
                self.chain(parent)

    def blob(self, digest: Digest) -> None:
        if not self._new("blob", digest):
            return
        if digest in self.plan.stored:
            for key, value in self.plan.labels.get(digest, {}).items():
                if ".ref.content" in key:
                    self.image(value, may_be_layer=True)
                elif ".ref.snapshot" in key:
                    self.chain(value)
        for other in sorted(self.plan.labels):
            if other in self.plan.stored and self.plan.labels[other].get("containerd.io/gc.bref.content") == digest:
                self.image(other, may_be_layer=True)

    def alone(self) -> list[Resource]:
        """Return everything that is stored, not reached, and cannot be fetched again."""
        fetchable = {DIFF_IDS[one] for one in self.plan.proven if LAYER_BLOBS[one].digest in self.plan.sourced}
        blobs = [one for one in self.plan.stored if ("blob", one) not in self.reached and one not in self.plan.sourced]
        tars = [DIFF_IDS[one] for one in self.plan.tars]
        layers = [one for one in tars if ("layer", one) not in self.reached and one not in fetchable]
        tops = {chain: DIFF_IDS[top] for chain, top in self.tops.items() if top is not None}
        chains = [chain for chain, diff_id in tops.items() if diff_id in layers]
        return [*map(content, blobs), *map(layer, layers), *map(snapshot, chains)]

    def walk(self) -> None:
        for resource in self.plan.roots:
            self.resource(resource)
        for digest in sorted(self.plan.stored):
            if "containerd.io/gc.root" in self.plan.labels.get(digest, {}):
                self.image(digest, may_be_layer=True)


async def build(world: World, plan: Plan) -> None:
    for digest, (data, kind) in plan.everything().items():
        if digest in plan.stored:
            await world.content.add(digest, data)
        if digest in plan.sourced:
            await world.catalog.add([descriptor(data, kind)], [HERE])
    for one in plan.tars:
        await world.tar(TARS[one])
    for one in plan.proven:
        await world.catalog.prove_diff_id(LAYER_BLOBS[one], DIFF_IDS[one])
    for number in plan.recorded:
        await world.graph.record([(LAYER_BLOBS[one], DIFF_IDS[one]) for one in plan.manifests[number]])
    for chain in plan.metadata:
        world.images.path(chain).write_bytes(b"metadata")
    for digest, labels in plan.labels.items():
        if digest in plan.stored:
            for key, value in labels.items():
                await world.content.set_label(digest, key, value.encode())
    await world.leases.create("roots")
    for number, resource in enumerate(plan.roots):
        if number == 0 and resource.kind is ResourceKind.CONTENT:
            await world.leases.add("roots", "first", resource)
        elif number == 1:
            world.used.add(resource)
        else:
            await world.leases.add("roots", str(number), resource)


async def remaining(world: World) -> set[tuple[str, str]]:
    return {
        *(("blob", info.digest) for info in world.content),
        *(("layer", one.diff_id) for one in world.layers),
        *(("chain", one.chain_id) for one in world.graph),
        *(("metadata", chain) for chain, _ in world.images.stored()),
        *(("catalogue", digest) for digest in await world.catalog.digests()),
    }


def expected(plan: Plan, before: set[tuple[str, str]], *, everything: bool) -> set[tuple[str, str]]:
    oracle = Oracle(plan)
    oracle.walk()
    if not everything:
        for resource in oracle.alone():
            oracle.resource(resource)
    kept = {one for one in before if one in oracle.reached}
    kept |= {("metadata", id) for kind, id in before if kind == "metadata" and ("chain", id) in oracle.reached}
    of_tars = {LAYER_BLOBS[one].digest for one in plan.proven if ("layer", DIFF_IDS[one]) in kept}
    stays = {id for kind, id in oracle.reached if kind == "blob"} | of_tars
    return kept | {("catalogue", id) for kind, id in before if kind == "catalogue" and id in stays}


@settings(max_examples=50)
@given(plans(), st.booleans())
def test_everything_reachable_stays_and_everything_else_is_removed(plan: Plan, everything: bool) -> None:
    async def judge() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with trio.open_nursery() as nursery:
                world = World(Path(directory) / "state", nursery)
                try:
                    await build(world, plan)
                    before = await remaining(world)
                    dry = await world.collector.collect(everything=everything, dry_run=True)
                    assert await remaining(world) == before
                    report = await world.collector.collect(everything=everything)
                    after = await remaining(world)
                    assert after == expected(plan, before, everything=everything)
                    assert (dry.removed, dry.kept, dry.failed) == (report.removed, report.kept, [])
                    assert len(report.removed) == len(before - after)
                    assert not (await world.collector.collect(everything=everything)).removed
                finally:
                    world.close()

    trio.run(judge)
