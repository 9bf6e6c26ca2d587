"""A user's own snapshot, writable or committed, as a directory: rootfs/, diff/, parent, and its changes as a layer."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator

import pyfuse3
import trio

from imgfs.errors import Invalid, NotPermitted
from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING
from imgfs.fs.labels import as_moment, as_xattrs, remove_label, set_label
from imgfs.fs.layer import LAYER
from imgfs.fs.node import SOON, Directory, Handle, Link, Listing, Node, Stale, control_number, missing
from imgfs.fs.subsystems import Subsystems
from imgfs.rootfs.rootfs import diff_of, rootfs_of
from imgfs.snapshots.export import export_layer, layer_size
from imgfs.snapshots.ids import ACTIVE, active_id, ids_of_target
from imgfs.snapshots.removal import run_walk
from imgfs.snapshots.rows import Info, Kind
from imgfs.snapshots.upper import KERNEL, ROOTLESS, Dialect

_USAGE = b"user.imgfs.usage"
_PARENT = b"parent"


class UserSnapshot(Directory):
    """`snapshots/<name>` or `snapshots/active/<key>`. It is known by its number, so a commit does not make it stale."""

    __slots__ = ("_number", "_subsystems")

    def __init__(self, subsystems: Subsystems, info: Info) -> None:
        super().__init__(f"snapshot/{info.number}", subsystems.shown)
        self._subsystems = subsystems
        self._number = info.number

    @property
    def _info(self) -> Info:
        return self._subsystems.snapshots.numbered(self._number)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        info = self._info
        mode = stat.S_IFDIR | (0o755 if info.kind is Kind.ACTIVE else 0o555)
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
        """Set the parent. `ln -sfn` makes a link of another name first and renames it: that one is kept in memory."""
        info, text = self._info, os.fsdecode(target)
        if info.kind is not Kind.ACTIVE:
            raise self.refusal()
        if name == _PARENT:
            with self._subsystems.failures.noting(f"snapshots/{info.id}"):
                await self._subsystems.snapshots.set_parent(info.name, meant(self._subsystems, text, ACTIVE, info.name))
            return self._parent(self._info)
        if not name.startswith(b"Cu"):
            raise Invalid(f"snapshot {info.id}: only its `parent` can be set, not {os.fsdecode(name)!r}")
        self._subsystems.private_parents[self._number, name] = text
        return self._link(name, text)

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        key = (self._number, old)
        parent = self._subsystems.private_parents.get(key)
        if parent is None or target.number != self.number or new != _PARENT:
            raise self.refusal()
        await self._subsystems.snapshots.set_parent(
            self._info.name, meant(self._subsystems, parent, ACTIVE, self._info.name), replacing=True
        )
        self._subsystems.private_parents.pop(key, None)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        if self._subsystems.private_parents.pop((self._number, name), None) is not None:
            return
        info = self._info
        if name != _PARENT or info.kind is not Kind.ACTIVE:
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
        if error := self._subsystems.failures.get(f"snapshots/{info.id}"):
            facts[b"user.imgfs.error"] = error.encode(errors="backslashreplace")
        return facts | as_xattrs(store.labels(info.id))

    async def xattr(self, name: bytes, caller: Caller) -> bytes | None:
        """The usage of a writable snapshot is measured when it is asked for, and only then."""
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
        yield b"rootfs", Mountpoint(subsystems, self._number, "rootfs", rootfs.show_user, rootfs_of)
        if rootfs.is_mounting:
            yield b"diff", Mountpoint(subsystems, self._number, "diff", rootfs.show_changes, diff_of)
        elif not info.damaged:  # no bind mount for an ordinary user, whose directory it is
            yield b"diff", self._link(b"diff", str(subsystems.snapshots.upper(info.id)))
        if info.parent is not None:
            yield _PARENT, self._parent(info)

    def _parent(self, info: Info) -> Node:
        up = "../../" if info.kind is Kind.ACTIVE else "../"
        return self._link(_PARENT, f"{up}{info.parent}")

    def _link(self, name: bytes, target: str) -> Node:
        return ParentLink(f"snapshot/{self._number}/{os.fsdecode(name)}", self._subsystems.shown, target)


class ParentLink(Link):
    """`parent`. A commit moves it along with its directory, and another target is right from that moment on."""

    __slots__ = ()

    keep = 0.0


class Mountpoint(Node):
    """An empty directory that its snapshot is mounted over as soon as somebody walks to it."""

    __slots__ = ("_number", "_place", "_show", "_subsystems")

    def __init__(
        self,
        subsystems: Subsystems,
        number: int,
        name: str,
        show: Callable[[str], Awaitable[bool]],
        place: Callable[[str], str],
    ) -> None:
        super().__init__(control_number(f"snapshot/{number}/{name}"))
        self._subsystems = subsystems
        self._number = number
        self._show = show
        self._place = place

    async def reached(self, caller: Caller) -> None:
        if caller.is_daemon:
            return
        id = self._subsystems.snapshots.numbered(self._number).id
        with self._subsystems.failures.noting(f"snapshots/{id}"):
            is_new = await caller.wait(lambda: self._show(id))
            if not is_new and caller.is_elsewhere:
                raise NotPermitted(
                    f"snapshot {id}: is mounted, but not in the mount namespace of process {caller.pid}; "
                    "bind the tree there with rslave propagation"
                )
        # Whoever is here although something was mounted before went by while that was done: he is beneath it.
        raise Stale(f"{self._place(id)}: is mounted now; walk again")

    async def attributes(self) -> pyfuse3.EntryAttributes:
        entry = self._subsystems.shown.entry(self.number, stat.S_IFDIR | 0o755)
        entry.entry_timeout = SOON
        return entry

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        raise missing(name)

    async def entries(self, caller: Caller) -> Listing:
        """Nobody but the daemon, on its way to mount, gets the empty list: it would be taken for the snapshot's."""
        await self.reached(caller)
        return []


