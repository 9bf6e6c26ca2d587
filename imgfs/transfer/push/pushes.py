"""Pushes an image to a name at a registry, with all platforms and referrers if requested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.errors import Invalid
from imgfs.leases.resource import content
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX, ImageIndex
from imgfs.oci.platform import Platform
from imgfs.oci.reference import Reference, Source
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.documents import Documents
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.push.blobs import OutgoingBlobs
from imgfs.transfer.push.origins import Origins
from imgfs.transfer.push.progress import PushFigures, PushProgress
from imgfs.transfer.push.report import PushReport, report
from imgfs.transfer.push.tree import PushTarget, TreePush
from imgfs.transfer.referrers import ReferrerFetcher
from imgfs.transfer.transfers import Transfers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


@dataclass(frozen=True, slots=True)
class PushRequest:
    """A requested push of the image `digest` to `reference`.

    Of an index only the manifest for `platform` is pushed, or everything if that is None. With `referrers` the known
    referrers are pushed too.
    """

    digest: Digest
    reference: Reference
    platform: Platform | None = None
    referrers: bool = False

    def __str__(self) -> str:
        which = self.platform or "all platforms"
        return f"push of {self.digest} ({which}{', referrers' if self.referrers else ''}) to {self.reference}"


class Pushes:
    """Pushes images. Concurrent callers of the same push share it."""

    def __init__(
        self,
        local: LocalState,
        documents: Documents,
        blobs: Blobs,
        referrers: ReferrerFetcher,
        registry: Registry,
        transfers: Transfers,
        nursery: trio.Nursery,
    ) -> None:
        self._catalog = local.catalog
        self._failures = local.failures
        self._pins = local.pins
        self._documents = documents
        self._blobs = blobs
        self._outgoing = OutgoingBlobs(local.content, local.catalog, blobs, transfers, nursery)
        self._referrers = referrers
        self._registry = registry
        self._transfers = transfers
        self._flights: Flights[PushReport] = Flights(nursery, grace=0, memory=0)
        self._progress: dict[PushRequest, PushProgress] = {}

    async def push(self, wanted: PushRequest) -> PushReport:
        """Push the image to its name at the registry. Parts that the registry has are not sent.

        A cancelled caller leaves the push to the other callers. Without others it ends, and the next push continues its
        uploads. Raises Invalid if the name contains another digest, RegistryFailed if the registry accepts no pushes,
        NotFound for a part that no location has, and what Origins.prove, Destination, Documents.read and Blobs.ensure
        raise.
        """
        with self._failures.noting(str(wanted)):
            return await self._flights.join(wanted, lambda: self._push(wanted))

    def progress(self, wanted: PushRequest) -> PushFigures | None:
        """Return the progress of a running push; None if it is not running."""
        progress = self._progress.get(wanted)
        return progress.tell() if progress is not None else None

    def failure(self, wanted: PushRequest) -> str | None:
        """Return the error of the last attempt, or None."""
        return self._failures.get(str(wanted))

    async def _push(self, wanted: PushRequest) -> PushReport:
        place = Source(wanted.reference.host, wanted.reference.repository)
        progress = self._progress[wanted] = PushProgress(self._transfers, place)
        try:
            with self._pins.hold(content(wanted.digest)) as pin:
                root = await self._root(wanted)
                to = await self._registry.destination(place.host, place.repository)
                target = PushTarget(self._registry, to, place)
                tree = TreePush(self._documents, self._blobs, self._outgoing, self._catalog, target, progress, pin)
                own = await self._documents.places(wanted.digest)
                origins = self._origins(own, await self._documents.read_places(wanted.digest), place)
                descriptor = await tree.push(root, wanted.reference.selector, None, origins)
                if wanted.referrers:
                    await self._push_referrers(tree, root, place)
                return report(str(wanted.reference), to.mirror, root, descriptor.media_type, tree.parts)
        finally:
            del self._progress[wanted]

    async def _root(self, wanted: PushRequest) -> Digest:
        """Return the document that gets the name. Raises Invalid."""
        root = wanted.digest
        if wanted.platform is not None:
            root = (await self._documents.platform_image(wanted.digest, wanted.platform)).digest
        asked = wanted.reference.digest
        if asked not in (None, root):
            advice = "push all platforms" if asked == wanted.digest else "name a tag"
            raise Invalid(f"push to {wanted.reference}: what is pushed is {root}, which that digest is not; {advice}")
        return root

    def _origins(self, own: tuple[Source, ...], read: tuple[Source, ...], place: Source) -> Origins:
        return Origins(self._catalog, self._registry, own, read, place)

    async def _push_referrers(self, tree: TreePush, root: Digest, place: Source) -> None:
        """Push the referrers of the image and of its platforms, and the referrers of those."""
        document = await self._documents.read(root)
        subjects = [root, *(child.digest for child in document.children if isinstance(document, ImageIndex))]
        seen: set[Digest] = set(subjects)
        for _ in range(INDEX_NESTING_MAX):
            found = [one for subject in subjects for one in await self._referrers.known(subject)]
            subjects = list[Digest]()
            for one in found:
                digest = one.descriptor.digest
                if digest not in seen:
                    seen.add(digest)
                    subjects.append(digest)
                    await self._referrers.read(one)
                    await tree.push(digest, digest, one.descriptor, self._origins(one.sources, one.sources, place))
