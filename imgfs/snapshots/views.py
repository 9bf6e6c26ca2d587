"""Views: the merged tree of a snapshot together with the open tars behind it, made once and kept while used.

Making a view needs every layer of the chain to be here; fetching them is transfer/'s work, by `LayerProvider`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Sequence
from typing import Protocol

import trio

from imgfs.aio.flight import Flights
from imgfs.aio.reading import read_at, read_exactly
from imgfs.aio.threads import run_cpu, run_disk
from imgfs.layers.layer import Layer
from imgfs.layers.tree import Node, Tree, changes, merge
from imgfs.oci.digest import Digest
from imgfs.snapshots.graph import Face, Snapshot, SnapshotGraph, SnapshotLayer

NODES_KEPT = 400_000
"""Views are dropped, least recently used first, when together they have more nodes than this (about 300 bytes each)."""


class LayerProvider(Protocol):
    """Has layers here, or gets them here."""

    async def provide(self, layers: Sequence[SnapshotLayer]) -> list[Layer]:
        """All of `layers`, verified. Raises whatever the way here raises."""
        ...


class View:
    """The rootfs of one snapshot: nodes by number, bytes by node."""

    def __init__(self, snapshot: Snapshot, tree: Tree, layers: Sequence[Layer], first: int) -> None:
        """`first` is the inode number of the root; the others follow in the order of the tree's nodes."""
        self.snapshot = snapshot
        self.first = first
        self.tree = tree
        self.layers = layers
        """Base first, as the nodes count them."""
        self._files = [layer.descriptor() for layer in layers]
        self._subject = f"snapshot {snapshot.chain_id}"

    def node(self, number: int) -> Node:
        """The node of that number, from 1."""
        return self.tree.nodes[number - 1]

    async def read_at(self, node: Node, offset: int, size: int) -> bytes | bytearray:
        """Up to `size` bytes of a regular file from `offset`; short only at its end. Raises StorageFailed."""
        size = min(size, node.size - offset)
        if size <= 0:
            return b""
        if node.extents is None:
            return await read_at(self._files[node.layer], size, node.offset + offset, self._subject)
        return await run_disk(self._read_sparse, node, offset, size)

    def read_layer(self, layer: int, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a layer's tar; blocks. Raises StorageFailed."""
        return bytes(read_exactly(self._files[layer], size, offset, self._subject))

    def _read_sparse(self, node: Node, offset: int, size: int) -> bytearray:
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


class Views:
    """The views in memory; a view that was dropped is made again when it is asked for, with the same numbers."""

    def __init__(self, graph: SnapshotGraph, provider: LayerProvider, nursery: trio.Nursery) -> None:
        self._graph = graph
        self._provider = provider
        self._making: Flights[View] = Flights(nursery)
        self._kept: OrderedDict[int, View] = OrderedDict()

    def kept(self, snapshot: Snapshot, face: Face = Face.ROOTFS) -> View | None:
        """The view if it is in memory."""
        key = snapshot.number * face
        view = self._kept.get(key)
        if view is not None and next(reversed(self._kept)) != key:
            self._kept.move_to_end(key)
        return view

    async def get(self, snapshot: Snapshot, face: Face = Face.ROOTFS) -> View:
        """The view, made now if need be: missing layers are fetched. Raises what fetching and merging raise."""
        return self.kept(snapshot, face) or await self._making.join(
            snapshot.number * face, lambda: self._make(snapshot, face)
        )

    async def _make(self, snapshot: Snapshot, face: Face) -> View:
        layers = await self._provider.provide(self._graph.layers(snapshot))
        # Once a layer, however often an image has it: right after a pull the entries are in memory, for one taker.
        found = {layer.diff_id: await layer.entries() for layer in {one.diff_id: one for one in layers}.values()}
        entries = [found[layer.diff_id] for layer in layers]
        tree = await run_cpu(merge if face is Face.ROOTFS or not entries else changes, entries)
        view = View(snapshot, tree, layers, await self._graph.reserve(snapshot, face, len(tree.nodes)))
        self._kept[snapshot.number * face] = view
        self._drop_idle()
        return view

    def drop(self, diff_ids: Container[Digest]) -> None:
        """Drop the views that read one of these layers: its tar is free when the last reader is gone."""
        for key, view in list(self._kept.items()):
            if any(layer.diff_id in diff_ids for layer in view.layers):
                del self._kept[key]

    def _drop_idle(self) -> None:
        total = sum(len(view.tree.nodes) for view in self._kept.values())
        while total > NODES_KEPT and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            total -= len(dropped.tree.nodes)
