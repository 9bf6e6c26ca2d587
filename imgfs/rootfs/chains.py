"""How a chain is shown at `snapshots/<chain ID>/rootfs`: by the kernel's EROFS, else by the FUSE view beneath.

Both show the same content at the same path. If nothing may be mounted, or the kernel refuses the chain, callers see the
FUSE view.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import trio

from imgfs.errors import ImgfsError
from imgfs.oci.digest import Digest
from imgfs.rootfs.kernel import Kernel
from imgfs.rootfs.lowers import ChainSources, Lowers
from imgfs.rootfs.places import Places, rootfs_of
from imgfs.rootfs.refusals import Refusals
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.graph import Snapshot

BREATH = 0.2
"""Seconds between the end of the download of a large image and building its metadata image.

Meanwhile the first reader has the CPU for itself.
"""

SMALL = 32 << 20
"""Bytes of tars up to which the first reader waits for the metadata image: it is built in a few milliseconds."""

_log = logging.getLogger("imgfs.rootfs")


class Chains:
    """Mounts chains on first use."""

    def __init__(
        self,
        terms: Terms,
        sources: ChainSources,
        kernel: Kernel,
        places: Places,
        lowers: Lowers,
        nursery: trio.Nursery,
    ) -> None:
        self._terms = terms
        self._images = sources.images
        self._graph = sources.graph
        self._views = sources.views
        self._layers = sources.layers
        self._kernel = kernel
        self._places = places
        self._lowers = lowers
        self._nursery = nursery
        self._refused = Refusals()
        self._unbound = Refusals()
        """Chains whose read-only bind mount of the FUSE view was refused too."""
        self._bound: set[str] = set()
        """Places whose last mount was the read-only bind of the FUSE view beneath."""
        self._preparing: dict[Digest, trio.CancelScope] = {}

    @property
    def is_kernel(self) -> bool:
        """Whether the kernel shows chains on this host."""
        return self._terms.is_kernel

    @property
    def is_mounting(self) -> bool:
        """Whether this daemon may mount over a chain's rootfs: the kernel's view, or a read-only bind."""
        return self._terms.is_root

    def preparing(self) -> Iterator[Digest]:
        """The chains that are going to be mounted in the background."""
        return iter(self._preparing)

    def refusal(self, chain_id: Digest) -> str | None:
        """Return why the kernel does not show this chain; None if it does, or if no mount was tried yet."""
        return self._refused.reason(chain_id) or self._unbound.reason(chain_id)

    def is_shown(self, snapshot: Snapshot) -> bool:
        """Whether the chain is mounted, is going to be mounted in the background, or cannot be mounted."""
        chain_id = snapshot.chain_id
        return (
            not self._terms.is_root
            or rootfs_of(chain_id) in self._places
            or chain_id in self._preparing
            or self._unbound.hold(chain_id)
        )

    def is_bound(self, snapshot: Snapshot) -> bool:
        """Whether callers see the chain's FUSE view under a read-only bind mount of itself."""
        place = rootfs_of(snapshot.chain_id)
        return place in self._places and place in self._bound

    def is_lower(self, snapshot: Snapshot) -> bool:
        """Whether a user's snapshot has the chain's directory in the tree as a lower, so its readers use the tree."""
        return self._lowers.is_directory(snapshot.chain_id)

    def prepare(self, snapshot: Snapshot) -> None:
        """Mount the kernel's view in the background, while the reader that has just fetched the chain reads the FUSE
        view.

        Building the metadata image of a large chain takes about a tenth of the time of its download.
        """
        if not self.is_shown(snapshot):
            self._preparing[snapshot.chain_id] = trio.CancelScope()
            self._nursery.start_soon(self._prepare, snapshot)

    def forgo(self) -> None:
        """Cancel the mounts in the background, because the tree is about to be unmounted."""
        for scope in self._preparing.values():
            scope.cancel()

    def is_small(self, snapshot: Snapshot) -> bool:
        """Whether its metadata image is built fast enough for the first reader to wait for it."""
        return sum(self._layers.get(one.diff_id).size() for one in self._graph.layers(snapshot)) < SMALL

    async def is_lazy(self, snapshot: Snapshot) -> bool:
        """Whether the chain can be mounted before its layers are local."""
        return self.is_kernel and await self._images.find(snapshot.chain_id) is not None

    async def show(self, snapshot: Snapshot) -> bool:
        """Mount a chain's view over its rootfs unless it is mounted; return whether it was mounted now.

        If the kernel refuses the view, callers see the FUSE view, under a read-only bind mount if any mount is allowed.
        Raises what fetching the layers raises. The layers are needed to build a metadata image, and not to mount one.
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
            _log.warning(
                "the kernel cannot mount the view; FUSE serves it",
                extra={"chain_id": snapshot.chain_id, "reason": error.message},
            )
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
        """Mount the FUSE view read-only over itself. Without it access(2) tells root that it can write read-only
        files."""
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
            with suppress(ImgfsError):  # reported to the next reader
                await self.show(snapshot)
