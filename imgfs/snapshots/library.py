"""Users' snapshots as a library: what the tree has below snapshots/, as calls, without FUSE.

The words are containerd's (core/snapshots: Snapshotter). Rows, directories and what a crash leaves are store.py's; this
adds the mounts. What lies on an image's chain can be listed, committed and removed here, but only a daemon shows it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.content.opening import opened
from imgfs.database.database import Database
from imgfs.errors import Busy, NotPermitted, ReadOnly, Unsupported
from imgfs.kernel.disk import sync_filesystem
from imgfs.kernel.mounts import unmount
from imgfs.kernel.overlay import SOURCE, check_unused, mount_overlay, options_of
from imgfs.snapshots import graph, rows
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.ids import active_id, subject
from imgfs.snapshots.lineage import Stack
from imgfs.snapshots.rows import SnapshotKind
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.usage import Usage

_SCHEMAS = [graph.SCHEMA, rows.SCHEMA]


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot: `id` is its name, or `active/<key>`; `parent` an id, of a view what it pins; times ns since the
    epoch; labels sorted by key."""

    id: str
    kind: SnapshotKind
    parent: str | None
    created: int
    updated: int
    labels: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Mount:
    """How to show a snapshot: `mount -t TYPE -o OPTIONS SOURCE TARGET`, as containerd and OCI bundles write it."""

    type: str
    source: str
    options: tuple[str, ...]


