"""Names on their way to digests: asked for at a registry once, recorded, asked for again when somebody wants that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.errors import ImgfsError, NotFound, VerificationFailed
from imgfs.failures import Failures
from imgfs.images.catalog import Catalog
from imgfs.images.names import Names, reference_of
from imgfs.leases.pins import Pins
from imgfs.leases.resource import content
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, Manifest
from imgfs.oci.reference import Reference, Source
from imgfs.transfer.documents import Documents

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


class Resolver:
    """Resolves, refreshes and registers names. However many look a name up at once, its registry is asked once."""

    def __init__(
        self,
        names: Names,
        catalog: Catalog,
        documents: Documents,
        registry: Registry,
        failures: Failures,
        nursery: trio.Nursery,
        pins: Pins,
    ) -> None:
        self._pins = pins
        self._names = names
        self._catalog = catalog
        self._documents = documents
        self._registry = registry
        self._failures = failures
        self._flights: Flights[Digest] = Flights(nursery)

    async def resolve(self, reference: Reference) -> Digest:
        """The digest of `reference`: as registered, else asked for at its registry once and recorded, durably.

        Raises NotFound by the registry's word only, RemoteError, VerificationFailed, Malformed, Unsupported, TooLarge.
        """
        if found := self._names.get(str(reference)):
            return found.digest
        return await self._flights.join(str(reference), lambda: self._resolve(reference))

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
        return await self._flights.join(("refresh", name), lambda: self._refresh(reference, found.digest))

    async def register(self, name: str, digest: Digest, *, replace: bool = False) -> None:
        """Give `digest` a name without asking anybody whether it exists. Raises as Names.create and Names.put."""
        await (self._names.put(name, digest) if replace else self._names.create(name, digest))
        if reference := reference_of(name):
            await self._catalog.add_source(digest, Source(reference.host, reference.repository))

    async def is_known(self, digest: Digest) -> bool:
        """Whether some name or manifest here mentions `digest` as an image."""
        if self._names.of(digest) or digest in self._documents:
            return True
        descriptor = await self._catalog.descriptor(digest)
        return descriptor is not None and descriptor.media_type in MANIFEST_TYPES | INDEX_TYPES

    async def _resolve(self, reference: Reference) -> Digest:
        place = f"images/{reference.host}"
        try:
            descriptor, data = await self._manifest(reference)
            source = Source(reference.host, reference.repository)
            with self._pins.hold(content(descriptor.digest)):
                document = await self._documents.store(descriptor, data, source)
                await self._names.put(str(reference), descriptor.digest)
        except ImgfsError as error:
            self._failures.note(place, error)
            raise
        self._failures.clear(place)
        await self._resolve_platform(descriptor.digest, document)
        return descriptor.digest

    async def _is_stored(self, digest: Digest) -> bool:
        """Whether the tag moved to an image whose document is here already, whole."""
        try:
            return await self._documents.stored(digest) is not None
        except ImgfsError:
            return False

    async def _manifest(self, reference: Reference) -> tuple[Descriptor, bytes]:
        """Wrong bytes are asked for once more: a cache on the way may have had a bad moment."""
        try:
            return await self._registry.manifest(reference)
        except VerificationFailed:
            return await self._registry.manifest(reference)

    async def _resolve_platform(self, digest: Digest, document: Manifest | ImageIndex) -> None:
        """Get the manifest of the default platform too: then listing the image needs nothing more."""
        if isinstance(document, ImageIndex):
            try:
                await self._documents.platform_image(digest)
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
        if await self._is_stored(answer.digest):
            await self.register(str(reference), answer.digest, replace=True)
            return answer.digest
        self._flights.forget_failure(str(reference))
        return await self._resolve(reference)
