"""A user's snapshot, active or committed, as a directory: rootfs/, diff/ and parent; layer.tar is unlisted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pyfuse3

from imgfs.errors import Invalid
from imgfs.filename import with_colons
from imgfs.fs.caller import Caller
from imgfs.fs.node import SOON, Directory, Link, Listing, Node, missing
from imgfs.fs.snapshots.export import UserLayer
from imgfs.fs.snapshots.layer import LAYER
from imgfs.fs.snapshots.mountpoint import Mountpoint
from imgfs.fs.subsystems import UserSubsystems
from imgfs.fs.xattrs import as_error, as_moment, as_xattrs, remove_label, set_label
from imgfs.rootfs.places import diff_of, rootfs_of
from imgfs.snapshots.ids import ACTIVE, ids_of_target
from imgfs.snapshots.rows import Info, SnapshotKind

_USAGE = b"user.imgfs.usage"
_PARENT = b"parent"


class UserSnapshot(Directory):
    """`snapshots/<name>` or `snapshots/active/<key>`.

    The key of the node is a number, so a commit does not make it stale.
    """

    __slots__ = ("_number", "_subsystems")

    def __init__(self, subsystems: UserSubsystems, info: Info) -> None:
        super().__init__(f"snapshot/{info.number}", subsystems.shown)
        self._subsystems = subsystems
        self._number = info.number

    @property
    def _info(self) -> Info:
        return self._subsystems.snapshots.numbered(self._number)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        info = self._info
        mode = stat.S_IFDIR | (0o755 if info.kind is SnapshotKind.ACTIVE else 0o555)
        return self._subsystems.shown.entry(self.number, mode, time=info.updated, keep=SOON)

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        for found, node in self._children():
            if found == name:
                return node
        if name == LAYER:
            layer = UserLayer(self._subsystems, self._number)
            await layer.reached(caller)
            return layer
        if private := self._subsystems.private_parents.get((self._number, name)):
            return self._link(name, private)
        raise missing(name)

    async def entries(self, caller: Caller) -> Listing:
        return list(self._children())

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        """Set the parent. `ln -sfn` makes a link of another name first and renames it; that link is kept in memory."""
        info, text = self._info, os.fsdecode(target)
        if info.kind is not SnapshotKind.ACTIVE:
            raise self.refusal()
        if name == _PARENT:
            with self._subsystems.failures.noting(f"snapshots/{info.id}"):
                await self._subsystems.snapshots.set_parent(
                    info.name, id_of_target(self._subsystems, text, ACTIVE, info.name)
                )
            return self._parent(self._info)
        if not name.startswith(b"Cu"):
            raise Invalid(f"snapshot {info.id}: got a link {os.fsdecode(name)!r}, expected `parent`")
        self._subsystems.private_parents[self._number, name] = text
        return self._link(name, text)

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        key = (self._number, old)
        parent = self._subsystems.private_parents.get(key)
        if parent is None or target.number != self.number or new != _PARENT:
            raise self.refusal()
        await self._subsystems.snapshots.set_parent(
            self._info.name, id_of_target(self._subsystems, parent, ACTIVE, self._info.name), replacing=True
        )
        self._subsystems.private_parents.pop(key, None)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        if self._subsystems.private_parents.pop((self._number, name), None) is not None:
            return
        info = self._info
        if name != _PARENT or info.kind is not SnapshotKind.ACTIVE:
            raise self.refusal()
        await self._subsystems.snapshots.clear_parent(info.name)

    async def xattrs(self) -> dict[bytes, bytes]:
        info, store = self._info, self._subsystems.snapshots
        facts = {
            b"user.imgfs.kind": info.kind.value.encode(),
            b"user.imgfs.created": as_moment(info.created),
            b"user.imgfs.children": os.fsencode("\n".join(store.children(info.id))),
            _USAGE: b"",
        }
        error = self._subsystems.failures.get(f"snapshots/{info.id}")
        return facts | as_error(error) | as_xattrs(store.labels(info.id))

    async def xattr(self, name: bytes, caller: Caller) -> bytes | None:
        """Return one xattr. The usage of a writable snapshot is measured on each request."""
        if name == _USAGE:
            usage = await caller.wait(lambda: self._subsystems.snapshots.usage(self._info.id))
            return str(usage.bytes).encode()
        return await super().xattr(name, caller)

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        await set_label(self._subsystems.snapshots, self._info.id, name, value)

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        await remove_label(self._subsystems.snapshots, self._info.id, name)

    def _children(self) -> Iterator[tuple[bytes, Node]]:
        info, subsystems = self._info, self._subsystems
        rootfs = subsystems.rootfs
        yield b"rootfs", Mountpoint(subsystems, self._number, "rootfs", rootfs.users.show, rootfs_of)
        if rootfs.chains.is_mounting:
            yield b"diff", Mountpoint(subsystems, self._number, "diff", rootfs.users.show_changes, diff_of)
        elif not info.damaged:  # an ordinary user cannot bind-mount, but owns that directory
            yield b"diff", self._link(b"diff", str(subsystems.snapshots.upper(info.id)))
        if info.parent is not None:
            yield _PARENT, self._parent(info)

    def _parent(self, info: Info) -> Node:
        up = "../../" if info.kind is SnapshotKind.ACTIVE else "../"
        return self._link(_PARENT, f"{up}{info.parent}")

    def _link(self, name: bytes, target: str) -> Node:
        return ParentLink(f"snapshot/{self._number}/{os.fsdecode(name)}", self._subsystems.shown, target)


class ParentLink(Link):
    """`parent`. A commit moves it with its directory, and its target changes at that moment."""

    __slots__ = ()

    keep = 0.0


async def remove(subsystems: UserSubsystems, id: str, caller: Caller, *, walked: str) -> None:
    """Remove a user's snapshot: unmount it, then delete it.

    Raises as SnapshotStore.remove, and Busy while it is in use.

    `walked` is the spelling of `id` by which the kernel knows the directory; the kernel keeps the parent locked
    meanwhile.

    If the caller is interrupted, the snapshot may still exist or be gone. Disk space is freed in the background.
    """
    await caller.wait(lambda: subsystems.works.join(("remove", id), lambda: _remove(subsystems, id, walked)))


async def _remove(subsystems: UserSubsystems, id: str, walked: str) -> None:
    with subsystems.failures.noting(f"snapshots/{id}"), subsystems.rootfs.places.closed_snapshot(id, walked):
        await subsystems.rootfs.users.leave(id)
        await subsystems.snapshots.remove(id)


def id_of_target(subsystems: UserSubsystems, target: str, *base: str) -> str:
    """Return the ID that a link's target means: the first of the possible IDs that exists."""
    ids = [spelled for id in ids_of_target(target, *base) for spelled in dict.fromkeys((id, with_colons(id)))]
    return next((id for id in ids if subsystems.snapshots.find(id)), ids[0])
