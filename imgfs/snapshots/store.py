"""User snapshots: prepared, given a parent, committed, viewed, removed; beside the graph of image chains.

Owns the rows, the directories `snapshots/<number>` of the state directory, and the rules for changes. lineage.py owns
the lookups and the relation of parents. An id is a chain ID, a name, or `active/<key>` (ids.py). Nothing is mounted
here: `stack` returns the directories of a mount, `hold` keeps them in place. After a crash a snapshot is complete or
absent, and no acknowledged change is lost: a creation writes the directory and then the row, a removal the row and then
the directory.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk, run_sync
from imgfs.content.labels import Labels
from imgfs.database.database import Database
from imgfs.errors import AlreadyExists, Busy, NoSpace, NotFound, NotPermitted, ReadOnly, StorageFailed, from_os
from imgfs.oci.digest import is_digest
from imgfs.snapshots import notes, rows
from imgfs.snapshots.directories import SnapshotDirectories
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.ids import active_id, check_key, check_name, shown, subject
from imgfs.snapshots.index import Index
from imgfs.snapshots.lineage import Lineage
from imgfs.snapshots.removal import Removals
from imgfs.snapshots.root import RootAttributes, apply_root, root_of
from imgfs.snapshots.rows import Info, SnapshotKind
from imgfs.snapshots.usage import Usage, measure
from imgfs.snapshots.walk import run_walk

_log = logging.getLogger("imgfs.snapshots")


class SnapshotStore(Lineage):
    """All user snapshots of one state directory.

    Changes are durable on return and cannot be cancelled halfway. A change that raises NoSpace or StorageFailed is not
    applied.
    """

    def __init__(self, state: Path, database: Database, graph: SnapshotGraph, sync: Callable[[Path], None]) -> None:
        """Load the rows, and compare them with the directories.

        `sync` forces everything below a directory to disk (syncfs(2)) in a thread, and raises OSError. If the
        database is frozen, no directory is made.
        """
        directories = SnapshotDirectories(state, read_only=database.is_frozen)
        found, numbers = database.read_now(rows.select), directories.numbers()
        super().__init__(graph, Index(_seen(info, numbers) for info in found.infos), directories)
        self._database = database
        self._sync = sync
        self._labels = Labels(database, "snapshot_labels")
        self._changing = trio.Lock()
        self._unsafe: set[str] = set()
        """Active snapshots whose sync failed once. A second sync would succeed although data is lost."""
        self._last = max(found.last, *numbers, 0)
        self._usages = found.usages
        self._removals = Removals(directories, (info.number for info in self._index), found.removed)

    async def is_read_only(self) -> bool:
        """Whether no snapshot can be changed now, because the filesystem of the state directory is read-only."""
        return await run_disk(self._directories.is_read_only)

    async def prepare(self, key: str, parent: str | None = None) -> Info:
        """Make an active snapshot without changes. Raises Invalid, AlreadyExists, and the errors of `set_parent`."""
        check_key(key)
        id = active_id(key)
        self._index.check_free(id)
        self._foundation(parent)  # raise before a directory is made
        with self._index.claim(id):
            self._last += 1
            number, now = self._last, time.time_ns()
            await run_disk(self._directories.make, number)
            try:
                async with self._changing:
                    return await self._put(Info(number, SnapshotKind.ACTIVE, key, self._foundation(parent), now, now))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._removals.clear(number)
                raise

    async def set_parent(self, key: str, parent: str, *, replacing: bool = False) -> Info:
        """Set the parent of an active snapshot to a committed one or an image chain. A view stands for its target.

        Until the rootfs is used, `replacing` replaces a parent (`ln -sfn`); without it a second parent is AlreadyExists
        (`ln -s`). Raises Busy after the first use, NotFound, Invalid for an active parent, TooLarge.
        """
        async with self._changing:
            info = self._unused_active(key)
            if info.parent is not None and not replacing:
                raise AlreadyExists(f"{subject(info.id)}: has the parent {shown(info.parent)}; `ln -sfn` replaces it")
            return await self._put(replace(info, parent=self._foundation(parent), updated=time.time_ns()))

    async def clear_parent(self, key: str) -> Info:
        """Remove the parent of an active snapshot.

        Raises NotFound (also if it has no parent), and Busy after the first use.
        """
        async with self._changing:
            info = self._unused_active(key)
            if info.parent is None:
                raise NotFound(f"{subject(info.id)}: has no parent")
            return await self._put(replace(info, parent=None, updated=time.time_ns()))

    async def mark_used(self, key: str, root: RootAttributes | None = None, *, seen: Info | None = None) -> Info:
        """Fix the parent of an active snapshot, before its rootfs is mounted. Idempotent.

        The first time, the root directory gets the attributes of the parent's root directory. If the parent is an image
        chain, the caller passes them as `root`. Raises NotFound, and Busy if the snapshot differs from `seen` or is
        being changed.
        """
        async with self._changing:
            info = self._active(key)
            self._index.check_settled(info.id)
            if seen is not None and (info.number, info.parent) != (seen.number, seen.parent):
                raise Busy(f"{subject(info.id)}: was changed by another call; try again")
            if info.used:
                return info
            upper, lowers = self._upper(info), self.stack(info.id).lowers
            looks = await run_disk(root_of, lowers[0]) if lowers else root
            if looks is not None:
                await run_disk(apply_root, upper, looks)
            return await self._put(replace(info, used=True))

    async def view(self, name: str, target: str) -> Info:
        """Give a committed snapshot or an image chain another name, which pins it. A view of a view pins the same
        target.

        Raises Invalid (malformed, or `target` is active), AlreadyExists, NotFound.
        """
        check_name(name)
        async with self._changing:
            self._index.check_free(name)
            self._last += 1
            now = time.time_ns()
            return await self._put(Info(self._last, SnapshotKind.VIEW, name, self._target(target), now, now))

    async def rename_view(self, old: str, new: str) -> Info:
        """Rename a view atomically, replacing the view `new` if there is one (the second half of `ln -sfn`).

        Raises Invalid, NotFound, NotPermitted (committed snapshots keep their names), AlreadyExists if `new` is
        committed, and Busy while either is in use.
        """
        check_name(new)
        async with self._changing:
            info, there = self._user(old), self._index.get(new)
            if info.kind is not SnapshotKind.VIEW:
                raise NotPermitted(f"{subject(old)}: is not a view; committed snapshots cannot be renamed")
            if old == new:
                return info
            if there is None or there.kind is not SnapshotKind.VIEW:
                self._index.check_free(new)
                there = None
            self._index.check_unused(old)
            self._index.check_unused(new)
            made = replace(info, name=new, updated=time.time_ns())
            await self._write(lambda db: _replace(db, there, made))
            for gone in filter(None, (there, info)):
                self._index.forget(gone.id)
            if there is not None:
                self._labels.forget(str(there.number))
            self._index.remember(made)
            return made

    async def commit(self, key: str, name: str) -> Info:
        """Make an active snapshot immutable under `name` and free the key. Labels and number are kept.

        The data is synced first. Nothing is copied, so the size of the parents does not matter. Raises Invalid,
        NotFound, AlreadyExists, and Busy while it is in use; the caller unmounts its rootfs first.
        """
        check_name(name)
        with ExitStack() as claims:
            async with self._changing:
                info = self._active(key)
                self._index.check_free(name)
                self._index.check_unused(info.id)
                claims.enter_context(self._index.claim(info.id, name))
            await self._make_durable(info)
            made = replace(info, kind=SnapshotKind.COMMITTED, name=name, updated=time.time_ns())
            await self._write(lambda db: rows.put(db, made), then=lambda: self._note(made))
            self._index.forget(info.id)
            self._index.remember(made)
            return made

    def check_commit(self, key: str, name: str) -> None:
        """Raise the errors that `commit` would raise at its start, for a caller that has to unmount first."""
        check_name(name)
        self._index.check_unused(self._active(key).id)
        self._index.check_free(name)

    async def remove(self, id: str) -> None:
        """Remove a snapshot with its changes and labels, or a view.

        Small snapshots are deleted before the call returns. While `follow_removals` runs, it deletes large ones in the
        background. Raises NotFound, Busy while it has children or is in use, and NotPermitted for image chains, which
        are removed with their images.
        """
        async with self._changing:
            info = self._user(id)
            self._index.check_unused(id)
            self._index.check_childless(id)
            take_away = rows.delete if info.kind is SnapshotKind.VIEW else rows.mark_removed
            await self._write(lambda db: take_away(db, info.number), frees=True)
            self._index.forget(id)
            self._labels.forget(str(info.number))
            self._usages.pop(info.number, None)
            self._unsafe.discard(id)
        if info.kind is not SnapshotKind.VIEW:
            with trio.CancelScope(shield=True):
                await self._removals.clear(info.number)

    async def sweep(self) -> None:
        """Delete the directories that removals and killed processes left. Call it once after the start.

        Callers need not wait for it.
        """
        await self._removals.sweep()

    async def follow_removals(self) -> None:
        """Delete the directories of large removed snapshots in the background. Runs until cancelled.

        rmdir(2) must return early, because the kernel locks the parent directory during rmdir(2) and would block every
        other mkdir(2) and rmdir(2) in it.
        """
        await self._removals.follow()

    def strays(self) -> list[Path]:
        """Return directories with changes but without a row, left by a lost database. They are never deleted."""
        return list(self._removals.strays)

    def hold(self, id: str) -> None:
        """Add a use (a mount, a container). While a snapshot is in use, commit and remove raise Busy.

        Raises NotFound, Busy.
        """
        self.stat(id)
        self._index.hold(id)

    def release(self, id: str) -> None:
        """Remove a use."""
        self._index.release(id)

    def is_held(self, id: str) -> bool:
        """Return whether the snapshot is in use."""
        return self._index.is_held(id)

    async def usage(self, id: str) -> Usage:
        """Return the disk usage of the snapshot's own changes; zero for a view.

        An active snapshot is measured at each call, a committed one only once. Raises NotFound, NotPermitted for image
        chains (their layers are accounted elsewhere), and StorageFailed.
        """
        info = self._user(id)
        if info.kind is SnapshotKind.VIEW:
            return Usage(0, 0)
        known = self._usages.get(info.number)
        if known is not None and info.kind is SnapshotKind.COMMITTED:
            return known
        measured = await run_walk(measure, self._upper(info), only_looks=True)
        if info.kind is SnapshotKind.COMMITTED and self._index.get(id) is info:
            await self._keep_usage(info.number, measured)
        return measured

    def labels(self, id: str) -> dict[str, bytes]:
        """Return the labels of a snapshot or an image chain. Raises NotFound."""
        return self._labels.of(self._labelled(id))

    async def set_label(self, id: str, key: str, value: bytes) -> None:
        """Set or replace a label. Raises NotFound, Invalid."""
        labelled = self._labelled(id)
        await self._labels.put(labelled, key, value, partial(_exists, labelled))

    async def update_labels(self, id: str, changes: Mapping[str, bytes | None]) -> None:
        """Set several labels; None removes a label. All changes are applied, or none. Raises NotFound, Invalid."""
        labelled = self._labelled(id)
        await self._labels.update(labelled, changes, partial(_exists, labelled))

    async def remove_label(self, id: str, key: str) -> None:
        """Remove a label. Raises NotFound, for the snapshot or the label."""
        await self._labels.remove(self._labelled(id), key)

    def _labelled(self, id: str) -> str:
        """Return the key of the labels: the chain ID, or a user snapshot's number, which a commit keeps."""
        return id if self._chain(id) else str(self._user(id).number)

    def _active(self, key: str) -> Info:
        return self.stat(active_id(key))

    def _unused_active(self, key: str) -> Info:
        info = self._active(key)
        self._index.check_settled(info.id)
        if info.used:
            raise Busy(
                f"{subject(info.id)}: its rootfs was already used, so its parent is fixed; prepare another snapshot"
            )
        return info

    async def _make_durable(self, info: Info) -> None:
        if info.id in self._unsafe:
            raise StorageFailed(f"{subject(info.id)}: the disk lost its data; remove it and prepare another snapshot")
        try:
            await run_sync(self._sync, self._upper(info))
        except OSError as error:
            self._unsafe.add(info.id)
            raise from_os(error, f"{subject(info.id)}") from None

    async def _put(self, info: Info) -> Info:
        await self._write(lambda db: rows.put(db, info), then=lambda: self._note(info))
        self._index.remember(info)
        return info

    def _note(self, info: Info) -> None:
        """Write the row to the directory's attributes too, because the database backup can be a minute old. Blocks."""
        if info.kind is not SnapshotKind.VIEW:
            self._directories.note(info.number, notes.encode(info))

    async def _keep_usage(self, number: int, usage: Usage) -> None:
        self._usages[number] = usage
        try:
            await self._write(lambda db: rows.put_usage(db, number, usage))
        except (NoSpace, ReadOnly) as error:
            _log.warning("usage of a snapshot is not kept", extra={"number": number, "reason": error.message})

    async def _write(
        self,
        change: Callable[[sqlite3.Connection], None],
        *,
        frees: bool = False,
        then: Callable[[], None] | None = None,
    ) -> None:
        gone = set(self._removals.settled)

        def change_and_purge(db: sqlite3.Connection) -> None:
            change(db)
            rows.purge(db, gone)

        await self._database.write(change_and_purge, frees=frees, then=then)
        self._removals.settled -= gone


def _seen(info: Info, directories: set[int]) -> Info:
    """Return `info`, marked as damaged if its directory is missing."""
    if info.kind is SnapshotKind.VIEW or info.number in directories:
        return info
    _log.warning("snapshot without its directory", extra={"snapshot": shown(info.id), "number": info.number})
    return replace(info, damaged=True)


def _exists(labelled: str, db: sqlite3.Connection) -> bool:
    """Return whether the image chain or the user snapshot still exists."""
    return is_digest(labelled) or rows.exists(db, int(labelled))


def _replace(db: sqlite3.Connection, there: Info | None, made: Info) -> None:
    if there is not None:
        rows.delete(db, there.number)
    rows.put(db, made)
