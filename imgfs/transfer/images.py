"""Images, snowballed in: name -> manifest -> config and layers -> snapshot, each step only when somebody needs it.

What is here is never asked for again; a complete image costs no request. Every step is a flight of its own, so a
cancelled reader leaves the others alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.aio.gather import gather
from imgfs.aio.threads import run_cpu
from imgfs.content.store import ContentStore
from imgfs.errors import ImgfsError, Malformed, NotFound, TooLarge
from imgfs.images.catalog import Catalog, Source
from imgfs.images.names import Names, reference_of
from imgfs.layers.store import Layer, LayerStore
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Descriptor, layer_compression
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import (
    CONFIG_SIZE_MAX,
    INDEX_NESTING_MAX,
    MANIFEST_SIZE_MAX,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_document,
)
from imgfs.oci.platform import Platform, choose
from imgfs.oci.reference import Reference
from imgfs.snapshots.graph import Snapshot, SnapshotGraph, SnapshotLayer
from imgfs.transfer.blobs import Blobs, known_descriptor
from imgfs.transfer.failures import Failures
from imgfs.transfer.layers import Layers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry

_PARSED_KEPT = 256


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """One platform of an image: its manifest's digest and the manifest."""

    digest: Digest
    manifest: Manifest


class Images:
    """Resolves names and gets the parts of images here. `platform` is what an index is read for by default."""

    def __init__(
        self,
        names: Names,
        catalog: Catalog,
        content: ContentStore,
        graph: SnapshotGraph,
        registry: Registry,
        blobs: Blobs,
        layers: Layers,
        stored: LayerStore,
        failures: Failures,
        platform: Platform,
        nursery: trio.Nursery,
    ) -> None:
        self.platform = platform
        self._names = names
        self._catalog = catalog
        self._content = content
        self._graph = graph
        self._registry = registry
        self._blobs = blobs
        self._layers = layers
        self._stored = stored
        self._failures = failures
        self._resolving: Flights[Digest] = Flights(nursery)
        self._parsed: OrderedDict[Digest, Manifest | Index] = OrderedDict()
        self._assembled: dict[tuple[Digest, Platform], Snapshot] = {}

    async def resolve(self, reference: Reference) -> Digest:
        """The digest of `reference`: as registered, else asked for at its registry once and recorded, durably.

        Raises NotFound by the registry's word only, RemoteError, VerificationFailed, Malformed, Unsupported, TooLarge.
        """
        if found := self._names.get(str(reference)):
            return found.digest
        return await self._resolving.join(str(reference), lambda: self._resolve(reference))

    async def refresh(self, name: str) -> Digest:
        """Ask the registry of a registered name again, by HEAD, and record a new answer. Raises as `resolve`.

        A local name stays as it is.
        """
        found = self._names.get(name)
        if found is None:
            raise NotFound(f"image {name}: is not registered")
        reference = reference_of(name)
        if reference is None or reference.digest is not None:
            return found.digest
        return await self._resolving.join(("refresh", name), lambda: self._refresh(reference, found.digest))

    async def register(self, name: str, digest: Digest, *, replace: bool = False) -> None:
        """Give `digest` a name without asking anybody whether it exists. Raises as Names.create and Names.put."""
        await (self._names.put(name, digest) if replace else self._names.create(name, digest))
        if reference := reference_of(name):
            await self._catalog.add_source(digest, Source(reference.host, reference.repository))

    async def is_known(self, digest: Digest) -> bool:
        """Whether some name or manifest here mentions `digest` as an image."""
        if self._names.of(digest) or digest in self._parsed:
            return True
        descriptor = await self._catalog.descriptor(digest)
        return descriptor is not None and descriptor.media_type in MANIFEST_TYPES | INDEX_TYPES

    def parsed(self, digest: Digest) -> Manifest | Index | None:
        """The document if it was read already; never waits."""
        return self._parsed.get(digest)

    async def stored_document(self, digest: Digest) -> Manifest | Index | None:
        """The document if it is here, else None; never asks a registry. Raises Malformed, StorageFailed."""
        if digest in self._parsed:
            return self._parsed[digest]
        if digest not in self._content:
            return None
        known = await self._catalog.descriptor(digest)
        return await self._parse(digest, await self._content.read(digest), known.media_type if known else "")

    async def document(self, digest: Digest) -> Manifest | Index:
        """The manifest or index behind `digest`, fetched if need be."""
        stored = await self.stored_document(digest)
        if stored is not None:
            return stored
        descriptor = await self._catalog.descriptor(digest)
        # A name may be registered for a digest that nobody has seen: what it is will show.
        data = await self._blobs.read(descriptor or Descriptor(digest, MANIFEST_SIZE_MAX, OCI_INDEX))
        document = await self._parse(digest, data, descriptor.media_type if descriptor else "")
        await self._record(digest, len(data), document, await self._catalog.sources(digest))
        return document

    async def platform_image(self, digest: Digest, platform: Platform | None = None) -> PlatformImage:
        """The manifest for `platform` (the default one if None) of the image `digest`.

        Raises NotFound, naming what there is, where the index has nothing for it.
        """
        return await self._descend(digest, platform or self.platform, INDEX_NESTING_MAX)

    async def stored_platform_image(self, digest: Digest, platform: Platform) -> PlatformImage | None:
        """As `platform_image` from what is here; None where a document is missing. Raises Malformed, StorageFailed."""
        for _ in range(INDEX_NESTING_MAX + 1):
            document = await self.stored_document(digest)
            if not isinstance(document, Index):
                return PlatformImage(digest, document) if document else None
            digest = _pick(digest, document, platform).digest
        return None

    async def config(self, manifest: Manifest) -> ImageConfig:
        """The image config, fetched if need be, with one diff ID a layer. Raises Malformed, TooLarge."""
        _check_size(manifest.config)
        config = parse_config(await self._blobs.read(manifest.config))
        if len(config.diff_ids) != len(manifest.layers):
            raise Malformed(
                f"image config {manifest.config.digest}: has {len(config.diff_ids)} diff IDs "
                f"for {len(manifest.layers)} layers"
            )
        return config

    def local_snapshot(self, digest: Digest, platform: Platform) -> Snapshot | None:
        """As `snapshot` if it was asked for before and all of it is still here; never waits.

        Every path through a name asks this once more, so it is a few look-ups in memory.
        """
        snapshot = self._assembled.get((digest, platform))
        if snapshot is None or not all(one.diff_id in self._stored for one in self._graph.layers(snapshot)):
            return None
        return snapshot

    async def snapshot(self, digest: Digest, platform: Platform | None = None) -> Snapshot:
        """The committed snapshot of the image's rootfs, with every layer here and verified.

        Config and layers come side by side. Raises whatever a part of it raises; `user.imgfs.error` of the image
        tells the same.
        """
        try:
            image = await self.platform_image(digest, platform)
            snapshot = await self._assemble(image)
        except ImgfsError as error:
            self._failures.note(digest, error)
            raise
        self._failures.clear(digest)
        self._assembled[digest, platform or self.platform] = snapshot
        return snapshot

    def failure(self, digest: Digest) -> str | None:
        """What went wrong last with the image: getting it here, or merging its layers. Its sentence, or None."""
        snapshot = self._assembled.get((digest, self.platform))
        merged = self._failures.get(f"snapshots/{snapshot.chain_id}") if snapshot else None
        return self._failures.get(digest) or merged

    async def pull(self, digest: Digest, platform: Platform | None = None) -> Snapshot:
        """As `snapshot`, and on return everything survives a power cut."""
        snapshot = await self.snapshot(digest, platform)
        for layer in await self.provide(self._graph.layers(snapshot)):
            await self._layers.settled(layer)
        return snapshot

    async def provide(self, layers: Sequence[SnapshotLayer]) -> list[Layer]:
        """The layers of a snapshot, fetched if need be (snapshots/views.py asks)."""
        return await gather([partial(self._provide, layer) for layer in layers])

    async def _provide(self, layer: SnapshotLayer) -> Layer:
        if layer.diff_id in self._stored:
            return self._stored.get(layer.diff_id)
        return await self._layers.ensure(await known_descriptor(self._catalog, layer.blob), layer.diff_id)

    async def _assemble(self, image: PlatformImage) -> Snapshot:
        manifest = image.manifest
        _check_size(manifest.config)
        for descriptor in manifest.layers:
            layer_compression(descriptor.media_type)
        if manifest.config.digest not in self._content:
            # The layers need not wait for the config: what their tars are is compared below.
            await gather(
                [
                    partial(self._blobs.ensure, manifest.config),
                    *(partial(self._prefetch, descriptor) for descriptor in manifest.layers),
                ]
            )
        config = await self.config(manifest)
        pairs = list(zip(manifest.layers, config.diff_ids, strict=True))
        await gather([partial(self._layers.ensure, *pair) for pair in pairs])
        return await self._graph.record(pairs)

    async def _prefetch(self, descriptor: Descriptor) -> None:
        await self._layers.ensure(descriptor, None)

    async def _descend(self, digest: Digest, platform: Platform, depth: int) -> PlatformImage:
        document = await self.document(digest)
        if isinstance(document, Manifest):
            return PlatformImage(digest, document)
        if not depth:
            raise TooLarge(f"image index {digest}: nested deeper than {INDEX_NESTING_MAX}")
        return await self._descend(_pick(digest, document, platform).digest, platform, depth - 1)

    async def _resolve(self, reference: Reference) -> Digest:
        place = f"images/{reference.host}"
        try:
            descriptor, data = await self._registry.manifest(reference)
            document = await self._parse(descriptor.digest, data, descriptor.media_type)
            await self._content.add(descriptor.digest, data)
            source = Source(reference.host, reference.repository)
            await self._record(descriptor.digest, len(data), document, [source])
            await self._names.put(str(reference), descriptor.digest)
        except ImgfsError as error:
            self._failures.note(place, error)
            raise
        self._failures.clear(place)
        await self._resolve_platform(descriptor.digest, document)
        return descriptor.digest

    async def _resolve_platform(self, digest: Digest, document: Manifest | Index) -> None:
        """Get the manifest of the default platform too: then listing the image needs nothing more."""
        if isinstance(document, Index):
            try:
                await self.platform_image(digest)
            except ImgfsError as error:
                # The name is good all the same; whoever reads the rootfs gets this error then.
                self._failures.note(digest, error)

    async def _refresh(self, reference: Reference, known: Digest) -> Digest:
        place = f"images/{reference.host}"
        try:
            answer = await self._registry.resolve(reference)
        except ImgfsError as error:
            self._failures.note(place, error)
            raise
        self._failures.clear(place)
        if answer.digest == known:
            await self._names.put(str(reference), known)
            return known
        self._resolving.forget_failure(str(reference))
        return await self._resolve(reference)

    async def _parse(self, digest: Digest, data: bytes, media_type: str) -> Manifest | Index:
        document = await run_cpu(parse_document, data, media_type)
        self._parsed[digest] = document
        if len(self._parsed) > _PARSED_KEPT:
            self._parsed.popitem(last=False)
        return document

    async def _record(self, digest: Digest, size: int, document: Manifest | Index, sources: Sequence[Source]) -> None:
        own = Descriptor(digest, size, document.media_type)
        await self._catalog.add([own, *document.children], sources)


def _check_size(config: Descriptor) -> None:
    if config.size > CONFIG_SIZE_MAX:
        raise TooLarge(f"image config {config.digest}: has {config.size} bytes, the limit is {CONFIG_SIZE_MAX}")


def _pick(digest: Digest, index: Index, platform: Platform) -> Descriptor:
    images = [one for one in index.manifests if one.media_type in MANIFEST_TYPES | INDEX_TYPES]
    chosen = choose(platform, [one.platform for one in images])
    if chosen is not None:
        return images[chosen]
    unlabelled = [one for one in images if one.platform is None]
    if unlabelled:
        return unlabelled[0]
    offered = ", ".join(sorted({str(one.platform) for one in images})) or "nothing"
    raise NotFound(f"image {digest}: has nothing for {platform}; it has {offered}")
