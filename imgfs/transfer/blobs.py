"""Blobs on their way into the content store: one flight a digest, verified by the writer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.content.ingests.downloads import download, download_ref
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.errors import Busy, Cancelled, ImgfsError, NotFound, RemoteError, VerificationFailed
from imgfs.failures import Failures
from imgfs.images.catalog import Catalog
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor, refuse_foreign
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import MANIFEST_SIZE_MAX
from imgfs.oci.reference import Reference, Source
from imgfs.transfer.passes import Passes
from imgfs.transfer.places import Wanted, hosts_of, try_each, wanted
from imgfs.transfer.progress import Transfer, Transfers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


UNKNOWN_SIZE = MANIFEST_SIZE_MAX
"""Stands in the descriptor of a manifest that only a name mentions: what it is will show."""


class Blobs:
    """Fetches whole blobs, manifests among them, that a known image mentions."""

    def __init__(
        self,
        content: ContentStore,
        ingests: IngestStore,
        catalog: Catalog,
        registry: Registry,
        transfers: Transfers,
        failures: Failures,
        passes: Passes,
        nursery: trio.Nursery,
    ) -> None:
        self._content = content
        self._ingests = ingests
        self._catalog = catalog
        self._registry = registry
        self._transfers = transfers
        self._failures = failures
        self._passes = passes
        self._flights: Flights[None] = Flights(nursery)

    async def read(self, descriptor: Descriptor, own: tuple[Source, ...] = ()) -> bytes:
        """The bytes of a small blob, fetched if it is not stored, and again if what is stored is damaged."""
        await self.ensure(descriptor, own)
        try:
            return await self._content.read(descriptor.digest)
        except NotFound:
            await self.ensure(descriptor, own)
            return await self._content.read(descriptor.digest)

    async def ensure(self, descriptor: Descriptor, own: tuple[Source, ...] = ()) -> None:
        """On return the blob is stored, durably. Raises what try_each raises, NoSpace, StorageFailed, and Unsupported
        for a foreign layer.

        `own` are the places of the image that asks; without it every place counts with its own claim. However many ask
        for the same at once, it is fetched once. A cancelled caller leaves the fetch to the others.
        """
        if descriptor.digest in self._content:
            self._transfers.hit("blob", descriptor.size)
        else:
            key = wanted(descriptor, own)
            self._transfers.missed("blob", shared=key in self._flights)
            await self._flights.join(key, lambda: self._fetch(descriptor, own))

    async def ensure_with_others(self, descriptor: Descriptor, own: tuple[Source, ...]) -> None:
        """As `ensure` where a fetch of the blob runs that asks the same registries; nothing where none does."""
        if wanted(descriptor, own) in self._flights:
            await self.ensure(descriptor, own)
        elif wanted(descriptor, ()) in self._flights:
            everywhere = tuple(await self._catalog.sources(descriptor.digest))
            if hosts_of(everywhere) == hosts_of(own):
                await self.ensure(descriptor)

    def cancel(self, digest: Digest) -> bool:
        """End every running fetch of `digest`; those who wait get Cancelled. Returns whether there was one."""
        keys = [key for key in self._flights.flying() if isinstance(key, Wanted) and key.digest == digest]
        for key in keys:
            self._flights.cancel(key)
        return bool(keys)

    async def _fetch(self, descriptor: Descriptor, own: tuple[Source, ...]) -> None:
        with self._failures.noting(descriptor.digest):
            refuse_foreign(descriptor)
            if not await self._comes_with_pass(descriptor, own):
                await self._fetch_somewhere(descriptor, own)

    async def _comes_with_pass(self, descriptor: Descriptor, own: tuple[Source, ...]) -> bool:
        """Whether a pass over it as a layer, from the same registries, left the blob here. Raises what they did wrong.

        Whatever else a pass fails of does not concern the blob.
        """
        passing = self._passes.find(wanted(descriptor, own))
        if passing is None and not own and self._passes.is_passing(descriptor.digest):
            everywhere = tuple(await self._catalog.sources(descriptor.digest))
            passing = self._passes.find(wanted(descriptor, everywhere))
        if passing is None:
            return False
        try:
            await passing.wait()
        except (RemoteError, NotFound, VerificationFailed, Cancelled):
            raise
        except ImgfsError:
            return False
        return descriptor.digest in self._content

    async def _fetch_somewhere(self, descriptor: Descriptor, own: tuple[Source, ...]) -> None:
        claims = {} if own else {one.source: one.descriptor for one in await self._catalog.claims(descriptor.digest)}
        await try_each(
            self._catalog,
            descriptor.digest,
            lambda source: self._fetch_from(source, claims.get(source) or descriptor),
            own,
        )

    async def _fetch_from(self, source: Source, descriptor: Descriptor) -> None:
        if descriptor.media_type in MANIFEST_TYPES | INDEX_TYPES:
            await self._fetch_manifest(source, descriptor)
        else:
            await self._fetch_blob(source, descriptor)

    async def _fetch_manifest(self, source: Source, descriptor: Descriptor) -> None:
        reference = Reference(source.host, source.repository, digest=descriptor.digest)
        _, data = await self._registry.manifest(reference)
        if len(data) != descriptor.size != UNKNOWN_SIZE:
            raise VerificationFailed(
                f"manifest {descriptor.digest}: has {len(data)} bytes, its descriptor says {descriptor.size}; "
                "push the index again"
            )
        await self._content.add(descriptor.digest, data)

    async def _fetch_blob(self, source: Source, descriptor: Descriptor) -> None:
        """By the same writer as everybody's, so that it goes on where a crash or a dead registry cut it off."""
        with self._transfers.pull(descriptor, source, download_ref(descriptor.digest)) as transfer:
            begun = 0

            def stream(at: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
                nonlocal begun
                begun = at
                transfer.at(at)
                return self._registry.blob(source.host, source.repository, descriptor, at, failed=transfer.failed)

            try:
                await download(self._ingests, descriptor.digest, descriptor.size, stream, transfer.advance)
            except Busy:
                await self._fetch_beside(source, descriptor, transfer)
            except VerificationFailed as error:
                if begun:
                    raise  # what was here before may be what is wrong: nobody can tell
                raise self._registry.blame(source.host, descriptor.digest, error) from None

    async def _fetch_beside(self, source: Source, descriptor: Descriptor, transfer: Transfer) -> None:
        """Somebody writes under the download's ref, maybe what an image lies about: theirs must not hold up ours."""
        async with (
            self._content.writer(descriptor.digest, descriptor.size) as writer,
            self._registry.blob(source.host, source.repository, descriptor, failed=transfer.failed) as stream,
        ):
            async for piece in stream:
                await writer.write(piece)
                transfer.advance(len(piece))
            await writer.commit()


async def known_descriptor(catalog: Catalog, digest: Digest) -> Descriptor:
    """What is known of a digest. Raises NotFound where no known image mentions it."""
    descriptor = await catalog.descriptor(digest)
    if descriptor is None:
        raise NotFound(f"content {digest}: is not stored here and no known image mentions it")
    return descriptor