class UserLayer(Node):
    """`layer.tar`: the snapshot's own changes as an OCI layer, made while it is read; unlisted."""

    __slots__ = ("_number", "_size", "_subsystems")

    direct_io = True

    def __init__(self, subsystems: Subsystems, number: int) -> None:
        super().__init__(control_number(f"snapshot/{number}/layer.tar"))
        self._subsystems = subsystems
        self._number = number
        self._size = 0

    async def reached(self, caller: Caller) -> None:
        """Find out the size, which costs a walk: sendfile(2) and splice(2) end where it does."""
        self._size = await caller.wait(self._measure)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o444, size=self._size, disk=0)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        info = self._subsystems.snapshots.numbered(self._number)
        with self._subsystems.failures.noting(f"snapshots/{info.id}"):
            await caller.wait(lambda: self._subsystems.rootfs.settle(info.id))
            return ExportHandle(self._subsystems, info, caller)

    async def _measure(self) -> int:
        subsystems, info = self._subsystems, self._subsystems.snapshots.numbered(self._number)
        if info.number in subsystems.layer_sizes:
            return subsystems.layer_sizes[info.number]
        with subsystems.failures.noting(f"snapshots/{info.id}"):
            upper = subsystems.snapshots.upper(info.id)
            size = await run_walk(lambda upper: layer_size(upper, _dialect()), upper, only_looks=True)
        if info.kind is Kind.COMMITTED:
            subsystems.layer_sizes[info.number] = size
        return size


def _dialect() -> Dialect:
    return KERNEL if os.geteuid() == 0 else ROOTLESS


class ExportHandle:
    """A layer on its way out. It is read in order; whoever goes back gets it made again from its start.

    The snapshot is in use while it is open.
    """

    def __init__(self, subsystems: Subsystems, info: Info, caller: Caller) -> None:
        self._caller = caller.opener()
        self._snapshots = subsystems.snapshots
        self._failures = subsystems.failures
        self._upper = self._snapshots.upper(info.id)
        self._dialect = _dialect()
        self._id = info.id
        self._snapshots.hold(self._id)
        self._reading = threading.Lock()
        """Held by the thread that reads, also when whoever asked for it was interrupted and is gone."""
        self._pieces = export_layer(self._upper, self._dialect)
        self._piece = memoryview(b"")
        self._start = 0
        """Where `_piece` begins in the tar."""

    async def read(self, offset: int, size: int) -> bytes:
        return await self._caller.wait(lambda: self._made(offset, size))

    async def close(self) -> None:
        # At once where nobody reads, as ever: who closes it and removes the snapshot must not find it busy.
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


async def remove(subsystems: Subsystems, id: str, caller: Caller) -> None:
    """Remove a user's snapshot: unmount it, then take it away. Raises as SnapshotStore.remove, and Busy while used.

    Who is interrupted may find it there still, or gone; its disk is given back behind him.
    """
    await caller.wait(lambda: subsystems.works.join(("remove", id), lambda: _remove(subsystems, id)))


async def _remove(subsystems: Subsystems, id: str) -> None:
    with subsystems.failures.noting(f"snapshots/{id}"), subsystems.rootfs.places.closed(rootfs_of(id), diff_of(id)):
        await subsystems.rootfs.leave(id)
        await subsystems.snapshots.remove(id)


async def commit(subsystems: Subsystems, key: str, name: str, caller: Caller) -> None:
    """Commit an active snapshot: unmount it, then make it immutable. Raises as SnapshotStore.commit.

    Who is interrupted while the disk is written finds it active; it is busy until the disk has answered.
    """
    await caller.wait(lambda: subsystems.works.join(("commit", key, name), lambda: _commit(subsystems, key, name)))


async def _commit(subsystems: Subsystems, key: str, name: str) -> None:
    id = active_id(key)
    with subsystems.failures.noting(f"snapshots/{id}"), subsystems.rootfs.places.closed(rootfs_of(id), diff_of(id)):
        subsystems.snapshots.check_commit(key, name)
        await subsystems.rootfs.settle(id)
        await subsystems.rootfs.leave(id)
        await subsystems.snapshots.commit(key, name)


def meant(subsystems: Subsystems, target: str, *base: str) -> str:
    """The id that a link's target means: of those it may mean, the first that is there."""
    ids = ids_of_target(target, *base)
    return next((id for id in ids if subsystems.snapshots.find(id)), ids[0])
