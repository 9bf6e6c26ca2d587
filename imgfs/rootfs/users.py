"""How users' snapshots are shown: overlays of what they changed upon what they lie on, and their own changes alone.

Only these need a mount; where none may be made they are refused, with the reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import Busy, ImgfsError, NotPermitted
from imgfs.execution.records.records import ContainerRecords
from imgfs.kernel.mountapi import Detached
from imgfs.rootfs.kernel import Kernel
from imgfs.rootfs.lowers import Lowers
from imgfs.rootfs.places import Places, diff_of, rootfs_of
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.graph import Snapshot, SnapshotGraph
from imgfs.snapshots.lineage import Stack
from imgfs.snapshots.root import RootAttributes
from imgfs.snapshots.rows import Info, Kind
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views

_CLOSED = (
    'fusermount3 walks to it as root, who is kept out of an ordinary user\'s mount; set access = "all" in imgfs.toml, '
    "have root set user_allow_other in /etc/fuse.conf, and mount again (or mount imgfs as root)"
)
_log = logging.getLogger("imgfs.rootfs")


class UserSnapshots:
    """Mounts users' snapshots on first use, and takes them away before they change their kind."""

    def __init__(
        self,
        terms: Terms,
        graph: SnapshotGraph,
        views: Views,
        snapshots: SnapshotStore,
        containers: ContainerRecords,
        kernel: Kernel,
        places: Places,
        lowers: Lowers,
    ) -> None:
        self._terms = terms
        self._graph = graph
        self._views = views
        self._snapshots = snapshots
        self._containers = containers
        self._kernel = kernel
        self._places = places
        self._lowers = lowers

    async def show(self, id: str) -> bool:
        """Mount a user's snapshot over its rootfs unless it is; tell whether it was done now.

        In a tree or on a filesystem that is read-only an active one is mounted read-only, until it is unmounted.

        Raises NotPermitted where this host cannot, Busy while it is removed or committed, StorageFailed, and what
        getting the layers below it raises.
        """
        place = rootfs_of(id)
        if place in self._places and not await self._places.is_gone(place):
            return False
        info = self._snapshots.stat(id)
        if info.kind is Kind.ACTIVE and (mounted := await run_disk(self._containers.rootfs_of, info.name)):
            # An upper has one overlay at a time, and this one's container goes on with it without us.
            return await self._places.mount(
                place, partial(self._kernel.bind, str(mounted), trusted=self._terms.trusted)
            )
        stack = self._snapshots.stack(id, read_only=info.kind is Kind.ACTIVE and await self._takes_no_change())
        self._check_writable(id)
        chain = self._graph.find(stack.chain) if stack.chain else None
        with self._lowers.holding(chain):
            lower = await self._lower_or_view(chain) if chain else None
            if stack.upper is not None:
                await self._snapshots.mark_used(info.name, await self._root(chain, lower), seen=info)
            self._check_same(info)
            if chain is not None:
                self._lowers.use(place, chain.chain_id, as_directory=isinstance(lower, str))
            return await self._places.mount(place, self._checked(info, self._user_attachment(stack, lower)))

    async def settle(self, id: str) -> None:
        """Give an active snapshot that was never shown its parent's looks, as showing it does. Idempotent.

        Raises NotFound, Busy, StorageFailed, and what getting the layers of a parent chain raises.
        """
        info, stack = self._snapshots.stat(id), self._snapshots.stack(id)
        if info.kind is not Kind.ACTIVE or info.used:
            return
        chain = self._graph.find(stack.chain) if stack.chain and not stack.lowers else None
        await self._snapshots.mark_used(info.name, await self._root(chain, None), seen=info)

    async def show_changes(self, id: str) -> bool:
        """Mount a user's own changes, read-only, over its diff unless they are. Raises as `show`."""
        place = diff_of(id)
        if place in self._places and not await self._places.is_gone(place):
            return False
        if not self._terms.is_root:
            raise NotPermitted(f"snapshot {id}: showing its changes takes a bind mount; mount imgfs as root")
        upper = str(self._snapshots.upper(id))
        return await self._places.mount(place, partial(self._kernel.bind_read_only, upper, trusted=False))

    async def leave(self, id: str, *, for_good: bool = False) -> None:
        """Take the mounts of a snapshot away. Raises Busy while it is used, also by what an earlier daemon mounted.

        One that is mounted elsewhere too stays mounted: taken away, it could not be mounted again beside that. Where it
        goes `for_good`, nobody will, and only the mounts of this tree are asked.
        """
        if for_good:
            await self._places.unmount(diff_of(id))
            await self._places.unmount(rootfs_of(id))
            return
        if self._check_of(self._snapshots.stat(id)):
            await self._places.check_only_here(rootfs_of(id))
        await self._places.unmount(diff_of(id))
        await self._places.unmount(rootfs_of(id))
        await self._check_unused(self._snapshots.stat(id))

    @property
    def _trusted(self) -> bool:
        return self._terms.trusted

    async def _takes_no_change(self) -> bool:
        return self._terms.read_only or await self._snapshots.is_read_only()

    def _check_same(self, info: Info) -> None:
        """Raise Busy if a snapshot of that id was removed, or made anew upon another parent, while layers came here."""
        now = self._snapshots.find_own(info.id)
        if now is None or (now.number, now.parent) != (info.number, info.parent):
            raise Busy(f"snapshot {info.id}: was changed meanwhile; try again")

    async def _check_unused(self, info: Info) -> None:
        if check := self._check_of(info):
            await trio.to_thread.run_sync(check)

    def _checked(self, info: Info, attach: Callable[[str], object]) -> Callable[[str], object]:
        """`attach` after the check, in the flight of the mount: walkers who checked by themselves would meet."""
        check = self._check_of(info)
        return (lambda target: (check(), attach(target))) if check else attach

    def _check_of(self, info: Info) -> Callable[[], None] | None:
        if info.kind is not Kind.ACTIVE or not info.used or info.damaged or not self._terms.is_root:
            return None
        upper, empty = self._snapshots.upper(info.id), self._snapshots.empty
        return partial(self._kernel.check_unused, upper, empty, f"snapshot {info.id}")

    async def _lower_or_view(self, chain: Snapshot) -> Detached | str:
        """What lies below a user's changes: the chain's EROFS, or its FUSE view as a directory."""
        if self._terms.is_kernel and self._terms.capabilities.overlay_over_erofs:
            try:
                return await self._lowers.get(chain)
            except ImgfsError as error:
                _log.warning("overlay over FUSE", extra={"chain_id": chain.chain_id, "reason": error.message})
        await self._views.get(chain)
        return self._places.path(rootfs_of(chain.chain_id))

    async def _root(self, chain: Snapshot | None, lower: Detached | str | None) -> RootAttributes | None:
        """What the root of a chain looks like: an overlay shows that of its upper."""
        if chain is None:
            return None
        if lower is not None and not isinstance(lower, str):
            return await self._lowers.root(chain, lower)
        root = (await self._views.get(chain)).tree.root
        if not self._terms.is_root:  # everything is the user's, and only root sets more than user.*
            xattrs = tuple(one for one in root.xattrs if one[0].startswith(b"user."))
            return RootAttributes(root.mode & 0o7777, os.geteuid(), os.getegid(), root.mtime, xattrs)
        return RootAttributes(root.mode & 0o7777, root.uid, root.gid, root.mtime, root.xattrs)

    def _user_attachment(self, stack: Stack, lower: Detached | str | None) -> Callable[[str], object]:
        below = lower if lower is not None else str(self._snapshots.empty)
        lowers: Sequence[str | Detached] = [*map(str, stack.lowers), below]
        kernel, upper, work, trusted = self._kernel, stack.upper, stack.work, self._trusted
        if not self._terms.is_root:
            paths = [one for one in lowers if isinstance(one, str)]
            return lambda target: kernel.mount_fuse_overlay(paths, target, upper, work)
        return lambda target: kernel.mount_overlay(lowers, target, upper=upper, work=work, trusted=trusted)

    def _check_writable(self, id: str) -> None:
        """Raise NotPermitted where no overlay can be mounted, saying what is missing."""
        capabilities = self._terms.capabilities
        missing = capabilities.overlay if self._terms.is_root else capabilities.fuse_overlayfs
        if not missing:
            raise NotPermitted(f"snapshot {id}: {missing.reason}")
        if not self._terms.is_root and self._terms.private:
            raise NotPermitted(f"snapshot {id}: {_CLOSED}")
