"""Decides which blobs a pushed image may take along, by the registries from which the image was read.

A manifest may list any digest, including a private layer or config of another image. imgfs has that blob, or can fetch
or mount it with this user's logins. Pushing it would publish it to the author of the manifest. So a blob that is known
from other images is pushed only if a registry from which this image was read delivers the blob too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError, NotFound, RemoteError, VerificationFailed
from imgfs.images.catalog import Catalog
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference, Source

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


class Origins:
    """The origins of one image that is pushed to `place`.

    `own` are its locations; those in `read` have delivered its document. An image without the latter was imported by
    the user, so all blobs that it lists are taken as the user's.
    """

    def __init__(
        self, catalog: Catalog, registry: Registry, own: tuple[Source, ...], read: tuple[Source, ...], place: Source
    ) -> None:
        self.own = own
        self._catalog = catalog
        self._registry = registry
        self._read = read
        self._place = place

    async def strangers(self, digest: Digest) -> list[Source]:
        """Return the other locations that are known to have `digest`, sorted. They may be the only ones."""
        if not self._read:
            return []
        return [one for one in await self._catalog.sources(digest) if one not in {*self._read, self._place}]

    async def prove(self, descriptor: Descriptor) -> None:
        """Return if the blob may be pushed: no other location is known to have it, or a registry of the image delivers
        it.

        The check costs a request for one byte. Raises the first error of the image's registries otherwise.
        """
        if not (strangers := await self.strangers(descriptor.digest)):
            return None
        failures = list[ImgfsError]()
        for source in self._read:
            try:
                return await self._ask(source, descriptor)
            except (NotFound, RemoteError, VerificationFailed) as error:
                failures.append(error)
        told = failures[0]
        raise type(told)(
            f"{descriptor.digest} is not pushed: {told.message}; it is known of {strangers[0]}, which may want it "
            "kept private"
        )

    async def _ask(self, source: Source, descriptor: Descriptor) -> None:
        if descriptor.media_type in MANIFEST_TYPES | INDEX_TYPES:
            await self._registry.resolve(Reference(source.host, source.repository, digest=descriptor.digest))
            return
        async with self._registry.blob(source.host, source.repository, descriptor, 0, min(1, descriptor.size)) as byte:
            async for _ in byte:
                pass
