"""Pushes the documents of an image to one repository, children first.

The children of a present document are skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgfs.aio.gather import gather
from imgfs.errors import ImgfsError, StateError, TooLarge
from imgfs.images.catalog import Catalog
from imgfs.leases.pins import Pin
from imgfs.leases.resource import content
from imgfs.oci.descriptor import INDEX_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX, ImageIndex, Manifest
from imgfs.oci.reference import Source
from imgfs.transfer.blobs import UNKNOWN_SIZE, Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.push.blobs import OutgoingBlobs
from imgfs.transfer.push.origins import Origins
from imgfs.transfer.push.progress import PushProgress
from imgfs.transfer.push.report import Outcome, PartKind, PushPart

if TYPE_CHECKING:
    from imgfs.registry.client import Registry
    from imgfs.registry.push.destination import Destination

ABREAST = 8
"""Children of an index that are pushed at the same time."""
_log = logging.getLogger("imgfs.transfer")


@dataclass(frozen=True, slots=True)
class PushTarget:
    """The repository `to` that a push goes to, its location `place`, and the client of its registry."""

    registry: Registry
    to: Destination
    place: Source


class TreePush:
    """One push of documents and their children to `target`. `parts` lists the outcomes."""

    def __init__(
        self,
        documents: Documents,
        blobs: Blobs,
        outgoing: OutgoingBlobs,
        catalog: Catalog,
        target: PushTarget,
        progress: PushProgress,
        pin: Pin,
    ) -> None:
        self._documents = documents
        self._blobs = blobs
        self._outgoing = outgoing
        self._catalog = catalog
        self._registry = target.registry
        self._to = target.to
        self._place = target.place
        self._progress = progress
        self._pin = pin
        self._children: dict[Digest, trio.Event] = {}
        """The children of indexes. Each event is set when the repository has the document."""
        self.parts: list[PushPart] = []

    async def push(
        self, digest: Digest, selector: str, said: Descriptor | None, origins: Origins, depth: int = 0
    ) -> Descriptor:
        """Push the manifest or index `digest`, with all its children, to `selector` (a tag or its digest).

        `said` is its descriptor in the index above it, `origins` are those of the image. Manifests are pushed after
        their blobs, indexes after their manifests (distribution-spec, "Push"). Raises TooLarge for indexes nested too
        deep, and what Documents.read, Origins.prove and Destination raise.
        """
        if depth > INDEX_NESTING_MAX:
            raise TooLarge(f"image index {digest}: nested deeper than {INDEX_NESTING_MAX}")
        self._pin.add(content(digest))
        is_there = await self._to.has_manifest(selector, digest)
        if is_there and said is not None and await self._documents.stored(digest) is None:
            self._note("index" if said.media_type in INDEX_TYPES else "manifest", said, "present")
            return said
        if said is not None and not is_there:
            await origins.prove(said)
        document = await self._documents.read(digest, said, origins.own)
        descriptor, data = await self._bytes(digest, document, origins.own)
        if is_there and await self._is_listed(digest, document):
            self._note(_kind(document), descriptor, "present")
            return descriptor
        if selector == digest or not await self._to.has_manifest(digest, digest):
            await self._push_children(document, origins, depth)
        await self._put(selector, descriptor, data, document)
        self._note(_kind(document), descriptor, "sent")
        await self._record(descriptor, document)
        return descriptor

    async def _is_listed(self, digest: Digest, document: Manifest | ImageIndex) -> bool:
        """Return whether the registry lists the document as a referrer of its subject; True if it has no subject."""
        if document.subject is None:
            return True
        listed = await self._registry.referrers(self._place.host, self._place.repository, document.subject)
        return any(one.digest == digest for one in listed)

    async def _bytes(
        self, digest: Digest, document: Manifest | ImageIndex, own: tuple[Source, ...]
    ) -> tuple[Descriptor, bytes]:
        """Return the descriptor of a stored document, with its original media type, and its exact bytes."""
        known = await self._catalog.proven(digest) or Descriptor(digest, UNKNOWN_SIZE, document.media_type)
        data = await self._blobs.read(known, own)
        return Descriptor(digest, len(data), known.media_type), data

    async def _push_children(self, document: Manifest | ImageIndex, origins: Origins, depth: int) -> None:
        children = list({one.digest: one for one in document.children}.values())
        self._pin.add(*(content(one.digest) for one in children))
        if isinstance(document, ImageIndex):
            for start in range(0, len(children), ABREAST):
                some = children[start : start + ABREAST]
                await self._gather([partial(self._push_child, one, origins, depth + 1) for one in some])
            return
        for one in children:
            self._progress.want(one.digest, 0 if one.is_foreign else one.size)
        await self._gather([partial(self._push_blob, document, one, origins) for one in children])

    async def _gather(self, works: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Run all of `works`. If one fails, cancel the uploads in flight instead of waiting for them."""
        try:
            await gather(works)
        except ImgfsError:
            self._outgoing.end_abandoned(self._to)
            raise

    async def _push_child(self, child: Descriptor, origins: Origins, depth: int) -> None:
        """Push a child of an index once, also if several indexes list it."""
        begun = self._children.get(child.digest)
        if begun is not None:
            await begun.wait()
            return
        done = self._children[child.digest] = trio.Event()
        await self.push(child.digest, child.digest, child, origins, depth)
        done.set()

    async def _push_blob(self, manifest: Manifest, blob: Descriptor, origins: Origins) -> None:
        kind: PartKind = "config" if blob.digest == manifest.config.digest else "layer"
        if blob.is_foreign:
            self._note(kind, blob, "foreign")
            return
        outcome, source = await self._outgoing.bring(blob, manifest, origins, self._to, self._place)
        self._progress.arrived(blob.digest)
        self._note(kind, blob, outcome, source)

    async def _put(self, selector: str, descriptor: Descriptor, data: bytes, document: Manifest | ImageIndex) -> None:
        seen = await self._to.put_manifest(selector, descriptor, data)
        if document.subject is None or seen == document.subject:
            return
        if selector != descriptor.digest:
            # The answer may have been lost. Putting the document again by its digest changes nothing.
            seen = await self._to.put_manifest(descriptor.digest, descriptor, data)
        if seen != document.subject:
            await self._to.list_referrer(document.subject, descriptor, data)

    async def _record(self, descriptor: Descriptor, document: Manifest | ImageIndex) -> None:
        """Record the location of the pushed document and its children. An error is only logged: the push succeeded."""
        try:
            await self._catalog.add(document.children, [self._place], descriptor)
        except StateError as error:
            _log.warning("place not recorded", extra={"digest": descriptor.digest, "error": error.message})

    def _note(self, kind: PartKind, one: Descriptor, outcome: Outcome, source: str | None = None) -> None:
        self.parts.append(PushPart(kind, one.digest, one.size, one.media_type, outcome, source))


def _kind(document: Manifest | ImageIndex) -> PartKind:
    return "index" if isinstance(document, ImageIndex) else "manifest"
