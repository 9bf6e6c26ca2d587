"""`layer.tar` of a user's snapshot: its own changes as an OCI layer, produced while it is read."""

from __future__ import annotations

import os
import stat
import threading

import pyfuse3
import trio

from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING
from imgfs.fs.node import Handle, Node, control_number
from imgfs.fs.subsystems import UserSubsystems
from imgfs.snapshots.export import export_layer, layer_size
from imgfs.snapshots.rows import Info, SnapshotKind
from imgfs.snapshots.upper import KERNEL, ROOTLESS, Dialect
from imgfs.snapshots.walk import run_walk


class UserLayer(Node):
    """`layer.tar`: the snapshot's own changes as an OCI layer, produced while it is read; unlisted."""

    __slots__ = ("_number", "_size", "_subsystems")

    direct_io = True

    def __init__(self, subsystems: UserSubsystems, number: int) -> None:
        super().__init__(control_number(f"snapshot/{number}/layer.tar"))
        self._subsystems = subsystems
        self._number = number
        self._size = 0

    async def reached(self, caller: Caller) -> None:
        """Measure the size, which costs a walk: sendfile(2) and splice(2) end at the file's size."""
        self._size = await caller.wait(self._measure)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o444, size=self._size, disk=0)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        info = self._subsystems.snapshots.numbered(self._number)
        with self._subsystems.failures.noting(f"snapshots/{info.id}"):
            await caller.wait(lambda: self._subsystems.rootfs.users.settle(info.id))
            return ExportHandle(self._subsystems, info, caller)

    async def _measure(self) -> int:
        subsystems, info = self._subsystems, self._subsystems.snapshots.numbered(self._number)
        if info.number in subsystems.layer_sizes:
            return subsystems.layer_sizes[info.number]
        with subsystems.failures.noting(f"snapshots/{info.id}"):
            upper = subsystems.snapshots.upper(info.id)
            size = await run_walk(lambda upper: layer_size(upper, _dialect()), upper, only_looks=True)
        if info.kind is SnapshotKind.COMMITTED:
            subsystems.layer_sizes[info.number] = size
        return size


def _dialect() -> Dialect:
    return KERNEL if os.geteuid() == 0 else ROOTLESS


class ExportHandle:
    """A layer that is being exported. Reads are sequential; a read at an earlier offset starts the export again.

    The snapshot is in use while the handle is open.
    """

    def __init__(self, subsystems: UserSubsystems, info: Info, caller: Caller) -> None:
        self._caller = caller.opener()
        self._snapshots = subsystems.snapshots
        self._failures = subsystems.failures
        self._upper = self._snapshots.upper(info.id)
        self._dialect = _dialect()
        self._id = info.id
        self._snapshots.hold(self._id)
        self._reading = threading.Lock()
        """Held by the reading thread, also after its caller was interrupted."""
        self._pieces = export_layer(self._upper, self._dialect)
        self._piece = memoryview(b"")
        self._start = 0
        """The offset of `_piece` in the tar."""

    async def read(self, offset: int, size: int) -> bytes:
        return await self._caller.wait(lambda: self._made(offset, size))

    async def close(self) -> None:
        # Closed at once if no thread reads: a caller that closes the file and removes the snapshot must not find it
        # busy.
        if not self._reading.acquire(blocking=False):
            await trio.to_thread.run_sync(self._reading.acquire)
        self._pieces.close()
        self._snapshots.release(self._id)

    async def _made(self, offset: int, size: int) -> bytes:
        with self._failures.noting(f"snapshots/{self._id}"):
            return await trio.to_thread.run_sync(self._read, offset, size, abandon_on_cancel=True)

    def _read(self, offset: int, size: int) -> bytes:
        with self._reading:
            return self._read_on(offset, size)

    def _read_on(self, offset: int, size: int) -> bytes:
        if offset < self._start:
            self._pieces.close()
            self._pieces, self._piece, self._start = export_layer(self._upper, self._dialect), memoryview(b""), 0
        found = bytearray()
        while len(found) < size:
            at = offset + len(found) - self._start
            if at < len(self._piece):
                found += self._piece[at : at + size - len(found)]
                continue
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._start += len(self._piece)
            self._piece = memoryview(piece)
        return bytes(found)
