"""Resolves names to digests: asks the registry once, records the answer, and asks again only on request."""

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
    """Resolves, refreshes and registers names. Concurrent lookups of one name share one request."""

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
        """Return the digest of `reference`: the registered one, else the answer of its registry, which is recorded.

        The record is durable on return. Raises NotFound only if the registry reports 404, RemoteError,
        VerificationFailed, Malformed, Unsupported, TooLarge.
        """
        if found := self._names.get(str(reference)):
            return found.digest
        return await self._flights.join(str(reference), lambda: self._resolve(reference))

    async def refresh(self, name: str) -> Digest:
        """Ask the registry of a registered name again, by HEAD, and record a new answer.

        A local name is not changed. Raises NotFound if the name is not registered, and as `resolve`.
        """
        found = self._names.get(name)
        if found is None:
            raise NotFound(f"image {name}: is not registered")
        reference = reference_of(name)
        if reference is None or reference.digest is not None:
            return found.digest
        return await self._flights.join(("refresh", name), lambda: self._refresh(reference, found.digest))

    async def register(self, name: str, digest: Digest, *, replace: bool = False) -> None:
        """Register a name for `digest` without any request. Raises as Names.create and Names.put."""
        await (self._names.put(name, digest) if replace else self._names.create(name, digest))
        if reference := reference_of(name):
            await self._catalog.add_source(digest, Source(reference.host, reference.repository))

    async def is_known(self, digest: Digest) -> bool:
        """Return whether a name or a manifest known here mentions `digest` as an image."""
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
        """Return whether the document of an image is stored and readable."""
        try:
            return await self._documents.stored(digest) is not None
        except ImgfsError:
            return False

    async def _manifest(self, reference: Reference) -> tuple[Descriptor, bytes]:
        """Fetch a manifest. Wrong bytes are requested once more, because a cache may have failed temporarily."""
        try:
            return await self._registry.manifest(reference)
        except VerificationFailed:
            return await self._registry.manifest(reference)

    async def _resolve_platform(self, digest: Digest, document: Manifest | ImageIndex) -> None:
        """Fetch the manifest of the default platform too, so that listing the image needs no further request."""
        if isinstance(document, ImageIndex):
            try:
                await self._documents.platform_image(digest)
            except ImgfsError as error:
                # The name is valid. A reader of the rootfs receives this error.
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
