"""Partial downloads: they are evicted first, and gc removes those that no named image needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.content.ingests.downloads import copy_ref, download_ref
from imgfs.gc.space import SpaceKeeper, SpaceLimits
from imgfs.leases.resource import Resource, ResourceKind, content
from imgfs.oci.descriptor import OCI_LAYER
from imgfs.oci.digest import Digest
from tests.gc.world import HERE, World, descriptor

TAR = b"t" * 100_000
BLOB = descriptor(b"blob of " + TAR, OCI_LAYER)
LOST = b"lost" * 10_000
ALL = 1 << 40


async def left(world: World, ref: str, data: bytes = bytes(50_000)) -> str:
    """Leave a partial blob that has no writer."""
    async with await world.ingests.open(ref) as writer:
        await writer.write(data)
    return ref


async def known(world: World, data: bytes) -> Digest:
    """Record a layer blob that a registry has."""
    blob = descriptor(data, OCI_LAYER)
    await world.catalog.add([blob], [HERE])
    return blob.digest


def refs(world: World) -> set[str]:
    return {status.ref for status in world.ingests}


@pytest.mark.parametrize("ref_of", [copy_ref, download_ref])
async def test_partial_downloads_are_evicted_before_complete_layers(world: World, ref_of: object) -> None:
    assert callable(ref_of)
    await world.image("a.test/box:1", TAR)
    ref = await left(world, ref_of(await known(world, LOST)))
    dry = await world.evictor.evict(1, dry_run=True)
    assert refs(world) == {ref}
    report = await world.evictor.evict(1)
    assert [(item.kind, item.id) for item in report.removed] == [("ingest", ref)]
    assert (dry.removed, report.bytes >= 50_000) == (report.removed, True)
    assert (refs(world), world.temporary()) == (set(), [])
    await world.evictor.evict(ALL)
    assert Digest.of(TAR) not in world.stored()


async def test_running_leased_and_unknown_partial_downloads_stay(world: World) -> None:
    running, leased, wanted = [await known(world, LOST + bytes([n])) for n in range(3)]
    copy = await world.ingests.copy(running, len(LOST) + 1)
    await left(world, copy_ref(leased))
    await left(world, copy_ref(wanted))
    await left(world, copy_ref(Digest.of(b"nobody has it")))
    await left(world, "mine")
    await world.leases.create("l")
    await world.leases.add("l", "it", Resource(ResourceKind.INGEST, copy_ref(leased)))
    await world.leases.add("l", "that", content(wanted))
    everything = refs(world)
    assert not (await world.evictor.evict(ALL)).removed
    await world.collector.collect(everything=True)
    assert refs(world) == everything
    await world.leases.delete("l")
    await world.evictor.evict(ALL)
    assert everything - refs(world) == {copy_ref(leased), copy_ref(wanted)}
    await copy.close(keep=False)


async def test_gc_removes_partial_downloads_that_are_unreachable_or_already_stored(world: World) -> None:
    await world.image("a.test/box:1", TAR)
    stray, twice = copy_ref(await known(world, LOST)), copy_ref(BLOB.digest)
    await left(world, stray)
    await left(world, twice)
    assert {item.id for item in (await world.collector.collect(dry_run=True)).removed} >= {stray, twice}
    assert refs(world) == {stray, twice}
    await world.collector.collect()
    assert refs(world) == set()
    assert Digest.of(TAR) in world.stored()


async def test_gc_keeps_a_partial_download_of_a_named_image(world: World) -> None:
    await world.image("a.test/box:1", TAR)
    await world.layers.evict(Digest.of(TAR))
    ref = await left(world, copy_ref(BLOB.digest))
    await world.collector.collect()
    assert refs(world) == {ref}


async def test_partial_downloads_count_against_the_quota(world: World, tmp_path: Path) -> None:
    space = SpaceKeeper(tmp_path, world.stores)
    before = await space.used()
    ref = await left(world, copy_ref(await known(world, LOST)))
    assert await space.used() >= before + 50_000
    await space.enforce(SpaceLimits(quota=10_000))
    assert ref not in refs(world)


async def test_a_partial_download_that_is_resumed_meanwhile_stays(world: World, nursery: trio.Nursery) -> None:
    digest = await known(world, LOST)
    await left(world, copy_ref(digest), LOST[:100])
    (seen,) = world.ingests
    copy = await world.ingests.copy(digest, len(LOST))
    nursery.start_soon(world.evictor.evict, ALL)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert refs(world) == {seen.ref}
    await copy.close(keep=True)
    assert world.ingests.status(seen.ref).offset == 100
