"""Views: the merged tree of a snapshot with the open tars that hold its bytes. A view is made once and kept while used.

Making a view needs every layer of the chain locally. transfer/ fetches missing layers, through `LayerProvider`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, Container, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from imgfs.aio.flight import Flights
from imgfs.aio.threads import read_at, read_exactly, run_cpu, run_disk
from imgfs.aio.weighted import WeightedLimiter
from imgfs.layers.layer import Layer
from imgfs.layers.tree import MergedNode, MergedTree, changes, merge
from imgfs.oci.digest import Digest
from imgfs.snapshots.graph import Face, Snapshot, SnapshotGraph, SnapshotLayer

NODES_KEPT = 400_000
"""Views are dropped, least recently used first, when together they have more nodes than this (about 300 bytes each)."""

NODE_BYTES = 400
"""Memory of long names, attributes and sparse maps counts as nodes of this many bytes."""

LARGE = 100_000
"""Views with more nodes than this are made in turn, so that many hostile images take no more memory than one. Merging
holds the interpreter lock, so this costs no time. Smaller views do not wait for larger ones."""

NODES_AT_WORK = 400_000
"""Limit for the sum of nodes of all views being made or used for long work: one for large views, one for small
views."""


class LayerProvider(Protocol):
    """Provides layers, and fetches those that are not local."""

    async def provide(self, layers: Sequence[SnapshotLayer]) -> list[Layer]:
        """Return all of `layers`, verified. Raises what fetching them raises."""
        ...


class Data:
    """The file data of a view. Open files hold it without the tree, so that the tree can be dropped."""

    def __init__(self, snapshot: Snapshot, layers: Sequence[Layer]) -> None:
        """`layers` are base first, as nodes count them."""
        self._layers = layers  # keeps the files open
        self._files = [layer.descriptor() for layer in layers]
        self._subject = f"snapshot {snapshot.chain_id}"

    async def read_at(self, node: MergedNode, offset: int, size: int) -> bytes | bytearray:
        """Return up to `size` bytes of a regular file from `offset`; fewer only at its end. Raises StorageFailed."""
        size = min(size, node.size - offset)
        if size <= 0:
            return b""
        if node.extents is None:
            return await read_at(self._files[node.layer], size, node.offset + offset, self._subject)
        return await run_disk(self._read_sparse, node, offset, size)

    def read_layer(self, layer: int, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of a layer's tar. Blocks. Raises StorageFailed."""
        return bytes(read_exactly(self._files[layer], size, offset, self._subject))

    def _read_sparse(self, node: MergedNode, offset: int, size: int) -> bytearray:
        content = bytearray(size)
        extents = node.extents or ()
        first = bisect_right(extents, offset, key=lambda extent: extent.position + extent.length)
        for extent in extents[first:]:
            if extent.position >= offset + size:
                break
            start = max(extent.position, offset)
            end = min(extent.position + extent.length, offset + size)
            if start < end:
                at = extent.offset + start - extent.position
                part = read_exactly(self._files[node.layer], end - start, at, self._subject)
                content[start - offset : end - offset] = part
        return content


class View:
    """The rootfs of one snapshot: nodes by number, bytes by node."""

    def __init__(self, snapshot: Snapshot, tree: MergedTree, layers: Sequence[Layer], first: int) -> None:
        """`first` is the inode number of the root; the others follow in the order of the tree's nodes."""
        self.snapshot = snapshot
        self.first = first
        self.tree = tree
        self.data = Data(snapshot, layers)
        self.layers = layers
        """The layers, base first, in the order in which nodes number them."""
        self.weight = len(tree.nodes) + sum(layer.weight().extra for layer in layers) // NODE_BYTES
        """The number of nodes that the view counts as."""

    def node(self, number: int) -> MergedNode:
        """Return the node with this number, from 1."""
        return self.tree.nodes[number - 1]


