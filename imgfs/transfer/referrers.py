"""Lists and reads the referrers of images. Lists are recorded; a document is read only if it refers to the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.errors import ImgfsError, NotFound, Unsupported, VerificationFailed
from imgfs.failures import Failures
from imgfs.images.catalog import Catalog
from imgfs.images.referrers import Referrer
from imgfs.leases.pins import Pins
from imgfs.leases.resource import content
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, Manifest
from imgfs.oci.reference import Reference, Source
from imgfs.transfer.documents import Documents, check_subject
from imgfs.transfer.locations import try_each

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


def place_of(subject: Digest) -> str:
    """Return the key under which failures to list the referrers of `subject` are kept."""
    return f"referrers of {subject}"


class ReferrerFetcher:
    """Lists and reads referrers. Concurrent callers for one image share the requests."""

    def __init__(
        self,
        catalog: Catalog,
        documents: Documents,
        registry: Registry,
        failures: Failures,
        nursery: trio.Nursery,
        pins: Pins,
    ) -> None:
        self._pins = pins
        self._catalog = catalog
        self._documents = documents
        self._registry = registry
        self._failures = failures
        self._flights: Flights[None] = Flights(nursery)
        self._found: Flights[Referrer] = Flights(nursery)

    async def known(self, subject: Digest) -> list[Referrer]:
        """Return the recorded referrers of `subject`, sorted by digest. Sends no request."""
        return await self._catalog.referrers.of(subject)

    async def refresh(self, subject: Digest, artifact_type: str = "") -> list[Referrer]:
        """Ask every registry that has `subject` for its referrers, record the answers, and return all that are known.

        With `artifact_type` only referrers of this type are requested and returned. If one of several registries fails,
        the answers of the others are recorded and the failure is raised, because an incomplete list must not look
        complete. Raises NotFound if no registry is known to have `subject`, RemoteError, Malformed, TooLarge.
        """
        with self._failures.noting(place_of(subject)):
            await self._flights.join((subject, artifact_type), lambda: self._ask(subject, artifact_type))
        known = await self.known(subject)
        return [one for one in known if artifact_type in ("", one.descriptor.artifact_type)]

    async def find(self, subject: Digest, digest: Digest) -> Referrer:
        """Return the referrer `digest` of `subject`; ask the registries of `subject` for it if it is not known here.

        Concurrent callers share one request. A referrer that a registry has is stored and recorded, durably, as if that
        registry had listed it. Raises VerificationFailed if the document refers to another image, NotFound if no
        registry has it or none is known to have `subject`, and what Registry.manifest and Documents.store raise.
        """
        known = await self.known(subject)
        if found := next((one for one in known if one.descriptor.digest == digest), None):
            return found
        with self._failures.noting(place_of(subject)):
            return await self._found.join((subject, digest), lambda: self._find(subject, digest))

    async def read(self, referrer: Referrer) -> None:
        """Fetch the document of a referrer, so that content/ has it and can fetch the blobs that it mentions.

        Raises VerificationFailed if it refers to another image, Unsupported if it is neither manifest nor index, and
        what Documents.read raises.
        """
        digest = referrer.descriptor.digest
        with self._failures.noting(digest):
            await self._read(referrer)

    async def _read(self, referrer: Referrer) -> None:
        said = referrer.descriptor
        if said.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            raise Unsupported(
                f"referrer {said.digest}: of media type {said.media_type[:120]!r}; imgfs reads manifests and indexes"
            )
        document = await self._documents.read(said.digest, said, referrer.sources)
        if document.subject != referrer.subject:
            raise VerificationFailed(
                f"referrer {said.digest}: refers to {document.subject or 'nothing'}, but {referrer.sources[0]} "
                f"lists it for {referrer.subject}; do not trust that registry's list"
            )
        children = [child.digest for child in document.children]
        if len(await self._catalog.fetchable(children)) < len(set(children)):
            # The document was stored by another way, which recorded no locations of its children.
            await self._catalog.add(document.children, referrer.sources)

    async def _find(self, subject: Digest, digest: Digest) -> Referrer:
        places = await self._documents.places(subject)
        if document := await self._documents.stored(digest):
            # The document came into content/ by another way. No registry listed it, so no registry is recorded.
            check_subject(document, digest, subject, "content/")
            known = await self._catalog.descriptor(digest)
            return Referrer(subject, _described(digest, known.size if known else 0, document), places)
        if not places:
            raise _nowhere(subject)
        # A wrong subject is not a bad transfer, so the document is checked only after the retries of try_each.
        source, own, data = await try_each(self._catalog, digest, lambda place: self._fetch(place, digest), places)
        with self._pins.hold(content(digest)):
            document = await self._documents.store(own, data, source, subject)
            described = _described(digest, len(data), document)
            await self._catalog.add([described], [source])
            await self._catalog.referrers.add(subject, source, described)
        return Referrer(subject, described, (source,))

    async def _fetch(self, place: Source, digest: Digest) -> tuple[Source, Descriptor, bytes]:
        own, data = await self._registry.manifest(Reference(place.host, place.repository, digest=digest))
        return place, own, data

    async def _ask(self, subject: Digest, artifact_type: str) -> None:
        places = await self._documents.places(subject)
        if not places:
            raise _nowhere(subject)
        failures: list[ImgfsError] = []
        for source in places:
            try:
                await self._ask_at(source, subject, artifact_type)
            except ImgfsError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _ask_at(self, source: Source, subject: Digest, artifact_type: str) -> None:
        found = await self._registry.referrers(source.host, source.repository, subject, artifact_type)
        with self._pins.hold(*(content(one.digest) for one in found)):
            await self._catalog.add(found, [source])
            await self._catalog.referrers.replace(subject, source, found, artifact_type)


def _described(digest: Digest, size: int, document: Manifest | ImageIndex) -> Descriptor:
    """Return the descriptor that a registry's list of referrers has for the document."""
    return Descriptor(digest, size, document.media_type, document.annotations, artifact_type=document.artifact_type)


def _nowhere(subject: Digest) -> NotFound:
    return NotFound(f"referrers of {subject}: no registry is known to have this image; pull it by its name")
