"""Views: the merged tree of a rootfs, made once, evicted, and made again with the same bytes."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imgfs.database.database import Database
from imgfs.errors import StorageFailed, Unreachable
from imgfs.fs.caller import Caller, Waiters
from imgfs.fs.snapshots.view import ViewNode
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.layers.tree import MergedNode, walk
from imgfs.snapshots import graph as graphs
from imgfs.snapshots import views as room
from imgfs.snapshots.graph import Snapshot, SnapshotGraph, SnapshotLayer
from imgfs.snapshots.views import View, Views
from imgfs.testing.build import BuiltLayer as Made
from imgfs.testing.images import Dir, File, Hardlink, SparseFile, Whiteout, layer
from tests.layers.passes import described, stored

RANDOM = os.urandom(200_000)
SPARSE = SparseFile("sparse", size=1_000_000, extents=((4096, b"one" * 512), (500_000 // 512 * 512, b"two" * 100)))
BASE = layer([Dir("d"), File("d/big", RANDOM), File("d/empty"), File("gone", b"x"), SPARSE])
TOP = layer([Whiteout("gone"), File("new", b"top"), Hardlink("link", "new")], "zstd")


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
        return [self.store.get(layer.diff_id) for layer in layers]


class Gallery:
    """Stored layers, their graph, and views of them."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self.database = Database(root / "imgfs.db", [graphs.SCHEMA])
        self.store = LayerStore(root)
        self.graph = SnapshotGraph(self.database)
        self.provider = Provider(self.store)
        self.nursery = nursery
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


def nodes(view: View) -> dict[str, MergedNode]:
    return {path.decode(): node for path, node in walk(view.tree.root)}


async def read(view: View, node: MergedNode) -> bytes:
    return bytes(await view.data.read_at(node, 0, node.size))


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
    assert await view.data.read_at(nodes(view)["d/big"], offset, size) == expected


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1_000_000), (0, 100), (4000, 200), (4096, 1536), (5000, 600_000), (5631, 2), (999_999, 9), (700_000, 4096)],
)
async def test_sparse_files_read_with_their_holes(gallery: Gallery, offset: int, size: int) -> None:
    view = await gallery.views.get(await gallery.snapshot(BASE))
    got = await view.data.read_at(nodes(view)["sparse"], offset, size)
    assert got == SPARSE.content[offset : offset + size]


@pytest.mark.parametrize(("name", "offset"), [("d/big", 100_000), ("sparse", 499_712)])
async def test_a_tar_cut_short_is_a_storage_failure_and_never_zeros(gallery: Gallery, name: str, offset: int) -> None:
    snapshot = await gallery.snapshot(BASE)
    view = await gallery.views.get(snapshot)
    os.truncate(gallery.store.get(BASE.diff_id).tar, 50_000)
    with pytest.raises(StorageFailed, match=f"snapshot {snapshot.chain_id}: is cut short"):
        await view.data.read_at(nodes(view)[name], offset, 300)


async def test_concurrent_callers_make_a_view_once(gallery: Gallery) -> None:
    snapshot = await gallery.snapshot(BASE, TOP)
    assert gallery.views.kept(snapshot) is None
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(gallery.views.get, snapshot)
    assert gallery.provider.asked == 1
    assert await gallery.views.get(snapshot) is gallery.views.kept(snapshot)
    assert gallery.provider.asked == 1


