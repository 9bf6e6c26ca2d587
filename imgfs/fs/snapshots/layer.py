"""Layers as files: `layer.tar` of a chain, and the device files of kernel views, which are fetched when read."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING, FileHandle
from imgfs.fs.node import Directory, Handle, Listing, Node, control_number, missing
from imgfs.fs.subsystems import ChainSubsystems
from imgfs.oci.digest import Digest
from imgfs.snapshots.graph import Snapshot, SnapshotLayer

LAYER = b"layer.tar"
"""The name of a snapshot's own changes as a layer. Unlisted, so that recursive tools do not export by accident."""


_ENDLESS = 1 << 53
"""Size of a device file in bytes until its layer is stored: the kernel does not read beyond a file's size."""


class ChainLayer(Node):
    """`layer.tar`: the layer of a chain's top, with exactly the bytes that its diff ID names."""

    __slots__ = ("_snapshot", "_subsystems")

    def __init__(self, subsystems: ChainSubsystems, snapshot: Snapshot) -> None:
        super().__init__(control_number(f"snapshots/{snapshot.chain_id}/layer.tar"))
        self._subsystems = subsystems
        self._snapshot = snapshot

    async def attributes(self) -> pyfuse3.EntryAttributes:
        diff_id, layers = self._snapshot.diff_id, self._subsystems.layers
        size = layers.get(diff_id).size() if diff_id is not None and diff_id in layers else 0
        return self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o444, size=size, time=self._snapshot.created)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        layers = self._subsystems.graph.layers(self._snapshot)
        with self._subsystems.failures.noting(f"snapshots/{self._snapshot.chain_id}"):
            layer = (await caller.wait(lambda: self._subsystems.images.provide(layers[-1:])))[0]
        return FileHandle(os.dup(layer.descriptor()), f"layer {layer.diff_id}")

    @property
    def direct_io(self) -> bool:
        """The size is unknown until the layer is stored, and the kernel would treat the file as empty."""
        diff_id = self._snapshot.diff_id
        return diff_id is None or diff_id not in self._subsystems.layers


class LayerDevices(Directory):
    """.imgfs/layers/: device files of layers by diff ID, fetched when they are read; unlisted."""

    __slots__ = ("_subsystems",)

    def __init__(self, subsystems: ChainSubsystems) -> None:
        super().__init__(".imgfs/layers", subsystems.shown)
        self._subsystems = subsystems

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        layer = self._subsystems.graph.layer(Digest(os.fsdecode(name)))
        if layer is None:
            raise missing(name)
        return LayerDevice(self._subsystems, layer)

    async def entries(self, caller: Caller) -> Listing:
        return []


class LayerDevice(Node):
    """A device file of a kernel view. Opening it fetches nothing, because mounting opens it."""

    __slots__ = ("_layer", "_subsystems")

    direct_io = True

    def __init__(self, subsystems: ChainSubsystems, layer: SnapshotLayer) -> None:
        super().__init__(control_number(f".imgfs/layers/{layer.diff_id}"))
        self._subsystems = subsystems
        self._layer = layer

    async def attributes(self) -> pyfuse3.EntryAttributes:
        diff_id, layers = self._layer.diff_id, self._subsystems.layers
        size = layers.get(diff_id).size() if diff_id in layers else _ENDLESS
        return self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o400, size=size)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        return LayerHandle(self._subsystems, self._layer, caller)


class LayerHandle:
    """An open device file. The first read fetches the layer."""

    __slots__ = ("_caller", "_layer", "_subsystems")

    def __init__(self, subsystems: ChainSubsystems, layer: SnapshotLayer, caller: Caller) -> None:
        self._subsystems = subsystems
        self._layer = layer
        self._caller = caller.anonymous()

    async def read(self, offset: int, size: int) -> bytes | bytearray:
        layers, images = self._subsystems.layers, self._subsystems.images
        if self._layer.diff_id in layers:
            layer = layers.get(self._layer.diff_id)
        else:
            layer = (await self._caller.wait(lambda: images.provide([self._layer])))[0]
        return await layer.read_at(offset, size)

    async def close(self) -> None:
        pass
