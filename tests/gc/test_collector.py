"""The collector: which content it keeps, which it removes, and its report."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from imgfs.errors import AlreadyExists, NotFound, StorageFailed
from imgfs.gc.cycle import Cycle
from imgfs.gc.marker import Marker
from imgfs.gc.report import GarbageReport
from imgfs.leases.resource import content, layer, snapshot
from imgfs.oci.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from imgfs.oci.digest import Digest, chain_id
from imgfs.snapshots.graph import Face, SnapshotGraph
from tests.gc.world import HERE, World, config, descriptor, index, manifest

BASE, TOP, OTHER = b"base" * 999, b"top" * 999, b"other" * 999


def went(report: GarbageReport) -> set[str]:
    assert not report.failed
    return {item.id for item in report.removed if item.kind in ("blob", "layer")}


async def test_an_unnamed_image_is_removed_except_for_layers_that_it_shares(world: World) -> None:
    await world.image("a.test/box:1", BASE, TOP)
    before = world.stored()
    other = await world.image("b.test/box:1", BASE, OTHER)
    assert not (await world.collector.collect()).removed
    await world.names.remove("b.test/box:1")
    report = await world.collector.collect()
    assert world.stored() == before
    assert {other, Digest.of(OTHER)} < went(report)
    assert len(went(report)) == 3  # and the config
    assert world.graph.find(chain_id([Digest.of(BASE), Digest.of(OTHER)])) is None
    assert world.graph.find(chain_id([Digest.of(BASE), Digest.of(TOP)]))


async def test_a_dry_run_has_the_report_of_the_run_and_changes_nothing(world: World) -> None:
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)
    before, known = world.stored(), await world.catalog.digests()
    dry = await world.collector.collect(dry_run=True)
    assert (world.stored(), await world.catalog.digests()) == (before, known)
    assert world.graph.find(Digest.of(OTHER))
    report = await world.collector.collect()
    assert (dry.removed, dry.kept, dry.bytes) == (report.removed, report.kept, report.bytes)
    assert {item.kind for item in report.removed} == {"snapshot", "layer", "blob", "catalogue"}
    assert b'"dry_run": true' in dry.encode()


async def test_a_collection_without_roots_is_refused_unless_everything_is_requested(world: World) -> None:
    await world.image("", BASE)
    before = world.stored()
    report = await world.collector.collect()
    assert report.refused
    assert world.stored() == before
    with world.pins.hold(
        content(Digest.of(b"something"))
    ):  # the pin of a new pull does not replace roots that were lost
        assert (await world.collector.collect()).refused
    assert not (await world.collector.collect(everything=True)).refused
    assert not world.stored()
    assert not (await world.collector.collect()).refused  # nothing to lose


async def test_blobs_without_a_source_stay_with_their_references_unless_everything_is_requested(world: World) -> None:
    await world.image("a.test/box:1", BASE)
    before = world.stored()
    own = await world.blob(b"a user's own")
    lonely = await world.image("", OTHER)
    made = index([descriptor(await world.content.read(lonely), OCI_MANIFEST)])
    held = await world.blob(made)
    report = await world.collector.collect()
    assert not report.removed
    assert {item.id for item in report.kept} == {own, held}
    await world.collector.collect(everything=True)
    assert world.stored() == before


async def test_a_tar_without_a_source_keeps_its_chain(world: World) -> None:
    await world.image("a.test/box:1", BASE)
    diff_id = await world.tar(OTHER)
    await world.graph.record([(descriptor(b"gone", OCI_LAYER), diff_id)])
    report = await world.collector.collect()
    assert [item.id for item in report.kept] == [diff_id]
    assert world.graph.find(diff_id)


async def test_leases_pins_and_use_hold_images_layers_and_chains(world: World) -> None:
    await world.image("a.test/box:1", BASE)
    before = world.stored()
    digest = await world.image("", TOP, OTHER)
    chain = snapshot(chain_id([Digest.of(TOP), Digest.of(OTHER)]))
    await world.leases.create("mine", expires=2_000)
    await world.leases.add("mine", "it", content(digest))
    assert not (await world.collector.collect()).removed
    world.now = 3_000
    with world.pins.hold(content(digest)):
        assert not (await world.collector.collect()).removed
    world.used = {chain}
    assert {item.kind for item in (await world.collector.collect()).removed} == {"blob", "catalogue"}
    world.used = {layer(Digest.of(OTHER))}
    assert went(await world.collector.collect()) == {Digest.of(TOP)}
    world.used = set()
    await world.collector.collect()
    assert world.stored() == before


async def test_users_snapshots_and_views_hold_their_chains(world: World) -> None:
    await world.image("", BASE)
    await world.image("", TOP)
    await world.snapshots.view("pinned", Digest.of(BASE))
    await world.snapshots.prepare("work")
    await world.snapshots.set_parent("work", Digest.of(TOP))
    report = await world.collector.collect()
    assert {item.kind for item in report.removed} == {"blob", "catalogue"}  # manifests and configs
    assert world.graph.find(Digest.of(BASE))
    await world.snapshots.remove("active/work")
    assert went(await world.collector.collect()) == {Digest.of(TOP)}


async def test_gc_labels_work_as_in_containerd(world: World) -> None:
    root, child, note, target, back = [await world.blob(name) for name in (b"r", b"c", b"n", b"t", b"b")]
    await world.catalog.add([descriptor(name, "x") for name in (b"r", b"c", b"n", b"t", b"b")], [HERE])
    await world.image("", BASE)
    await world.content.set_label(root, "containerd.io/gc.root", b"now")
    await world.content.set_label(root, "containerd.io/gc.ref.content.0", child.encode())
    await world.content.set_label(child, "containerd.io/gc.ref.content/x", target.encode())
    await world.content.set_label(child, "containerd.io/gc.ref.snapshot.overlayfs", Digest.of(BASE).encode())
    await world.content.set_label(back, "containerd.io/gc.bref.content", target.encode())
    await world.content.set_label(note, "containerd.io/gc.ref.content", root.encode())
    await world.content.set_label(note, "containerd.io/gc.ref.content.1", b"no digest")
    report = await world.collector.collect()
    assert note in went(report)
    assert len(went(report)) == 3
    assert {root, child, target, back, Digest.of(BASE)} == world.stored()
    await world.content.remove_label(root, "containerd.io/gc.root")
    await world.names.put("a", Digest.of(b"elsewhere"))
    await world.collector.collect()
    assert not world.stored()
    assert not world.content.labels(child)


async def test_labels_can_refer_to_image_names_in_both_directions(world: World) -> None:
    bound, loose = await world.blob(b"bound"), await world.blob(b"loose")
    await world.catalog.add([descriptor(name, "x") for name in (b"bound", b"loose")], [HERE])
    await world.image("a.test/box:1", BASE)
    await world.content.set_label(bound, "containerd.io/gc.bref.image", b"a.test/box:1")
    await world.content.set_label(loose, "containerd.io/gc.bref.image/x", b"a.test/box:2")
    assert went(await world.collector.collect()) == {loose}
    await world.names.rename("a.test/box:1", "a.test/box:3")
    assert went(await world.collector.collect()) == {bound}


async def test_a_label_that_refers_to_an_image_name_prevents_eviction(world: World) -> None:
    root = await world.blob(b"root")
    await world.image("a.test/box:1", BASE)
    await world.image("b.test/box:1", OTHER)
    await world.content.set_label(root, "containerd.io/gc.root", b"now")
    await world.content.set_label(root, "containerd.io/gc.ref.image", b"a.test/box:1")
    assert went(await world.evictor.evict(1 << 40)) == {Digest.of(OTHER)}


async def test_discard_removes_only_the_given_blobs_that_nothing_refers_to(world: World) -> None:
    """This works without any root, and for blobs that cannot be fetched again: the caller that stored them asks."""
    own, other, held = [await world.blob(name) for name in (b"own", b"other", b"held")]
    await world.collector.discard([own, Digest.of(b"gone")])
    assert world.stored() == {other, held}
    digest = await world.image("a.test/box:1", BASE)
    await world.leases.create("mine")
    await world.leases.add("mine", "it", content(held))
    report = await world.collector.discard([digest, other, held])
    assert [item.id for item in report.removed] == [other]
    assert {digest, held, Digest.of(BASE)} <= world.stored()


async def test_a_blob_that_a_writer_was_told_already_exists_is_not_discarded(world: World) -> None:
    digests = [await world.blob(name) for name in (b"sent", b"declared", b"alone")]
    async with await world.ingests.open("mine") as writer:
        await writer.write(b"sent")
    with pytest.raises(AlreadyExists):
        await world.ingests.commit("mine", digests[0])
    with pytest.raises(AlreadyExists):
        await world.ingests.open("other", expected=digests[1])
    await world.collector.discard(digests)
    assert world.stored() == set(digests[:2])
    await world.content.delete(digests[0])
    await world.blob(b"sent")
    await world.collector.discard(digests)
    assert world.stored() == {digests[1]}


async def test_an_image_without_its_config_keeps_the_unpacked_layers_of_its_blobs(world: World) -> None:
    digest = await world.image("a.test/box:1", BASE, OTHER)
    report = await world.collector.collect()
    assert not report.removed
    made = Digest.of(config([Digest.of(BASE), Digest.of(OTHER)]))
    await world.content.delete(made)
    assert not went(await world.collector.collect())
    assert world.stored() == {digest, Digest.of(BASE), Digest.of(OTHER)}


async def test_a_failed_removal_of_chains_is_reported_and_the_rest_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)

    async def failing(_: list[Digest]) -> None:
        raise StorageFailed("imgfs.db: disk I/O error")

    monkeypatch.setattr(world.graph, "remove", failing)
    report = await world.collector.collect()
    assert [item.id for item in report.failed] == [Digest.of(OTHER)]
    assert Digest.of(OTHER) not in world.stored()


async def test_a_long_chain_of_labels_is_followed_to_its_end(world: World) -> None:
    names = [b"%d" % number for number in range(1500)]
    digests = [Digest.of(name) for name in names]
    following = dict(zip(digests, [*digests[1:], None], strict=True))
    marker = Marker(
        replace(world.stores, labels=lambda digest: {"containerd.io/gc.ref.content": following[digest] or ""})
    )
    marker.image(digests[0])
    await marker.run()
    assert marker.blobs == set(digests)


async def test_metadata_images_are_removed_with_their_chains(world: World) -> None:
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)
    for data in (BASE, OTHER):
        world.images.path(Digest.of(data)).write_bytes(bytes(4096))
    report = await world.collector.collect()
    assert [item.id for item in report.removed if item.kind == "metadata"] == [Digest.of(OTHER)]
    assert world.images.stored() == [(Digest.of(BASE), 4096)]


async def test_sources_are_kept_for_named_or_stored_content(world: World) -> None:
    digest = await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)
    await world.layers.evict(Digest.of(BASE))
    await world.collector.collect()
    known = await world.catalog.digests()
    assert {digest, Digest.of(b"blob of " + BASE)} <= known
    assert Digest.of(b"blob of " + OTHER) not in known
    assert Digest.of(b"blob of " + OTHER) in world.forgotten
    assert len(known) == 3


async def test_referrers_stay_as_long_as_their_image(world: World) -> None:
    box = await world.image("box", b"layer")
    sbom, own = descriptor(b"an sbom", "text/spdx"), config([])
    document = manifest(own, [sbom])
    for data in (b"an sbom", own, document):
        await world.blob(data)
    listed = descriptor(document, OCI_MANIFEST)
    await world.catalog.add([listed, sbom, descriptor(own, OCI_CONFIG)], [HERE])
    await world.catalog.referrers.replace(box, HERE, [listed])
    before = world.stored()
    assert (await world.collector.collect()).removed == []
    assert world.stored() == before
    await world.names.remove("box")
    await world.names.put("other", await world.image("other", b"another"))
    await world.collector.collect()
    assert not {listed.digest, sbom.digest, box} & world.stored()
    assert await world.catalog.referrers.of(box) == []


async def test_open_files_and_held_layers_stay_readable_after_removal(world: World) -> None:
    await world.image("a.test/box:1", BASE)
    digest = await world.image("", OTHER)
    tar, file = world.layers.get(Digest.of(OTHER)), world.content.open(digest)
    tar.descriptor()
    assert Digest.of(OTHER) in went(await world.collector.collect())
    assert bytes(await tar.read_at(0, len(OTHER))) == OTHER
    assert Digest.of(os.read(file, 1 << 20)) == digest
    os.close(file)
    descriptor = tar.descriptor()
    del tar
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_an_unreadable_document_stops_the_run_before_any_removal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)
    before = world.stored()

    def failing(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(StorageFailed):
        await world.collector.collect()
    assert world.stored() == before


async def test_a_failed_removal_of_a_layer_is_reported_and_the_rest_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)
    known = await world.catalog.digests()

    async def failing(_: Digest) -> None:
        raise StorageFailed("layer: Input/output error; check the disk")

    monkeypatch.setattr(world.layers, "evict", failing)
    report = await world.collector.collect()
    assert [(item.kind, item.id) for item in report.failed] == [("layer", Digest.of(OTHER))]
    assert {item.kind for item in report.removed} == {"snapshot", "blob", "catalogue"}
    assert Digest.of(b"blob of " + OTHER) in await world.catalog.digests()
    monkeypatch.undo()
    assert went(await world.collector.collect()) == {Digest.of(OTHER)}
    assert await world.catalog.digests() < known


async def test_a_name_added_between_two_removals_keeps_its_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.image("a.test/box:1", BASE)
    digests = {diff_id: await world.image("", data) for data in (TOP, OTHER) for diff_id in [Digest.of(data)]}
    evict, first = world.layers.evict, min(digests)

    async def name_the_other(diff_id: Digest) -> None:
        assert diff_id == first
        await evict(diff_id)
        await world.names.put("b.test/late:1", digests[max(digests)])

    monkeypatch.setattr(world.layers, "evict", name_the_other)
    await world.collector.collect()
    assert {max(digests), digests[max(digests)]} < world.stored()
    assert digests[first] not in world.stored()
    assert len(world.stored()) == 6


async def test_content_that_is_stored_again_during_the_sweep_is_not_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.image("a.test/box:1", BASE)
    digest = await world.image("", OTHER)
    data, remove = await world.content.read(digest), world.graph.remove

    async def come_back(gone: list[Digest]) -> None:
        await remove(gone)
        await world.content.delete(digest)
        await world.content.add(digest, data)
        await world.layers.evict(Digest.of(OTHER))
        await world.tar(OTHER)

    monkeypatch.setattr(world.graph, "remove", come_back)
    await world.collector.collect()
    assert {digest, Digest.of(OTHER)} < world.stored()
    monkeypatch.undo()
    assert {digest, Digest.of(OTHER)} == went(await world.collector.collect())


async def test_a_chain_that_is_recorded_again_during_its_removal_is_kept_on_disk(world: World) -> None:
    await world.image("", OTHER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.graph.record, [(descriptor(b"x", OCI_LAYER), Digest.of(b"x"))])
        for _ in range(2):  # the writer now runs, and its result will contain all rows
            await trio.lowlevel.checkpoint()
        await world.graph.remove([Digest.of(OTHER)])
    assert list(SnapshotGraph(world.database)) == list(world.graph)


async def test_a_removed_chain_raises_not_found_and_can_be_recorded_again(world: World) -> None:
    await world.image("", BASE, OTHER)
    top = chain_id([Digest.of(BASE), Digest.of(OTHER)])
    chain = world.graph.find(top)
    assert chain
    first = await world.graph.reserve(chain, Face.ROOTFS, 10)
    await world.graph.remove([Digest.of(BASE), top])
    with pytest.raises(NotFound):
        world.graph.layers(chain)
    with pytest.raises(NotFound):
        world.graph.locate(first)
    await world.image("", BASE, OTHER)
    again = world.graph.find(top)
    assert again
    assert again.number == chain.number
    assert await world.graph.reserve(again, Face.ROOTFS, 10) == first


@pytest.mark.parametrize("step", range(6))
async def test_the_next_sweep_finishes_a_sweep_that_crashed(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    world = World(tmp_path / "crashed", nursery)
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER, TOP)
    world.images.path(Digest.of(OTHER)).write_bytes(b"metadata")
    left = iter(range(step))

    def crash(*_: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("imgfs.gc.cycle.Cycle.remove", _crashing(Cycle.remove, crash))
    with pytest.raises(KeyboardInterrupt):
        await world.collector.collect()
    monkeypatch.undo()
    world.close()
    again = World(tmp_path / "crashed", nursery)
    await again.collector.collect()
    assert len(again.stored()) == 3
    assert [chain.chain_id for chain in again.graph] == [Digest.of(BASE)]
    assert not again.images.stored()
    assert len(await again.catalog.digests()) == 3
    assert not again.temporary()
    again.close()


def _crashing(remove: Any, crash: Any) -> Any:
    async def removing(*arguments: Any) -> bool:
        crash()
        return await remove(*arguments)

    return removing


async def test_a_name_added_during_the_sweep_keeps_its_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.image("a.test/box:1", BASE)
    digest = await world.image("", OTHER)
    remove = world.graph.remove

    async def named_meanwhile(gone: list[Digest]) -> None:
        await remove(gone)
        await world.names.put("b.test/late:1", digest)

    monkeypatch.setattr(world.graph, "remove", named_meanwhile)
    before = world.stored()
    report = await world.collector.collect()
    assert {item.kind for item in report.removed} == {"snapshot"}
    assert world.stored() == before


async def test_a_pin_that_was_held_during_the_sweep_keeps_its_blob(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.image("a.test/box:1", BASE)
    digest = await world.image("", OTHER)
    remove = world.graph.remove

    async def pinned_meanwhile(gone: list[Digest]) -> None:
        await remove(gone)
        with world.pins.hold(content(digest)):
            pass

    monkeypatch.setattr(world.graph, "remove", pinned_meanwhile)
    assert {item.kind for item in (await world.collector.collect()).removed} == {"snapshot"}


async def test_the_next_sweep_finishes_a_cancelled_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.image("a.test/box:1", BASE)
    await world.image("", OTHER)
    evict = world.layers.evict
    with trio.CancelScope() as scope:

        async def cut(diff_id: Digest) -> None:
            await evict(diff_id)
            scope.cancel()

        monkeypatch.setattr(world.layers, "evict", cut)
        await world.collector.collect()
    assert scope.cancelled_caught
    assert Digest.of(OTHER) not in world.stored()
    report = await world.collector.collect()
    assert {item.kind for item in report.removed} == {"blob", "catalogue"}