class Snapshots:
    """The snapshots of one state directory.

    Calls may come from several tasks. A change is durable when it returns and, once begun, not cancelled half-way. It
    may raise NoSpace and StorageFailed, and ReadOnly where they were opened for reading or nothing can be changed.
    """

    def __init__(self, root: Path, store: SnapshotStore, *, is_frozen: bool) -> None:
        """`open_snapshots` makes it."""
        self._root = root
        self._opened = store
        self._is_frozen = is_frozen
        self._is_closed = False

    async def prepare(self, key: str, parent: str | None = None) -> Info:
        """Make the writable snapshot `active/<key>` upon a committed one, or upon nothing.

        A view stands for what it pins. Raises Invalid, also for an active parent; AlreadyExists; NotFound for the
        parent; TooLarge if it lies too deep.
        """
        await self._changing.prepare(key, parent)
        return self.stat(active_id(key))

    async def view(self, name: str, target: str) -> Info:
        """Give a committed snapshot another name, which pins it. Raises Invalid, AlreadyExists, NotFound."""
        await self._changing.view(name, target)
        return self.stat(name)

    async def commit(self, key: str, name: str) -> Info:
        """Make `active/<key>` immutable as `name`; the key is free again. Data go to the disk first, nothing is copied.

        Raises Invalid, NotFound, AlreadyExists, and Busy while it is mounted anywhere.
        """
        store = self._changing
        store.check_commit(key, name)
        await self._check_unmounted(active_id(key))
        await store.commit(key, name)
        return self.stat(name)

    async def remove(self, id: str) -> None:
        """Remove a snapshot with its changes and labels; of a view, the name alone. Returns when the disk is free.

        Raises NotFound, Busy with children or while it is mounted, NotPermitted for an image's chain.
        """
        store = self._changing
        await self._check_unmounted(id)
        await store.remove(id)

    def stat(self, id: str) -> Info:
        """What is known of a snapshot. Raises NotFound. Never waits, like all that is not async here."""
        found = self._store.stat(id)
        return Info(id, found.kind, found.parent, found.created, found.updated, self._store.labels(id))

    def walk(self) -> Iterator[Info]:
        """Every snapshot that a user made, by id. What is removed on the way is left out, what is made may be."""
        for id in [found.id for found in self._store]:
            if self._store.find_own(id) is not None:
                yield self.stat(id)

    def children(self, id: str) -> list[str]:
        """Ids of what lies on it and of the views that pin it."""
        return self._store.children(id)

    async def update(self, id: str, labels: Mapping[str, bytes | None]) -> Info:
        """Set labels, and remove those whose value is None; others stay. All of it or nothing.

        Raises NotFound, and Invalid for what no label may be.
        """
        await self._changing.update_labels(id, labels)
        return self.stat(id)

    async def usage(self, id: str) -> Usage:
        """What its own changes take on disk; a view has none. Raises NotFound, NotPermitted for an image's chain."""
        return await self._store.usage(id)

    async def mounts(self, id: str) -> tuple[Mount, ...]:
        """What to mount, one upon the other, to show the snapshot: for a caller who mounts by himself.

        Settles the parent of an active one, as its first use. Raises NotFound, Unsupported upon an image's chain,
        StorageFailed for damage.
        """
        stack = await self._settled(id)
        return (Mount("overlay", SOURCE, options_of(self._lowers(stack), upper=stack.upper, work=stack.work)),)

    @asynccontextmanager
    async def mounted(self, id: str, target: str | Path, *, trusted: bool = True) -> AsyncGenerator[Path]:
        """Show the snapshot at the directory `target` while the block runs; who commits or removes it gets Busy.

        An active one is writable, all others read-only. Unless `trusted`, setuid bits and device nodes do not work.
        Raises as `mounts`; Busy if it is mounted elsewhere and writable, or is still used at the end, and then it stays
        both mounted and in use; NotPermitted for who may not mount.
        """
        stack = await self._settled(id)
        store = self._store
        if stack.upper is not None and store.is_held(id):
            raise Busy(f"{subject(id)}: is mounted already, and two mounts must not write to one directory")
        store.hold(id)
        try:
            await self._check_unmounted(id)
            lowers = [str(one) for one in self._lowers(stack)]
            await trio.to_thread.run_sync(
                lambda: mount_overlay(lowers, str(target), upper=stack.upper, work=stack.work, trusted=trusted)
            )
        except BaseException:
            store.release(id)
            raise
        try:
            yield Path(target)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(unmount, str(target))
            store.release(id)

    def close(self) -> None:
        """Every call raises NotPermitted from now on."""
        self._is_closed = True

    @property
    def _store(self) -> SnapshotStore:
        if self._is_closed:
            raise NotPermitted(f"snapshots of {self._root}: were closed; open them again")
        return self._opened

    @property
    def _changing(self) -> SnapshotStore:
        store = self._store
        if self._is_frozen:
            raise ReadOnly(f"snapshots of {self._root}: were opened for reading, or their filesystem is read-only")
        return store

    async def _settled(self, id: str) -> Stack:
        """What to show, once the parent of an active one may not change any more."""
        info, stack = self._store.stat(id), self._store.stack(id)
        if stack.chain is not None:
            raise Unsupported(
                f"{subject(id)}: lies on an image's layers, which `imgfs mount` shows: see its rootfs there"
            )
        if info.kind is SnapshotKind.ACTIVE:
            await self._changing.mark_used(info.name, seen=info)
        return stack

    def _lowers(self, stack: Stack) -> list[Path]:
        return [*stack.lowers, self._store.empty]

    async def _check_unmounted(self, id: str) -> None:
        """Raise Busy while any overlay writes to an active snapshot, also one that we did not make; root is told."""
        info = self._store.stat(id)
        if info.kind is SnapshotKind.ACTIVE and info.used and not info.damaged and os.geteuid() == 0:
            upper, empty = self._store.upper(id), self._store.empty
            await trio.to_thread.run_sync(check_unused, upper, empty, subject(id))


@asynccontextmanager
async def open_snapshots(path: str | Path, *, read_only: bool = False) -> AsyncGenerator[Snapshots]:
    """The snapshots of the state directory `path`, which is made if need be, while the block runs.

    It is this process's alone meanwhile: Busy is raised while a daemon or another program has it. What a crash left
    half done is finished first. With `read_only` nothing is locked or changed: one sees what there is at this moment,
    also while a daemon is at work. Raises NotFound where there is nothing then, NoSpace, StorageFailed. Whoever uses
    `mounted` leaves it before.
    """
    state = await run_disk(Path(path).absolute)
    with ExitStack() as stack:
        database = await run_disk(stack.enter_context, opened(state, _SCHEMAS, read_only=read_only))
        store = await run_disk(_open, state, database)
        if not database.is_frozen:
            await store.sweep()
        snapshots = Snapshots(state, store, is_frozen=database.is_frozen)
        try:
            yield snapshots
        finally:
            snapshots.close()


def _open(state: Path, database: Database) -> SnapshotStore:
    return SnapshotStore(state, database, SnapshotGraph(database), sync_filesystem)
