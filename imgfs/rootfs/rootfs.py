"""What is mounted over snapshots/<id>/rootfs and diff: a chain's EROFS, or an overlay of a user's changes upon it.

Owns when mounts go: unused ones after a while, all at the end, and those of a file that is another one now.
"""

from __future__ import annotations

import logging
from collections.abc import Container

import trio

from imgfs.errors import Busy
from imgfs.execution.records.records import ContainerRecords
from imgfs.layers.store import LayerStore
from imgfs.oci.digest import Digest, is_digest
from imgfs.rootfs.chains import Chains
from imgfs.rootfs.kernel import HOST, Kernel
from imgfs.rootfs.lowers import Lowers
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.places import Places
from imgfs.rootfs.terms import Terms
from imgfs.rootfs.users import UserSnapshots
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.views import Views

_log = logging.getLogger("imgfs.rootfs")


class Rootfs:
    """All mounts below snapshots/: those of `chains`, and those of `users`."""

    def __init__(
        self,
        terms: Terms,
        images: MetadataImages,
        graph: SnapshotGraph,
        views: Views,
        snapshots: SnapshotStore,
        layers: LayerStore,
        containers: ContainerRecords,
        nursery: trio.Nursery,
        kernel: Kernel = HOST,
    ) -> None:
        self.places = Places(terms.mountpoint, nursery, kernel)
        lowers = Lowers(terms, images, graph, views, layers, kernel, nursery)
        self.chains = Chains(terms, images, graph, views, layers, kernel, self.places, lowers, nursery)
        self.users = UserSnapshots(terms, graph, views, snapshots, containers, kernel, self.places, lowers)
        self._graph = graph
        self._views = views
        self._layers = layers
        self._lowers = lowers

    def shown(self) -> set[Digest]:
        """The chains that are mounted or are going to be, below users' snapshots too."""
        ids = (place.split("/")[1] for place in self.places)
        chains = (Digest(id) for id in ids if is_digest(id))
        return {*self._lowers, *self._lowers.users().values(), *self.chains.preparing(), *chains}

    async def expire(self, seconds: float) -> None:
        """For ever: take away what nobody has used for `seconds`, or up to twice that."""
        while True:
            await trio.sleep(seconds)
            await self.places.expire()
            self._lowers.close_unused(self.places.is_taken)

    async def clear(self) -> None:
        """Take every mount away, so that the tree can be unmounted. Raises Busy while one is used."""
        self.chains.forgo()
        try:
            await self.places.clear()
        finally:
            self._lowers.close_unused(self.places.is_taken)

    async def renew(self, chains: Container[Digest]) -> list[str]:
        """Take away what shows one of these chains, because a file behind it is another one now.

        The next walk mounts it again. Returns the places that are in use, and go on with the old file until they go.
        """
        ids = {place: chain for place, chain in self._lowers.users().items() if chain in chains}
        left: list[str] = []
        for place in [place for place in ids if place in self.places]:
            try:
                await self.places.unmount(place)
            except Busy:
                left.append(place)
        self._lowers.close_unused(self.places.is_taken)
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