class Views:
    """The views in memory. A dropped view is made again on demand, with the same inode numbers.

    The nodes of all views that are being made or worked on are limited in sum. Idle views are dropped to make room.
    """

    def __init__(self, graph: SnapshotGraph, provider: LayerProvider, nursery: trio.Nursery) -> None:
        self._graph = graph
        self._provider = provider
        self._making: Flights[View] = Flights(nursery)
        self._weighing: Flights[int] = Flights(nursery)
        self._kept: OrderedDict[int, View] = OrderedDict()
        self._large, self._others = WeightedLimiter(NODES_AT_WORK), WeightedLimiter(NODES_AT_WORK)

    def kept(self, snapshot: Snapshot, face: Face = Face.ROOTFS) -> View | None:
        """Return the view if it is in memory, else None."""
        key = snapshot.number * face
        view = self._kept.get(key)
        if view is not None and next(reversed(self._kept)) != key:
            self._kept.move_to_end(key)
        return view

    async def get(self, snapshot: Snapshot, face: Face = Face.ROOTFS) -> View:
        """Return the view; make it if needed, which fetches missing layers. Raises what fetching and merging raise.

        The caller must not hold the view while it waits for something else; `at_work` is for that.
        """
        return self.kept(snapshot, face) or await self._making.join(
            snapshot.number * face, lambda: self._make(snapshot, face)
        )

    @asynccontextmanager
    async def at_work(self, snapshot: Snapshot) -> AsyncGenerator[View]:
        """Hold the view of the rootfs for long work. Large views take turns. Raises as `get`.

        The caller must not ask for the view of another snapshot inside. Afterwards the view is kept unless it is too
        large.
        """
        nodes = await self._weight(snapshot)
        async with self._place(snapshot.number, nodes):
            yield await self.get(snapshot)
        self._drop_idle(NODES_KEPT)

    async def _weight(self, snapshot: Snapshot) -> int:
        """Return how many nodes the view has, or has at most. Fetches its layers if needed."""
        view = self.kept(snapshot)
        if view is not None or self._limiter_of(snapshot.number):
            return view.weight if view is not None else 0
        return await self._weighing.join(snapshot.number, lambda: self._weigh(snapshot))

    async def _weigh(self, snapshot: Snapshot) -> int:
        return await run_disk(_nodes, await self._provider.provide(self._graph.layers(snapshot)))

    async def _make(self, snapshot: Snapshot, face: Face) -> View:
        layers = await self._provider.provide(self._graph.layers(snapshot))
        key, nodes = snapshot.number * face, await run_disk(_nodes, layers)
        async with self._place(key, nodes):
            self._drop_idle(NODES_KEPT - nodes)
            tree = await run_cpu(_merged, layers, face)
            view = View(snapshot, tree, layers, await self._graph.reserve(snapshot, face, len(tree.nodes)))
            self._kept[key] = view
            self._drop_idle(NODES_KEPT)
            return view

    def _place(self, key: int, nodes: int) -> AbstractAsyncContextManager[None]:
        """Return a slot for the view `key`: shared with its current holders, else a new slot of this many nodes."""
        limiter = self._limiter_of(key)
        return (limiter or (self._large if nodes > LARGE else self._others)).slot(key, nodes)

    def _limiter_of(self, key: int) -> WeightedLimiter | None:
        """Return the limiter in which the view has a slot now."""
        return next((one for one in (self._large, self._others) if key in one), None)

    def drop(self, diff_ids: Container[Digest]) -> None:
        """Drop the views that read one of these layers. A tar is freed when its last reader has closed it."""
        for key, view in list(self._kept.items()):
            if any(layer.diff_id in diff_ids for layer in view.layers):
                del self._kept[key]

    def _drop_idle(self, limit: int) -> None:
        """Drop the least recently used views until at most `limit` nodes are left.

        Views with a slot stay, because dropping them would free nothing.
        """
        total = sum(view.weight for view in self._kept.values())
        for key in [key for key in self._kept if self._limiter_of(key) is None]:
            if total <= limit:
                return
            total -= self._kept.pop(key).weight


def _nodes(layers: Sequence[Layer]) -> int:
    """Return the largest number of nodes that the merged tree of these layers counts for."""
    return sum(one.nodes + one.extra // NODE_BYTES for one in (layer.weight() for layer in layers))


def _merged(layers: Sequence[Layer], face: Face) -> MergedTree:
    """Merge layer by layer; no layer's entries are in memory as a whole."""
    if face is Face.ROOTFS or not layers:
        return merge(layer.entries() for layer in layers)
    return changes((layer.entries() for layer in layers[:-1]), layers[-1].entries(), len(layers) - 1)
