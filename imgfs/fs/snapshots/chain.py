"""snapshots/<chain ID>/: rootfs/, parent and diff/ of an image's chain."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

import pyfuse3

from imgfs.errors import ImgfsError, ReadOnly
from imgfs.fs.caller import Caller
from imgfs.fs.node import ENDLESS, SOON, Directory, Link, Listing, Node, Stale, missing
from imgfs.fs.snapshots.layer import LAYER, ChainLayer
from imgfs.fs.snapshots.view import ViewNode
from imgfs.fs.subsystems import ChainSubsystems
from imgfs.fs.xattrs import as_error, as_moment, as_xattrs, remove_label, set_label
from imgfs.oci.digest import Digest
from imgfs.rootfs.places import rootfs_of
from imgfs.snapshots.graph import Face, Snapshot
from imgfs.snapshots.views import View


class ChainDirectory(Directory):
    """snapshots/<chain ID>."""

    __slots__ = ("_snapshot", "_subsystems")

    def __init__(self, subsystems: ChainSubsystems, snapshot: Snapshot) -> None:
        super().__init__(f"snapshots/{snapshot.chain_id}", subsystems.shown)
        self._subsystems = subsystems
        self._snapshot = snapshot

    async def attributes(self) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFDIR | 0o555
        return self._subsystems.shown.entry(self.number, mode, time=self._snapshot.created, keep=SOON)

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name == b"rootfs":
            return await self._rootfs(caller)
        if name == b"diff":
            return await self._diff(caller)
        if name == LAYER and self._snapshot.diff_id is not None:
            return ChainLayer(self._subsystems, self._snapshot)
        if name == b"parent" and self._snapshot.parent is not None:
            return self._parent(self._snapshot.parent)
        raise missing(name)

    async def entries(self, caller: Caller) -> Listing:
        listing: list[tuple[bytes, Node]] = []
        for name, child in ((b"rootfs", self._rootfs), (b"diff", self._diff)):
            # The error is reported by a lookup of that entry: one bad image must not break a walk of the whole tree.
            with suppress(ImgfsError):
                listing.append((name, await child(caller)))
        if self._snapshot.parent is not None:
            listing.append((b"parent", self._parent(self._snapshot.parent)))
        return listing

    async def xattrs(self) -> dict[bytes, bytes]:
        chain_id, store = self._snapshot.chain_id, self._subsystems.snapshots
        facts = {
            b"user.imgfs.kind": b"committed",
            b"user.imgfs.created": as_moment(self._snapshot.created),
            b"user.imgfs.children": os.fsencode("\n".join(store.children(chain_id))),
            b"user.imgfs.usage": str(self._usage()).encode(),
        }
        rootfs, images = self._subsystems.rootfs, self._subsystems.images
        error = images.snapshot_failure(self._snapshot) or rootfs.chains.refusal(chain_id)
        return facts | as_error(error) | as_xattrs(store.labels(chain_id))

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        await set_label(self._subsystems.snapshots, self._snapshot.chain_id, name, value)

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        await remove_label(self._subsystems.snapshots, self._snapshot.chain_id, name)

    def _usage(self) -> int:
        """Return the bytes that the tar of the chain's top layer takes on disk."""
        diff_id, layers = self._snapshot.diff_id, self._subsystems.layers
        return layers.get(diff_id).allocated() if diff_id is not None and diff_id in layers else 0

    async def _rootfs(self, caller: Caller) -> Node:
        first = self._subsystems.graph.first_inode(self._snapshot)
        if first is None or not self._subsystems.rootfs.chains.is_kernel:
            view = await fuse_view(self._subsystems, self._snapshot, caller)
            first = view.first
        return ChainRootfs(self._subsystems, self._snapshot, first)

    async def _diff(self, caller: Caller) -> Node:
        views = self._subsystems.views
        view = views.kept(self._snapshot, Face.CHANGES) or await caller.wait(
            lambda: views.get(self._snapshot, Face.CHANGES)
        )
        return ViewNode(view, view.tree.root, self._subsystems.owner)

    def _parent(self, parent: Digest) -> Node:
        key = f"snapshots/{self._snapshot.chain_id}/parent"
        return Link(key, self._subsystems.shown, f"../{parent}", self._snapshot.created)


