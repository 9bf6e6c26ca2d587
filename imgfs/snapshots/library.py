"""The snapshot library: user snapshots as calls, without FUSE.

The terms are containerd's (core/snapshots: Snapshotter). store.py owns the rows, the directories and crash recovery;
this module adds the mounts. A snapshot on an image chain can be listed, committed and removed here, but only a daemon
can mount it.
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
    """One snapshot.

    `id` is the name, or `active/<key>`. `parent` is an ID; for a view, the ID that it pins. Times are ns since the
    epoch. Labels are sorted by key.
    """

    id: str
    kind: SnapshotKind
    parent: str | None
    created: int
    updated: int
    labels: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Mount:
    """How to mount a snapshot: `mount -t TYPE -o OPTIONS SOURCE TARGET`, as containerd and OCI bundles write it."""

    type: str
    source: str
    options: tuple[str, ...]


class Snapshots:
    """The snapshots of one state directory.

    Several tasks may call it. A change is durable on return; once started, it cannot be cancelled halfway. A change
    raises NoSpace or StorageFailed if the disk fails, and ReadOnly if the snapshots were opened read-only or the
    filesystem is read-only.
    """

    def __init__(self, root: Path, store: SnapshotStore, *, is_frozen: bool) -> None:
        """Internal: use `open_snapshots`."""
        self._root = root
        self._opened = store
        self._is_frozen = is_frozen
        self._is_closed = False

    async def prepare(self, key: str, parent: str | None = None) -> Info:
        """Make the writable snapshot `active/<key>` on a committed parent, or on nothing.

        A view as the parent means its target.

        Raises Invalid (malformed, or an active parent), AlreadyExists, NotFound if the parent does not exist, and
        TooLarge if the chain is too deep.
        """
        await self._changing.prepare(key, parent)
        return self.stat(active_id(key))

    async def view(self, name: str, target: str) -> Info:
        """Give a committed snapshot another name, which pins it. Raises Invalid, AlreadyExists, NotFound."""
        await self._changing.view(name, target)
        return self.stat(name)

    async def commit(self, key: str, name: str) -> Info:
        """Make `active/<key>` immutable as `name` and free the key. The data is synced first; nothing is copied.

        Raises Invalid, NotFound, AlreadyExists, and Busy while it is mounted anywhere.
        """
        store = self._changing
        store.check_commit(key, name)
        await self._check_unmounted(active_id(key))
        await store.commit(key, name)
        return self.stat(name)

    async def remove(self, id: str) -> None:
        """Remove a snapshot with its changes and labels, or a view. The space is free on return.

        Raises NotFound, Busy while it has children or is mounted, and NotPermitted for an image chain.
        """
        store = self._changing
        await self._check_unmounted(id)
        await store.remove(id)

    def stat(self, id: str) -> Info:
        """Return one snapshot. Raises NotFound. Like all synchronous methods here, it does not block."""
        found = self._store.stat(id)
        return Info(id, found.kind, found.parent, found.created, found.updated, self._store.labels(id))

    def walk(self) -> Iterator[Info]:
        """Iterate over all user snapshots by ID.

        Snapshots removed during iteration are skipped; new ones may be missing.
        """
        for id in [found.id for found in self._store]:
            if self._store.find_own(id) is not None:
                yield self.stat(id)

    def children(self, id: str) -> list[str]:
        """Return the IDs of its children and of the views that pin it."""
        return self._store.children(id)

    async def update(self, id: str, labels: Mapping[str, bytes | None]) -> Info:
        """Set labels; a value of None removes the label. Other labels are kept. All changes are applied, or none.

        Raises NotFound, and Invalid for a malformed label.
        """
        await self._changing.update_labels(id, labels)
        return self.stat(id)

    async def usage(self, id: str) -> Usage:
        """Return the disk usage of the snapshot's own changes; zero for a view.

        Raises NotFound, NotPermitted for image chains.
        """
        return await self._store.usage(id)

    async def mounts(self, id: str) -> tuple[Mount, ...]:
        """Return the mounts that show the snapshot, in order, for a caller that mounts it without `mounted`.

        This counts as the first use of an active snapshot: its parent is fixed. Raises NotFound, Unsupported on an
        image chain, StorageFailed if the snapshot is damaged.
        """
        stack = await self._settled(id)
        return (Mount("overlay", SOURCE, options_of(self._lowers(stack), upper=stack.upper, work=stack.work)),)

    @asynccontextmanager
    async def mounted(self, id: str, target: str | Path, *, trusted: bool = True) -> AsyncGenerator[Path]:
        """Mount the snapshot at the directory `target` while the block runs. Meanwhile commit and remove raise Busy.

        An active snapshot is writable, every other one read-only. Unless `trusted`, setuid bits and device nodes do not
        work. Raises as `mounts`; Busy if it is already mounted writable elsewhere; NotPermitted if the caller may not
        mount. Raises Busy at the end of the block if the mount is still used: it then stays mounted and in use.
        """
        stack = await self._settled(id)
        store = self._store
        if stack.upper is not None and store.is_held(id):
            raise Busy(f"{subject(id)}: is already mounted; two mounts cannot share its directory for changes")
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
        """Close the snapshots: every later call raises NotPermitted."""
        self._is_closed = True

    @property
    def _store(self) -> SnapshotStore:
        if self._is_closed:
            raise NotPermitted(f"snapshots of {self._root}: are closed; open them again")
        return self._opened

    @property
    def _changing(self) -> SnapshotStore:
        store = self._store
        if self._is_frozen:
            raise ReadOnly(f"snapshots of {self._root}: were opened read-only, or their filesystem is read-only")
        return store

    async def _settled(self, id: str) -> Stack:
        """Return the directories to mount, after fixing the parent of an active snapshot."""
        info, stack = self._store.stat(id), self._store.stack(id)
        if stack.chain is not None:
            raise Unsupported(f"{subject(id)}: is on an image chain; run `imgfs mount` and use its rootfs there")
        if info.kind is SnapshotKind.ACTIVE:
            await self._changing.mark_used(info.name, seen=info)
        return stack

    def _lowers(self, stack: Stack) -> list[Path]:
        return [*stack.lowers, self._store.empty]

    async def _check_unmounted(self, id: str) -> None:
        """Raise Busy while any overlay, of this process or another, writes to an active snapshot.

        Only root can check this.
        """
        info = self._store.stat(id)
        if info.kind is SnapshotKind.ACTIVE and info.used and not info.damaged and os.geteuid() == 0:
            upper, empty = self._store.upper(id), self._store.empty
            await trio.to_thread.run_sync(check_unused, upper, empty, subject(id))


@asynccontextmanager
async def open_snapshots(path: str | Path, *, read_only: bool = False) -> AsyncGenerator[Snapshots]:
    """Open the snapshots of the state directory `path` while the block runs.

    The directory is created if it does not exist.

    The process locks the directory: Busy is raised while a daemon or another program holds the lock. Recovery from a
    crash runs first. With `read_only` nothing is locked or changed, and the caller sees the current snapshots, even
    while a daemon runs; NotFound is raised if there is no state. Also raises NoSpace and StorageFailed. Leave every
    `mounted` block before this block ends.
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
