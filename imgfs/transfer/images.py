"""Fetches the config and layers of an image and records its snapshot, when a caller first needs it.

Stored parts are never requested again, and a complete image costs no request. Every step is a flight of its own, so a
cancelled reader does not affect the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from imgfs.aio.gather import gather
from imgfs.errors import ImgfsError, NotFound, RemoteError, VerificationFailed
from imgfs.layers.layer import Layer
from imgfs.leases.pins import Pin
from imgfs.leases.resource import content, layer, snapshot
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import EMPTY, Digest, chain_ids
from imgfs.oci.platform import Platform
from imgfs.oci.reference import Source
from imgfs.snapshots.graph import Snapshot, SnapshotGraph, SnapshotLayer
from imgfs.transfer.blobs import Blobs, known_descriptor
from imgfs.transfer.documents import Documents, PlatformImage, check_config_size
from imgfs.transfer.layers import Layers
from imgfs.transfer.local_state import LocalState

_HAD_ELSEWHERE = (NotFound, RemoteError, VerificationFailed)
"""Errors of one blob after which another blob with the same tar is tried."""


def _ignored(_: Digest) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class _Assembled:
    """The stored parts of one platform of an image, as of the last call."""

    snapshot: Snapshot
    documents: tuple[Digest, ...]
    """The blobs that a pull fetches besides the layers."""
    sizes: tuple[int, ...]
    """The sizes of the layers' blobs."""


def _assembled(image: PlatformImage, snapshot: Snapshot) -> _Assembled:
    manifest = image.manifest
    return _Assembled(snapshot, (*image.trail, manifest.config.digest), tuple(one.size for one in manifest.layers))


