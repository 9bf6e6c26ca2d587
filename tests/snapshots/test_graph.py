"""The graph of snapshots: chains and their prefixes. Each has one number, which never changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imgfs.database.database import Database
from imgfs.errors import ImgfsError, NoSpace, NotFound, ReadOnly, StorageFailed
from imgfs.oci.descriptor import OCI_LAYER, Descriptor
from imgfs.oci.digest import EMPTY, Digest, chain_ids
from imgfs.snapshots.graph import SCHEMA, Face, SnapshotGraph, SnapshotLayer


def pair(name: str) -> tuple[Descriptor, Digest]:
    return Descriptor(Digest.of(f"blob {name}".encode()), 1, OCI_LAYER), Digest.of(f"tar {name}".encode())


A, B, C = pair("a"), pair("b"), pair("c")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    yield opened
    opened.close()


@pytest.fixture
def graph(database: Database) -> SnapshotGraph:
    return SnapshotGraph(database)


async def test_recording_a_chain_makes_every_prefix_known(graph: SnapshotGraph) -> None:
    top = await graph.record([A, B, C])
    chain = chain_ids([A[1], B[1], C[1]])
    assert top.chain_id == chain[2]
    assert {one.chain_id: one.parent for one in graph} == {chain[0]: None, chain[1]: chain[0], chain[2]: chain[1]}
    assert graph.layers(top) == [SnapshotLayer(one[0].digest, one[1]) for one in (A, B, C)]
    middle = graph.find(chain[1])
    assert middle is not None
    assert graph.layers(middle) == graph.layers(top)[:2]


async def test_numbers_never_change(graph: SnapshotGraph, database: Database) -> None:
    await graph.record([A, B])
    before = {one.chain_id: one.number for one in graph}
    await graph.record([A, C])
    await graph.record([A, B])
    again = SnapshotGraph(database)
    for opened in (graph, again):
        numbers = {one.chain_id: one.number for one in opened}
        assert len(set(numbers.values())) == len(numbers) == 3
        assert before.items() <= numbers.items()
    assert list(graph) == list(again)


async def test_known_chains_write_nothing(graph: SnapshotGraph, database: Database) -> None:
    first = await graph.record([A, B])
    database.close()
    assert await graph.record([A, B]) == first
    assert await graph.record([A]) == graph.find(A[1])


async def test_an_image_without_layers_has_a_snapshot_too(graph: SnapshotGraph, database: Database) -> None:
    top = await graph.record([])
    assert (top.chain_id, top.parent, top.diff_id, top.blob) == (EMPTY, None, None, None)
    assert graph.layers(top) == []
    assert SnapshotGraph(database).find(EMPTY) == top


async def test_the_same_layer_twice_in_a_chain(graph: SnapshotGraph) -> None:
    top = await graph.record([A, A])
    assert len(list(graph)) == 2
    assert [one.diff_id for one in graph.layers(top)] == [A[1], A[1]]


async def test_chains_recorded_at_once_share_their_base(graph: SnapshotGraph) -> None:
    async with trio.open_nursery() as nursery:
        for other in (B, C, B):
            nursery.start_soon(graph.record, [A, other])
    assert len(list(graph)) == 3


async def test_unknown_chains_are_not_found(graph: SnapshotGraph) -> None:
    assert graph.find(EMPTY) is None
    with pytest.raises(NotFound, match="inode 7"):
        graph.locate(7)


async def test_inode_ranges_are_small_and_never_change(graph: SnapshotGraph, database: Database) -> None:
    one, other = await graph.record([A]), await graph.record([B])
    first, second = await graph.reserve(one, Face.ROOTFS, 10), await graph.reserve(other, Face.ROOTFS, 5)
    assert (first, second) == (2, 12)
    assert await graph.reserve(one, Face.ROOTFS, 10) == first
    again = SnapshotGraph(database)
    for opened in (graph, again):
        assert opened.locate(2) == (one, Face.ROOTFS, 1)
        assert opened.locate(11) == (one, Face.ROOTFS, 10)
        assert opened.locate(12) == (other, Face.ROOTFS, 1)
    assert await again.reserve(other, Face.ROOTFS, 5) == second


async def test_a_view_that_grew_gets_a_new_range(graph: SnapshotGraph) -> None:
    one = await graph.record([A])
    await graph.reserve(one, Face.ROOTFS, 10)
    assert await graph.reserve(one, Face.ROOTFS, 11) == 12
    assert graph.locate(12) == (one, Face.ROOTFS, 1)


@pytest.mark.parametrize("error", [NoSpace, StorageFailed, ReadOnly])
async def test_a_view_has_an_inode_range_even_if_its_row_cannot_be_written(
    graph: SnapshotGraph, database: Database, monkeypatch: pytest.MonkeyPatch, error: type[ImgfsError]
) -> None:
    """A view of stored layers must be readable although its row cannot be written."""

    async def refuse(*_: object, **__: object) -> None:
        raise error("no")

    one, other = await graph.record([A]), await graph.record([B])
    monkeypatch.setattr(database, "write", refuse)
    first = await graph.reserve(one, Face.ROOTFS, 10)
    assert await graph.reserve(one, Face.ROOTFS, 10) == first
    assert await graph.reserve(other, Face.ROOTFS, 10) != first
    assert graph.locate(first + 9) == (one, Face.ROOTFS, 10)


async def test_a_chain_recorded_again_has_the_same_number_and_inodes(graph: SnapshotGraph, database: Database) -> None:
    """The kernel may still have cached some of the inode numbers."""
    layers = [A]
    first = await graph.record(layers)
    inode = await graph.reserve(first, Face.ROOTFS, 10)
    other = await graph.record([B])
    highest = await graph.reserve(other, Face.ROOTFS, 10)
    await graph.remove([first.chain_id])
    with pytest.raises(NotFound):
        graph.locate(inode)
    again = await graph.record(layers)
    assert again.number == first.number
    assert graph.locate(inode) == (again, Face.ROOTFS, 1)
    assert await graph.reserve(again, Face.ROOTFS, 10) == inode
    assert await graph.reserve(again, Face.CHANGES, 5) == highest + 10
    assert SnapshotGraph(database).locate(inode)[0].chain_id == first.chain_id
