"""What is mounted over snapshots/<id>/rootfs and diff: a chain's EROFS, or an overlay of a user's changes upon it.

Same path, same content: where the kernel cannot or may not, the FUSE view beneath shows a chain. Only writable
snapshots and what was committed from them need a mount; without one they are refused, with the reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import Busy, ImgfsError, NotPermitted
from imgfs.execution.records import Records
from imgfs.kernel.mountapi import Detached
from imgfs.layers.store import LayerStore
from imgfs.oci.digest import Digest, is_digest
from imgfs.rootfs.kernel import HOST, Kernel
from imgfs.rootfs.lowers import Lowers
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.places import Places
from imgfs.rootfs.refusals import Refusals
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.graph import Snapshot, SnapshotGraph
from imgfs.snapshots.root import RootAttributes
from imgfs.snapshots.rows import Info, Kind
from imgfs.snapshots.store import SnapshotStore, Stack
from imgfs.snapshots.views import Views

BREATH = 0.2
"""Seconds that the first reader of a new image has for himself before its metadata image is built."""

SMALL = 32 << 20
"""Bytes of tars whose entries are so few that their first reader need not be spared the building."""

_CLOSED = (
    'fusermount3 walks to it as root, who is kept out of an ordinary user\'s mount; set access = "all" in imgfs.toml, '
    "have root set user_allow_other in /etc/fuse.conf, and mount again (or mount imgfs as root)"
)
_log = logging.getLogger("imgfs.rootfs")


class Rootfs:
    """Mounts views on first use."""

    def __init__(
        self,
        terms: Terms,
        images: MetadataImages,
        graph: SnapshotGraph,
        views: Views,
        snapshots: SnapshotStore,
        layers: LayerStore,
        containers: Records,
        nursery: trio.Nursery,
        kernel: Kernel = HOST,
    ) -> None:
        self.places = Places(terms.mountpoint, nursery, kernel)
        self._terms = terms
        self._images = images
        self._graph = graph
        self._views = views
        self._snapshots = snapshots
        self._layers = layers
        self._containers = containers
        self._nursery = nursery
        self._kernel = kernel
        self._lowers = Lowers(terms, images, graph, views, layers, kernel, nursery)
        self._users: dict[str, Digest] = {}
        """The chain below each place."""
        self._directories: dict[str, Digest] = {}
        """Those of them that lie there as their directory in the tree."""
        self._refused = Refusals()
        self._unbound = Refusals()
        """Chains that could not even have a read-only mount of their FUSE view."""
        self._bound: set[str] = set()
        """Places whose last mount was a read-only one of the FUSE view beneath."""
        self._preparing: set[Digest] = set()

    @property
    def is_kernel(self) -> bool:
        """Whether chains are shown by the kernel here."""
        return self._terms.is_kernel

    @property
    def is_mounting(self) -> bool:
        """Whether anything may be mounted over a chain's rootfs here: the kernel's view, or a read-only bind."""
        return self._terms.is_root

    def shown(self) -> set[Digest]:
        """The chains that are mounted or are going to be, below users' snapshots too."""
        ids = (place.split("/")[1] for place in self.places)
        return {*self._lowers, *self._users.values(), *self._preparing, *(Digest(id) for id in ids if is_digest(id))}

    def refusal(self, chain_id: Digest) -> str | None:
        """Why the kernel does not show this chain; None if it does or was not asked yet."""
        return self._refused.reason(chain_id) or self._unbound.reason(chain_id)

    def is_shown(self, snapshot: Snapshot) -> bool:
        """Whether the chain is mounted, or is going to be without anybody's waiting, or cannot be."""
        chain_id = snapshot.chain_id
        return (
            not self._terms.is_root
            or rootfs_of(chain_id) in self.places
            or chain_id in self._preparing
            or self._unbound.hold(chain_id)
        )

    def is_bound(self, snapshot: Snapshot) -> bool:
        """Whether what is seen of the chain is its FUSE view under a read-only mount of itself."""
        place = rootfs_of(snapshot.chain_id)
        return place in self.places and place in self._bound

    def is_lower(self, snapshot: Snapshot) -> bool:
        """Whether a user's snapshot lies on the chain's directory in the tree, so that who reads it comes by there."""
        return snapshot.chain_id in self._directories.values()

    def prepare(self, snapshot: Snapshot) -> None:
        """Have the kernel show the chain soon, behind a reader who has just brought it here and reads the FUSE view.

        Building the metadata image of a big one takes about a tenth of the time that bringing it here took.
        """
        if not self.is_shown(snapshot):
            self._preparing.add(snapshot.chain_id)
            self._nursery.start_soon(self._prepare, snapshot)

    def is_small(self, snapshot: Snapshot) -> bool:
        """Whether its metadata image is built in no time worth the mention."""
        return sum(self._layers.get(one.diff_id).size() for one in self._graph.layers(snapshot)) < SMALL

    async def is_lazy(self, snapshot: Snapshot) -> bool:
        """Whether the chain can be shown before its layers are here."""
        return self.is_kernel and await self._images.find(snapshot.chain_id) is not None

    async def show(self, snapshot: Snapshot) -> bool:
        """Mount a chain's view over its rootfs unless it is; tell whether it was done now.

        Where that is refused the FUSE view stays what is seen, read-only by a mount of its own where any is allowed.
        Raises what getting its layers here raises: they are needed to build its metadata image, but not to mount one.
        """
        if self.is_shown(snapshot):
            return False
        if not self.is_kernel or self._refused.hold(snapshot.chain_id):
            return await self._show_read_only(snapshot)
        if not await self.is_lazy(snapshot):
            await self._views.get(snapshot)
        try:
            return await self._show(snapshot)
        except ImgfsError as error:
            _log.warning("view stays in FUSE", extra={"chain_id": snapshot.chain_id, "reason": error.message})
            self._refused.note(snapshot.chain_id, error)
            return await self._show_read_only(snapshot)

    async def show_user(self, id: str) -> bool:
        """Mount a user's snapshot over its rootfs unless it is; tell whether it was done now.

        In a tree or on a filesystem that is read-only an active one is mounted read-only, until it is unmounted.

        Raises NotPermitted where this host cannot, Busy while it is removed or committed, StorageFailed, and what
        getting the layers below it raises.
        """
        place = rootfs_of(id)
        if place in self.places and not await self.places.is_gone(place):
            return False
        info = self._snapshots.stat(id)
        if info.kind is Kind.ACTIVE and (mounted := await run_disk(self._containers.rootfs_of, info.name)):
            # An upper has one overlay at a time, and this one's container goes on with it without us.
            return await self.places.mount(place, partial(self._kernel.bind, str(mounted), trusted=self._trusted))
        stack = self._snapshots.stack(id, read_only=info.kind is Kind.ACTIVE and await self._takes_no_change())
        self._check_writable(id)
        chain = self._graph.find(stack.chain) if stack.chain else None
        with self._lowers.holding(chain):
            lower = await self._lower_or_view(chain) if chain else None
            if stack.upper is not None:
                await self._snapshots.mark_used(info.name, await self._root(chain, lower), seen=info)
            self._check_same(info)
            if chain is not None:
                self._users[place] = chain.chain_id
                if isinstance(lower, str):
                    self._directories[place] = chain.chain_id
            return await self.places.mount(place, self._checked(info, self._user_attachment(stack, lower)))

    async def _takes_no_change(self) -> bool:
        return self._terms.read_only or await self._snapshots.is_read_only()

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
        """Mount a user's own changes, read-only, over its diff unless they are. Raises as show_user."""
        place = diff_of(id)
        if place in self.places and not await self.places.is_gone(place):
            return False
        if not self._terms.is_root:
            raise NotPermitted(f"snapshot {id}: showing its changes takes a bind mount; mount imgfs as root")
        upper = str(self._snapshots.upper(id))
        return await self.places.mount(place, partial(self._kernel.bind_read_only, upper, trusted=False))

    async def leave(self, id: str) -> None:
        """Take the mounts of a snapshot away. Raises Busy while it is used, also by what an earlier daemon mounted.

        One that is mounted elsewhere too stays mounted: taken away, it could not be mounted again beside that.
        """
        if self._check_of(self._snapshots.stat(id)):
            await self.places.check_only_here(rootfs_of(id))
        await self.places.unmount(diff_of(id))
        await self.places.unmount(rootfs_of(id))
        await self._check_unused(self._snapshots.stat(id))

    async def expire(self, seconds: float) -> None:
        """For ever: take away what nobody has used for `seconds`, or up to twice that."""
        while True:
            await trio.sleep(seconds)
            await self.places.expire()
            self._close_unused()

    async def clear(self) -> None:
        """Take every mount away, so that the tree can be unmounted. Raises Busy while one is used."""
        try:
            await self.places.clear()
        finally:
            self._close_unused()

    async def renew(self, chains: Container[Digest]) -> list[str]:
        """Take away what shows one of these chains, because a file behind it is another one now.

        The next walk mounts it again. Returns the places that are in use, and go on with the old file until they go.
        """
        ids = {place: chain for place, chain in self._users.items() if chain in chains}
        left: list[str] = []
        for place in [place for place in ids if place in self.places]:
            try:
                await self.places.unmount(place)
            except Busy:
                left.append(place)
        self._close_unused()
        return left

    async def renew_layers(self, diff_ids: Container[Digest]) -> list[str]:
        """As `renew`, for all that reads one of these layers: nobody new reads what was opened of them."""
        self._views.drop(diff_ids)
        return await self.renew(self._graph.over(diff_ids))

    async def follow_losses(self) -> None:
        """For ever: take away what reads a layer that the disk has lost; the next walk gets the layer again."""
        while True:
            for place in await self.renew_layers(await self._layers.wait_lost()):
                _log.warning("in use upon a layer that the disk lost: reading it fails", extra={"place": place})

    @property
    def _trusted(self) -> bool:
        return self._terms.trusted

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

    async def _show(self, snapshot: Snapshot) -> bool:
        place = rootfs_of(snapshot.chain_id)
        with self._lowers.holding(snapshot):
            lower = await self._lowers.get(snapshot)
            self._users[place] = snapshot.chain_id
            is_new = await self.places.mount(place, partial(self._kernel.attach_clone, lower))
            if is_new:
                self._bound.discard(place)
        self._refused.clear(snapshot.chain_id)
        return is_new

    async def _show_read_only(self, snapshot: Snapshot) -> bool:
        """Mount the FUSE view over itself: without it access(2) tells root that a read-only file can be written."""
        place = rootfs_of(snapshot.chain_id)
        try:
            is_new = await self.places.mount(
                place, lambda target: self._kernel.bind_read_only(target, target, trusted=self._trusted)
            )
            if is_new:
                self._bound.add(place)
            return is_new
        except ImgfsError as error:
            self._unbound.note(snapshot.chain_id, error)
            return False

    async def _prepare(self, snapshot: Snapshot) -> None:
        await trio.sleep(BREATH)
        self._preparing.discard(snapshot.chain_id)
        with suppress(ImgfsError):  # told to whoever reads
            await self.show(snapshot)

    async def _lower_or_view(self, chain: Snapshot) -> Detached | str:
        """What lies below a user's changes: the chain's EROFS, or its FUSE view as a directory."""
        if self.is_kernel and self._terms.capabilities.overlay_over_erofs:
            try:
                return await self._lowers.get(chain)
            except ImgfsError as error:
                _log.warning("overlay over FUSE", extra={"chain_id": chain.chain_id, "reason": error.message})
        await self._views.get(chain)
        return self.places.path(rootfs_of(chain.chain_id))

    async def _root(self, chain: Snapshot | None, lower: Detached | str | None) -> RootAttributes | None:
        """What the root of a chain looks like: an overlay shows that of its upper."""
        if lower is not None and not isinstance(lower, str):
            return await trio.to_thread.run_sync(self._kernel.root_of, lower)
        if chain is None:
            return None
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

    def _close_unused(self) -> None:
        self._users = {place: chain for place, chain in self._users.items() if self.places.is_taken(place)}
        self._directories = {place: chain for place, chain in self._directories.items() if place in self._users}
        self._lowers.close_unused(self._users.values())


def rootfs_of(id: str) -> str:
    """The place of a snapshot's rootfs."""
    return f"snapshots/{id}/rootfs"


def diff_of(id: str) -> str:
    """The place of a snapshot's own changes."""
    return f"snapshots/{id}/diff"
