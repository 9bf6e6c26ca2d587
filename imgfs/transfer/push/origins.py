"""Where an image that is pushed was read, and so what it may take along.

A manifest may list any digest, another image's private layer or config too. It would be found here, or fetched or
mounted with this user's logins, and pushed to where whoever wrote the manifest can read it. So what other images are
known to have goes along only where a registry that the image itself was read from gives it out as well.
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
    """Of one image on its way to `place`: `own` are its places, of which those in `read` have shown its document.

    An image that was read nowhere was brought here by the user, and all that it lists is taken for the user's.
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
        """Other places that are known to have `digest`, sorted; they may have it alone."""
        if not self._read:
            return []
        return [one for one in await self._catalog.sources(digest) if one not in {*self._read, self._place}]

    async def prove(self, descriptor: Descriptor) -> None:
        """Return where a registry gives the image's readers what `descriptor` tells of, or nobody else is known to.

        That costs a request for one byte. Raises what the registries say who do not, with the reason why it matters.
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
