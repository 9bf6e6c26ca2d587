"""How a chain is shown at `snapshots/<chain ID>/rootfs`: by the kernel's EROFS, else by the FUSE view beneath.

Same path, same content. Where nothing may be mounted or the chain is refused, the FUSE view stays what is seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import trio

from imgfs.errors import ImgfsError
from imgfs.layers.store import LayerStore
from imgfs.oci.digest import Digest
from imgfs.rootfs.kernel import Kernel
from imgfs.rootfs.lowers import Lowers
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.places import Places, rootfs_of
from imgfs.rootfs.refusals import Refusals
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.graph import Snapshot, SnapshotGraph
from imgfs.snapshots.views import Views

BREATH = 0.2
"""Seconds that the first reader of a new image has for himself before its metadata image is built."""

SMALL = 32 << 20
"""Bytes of tars whose entries are so few that their first reader need not be spared the building."""

_log = logging.getLogger("imgfs.rootfs")


class Chains:
    """Mounts chains on first use."""

    def __init__(
        self,
        terms: Terms,
        images: MetadataImages,
        graph: SnapshotGraph,
        views: Views,
        layers: LayerStore,
        kernel: Kernel,
        places: Places,
        lowers: Lowers,
        nursery: trio.Nursery,
    ) -> None:
        self._terms = terms
        self._images = images
        self._graph = graph
        self._views = views
        self._layers = layers
        self._kernel = kernel
        self._places = places
        self._lowers = lowers
        self._nursery = nursery
        self._refused = Refusals()
        self._unbound = Refusals()
        """Chains that could not even have a read-only mount of their FUSE view."""
        self._bound: set[str] = set()
        """Places whose last mount was a read-only one of the FUSE view beneath."""
        self._preparing: dict[Digest, trio.CancelScope] = {}

    @property
    def is_kernel(self) -> bool:
        """Whether chains are shown by the kernel here."""
        return self._terms.is_kernel

    @property
    def is_mounting(self) -> bool:
        """Whether anything may be mounted over a chain's rootfs here: the kernel's view, or a read-only bind."""
        return self._terms.is_root

    def preparing(self) -> Iterator[Digest]:
        """Those that are going to be mounted without anybody's waiting."""
        return iter(self._preparing)

    def refusal(self, chain_id: Digest) -> str | None:
        """Why the kernel does not show this chain; None if it does or was not asked yet."""
        return self._refused.reason(chain_id) or self._unbound.reason(chain_id)

    def is_shown(self, snapshot: Snapshot) -> bool:
        """Whether the chain is mounted, or is going to be without anybody's waiting, or cannot be."""
        chain_id = snapshot.chain_id
        return (
            not self._terms.is_root
            or rootfs_of(chain_id) in self._places
            or chain_id in self._preparing
            or self._unbound.hold(chain_id)
        )

    def is_bound(self, snapshot: Snapshot) -> bool:
        """Whether what is seen of the chain is its FUSE view under a read-only mount of itself."""
        place = rootfs_of(snapshot.chain_id)
        return place in self._places and place in self._bound

    def is_lower(self, snapshot: Snapshot) -> bool:
        """Whether a user's snapshot lies on the chain's directory in the tree, so that who reads it comes by there."""
        return self._lowers.is_directory(snapshot.chain_id)

    def prepare(self, snapshot: Snapshot) -> None:
        """Have the kernel show the chain soon, behind a reader who has just brought it here and reads the FUSE view.

        Building the metadata image of a big one takes about a tenth of the time that bringing it here took.
        """
        if not self.is_shown(snapshot):
            self._preparing[snapshot.chain_id] = trio.CancelScope()
            self._nursery.start_soon(self._prepare, snapshot)

    def forgo(self) -> None:
        """Leave those that are going to be mounted to the next walk: the tree is about to be unmounted."""
        for scope in self._preparing.values():
            scope.cancel()

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
        if await self.is_lazy(snapshot):
            return await self._show_or_refuse(snapshot)
        async with self._views.at_work(snapshot):
            return await self._show_or_refuse(snapshot)

    async def _show_or_refuse(self, snapshot: Snapshot) -> bool:
        try:
            return await self._show(snapshot)
        except ImgfsError as error:
            _log.warning("view stays in FUSE", extra={"chain_id": snapshot.chain_id, "reason": error.message})
            self._refused.note(snapshot.chain_id, error)
            return await self._show_read_only(snapshot)

    async def _show(self, snapshot: Snapshot) -> bool:
        place = rootfs_of(snapshot.chain_id)
        with self._lowers.holding(snapshot):
            lower = await self._lowers.get(snapshot)
            self._lowers.use(place, snapshot.chain_id)
            is_new = await self._places.mount(place, partial(self._kernel.attach_clone, lower))
            if is_new:
                self._bound.discard(place)
        self._refused.clear(snapshot.chain_id)
        return is_new

    async def _show_read_only(self, snapshot: Snapshot) -> bool:
        """Mount the FUSE view over itself: without it access(2) tells root that a read-only file can be written."""
        place = rootfs_of(snapshot.chain_id)
        try:
            is_new = await self._places.mount(
                place, lambda target: self._kernel.bind_read_only(target, target, trusted=self._terms.trusted)
            )
            if is_new:
                self._bound.add(place)
            return is_new
        except ImgfsError as error:
            self._unbound.note(snapshot.chain_id, error)
            return False

    async def _prepare(self, snapshot: Snapshot) -> None:
        with self._preparing[snapshot.chain_id] as breath:
            await trio.sleep(BREATH)
        del self._preparing[snapshot.chain_id]
        if not breath.cancelled_caught:
            with suppress(ImgfsError):  # told to whoever reads
                await self.show(snapshot)
