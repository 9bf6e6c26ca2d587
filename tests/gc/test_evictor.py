"""The evictor: the order of eviction, what prevents it, and how much is removed."""

from __future__ import annotations

from imgfs.gc.report import GarbageReport
from imgfs.leases.resource import content
from imgfs.oci.descriptor import OCI_LAYER
from imgfs.oci.digest import Digest
from tests.gc.world import HERE, World, config, descriptor, manifest

TARS = [b"%d" % number * 100_000 for number in range(4)]
DIFF_IDS = [Digest.of(tar) for tar in TARS]
ALL = 1 << 40


def order(report: GarbageReport) -> list[str]:
    return [item.id for item in report.removed]


async def test_the_least_recently_used_layers_are_evicted_and_no_more_than_needed(world: World) -> None:
    await world.image("a.test/box:1", *TARS)
    for number in (2, 0, 3, 1):
        world.now += 1
        world.clock.touched(DIFF_IDS[number])
    dry = await world.evictor.evict(150_000, dry_run=True)
    assert len(world.stored()) == 6
    report = await world.evictor.evict(150_000)
    assert order(report) == order(dry) == [DIFF_IDS[2], DIFF_IDS[0]]
    assert report.bytes >= 150_000
    assert order(await world.evictor.evict(ALL)) == [DIFF_IDS[3], DIFF_IDS[1]]
    assert len(world.stored()) == 2  # manifest and config stay
    assert not (await world.evictor.evict(0)).removed


async def test_a_blob_with_an_unpacked_layer_is_evicted_first(world: World) -> None:
    await world.image("a.test/box:1", TARS[0])
    blob = await world.blob(b"blob of " + TARS[0])
    world.now += 1 << 62
    world.clock.touched(blob)
    assert order(await world.evictor.evict(1)) == [blob]
    assert order(await world.evictor.evict(1)) == [DIFF_IDS[0]]


async def test_documents_and_content_without_a_source_are_never_evicted(world: World) -> None:
    digest = await world.image("a.test/box:1", TARS[0])
    own, lonely = await world.blob(b"own"), await world.tar(TARS[1])
    await world.evictor.evict(ALL)
    assert {digest, own, lonely} <= world.stored()
    assert DIFF_IDS[0] not in world.stored()


async def test_imported_content_is_neither_evicted_nor_collected(world: World) -> None:
    blobs = [await world.blob(tar) for tar in TARS[:2]]
    made_config = config([DIFF_IDS[0], DIFF_IDS[1]])
    made = manifest(made_config, [descriptor(tar, OCI_LAYER) for tar in TARS[:2]])
    everything = {*blobs, await world.blob(made_config), await world.blob(made), await world.tar(TARS[0])}
    await world.names.put("a.test/box:1", Digest.of(made))
    await world.names.put("other", await world.blob(b"other"))
    await world.catalog.add_source(Digest.of(made), HERE)
    await world.catalog.add([descriptor(tar, OCI_LAYER) for tar in TARS[:2]], [])
    await world.catalog.prove_diff_id(descriptor(TARS[0], OCI_LAYER), DIFF_IDS[0])
    assert not (await world.evictor.evict(ALL)).removed
    await world.names.remove("a.test/box:1")
    assert not (await world.collector.collect()).removed
    assert everything <= world.stored()


async def test_a_layer_with_only_an_unverified_source_is_not_evicted(world: World) -> None:
    blob = descriptor(b"blob of " + TARS[0], OCI_LAYER)
    diff_id = await world.tar(TARS[0])
    await world.catalog.prove_diff_id(blob, diff_id)
    await world.catalog.add_source(blob.digest, HERE)
    assert not (await world.evictor.evict(ALL)).removed
    assert diff_id in world.stored()


async def test_a_layer_with_a_stored_blob_is_evicted_even_without_a_source(world: World) -> None:
    """This is the state after an import: the blob stays, and the layer can be unpacked from it again."""
    diff_id, other = await world.tar(TARS[0]), await world.tar(TARS[1])
    blob = await world.blob(b"blob of " + TARS[0])
    await world.catalog.prove_diff_id(descriptor(b"blob of " + TARS[0], OCI_LAYER), diff_id)
    await world.image("a.test/box:1", TARS[2])
    world.now += 1 << 62
    world.clock.touched(diff_id)
    assert order(await world.evictor.evict(1)) == [diff_id]
    assert order(await world.evictor.evict(ALL)) == [DIFF_IDS[2]]
    assert {blob, other} <= world.stored()


async def test_leases_pins_and_root_labels_prevent_eviction(world: World) -> None:
    leased = await world.image("a.test/box:1", TARS[0])
    pinned = await world.image("b.test/box:1", TARS[1])
    await world.image("c.test/box:1", TARS[2])
    labelled = await world.blob(b"labelled")
    await world.catalog.add([descriptor(b"labelled", OCI_LAYER)], [HERE])
    await world.content.set_label(labelled, "containerd.io/gc.root", b"")
    await world.leases.create("mine")
    await world.leases.add("mine", "it", content(leased))
    with world.pins.hold(content(pinned)):
        assert order(await world.evictor.evict(ALL)) == [DIFF_IDS[2]]
    await world.leases.delete("mine")
    assert set(order(await world.evictor.evict(ALL))) == {DIFF_IDS[0], DIFF_IDS[1]}
    assert labelled in world.stored()


async def test_an_uncompressed_layer_counts_once(world: World) -> None:
    diff_id = await world.tar(TARS[0])
    blob = descriptor(TARS[0], OCI_LAYER)
    await world.content.adopt(blob.digest, world.layers.get(diff_id).tar)
    await world.proven(blob, diff_id)
    report = await world.evictor.evict(1)
    assert [(item.kind, item.bytes > 0) for item in report.removed] == [("blob", False), ("layer", True)]
