"""How users' snapshots are shown: the rootfs as an overlay of the changes over the parent, and the changes alone.

Unlike chains, users' snapshots need a mount. If the daemon may not mount, they are refused, with the reason.
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
from imgfs.rootfs.lowers import ChainSources, Lowers
from imgfs.rootfs.places import Places, diff_of, rootfs_of
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.graph import Snapshot
from imgfs.snapshots.lineage import Stack
from imgfs.snapshots.root import RootAttributes
from imgfs.snapshots.rows import Info, SnapshotKind
from imgfs.snapshots.store import SnapshotStore

_CLOSED = (
    'fusermount3 walks to it as root, which may not enter an ordinary user\'s mount; set access = "all" in imgfs.toml, '
    "have root set user_allow_other in /etc/fuse.conf, and mount again (or mount imgfs as root)"
)
_log = logging.getLogger("imgfs.rootfs")


class UserSnapshots:
    """Mounts users' snapshots on first use, and unmounts them before a commit or a removal."""

    def __init__(
        self,
        terms: Terms,
        sources: ChainSources,
        snapshots: SnapshotStore,
        containers: ContainerRecords,
        kernel: Kernel,
        places: Places,
        lowers: Lowers,
    ) -> None:
        self._terms = terms
        self._graph = sources.graph
        self._views = sources.views
        self._snapshots = snapshots
        self._containers = containers
        self._kernel = kernel
        self._places = places
        self._lowers = lowers

    async def show(self, id: str) -> bool:
        """Mount a user's snapshot over its rootfs unless it is mounted; return whether it was mounted now.

        If the tree or the state directory is read-only, an active snapshot is mounted read-only.

        Raises NotPermitted if this host cannot mount it, Busy while it is removed or committed, StorageFailed, and what
        fetching the layers below it raises.
        """
        place = rootfs_of(id)
        if place in self._places and not await self._places.is_gone(place):
            return False
        info = self._snapshots.stat(id)
        if info.kind is SnapshotKind.ACTIVE and (mounted := await run_disk(self._containers.rootfs_of, info.name)):
            # An upper can have one overlay at a time, and the container keeps its overlay without the daemon: bind it.
            return await self._places.mount(
                place, partial(self._kernel.bind, str(mounted), trusted=self._terms.trusted)
            )
        stack = self._snapshots.stack(id, read_only=info.kind is SnapshotKind.ACTIVE and await self._takes_no_change())
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
        """Give an active snapshot that was never mounted the root attributes of its parent, as `show` does. Idempotent.

        Raises NotFound, Busy, StorageFailed, and what fetching the layers of a parent chain raises.
        """
        info, stack = self._snapshots.stat(id), self._snapshots.stack(id)
        if info.kind is not SnapshotKind.ACTIVE or info.used:
            return
        chain = self._graph.find(stack.chain) if stack.chain and not stack.lowers else None
        await self._snapshots.mark_used(info.name, await self._root(chain, None), seen=info)

    async def show_changes(self, id: str) -> bool:
        """Mount a snapshot's own changes read-only over its diff, unless they are mounted. Raises as `show`."""
        place = diff_of(id)
        if place in self._places and not await self._places.is_gone(place):
            return False
        if not self._terms.is_root:
            raise NotPermitted(f"snapshot {id}: showing its changes takes a bind mount; mount imgfs as root")
        upper = str(self._snapshots.upper(id))
        return await self._places.mount(place, partial(self._kernel.bind_read_only, upper, trusted=False))

    async def leave(self, id: str, *, for_good: bool = False) -> None:
        """Unmount a snapshot. Raises Busy while it is used, also through a mount of an earlier daemon.

        A snapshot that is also mounted elsewhere stays mounted and is Busy: it could not be mounted again beside that
        mount. If it is unmounted `for_good`, to be removed, only the mounts of this tree are checked.
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
        """Raise Busy if the snapshot was removed, or made again with another parent, while its layers were fetched."""
        now = self._snapshots.find_own(info.id)
        if now is None or (now.number, now.parent) != (info.number, info.parent):
            raise Busy(f"snapshot {info.id}: was changed by another call; try again")

    async def _check_unused(self, info: Info) -> None:
        if check := self._check_of(info):
            await trio.to_thread.run_sync(check)

    def _checked(self, info: Info, attach: Callable[[str], object]) -> Callable[[str], object]:
        """Return `attach` after the check. Both run in the flight of the mount, since parallel checks would collide."""
        check = self._check_of(info)
        return (lambda target: (check(), attach(target))) if check else attach

    def _check_of(self, info: Info) -> Callable[[], None] | None:
        if info.kind is not SnapshotKind.ACTIVE or not info.used or info.damaged or not self._terms.is_root:
            return None
        upper, empty = self._snapshots.upper(info.id), self._snapshots.empty
        return partial(self._kernel.check_unused, upper, empty, f"snapshot {info.id}")

    async def _lower_or_view(self, chain: Snapshot) -> Detached | str:
        """Return the lower of a user's changes: the chain's EROFS, or the directory of its FUSE view."""
        if self._terms.is_kernel and self._terms.capabilities.overlay_over_erofs:
            try:
                return await self._lowers.get(chain)
            except ImgfsError as error:
                _log.warning(
                    "overlay uses the FUSE view as its lower layer",
                    extra={"chain_id": chain.chain_id, "reason": error.message},
                )
        await self._views.get(chain)
        return self._places.path(rootfs_of(chain.chain_id))

    async def _root(self, chain: Snapshot | None, lower: Detached | str | None) -> RootAttributes | None:
        """Return the attributes of a chain's root. The upper gets them, because an overlay shows its upper's root."""
        if chain is None:
            return None
        if lower is not None and not isinstance(lower, str):
            return await self._lowers.root(chain, lower)
        root = (await self._views.get(chain)).tree.root
        if not self._terms.is_root:  # all files belong to the user, and only root sets other xattrs than user.*
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
        """Raise NotPermitted if this host cannot mount an overlay, with what is missing."""
        capabilities = self._terms.capabilities
        missing = capabilities.overlay if self._terms.is_root else capabilities.fuse_overlayfs
        if not missing:
            raise NotPermitted(f"snapshot {id}: {missing.reason}")
        if not self._terms.is_root and self._terms.private:
            raise NotPermitted(f"snapshot {id}: {_CLOSED}")