class Images:
    """Fetches the rootfs of images: verifies every layer and records the chain."""

    def __init__(
        self,
        local: LocalState,
        graph: SnapshotGraph,
        documents: Documents,
        blobs: Blobs,
        layers: Layers,
        touched: Callable[[Digest], None] = _ignored,
    ) -> None:
        """`touched` is called with the diff ID of each layer that is used."""
        self._content = local.content
        self._stored = local.layers
        self._catalog = local.catalog
        self._failures = local.failures
        self._pins = local.pins
        self._graph = graph
        self._documents = documents
        self._blobs = blobs
        self._layers = layers
        self._touched = touched
        self._assembled: dict[tuple[Digest, Platform], _Assembled] = {}
        self._blobs_of: dict[Digest, dict[Digest, None]] = {}
        """The blobs of each diff ID, according to the requested images. One tar may be compressed in several ways, and
        a chain records only the first blob.
        """

    def local_snapshot(self, digest: Digest, platform: Platform) -> Snapshot | None:
        """Return the snapshot if it was requested before and is still complete, else None. Never blocks.

        Every path walk through a name calls this, so it costs only a few lookups in memory.
        """
        known = self._assembled.get((digest, platform))
        snapshot = known.snapshot if known else None
        if snapshot is None or self._graph.find(snapshot.chain_id) != snapshot:
            return None  # it was removed meanwhile, and may have been recorded again
        if not all(one.diff_id in self._stored for one in self._graph.layers(snapshot)):
            return None
        return snapshot

    async def known_snapshot(self, digest: Digest, platform: Platform) -> Snapshot | None:
        """Return the recorded snapshot of an image whose documents are stored, else None. Its layers may be missing."""
        try:
            image = await self._documents.stored_platform_image(digest, platform)
            if image is None or image.manifest.config.digest not in self._content:
                return None
            config = await self._documents.config(image.manifest, await self._documents.places(digest))
        except ImgfsError:
            return None  # `snapshot` raises it
        chain = chain_ids(config.diff_ids)
        snapshot = self._graph.find(chain[-1] if chain else EMPTY)
        if snapshot is not None:
            self._note_blobs(image.manifest.layers, config.diff_ids)
            self._assembled[digest, platform] = _assembled(image, snapshot)
        return snapshot

    async def snapshot(
        self, digest: Digest, platform: Platform | None = None, *, hurried: bool = False, again: bool = False
    ) -> Snapshot:
        """Return the committed snapshot of the image's rootfs. All of its layers are stored and verified.

        Config and layers are fetched concurrently. With `hurried` each layer is made durable at once instead of after
        its first reader; this call does not wait for that. With `again` the request is not counted in the metrics.
        Raises the error of the first part that fails; `user.imgfs.error` of the image shows it too.
        """
        wanted = platform or self._documents.platform
        try:
            with self._pins.hold(content(digest)) as pin:
                snapshot = self._present(digest, wanted, again=again)
                if snapshot is None:
                    snapshot = await self._fetch(digest, wanted, pin, hurried=hurried)
        except ImgfsError as error:
            self._failures.note(digest, error)
            raise
        self._failures.clear(digest)
        return snapshot

    def failure(self, digest: Digest) -> str | None:
        """Return the last error of fetching the image or merging its layers, or None."""
        known = self._assembled.get((digest, self._documents.platform))
        return self._failures.get(digest) or (self.snapshot_failure(known.snapshot) if known else None)

    def snapshot_failure(self, snapshot: Snapshot) -> str | None:
        """Return the last error of merging a snapshot, or of a missing layer that its kernel view reads; None without
        one.
        """
        if error := self._failures.get(f"snapshots/{snapshot.chain_id}"):
            return error
        if self._graph.find(snapshot.chain_id) is None:
            return None
        missing = [one.blob for one in self._graph.layers(snapshot) if one.diff_id not in self._stored]
        return next((error for blob in missing if (error := self._failures.get(blob))), None)

    async def pull(self, digest: Digest, platform: Platform | None = None, *, again: bool = False) -> Snapshot:
        """Fetch the image as `snapshot` does. On return everything is durable."""
        with self._pins.hold(content(digest)):
            snapshot = await self.snapshot(digest, platform, hurried=True, again=again)
            await self._layers.wait_durable(*await self.provide(self._graph.layers(snapshot)))
            return snapshot

    async def provide(self, layers: Sequence[SnapshotLayer]) -> list[Layer]:
        """Return the layers of a snapshot, and fetch missing ones. Part of the Protocol LayerProvider."""
        return await gather([partial(self._provide, layer) for layer in layers])

    async def _provide(self, layer: SnapshotLayer) -> Layer:
        self._touched(layer.diff_id)
        if layer.diff_id in self._stored:
            return self._stored.get(layer.diff_id)
        try:
            return await self._ensure(layer.blob, layer.diff_id)
        except _HAD_ELSEWHERE:
            for blob in [one for one in self._blobs_of.get(layer.diff_id, ()) if one != layer.blob]:
                with suppress(*_HAD_ELSEWHERE):
                    return await self._ensure(blob, layer.diff_id)
            raise

    async def _ensure(self, blob: Digest, diff_id: Digest) -> Layer:
        return await self._layers.ensure(await known_descriptor(self._catalog, blob), diff_id)

    def _note_blobs(self, layers: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> None:
        for descriptor, diff_id in zip(layers, diff_ids, strict=True):
            self._blobs_of.setdefault(diff_id, {})[descriptor.digest] = None

    def _present(self, digest: Digest, platform: Platform, *, again: bool) -> Snapshot | None:
        """Return the snapshot if everything that `snapshot` would fetch is stored. Never blocks."""
        snapshot = self.local_snapshot(digest, platform)
        if snapshot is None:
            return None
        known = self._assembled[digest, platform]
        if not all(one in self._content for one in known.documents):
            return None
        if not again:
            self._layers.hit(known.sizes)
        for one in self._graph.layers(snapshot):
            self._touched(one.diff_id)
        return snapshot

    async def _fetch(self, digest: Digest, platform: Platform, pin: Pin, *, hurried: bool) -> Snapshot:
        image = await self._documents.platform_image(digest, platform)
        pin.add(*(content(child.digest) for child in image.manifest.children))
        snapshot = await self._assemble(image, await self._documents.places(digest), pin, hurried=hurried)
        self._assembled[digest, platform] = _assembled(image, snapshot)
        return snapshot

    async def _assemble(self, image: PlatformImage, own: tuple[Source, ...], pin: Pin, *, hurried: bool) -> Snapshot:
        manifest = image.manifest
        check_config_size(manifest.config)
        for descriptor in manifest.layers:
            self._layers.check_readable(descriptor)
        brought: list[Descriptor] = []
        if manifest.config.digest not in self._content:
            # The layers need not wait for the config, because their diff IDs are compared with it below.
            brought = await self._layers.missing(manifest.layers)
            await gather(
                [
                    partial(self._blobs.ensure, manifest.config, own),
                    *(partial(self._bring, descriptor, own, image.digest, hurried=hurried) for descriptor in brought),
                ]
            )
        config = await self._documents.config(manifest, own)
        pairs = list(zip(manifest.layers, config.diff_ids, strict=True))
        self._note_blobs(manifest.layers, config.diff_ids)
        pin.add(*map(layer, config.diff_ids), *map(snapshot, chain_ids(config.diff_ids) or [EMPTY]))
        for diff_id in config.diff_ids:
            self._touched(diff_id)
        await gather(
            [partial(self._layers.ensure, *pair, own, image.digest, again=pair[0] in brought) for pair in pairs]
        )
        return await self._graph.record(pairs)

    async def _bring(self, descriptor: Descriptor, own: tuple[Source, ...], image: Digest, *, hurried: bool) -> None:
        layer = await self._layers.bring(descriptor, own, image)
        if hurried:
            self._layers.hurry(layer)