async def test_the_least_recently_used_view_is_evicted_and_keeps_its_inode_numbers(
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
    assert await read(other, nodes(other)["new"]) == b"top", "the holder of an evicted view still reads it"
    await gallery.views.get(two)
    assert gallery.views.kept(one) is None
    again = await gallery.views.get(one)
    assert again is not old
    assert {path: node.number for path, node in nodes(again).items()} == numbers


async def test_an_open_file_keeps_its_bytes_but_not_the_tree(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = await gallery.snapshot(BASE)
    file = await ViewNode(view := await gallery.views.get(snapshot), nodes(view)["d/big"], None).open(
        os.O_RDONLY, Caller(os.getppid(), 0, Waiters(trio.Event()))
    )
    monkeypatch.setattr(room, "NODES_KEPT", 0)
    other = gallery.views.get(await gallery.snapshot(BASE, TOP))
    tree = weakref.ref(view)
    del view
    await other
    assert tree() is None
    assert await file.read(7, 1000) == RANDOM[7:1007]


async def test_a_view_larger_than_the_cache_is_kept_alone(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "NODES_KEPT", 1)
    snapshot = await gallery.snapshot(BASE)
    view = await gallery.views.get(snapshot)
    assert gallery.views.kept(snapshot) is view


async def test_a_provider_error_is_raised_unchanged_and_no_view_is_kept(gallery: Gallery) -> None:
    snapshot = await gallery.snapshot(BASE)
    gallery.provider.error = Unreachable("no route")
    with pytest.raises(Unreachable, match="no route"):
        await gallery.views.get(snapshot)
    assert gallery.views.kept(snapshot) is None


async def test_an_image_without_layers_is_an_empty_root(gallery: Gallery) -> None:
    view = await gallery.views.get(await gallery.snapshot())
    assert set(nodes(view)) == {""}


class Merging:
    """Counts how many trees are merged at once, and holds them until the gate opens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.count = 0
        self.gate = trio.Event()
        self._real = room.run_cpu
        monkeypatch.setattr(room, "run_cpu", self._run)
        monkeypatch.setattr(room, "run_disk", _at_once)

    async def _run(self, work: Callable[..., object], *arguments: object) -> object:
        self.count += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            return await self._real(work, *arguments)
        finally:
            self.now -= 1


async def _at_once(work: Callable[..., object], *arguments: object) -> object:
    """Run `work` without a thread: `wait_all_tasks_blocked` confuses a wait for a thread with a wait for a turn."""
    return work(*arguments)


def by_turns(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a view large from five nodes on, and allow one large view at a time."""
    monkeypatch.setattr(room, "LARGE", 4)
    monkeypatch.setattr(room, "NODES_AT_WORK", 5)
    gallery.views = Views(gallery.graph, gallery.provider, gallery.nursery)


async def many(gallery: Gallery) -> list[Snapshot]:
    return [await gallery.snapshot(layer([File(f"{mark}{number}") for number in range(5)])) for mark in "abcdef"]


async def test_large_views_are_made_one_at_a_time_and_small_ones_beside_them(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_turns(gallery, monkeypatch)
    snapshots, small = await many(gallery), await gallery.snapshot(layer([File("small")]))
    merging = Merging(monkeypatch)
    async with trio.open_nursery() as nursery:
        for one in snapshots:
            nursery.start_soon(gallery.views.get, one)
        await wait_all_tasks_blocked()
        assert merging.most == 1
        nursery.start_soon(gallery.views.get, small)
        await wait_all_tasks_blocked()
        assert merging.most == 2
        merging.gate.set()
    assert (merging.most, merging.count) == (2, 7)


async def test_a_view_in_work_keeps_its_turn_and_is_made_once(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_turns(gallery, monkeypatch)
    monkeypatch.setattr(room, "NODES_KEPT", 1)
    merging = Merging(monkeypatch)
    merging.gate.set()
    working = Counter[Snapshot]()

    async def work(snapshot: Snapshot) -> None:
        async with gallery.views.at_work(snapshot) as view:
            working[snapshot] += 1
            assert list(+working) == [snapshot], "only the view being worked on is in memory"
            await trio.lowlevel.checkpoint()
            assert gallery.views.kept(snapshot) is view
            assert await gallery.views.get(snapshot) is view
            working[snapshot] -= 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            snapshots = await many(gallery)
            for one in snapshots * 3:
                nursery.start_soon(work, one)
    assert merging.count == 6
    assert not any(map(gallery.views.kept, snapshots)), "none is small enough to stay"


async def test_kept_views_are_evicted_before_a_large_view_is_made(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, large = await gallery.snapshot(BASE), await gallery.snapshot(layer([File(str(n)) for n in range(20)]))
    await gallery.views.get(old)
    monkeypatch.setattr(room, "NODES_KEPT", 20)
    merging = Merging(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gallery.views.get, large)
        await wait_all_tasks_blocked()
        assert (merging.now, gallery.views.kept(old)) == (1, None)
        merging.gate.set()


async def test_a_cancelled_waiter_does_not_block_the_next(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    by_turns(gallery, monkeypatch)
    monkeypatch.setattr(room, "run_disk", _at_once)
    first, second, third, *_ = await many(gallery)
    async with trio.open_nursery() as nursery, gallery.views.at_work(first):
        with trio.move_on_after(0.01):
            async with gallery.views.at_work(second):
                pytest.fail("it is not its turn")
        nursery.start_soon(gallery.views.get, third)
        await wait_all_tasks_blocked()
        assert gallery.views.kept(third) is None
    assert gallery.views.kept(third) is not None
