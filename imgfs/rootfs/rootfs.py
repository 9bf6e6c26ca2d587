"""The mounts over snapshots/<id>/rootfs and diff: a chain's EROFS, or an overlay of a user's changes on top of it.

This module decides when mounts end: idle mounts after a while, all mounts at the daemon's end, and mounts of a file
that was replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Container

import trio

from imgfs.errors import Busy
from imgfs.execution.records.records import ContainerRecords
from imgfs.oci.digest import Digest, is_digest
from imgfs.rootfs.chains import Chains
from imgfs.rootfs.kernel import HOST, Kernel
from imgfs.rootfs.lowers import ChainSources, Lowers
from imgfs.rootfs.places import Places
from imgfs.rootfs.terms import Terms
from imgfs.rootfs.users import UserSnapshots
from imgfs.snapshots.store import SnapshotStore

_log = logging.getLogger("imgfs.rootfs")


class Rootfs:
    """All mounts below snapshots/: those of `chains`, and those of `users`."""

    def __init__(
        self,
        terms: Terms,
        sources: ChainSources,
        snapshots: SnapshotStore,
        containers: ContainerRecords,
        nursery: trio.Nursery,
        kernel: Kernel = HOST,
    ) -> None:
        self.places = Places(terms.mountpoint, nursery, kernel)
        lowers = Lowers(terms, sources, kernel, nursery)
        self.chains = Chains(terms, sources, kernel, self.places, lowers, nursery)
        self.users = UserSnapshots(terms, sources, snapshots, containers, kernel, self.places, lowers)
        self._graph = sources.graph
        self._views = sources.views
        self._layers = sources.layers
        self._lowers = lowers

    def shown(self) -> set[Digest]:
        """Return the chains that are mounted or are going to be, also as the lowers of users' snapshots."""
        ids = (place.split("/")[1] for place in self.places)
        chains = (Digest(id) for id in ids if is_digest(id))
        return {*self._lowers, *self._lowers.users().values(), *self.chains.preparing(), *chains}

    async def expire(self, seconds: float) -> None:
        """Unmount forever what no process has used for `seconds`; it may take twice that time."""
        while True:
            await trio.sleep(seconds)
            await self.places.expire()
            self._lowers.close_unused(self.places.is_taken)

    async def clear(self) -> None:
        """Unmount everything, so that the tree can be unmounted. Raises Busy while a mount is used."""
        self.chains.forgo()
        try:
            await self.places.clear()
        finally:
            self._lowers.close_unused(self.places.is_taken)

    async def renew(self, chains: Container[Digest]) -> list[str]:
        """Unmount every place that shows one of these chains, because one of its files was replaced.

        The next walk mounts it again. Returns the places that are in use; they keep the old file until they are
        unmounted.
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
        """As `renew`, for every chain with one of these layers. Their views are dropped, so later readers open the new
        files."""
        self._views.drop(diff_ids)
        return await self.renew(self._graph.over(diff_ids))

    async def follow_losses(self) -> None:
        """Unmount each mount that reads a lost layer; the next walk fetches the layer again. Runs until cancelled."""
        while True:
            for place in await self.renew_layers(await self._layers.wait_lost()):
                _log.warning(
                    "mount in use reads a lost layer: reads fail until it is unmounted", extra={"place": place}
                )
