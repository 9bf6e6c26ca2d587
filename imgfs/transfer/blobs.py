"""Blobs on their way into the content store: one flight a digest, verified by the writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.content.store import ContentStore
from imgfs.errors import ImgfsError, NotFound, VerificationFailed
from imgfs.images.catalog import Catalog, Source
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference
from imgfs.transfer.failures import Failures
from imgfs.transfer.places import try_each
from imgfs.transfer.progress import Transfers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


class Blobs:
    """Fetches whole blobs, manifests among them, that a known image mentions."""

    def __init__(
        self,
        content: ContentStore,
        catalog: Catalog,
        registry: Registry,
        transfers: Transfers,
        failures: Failures,
        nursery: trio.Nursery,
    ) -> None:
        self._content = content
        self._catalog = catalog
        self._registry = registry
        self._transfers = transfers
        self._failures = failures
        self._flights: Flights[None] = Flights(nursery)

    async def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small blob, fetched if it is not stored."""
        await self.ensure(descriptor)
        return await self._content.read(descriptor.digest)

    async def ensure(self, descriptor: Descriptor) -> None:
        """On return the blob is stored, durably. Raises what try_each raises, NoSpace, StorageFailed.

        However many ask at once, it is fetched once. A cancelled caller leaves the fetch to the others.
        """
        if descriptor.digest not in self._content:
            await self._flights.join(descriptor.digest, lambda: self._fetch(descriptor))

    def cancel(self, digest: Digest) -> bool:
        """End a running fetch of `digest`; those who wait get Cancelled. Returns whether there was one."""
        return self._flights.cancel(digest)

    async def _fetch(self, descriptor: Descriptor) -> None:
        try:
            await try_each(self._catalog, descriptor.digest, lambda source: self._fetch_from(source, descriptor))
        except ImgfsError as error:
            self._failures.note(descriptor.digest, error)
            raise
        self._failures.clear(descriptor.digest)

    async def _fetch_from(self, source: Source, descriptor: Descriptor) -> None:
        if descriptor.media_type in MANIFEST_TYPES | INDEX_TYPES:
            await self._fetch_manifest(source, descriptor)
        else:
            await self._fetch_blob(source, descriptor)

    async def _fetch_manifest(self, source: Source, descriptor: Descriptor) -> None:
        reference = Reference(source.host, source.repository, digest=descriptor.digest)
        _, data = await self._registry.manifest(reference)
        known = await self._catalog.descriptor(descriptor.digest)
        if known is not None and len(data) != known.size:
            raise VerificationFailed(f"manifest {descriptor.digest}: has {len(data)} bytes, {known.size} were promised")
        await self._content.add(descriptor.digest, data)

    async def _fetch_blob(self, source: Source, descriptor: Descriptor) -> None:
        with self._transfers.running(descriptor, str(source)) as transfer:
            async with (
                self._content.writer(descriptor.digest, descriptor.size) as writer,
                self._registry.blob(source.host, source.repository, descriptor) as stream,
            ):
                async for piece in stream:
                    await writer.write(piece)
                    transfer.moved(len(piece))
                await writer.commit()


async def known_descriptor(catalog: Catalog, digest: Digest) -> Descriptor:
    """What is known of a digest. Raises NotFound where no known image mentions it."""
    descriptor = await catalog.descriptor(digest)
    if descriptor is None:
        raise NotFound(f"content {digest}: is not stored here and no known image mentions it")
    return descriptor
