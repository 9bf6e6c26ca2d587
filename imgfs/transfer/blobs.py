"""Fetches blobs into the content store: one flight for each blob, verified by the writer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.content.ingests.downloads import download, download_ref
from imgfs.errors import Busy, Cancelled, ImgfsError, NotFound, RemoteError, VerificationFailed
from imgfs.images.catalog import Catalog
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor, refuse_foreign
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import MANIFEST_SIZE_MAX
from imgfs.oci.reference import Reference, Source
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.locations import FetchKey, fetch_key, hosts_of, try_each
from imgfs.transfer.passes import Passes
from imgfs.transfer.transfers import Transfer, Transfers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


UNKNOWN_SIZE = MANIFEST_SIZE_MAX
"""The size in the descriptor of a manifest whose size is unknown, because only a name mentions it."""


class Blobs:
    """Fetches whole blobs, including manifests, that a known image mentions."""

    def __init__(
        self, local: LocalState, registry: Registry, transfers: Transfers, passes: Passes, nursery: trio.Nursery
    ) -> None:
        self._content = local.content
        self._ingests = local.ingests
        self._catalog = local.catalog
        self._failures = local.failures
        self._registry = registry
        self._transfers = transfers
        self._passes = passes
        self._flights: Flights[None] = Flights(nursery)

    async def read(self, descriptor: Descriptor, own: tuple[Source, ...] = ()) -> bytes:
        """Return the bytes of a small blob.

        It is fetched if it is not stored, and again if the stored one is damaged.
        """
        await self.ensure(descriptor, own)
        try:
            return await self._content.read(descriptor.digest)
        except NotFound:
            await self.ensure(descriptor, own)
            return await self._content.read(descriptor.digest)

    async def ensure(self, descriptor: Descriptor, own: tuple[Source, ...] = ()) -> None:
        """Fetch the blob unless it is stored. On return it is durable.

        `own` are the locations of the requesting image. Without them every known location is tried, each with the size
        that it claims. Concurrent callers share one fetch. A cancelled caller leaves the fetch to the others. Raises
        what try_each raises, NoSpace, StorageFailed, and Unsupported for a foreign layer.
        """
        if descriptor.digest in self._content:
            self._transfers.hit("blob", descriptor.size)
        else:
            key = fetch_key(descriptor, own)
            self._transfers.missed("blob", shared=key in self._flights)
            await self._flights.join(key, lambda: self._fetch(descriptor, own))

    async def ensure_with_others(self, descriptor: Descriptor, own: tuple[Source, ...]) -> None:
        """Join a running fetch of the blob from the same registries. Does nothing if there is none."""
        if fetch_key(descriptor, own) in self._flights:
            await self.ensure(descriptor, own)
        elif fetch_key(descriptor, ()) in self._flights:
            everywhere = tuple(await self._catalog.sources(descriptor.digest))
            if hosts_of(everywhere) == hosts_of(own):
                await self.ensure(descriptor)

    def cancel(self, digest: Digest) -> bool:
        """Cancel every running fetch of `digest`; its waiters receive Cancelled. Returns whether there was one."""
        keys = [key for key in self._flights.flying() if isinstance(key, FetchKey) and key.digest == digest]
        for key in keys:
            self._flights.cancel(key)
        return bool(keys)

    async def _fetch(self, descriptor: Descriptor, own: tuple[Source, ...]) -> None:
        with self._failures.noting(descriptor.digest):
            refuse_foreign(descriptor)
            if not await self._comes_with_pass(descriptor, own):
                await self._fetch_somewhere(descriptor, own)

    async def _comes_with_pass(self, descriptor: Descriptor, own: tuple[Source, ...]) -> bool:
        """Wait for a running pass over the blob as a layer. Returns whether it stored the blob.

        Raises the registry's errors of the pass. Other errors concern only the layer, so the blob is then fetched.
        """
        passing = self._passes.find(fetch_key(descriptor, own))
        if passing is None and not own and self._passes.is_passing(descriptor.digest):
            everywhere = tuple(await self._catalog.sources(descriptor.digest))
            passing = self._passes.find(fetch_key(descriptor, everywhere))
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
        """Fetch through an ingest, so that the next fetch continues where this one stopped."""
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
                    raise  # the wrong bytes may be those of the earlier fetch, so the host cannot be blamed
                raise self._registry.blame(source.host, descriptor.digest, error) from None

    async def _fetch_beside(self, source: Source, descriptor: Descriptor, transfer: Transfer) -> None:
        """Fetch without the ingest, whose ref has another writer. That writer must not delay this fetch."""
        async with (
            self._content.writer(descriptor.digest, descriptor.size) as writer,
            self._registry.blob(source.host, source.repository, descriptor, failed=transfer.failed) as stream,
        ):
            async for piece in stream:
                await writer.write(piece)
                transfer.advance(len(piece))
            await writer.commit()


async def known_descriptor(catalog: Catalog, digest: Digest) -> Descriptor:
    """Return the descriptor of a digest. Raises NotFound if no known image mentions it."""
    descriptor = await catalog.descriptor(digest)
    if descriptor is None:
        raise NotFound(f"content {digest}: is not stored here and no known image mentions it")
    return descriptor
