"""Pushes one blob to one repository: it is present, mounted from another repository, or sent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import trio

from imgfs.aio.flight import Flights
from imgfs.content.store import ContentStore
from imgfs.errors import ImgfsError, Malformed, NotFound, RemoteError, VerificationFailed
from imgfs.images.catalog import Catalog
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import Manifest
from imgfs.oci.reference import Source
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.push.origins import Origins
from imgfs.transfer.push.report import Outcome
from imgfs.transfer.push.stored_blob import opened
from imgfs.transfer.transfers import Transfers

if TYPE_CHECKING:
    from imgfs.registry.push.destination import Destination

MOUNTS_MAX = 3
"""Limit of the repositories from which a mount is tried before the blob is sent."""
TOLD_MAX = 4
"""Limit of the digests in one message."""
_log = logging.getLogger("imgfs.transfer")

Sent = tuple[Outcome, str | None]
"""The outcome of a blob, and the repository that it was mounted from."""


class _Going(NamedTuple):
    """The key of shared uploads."""

    digest: Digest
    authority: str
    repository: str


class OutgoingBlobs:
    """Pushes blobs to repositories. Concurrent pushes of one blob to one repository share one upload."""

    def __init__(
        self, content: ContentStore, catalog: Catalog, blobs: Blobs, transfers: Transfers, nursery: trio.Nursery
    ) -> None:
        self._content = content
        self._catalog = catalog
        self._blobs = blobs
        self._transfers = transfers
        self._flights: Flights[Sent] = Flights(nursery, memory=0)

    async def bring(
        self, descriptor: Descriptor, manifest: Manifest, origins: Origins, to: Destination, place: Source
    ) -> Sent:
        """Push the blob to the repository `to`, whose location is `place`, unless it is there.

        `manifest` lists the blob, `origins` are those of its image. A cancelled caller leaves the upload to the others.
        Without others the upload ends after the part in flight or after the grace time of Flights, and the next push
        continues it. A part is not cut, because some registries (docker-registry) then forget the whole upload. Raises
        what Origins.prove, Destination and Blobs.ensure raise.
        """
        if await origins.strangers(descriptor.digest) and not await to.has_blob(descriptor.digest):
            await origins.prove(descriptor)
        own = origins.own

        async def bring() -> Sent:
            return await self._bring(descriptor, manifest, own, to, place)

        return await self._flights.join(_going(descriptor, to), bring)

    def end_abandoned(self, to: Destination) -> None:
        """Cancel the uploads to `to` that have no waiter. The next push begins them again."""
        for key in self._flights.flying():
            if isinstance(key, _Going) and key[1:] == (to.authority, to.repository):
                self._flights.cancel_abandoned(key)

    async def _bring(
        self, descriptor: Descriptor, manifest: Manifest, own: tuple[Source, ...], to: Destination, place: Source
    ) -> Sent:
        digest = descriptor.digest
        if await to.has_blob(digest):
            return "present", None
        neighbours = await self._neighbours(digest, own, place)
        if neighbours and (source := await to.mount(digest, neighbours)):
            return "mounted", source
        try:
            await self._fetch(descriptor, manifest, own, place)
            self._check_size(descriptor)
            await self._send(descriptor, own, to, place)
        except ImgfsError:
            await to.leave(digest)
            raise
        return "sent", None

    async def _fetch(self, descriptor: Descriptor, manifest: Manifest, own: tuple[Source, ...], place: Source) -> None:
        """Fetch the blob.

        An unpacked layer cannot replace it, because compressing it again results in another digest.
        """
        try:
            await self._blobs.ensure(descriptor, own)
        except (NotFound, RemoteError) as error:
            raise type(error)(
                f"push to {place}: to be fetched, as they are not here the way registries keep them (unpacked layers "
                f"do not serve), are {self._missing(manifest)}: {error.message}; push again when that registry or a "
                "mirror of it (hosts.toml) answers, or import an archive of the image. What was read once, "
                "`cat content/DIGEST > /dev/null`, is kept"
            ) from None

    def _missing(self, manifest: Manifest) -> str:
        """Return the digests of the image's missing blobs, as text."""
        missing = [one.digest for one in manifest.children if not one.is_foreign and one.digest not in self._content]
        more = len(missing) - TOLD_MAX
        return ", ".join(missing[:TOLD_MAX]) + (f" and {more} more" if more > 0 else "")

    async def _neighbours(self, digest: Digest, own: tuple[Source, ...], place: Source) -> list[str]:
        """Return other repositories of the same registry that are known to have the blob."""
        known = set(await self._catalog.sources(digest))
        sources = [one for one in dict.fromkeys((*own, *sorted(known))) if one in known]
        return [one.repository for one in sources if one.host == place.host and one != place][:MOUNTS_MAX]

    async def _send(self, descriptor: Descriptor, own: tuple[Source, ...], to: Destination, place: Source) -> None:
        """Send the blob. Retry once if the registry received wrong bytes, after checking the stored blob."""
        try:
            await self._send_stored(descriptor, own, to, place)
        except VerificationFailed as error:
            _log.warning("blob is sent again", extra={"digest": descriptor.digest, "error": error.message})
            await self._doubt(descriptor.digest)
            await self._send_stored(descriptor, own, to, place)

    async def _send_stored(
        self, descriptor: Descriptor, own: tuple[Source, ...], to: Destination, place: Source
    ) -> None:
        await self._blobs.ensure(descriptor, own)
        with (
            self._transfers.begin(
                direction="push", digest=descriptor.digest, total=descriptor.size, place=place
            ) as sending,
            opened(self._content, descriptor.digest, sending.advance) as blob,
        ):

            def at(offset: int) -> None:
                sending.at(offset)
                self._flights.cancel_abandoned(_going(descriptor, to))

            await to.upload(descriptor, blob.read, at, sending.failed)

    def _check_size(self, descriptor: Descriptor) -> None:
        info = self._content.info(descriptor.digest)
        if info is not None and info.size != descriptor.size:
            raise Malformed(
                f"blob {descriptor.digest}: has {info.size} bytes, its manifest says {descriptor.size}; "
                "an image that contradicts itself is not pushed"
            )

    async def _doubt(self, digest: Digest) -> None:
        """Set the stored blob aside if it is damaged. It is then fetched again before it is sent."""
        try:
            with opened(self._content, digest) as blob:
                if not await blob.is_sound():
                    self._content.set_aside(digest)
        except NotFound:
            return


def _going(descriptor: Descriptor, to: Destination) -> _Going:
    return _Going(descriptor.digest, to.authority, to.repository)
