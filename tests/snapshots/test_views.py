"""Views: the bytes of a rootfs, made once, dropped and made again as they were."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from imgfs.database.database import Database
from imgfs.errors import StorageFailed, Unreachable
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.layers.tree import Node, walk
from imgfs.snapshots import graph as graphs
from imgfs.snapshots import views as room
from imgfs.snapshots.graph import Snapshot, SnapshotGraph, SnapshotLayer
from imgfs.snapshots.views import View, Views
from imgfs.testing.build import Layer as Made
from imgfs.testing.images import Directory, File, Hardlink, SparseFile, Whiteout, layer
from tests.layers.passes import described, stored

RANDOM = os.urandom(200_000)
SPARSE = SparseFile("sparse", size=1_000_000, extents=((4096, b"one" * 512), (500_000 // 512 * 512, b"two" * 100)))
BASE = layer([Directory("d"), File("d/big", RANDOM), File("d/empty"), File("gone", b"x"), SPARSE])
TOP = layer([Whiteout("gone"), File("new", b"top"), Hardlink("link", "new")], "zstd")


class Provider:
    """Has the layers of a store; counts, and fails when told to."""

    def __init__(self, store: LayerStore) -> None:
        self.store = store
        self.asked = 0
        self.error: Exception | None = None

    async def provide(self, layers: Sequence[SnapshotLayer]) -> list[Layer]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return [self.store.get(layer.diff_id) for layer in layers]


class Gallery:
    """Stored layers, their graph, and views on them."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self.database = Database(root / "imgfs.db", [graphs.SCHEMA])
        self.store = LayerStore(root)
        self.graph = SnapshotGraph(self.database)
        self.provider = Provider(self.store)
        self.views = Views(self.graph, self.provider, nursery)

    async def snapshot(self, *layers: Made) -> Snapshot:
        for one in layers:
            await stored(self.store, one)
        return await self.graph.record([(described(one), one.diff_id) for one in layers])

    def close(self) -> None:
        self.store.close()
        self.database.close()


@pytest.fixture
async def gallery(tmp_path: Path) -> AsyncIterator[Gallery]:
    async with trio.open_nursery() as nursery:
        gallery = Gallery(tmp_path, nursery)
        yield gallery
        gallery.close()


def nodes(view: View) -> dict[str, Node]:
    return {path.decode(): node for path, node in walk(view.tree.root)}


async def read(view: View, node: Node) -> bytes:
    return bytes(await view.read_at(node, 0, node.size))


async def test_a_view_is_the_merged_tree_and_its_bytes(gallery: Gallery) -> None:
    view = await gallery.views.get(await gallery.snapshot(BASE, TOP))
    found = nodes(view)
    assert set(found) == {"", "d", "d/big", "d/empty", "sparse", "new", "link"}
    assert [await read(view, found[name]) for name in ("d/big", "d/empty", "new", "link")] == [
        RANDOM,
        b"",
        b"top",
        b"top",
    ]
    assert all(view.node(node.number) is node for node in found.values())


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 10, RANDOM[:10]),
        (199_990, 100, RANDOM[199_990:]),
        (200_000, 1, b""),
        (10**12, 5, b""),
        (5, 0, b""),
        (7, 150_000, RANDOM[7:150_007]),
    ],
    ids=["start", "end", "behind", "far behind", "nothing", "middle"],
)
async def test_reads_are_short_only_at_the_end(gallery: Gallery, offset: int, size: int, expected: bytes) -> None:
    view = await gallery.views.get(await gallery.snapshot(BASE))
    assert await view.read_at(nodes(view)["d/big"], offset, size) == expected


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1_000_000), (0, 100), (4000, 200), (4096, 1536), (5000, 600_000), (5631, 2), (999_999, 9), (700_000, 4096)],
)
async def test_sparse_files_read_with_their_holes(gallery: Gallery, offset: int, size: int) -> None:
    view = await gallery.views.get(await gallery.snapshot(BASE))
    got = await view.read_at(nodes(view)["sparse"], offset, size)
    assert got == SPARSE.content[offset : offset + size]


@pytest.mark.parametrize(("name", "offset"), [("d/big", 100_000), ("sparse", 499_712)])
async def test_a_tar_cut_short_is_a_storage_failure_and_never_zeros(gallery: Gallery, name: str, offset: int) -> None:
    snapshot = await gallery.snapshot(BASE)
    view = await gallery.views.get(snapshot)
    os.truncate(gallery.store.get(BASE.diff_id).tar, 50_000)
    with pytest.raises(StorageFailed, match=f"snapshot {snapshot.chain_id}: is cut short"):
        await view.read_at(nodes(view)[name], offset, 300)


async def test_a_view_is_made_once_however_many_ask(gallery: Gallery) -> None:
    snapshot = await gallery.snapshot(BASE, TOP)
    assert gallery.views.kept(snapshot) is None
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(gallery.views.get, snapshot)
    assert gallery.provider.asked == 1
    assert await gallery.views.get(snapshot) is gallery.views.kept(snapshot)
    assert gallery.provider.asked == 1


async def test_the_least_recently_used_view_is_dropped_and_comes_back_with_its_numbers(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await gallery.snapshot(BASE), await gallery.snapshot(BASE, TOP)
    old = await gallery.views.get(one)
    numbers = {path: node.number for path, node in nodes(old).items()}
    other = await gallery.views.get(two)
    assert gallery.views.kept(one) is old
    monkeypatch.setattr(room, "NODES_KEPT", len(old.tree.nodes) + 4)
    three = await gallery.snapshot(layer([File("a"), File("b"), File("c")]))
    await gallery.views.get(three)
    assert gallery.views.kept(two) is None, "it was used least recently"
    assert gallery.views.kept(one) is old
    assert await read(other, nodes(other)["new"]) == b"top", "whoever holds a dropped view still reads"
    await gallery.views.get(two)
    assert gallery.views.kept(one) is None
    again = await gallery.views.get(one)
    assert again is not old
    assert {path: node.number for path, node in nodes(again).items()} == numbers


async def test_a_view_larger_than_all_that_is_kept_is_kept_alone(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "NODES_KEPT", 1)
    snapshot = await gallery.snapshot(BASE)
    view = await gallery.views.get(snapshot)
    assert gallery.views.kept(snapshot) is view


async def test_what_keeps_layers_away_is_raised_as_itself_and_nothing_is_kept(gallery: Gallery) -> None:
    snapshot = await gallery.snapshot(BASE)
    gallery.provider.error = Unreachable("no route")
    with pytest.raises(Unreachable, match="no route"):
        await gallery.views.get(snapshot)
    assert gallery.views.kept(snapshot) is None


async def test_an_image_without_layers_is_an_empty_root(gallery: Gallery) -> None:
    view = await gallery.views.get(await gallery.snapshot())
    assert set(nodes(view)) == {""}