class ChainRootfs(Node):
    """The root directory of a chain's view. A walk to it makes the kernel's view be mounted over it (rootfs/).

    Until then the kernel may not cache its attributes, so that each walk sends GETATTR. Beneath a mount, and where
    nothing can be mounted, it is the root of the FUSE view.
    """

    __slots__ = ("_snapshot", "_subsystems")

    def __init__(self, subsystems: ChainSubsystems, snapshot: Snapshot, number: int) -> None:
        super().__init__(number)
        self._subsystems = subsystems
        self._snapshot = snapshot

    async def reached(self, caller: Caller) -> None:
        rootfs = self._subsystems.rootfs
        if caller.is_daemon:
            return
        is_new = not rootfs.chains.is_shown(self._snapshot) and await caller.wait(
            lambda: show(self._subsystems, self._snapshot)
        )
        is_lower = rootfs.chains.is_lower(self._snapshot)
        # An overlay over this directory holds it open. Its readers cannot walk again, and see the same files here.
        if not is_lower and (await show_there(self._subsystems, self._snapshot, caller) or is_new):
            raise Stale(f"snapshot {self._snapshot.chain_id}: is mounted now; walk again")
        await fuse_view(self._subsystems, self._snapshot, caller)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        view = self._subsystems.views.kept(self._snapshot)
        if view is None:
            entry = self._subsystems.shown.entry(self.number, stat.S_IFDIR | 0o755, time=self._snapshot.created)
        else:
            entry = await ViewNode(view, view.tree.root, self._subsystems.owner).attributes()
        entry.entry_timeout = SOON
        entry.attr_timeout = self._keep()
        return entry

    def _keep(self) -> float:
        """Return the cache timeout of the attributes in seconds.

        The kernel checks them for every path through this directory.

        Under a read-only bind of itself, no walk needs to come here. The files stay the same for a second after it is
        gone.
        """
        rootfs = self._subsystems.rootfs
        if not rootfs.chains.is_mounting:
            return ENDLESS
        return SOON if rootfs.chains.is_bound(self._snapshot) else 0.0

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        return await (await self._root(caller)).lookup(name, caller)

    async def entries(self, caller: Caller) -> Listing:
        return await (await self._root(caller)).entries(caller)

    async def xattrs(self) -> dict[bytes, bytes]:
        view = self._subsystems.views.kept(self._snapshot)
        return dict(view.tree.root.xattrs) if view is not None else {}

    def refusal(self) -> ImgfsError:
        return ReadOnly("a committed snapshot cannot be changed; prepare an active one on top of it")

    async def _root(self, caller: Caller) -> ViewNode:
        view = await fuse_view(self._subsystems, self._snapshot, caller)
        return ViewNode(view, view.tree.root, self._subsystems.owner)


async def fuse_view(subsystems: ChainSubsystems, snapshot: Snapshot, caller: Caller) -> View:
    """Return the FUSE view of a chain, made now if necessary.

    Failures are in `user.imgfs.error` of the chain's directory.
    """
    return subsystems.views.kept(snapshot) or await caller.wait(lambda: _make(subsystems, snapshot))


async def check_merge(subsystems: ChainSubsystems, snapshot: Snapshot) -> Snapshot:
    """Merge the layers of a chain unless they were merged before. Raises and notes why they cannot be merged.

    A chain whose inodes have numbers was merged before, by this daemon or an earlier one.
    """
    if subsystems.graph.first_inode(snapshot) is None:
        await _make(subsystems, snapshot)
    return snapshot


async def _make(subsystems: ChainSubsystems, snapshot: Snapshot) -> View:
    with subsystems.failures.noting(f"snapshots/{snapshot.chain_id}"):
        return await subsystems.views.get(snapshot)


async def show_there(subsystems: ChainSubsystems, snapshot: Snapshot, caller: Caller) -> bool:
    """Mount what shows a chain in the caller's own mount namespace too; return whether it was mounted now."""
    places, place = subsystems.rootfs.places, rootfs_of(snapshot.chain_id)
    if place not in places or not caller.is_elsewhere:
        return False
    return await caller.wait(lambda: places.mount_there(place, caller.pid))


async def show(subsystems: ChainSubsystems, snapshot: Snapshot) -> bool:
    """Mount the kernel's view of a chain (Chains.show). Failures are noted as in `fuse_view`."""
    with subsystems.failures.noting(f"snapshots/{snapshot.chain_id}"):
        return await subsystems.rootfs.chains.show(snapshot)
