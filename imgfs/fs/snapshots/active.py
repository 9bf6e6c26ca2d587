"""snapshots/active/: writable snapshots. mkdir prepares a snapshot, mv commits it, rmdir removes it."""

from __future__ import annotations

import os
from functools import partial

from imgfs.errors import NotPermitted
from imgfs.fs.caller import Caller
from imgfs.fs.containers.deleting import check_unused
from imgfs.fs.node import Directory, Listing, Node, control_number, missing
from imgfs.fs.snapshots.user import UserSnapshot, remove
from imgfs.fs.subsystems import UserSubsystems
from imgfs.snapshots.ids import active_id, check_name
from imgfs.snapshots.rows import SnapshotKind


class ActiveDirectory(Directory):
    """Lists active snapshots by key."""

    __slots__ = ("_subsystems",)

    def __init__(self, subsystems: UserSubsystems) -> None:
        super().__init__("snapshots/active", subsystems.shown)
        self._subsystems = subsystems

    def has_literally(self, name: str) -> bool:
        return self._subsystems.snapshots.find_own(active_id(name)) is not None

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        info = self._subsystems.snapshots.find_own(active_id(os.fsdecode(name)))
        if info is None:
            raise missing(name)
        return UserSnapshot(self._subsystems, info)

    async def entries(self, caller: Caller) -> Listing:
        return [
            (os.fsencode(info.name), UserSnapshot(self._subsystems, info))
            for info in self._subsystems.snapshots
            if info.kind is SnapshotKind.ACTIVE
        ]

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        return UserSnapshot(self._subsystems, await self._subsystems.snapshots.prepare(os.fsdecode(name)))

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        key = os.fsdecode(self.canonical(name))
        await self._check_unused(key)
        await remove(self._subsystems, active_id(key), caller, walked=active_id(os.fsdecode(name)))

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        """Commit: `mv snapshots/active/K snapshots/<name>`."""
        if target.number != control_number("snapshots"):
            # `mv active/K NAME` with a taken NAME also comes here, as mv moves into the directory and misreports
            # EEXIST.
            raise NotPermitted("an active snapshot is committed by moving it to a new name, snapshots/<name>")
        name = os.fsdecode(new)
        check_name(name)
        key = os.fsdecode(self.canonical(old))
        await self._check_unused(key)
        await _commit(self._subsystems, key, name, caller, walked=active_id(os.fsdecode(old)))

    async def _check_unused(self, key: str) -> None:
        await check_unused(self._subsystems.containers, self._subsystems.failures, key)


async def _commit(subsystems: UserSubsystems, key: str, name: str, caller: Caller, *, walked: str) -> None:
    """Commit an active snapshot: unmount it, then make it immutable. Raises as SnapshotStore.commit.

    If the caller is interrupted during a disk write, the snapshot stays active, and is busy until the write ends.
    """
    work = partial(_leave_and_commit, subsystems, key, name, walked)
    await caller.wait(lambda: subsystems.works.join(("commit", key, name), work))


async def _leave_and_commit(subsystems: UserSubsystems, key: str, name: str, walked: str) -> None:
    id = active_id(key)
    with subsystems.failures.noting(f"snapshots/{id}"), subsystems.rootfs.places.closed_snapshot(id, walked):
        subsystems.snapshots.check_commit(key, name)
        await subsystems.rootfs.users.settle(id)
        await subsystems.rootfs.users.leave(id)
        await subsystems.snapshots.commit(key, name)
