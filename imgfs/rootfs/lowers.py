"""The detached EROFS mounts of chains. Every place that shows a chain has a clone of its mount, or an overlay over it.

So all places that show a chain share its page cache, and a chain is opened once however many snapshots use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgfs.aio.flight import Flights
from imgfs.errors import Malformed
from imgfs.kernel.mountapi import Detached
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.oci.digest import Digest
from imgfs.rootfs.kernel import Kernel
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.terms import Terms
from imgfs.snapshots.graph import Snapshot, SnapshotGraph
from imgfs.snapshots.root import RootAttributes
from imgfs.snapshots.views import Views


@dataclass(frozen=True, slots=True)
class ChainSources:
    """What a kernel view of a chain is made from: its layers, their merged tree, and the metadata image of that."""

    graph: SnapshotGraph
    layers: LayerStore
    views: Views
    images: MetadataImages


class Lowers:
    """One mount of each chain in use, made on first use."""

    def __init__(self, terms: Terms, sources: ChainSources, kernel: Kernel, nursery: trio.Nursery) -> None:
        self._terms = terms
        self._images = sources.images
        self._graph = sources.graph
        self._views = sources.views
        self._layers = sources.layers
        self._kernel = kernel
        self._opened: dict[Digest, Detached] = {}
        self._roots: dict[Digest, RootAttributes] = {}
        self._opening: Flights[Detached] = Flights(nursery, memory=0)
        self._held: Counter[Digest] = Counter()
        """The number of callers that are about to mount each chain, or an overlay over it."""
        self._users: dict[str, Digest] = {}
        """The chain that each place shows, or that its overlay has as a lower."""
        self._directories: set[str] = set()
        """The places whose overlay has the chain's directory in the tree as its lower."""

    def __iter__(self) -> Iterator[Digest]:
        """Iterate over the chains whose mount is open."""
        return iter(list(self._opened))

    @contextmanager
    def holding(self, chain: Snapshot | None) -> Generator[None]:
        """Keep the mount of a chain from being closed between its opening and its use."""
        if chain is not None:
            self._held[chain.chain_id] += 1
        try:
            yield
        finally:
            if chain is not None:
                self._held[chain.chain_id] -= 1

    async def get(self, chain: Snapshot) -> Detached:
        """Return the mount of a chain. If its metadata image is missing, build it, which needs the chain's layers.

        Raises what building and mounting it raises; Malformed if the kernel refuses the image, which is then removed.
        """
        found = self._opened.get(chain.chain_id)
        return found or await self._opening.join(chain.chain_id, lambda: self._open(chain))

    async def root(self, chain: Snapshot, mount: Detached) -> RootAttributes:
        """Return the attributes of a chain's root directory, read through its mount."""
        if chain.chain_id not in self._roots:
            self._roots[chain.chain_id] = await trio.to_thread.run_sync(self._kernel.root_of, mount)
        return self._roots[chain.chain_id]

    def use(self, place: str, chain_id: Digest, *, as_directory: bool = False) -> None:
        """Record that a place is going to show a chain: by its mount, or `as_directory` by its directory in the
        tree."""
        self._users[place] = chain_id
        if as_directory:
            self._directories.add(place)

    def users(self) -> dict[str, Digest]:
        """Return the chain at each place."""
        return dict(self._users)

    def is_directory(self, chain_id: Digest) -> bool:
        """Return whether an overlay has the chain's directory in the tree as a lower, so its readers use the tree."""
        return any(self._users[place] == chain_id for place in self._directories)

    def close_unused(self, is_taken: Callable[[str], bool]) -> None:
        """Close the mounts of all chains that are neither held nor shown at a taken place.

        Clones and overlays of a closed mount stay.
        """
        self._users = {place: chain for place, chain in self._users.items() if is_taken(place)}
        self._directories &= self._users.keys()
        kept = {*self._users.values(), *(+self._held)}
        for chain_id in [one for one in self._opened if one not in kept]:
            self._opened.pop(chain_id).close()
            self._roots.pop(chain_id, None)

    async def _open(self, chain: Snapshot) -> Detached:
        image = await self._images.find(chain.chain_id)
        if image is None:
            async with self._views.at_work(chain) as view:
                image = await self._images.make(view)
        try:
            opened = await self._mount(chain, image)
        except Malformed:
            await self._images.remove(chain.chain_id)
            raise
        self._opened[chain.chain_id] = opened
        return opened

    async def _mount(self, chain: Snapshot, image: Path) -> Detached:
        diff_ids = [layer.diff_id for layer in self._graph.layers(chain)]
        held = {one: self._layers.get(one) for one in diff_ids if one in self._layers}
        devices = [self._device(one, held.get(one)) for one in diff_ids]
        trusted = self._terms.trusted
        return await trio.to_thread.run_sync(lambda: self._kernel.detached_erofs(image, devices, trusted=trusted))

    def _device(self, diff_id: Digest, layer: Layer | None) -> Path:
        """Return the layer's own file if it is local, so that its readers need no daemon; else the file that fetches
        it.

        A local file is named by its descriptor, because its name changes while a new layer is made durable. The caller
        keeps the Layer, and so the descriptor, until the mount is made.
        """
        if layer is not None:
            return Path(f"/proc/self/fd/{layer.descriptor()}")
        return Path(self._terms.mountpoint) / ".imgfs" / "layers" / diff_id
