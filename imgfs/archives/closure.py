"""The closure of an image: everything it refers to, found by reading its indexes, manifests and configs."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgfs.archives.contract import ArchiveBlobs
from imgfs.errors import NotFound, TooLarge
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX, MANIFEST_SIZE_MAX, ImageIndex, Manifest, parse_document

BLOBS_MAX = 100_000
_IMAGES = INDEX_TYPES | MANIFEST_TYPES


@dataclass(slots=True)
class Closure:
    """The result of a walk: every blob once, the manifests among them, and the children of indexes that are missing.

    A missing child is an error only if all children are missing: `docker save` and `ctr export` leave out other
    platforms.
    """

    blobs: dict[Digest, Descriptor] = field(default_factory=dict[Digest, Descriptor])
    manifests: dict[Digest, Manifest] = field(default_factory=dict[Digest, Manifest])
    missing: list[Descriptor] = field(default_factory=list[Descriptor])
    _walked: set[Digest] = field(default_factory=set[Digest])
    """Documents that were parsed. Not the same as `blobs`: a hostile document may list a manifest as a layer."""

    def add(self, image: Descriptor, blobs: ArchiveBlobs, depth: int = INDEX_NESTING_MAX) -> None:
        """Add `image` and everything it refers to.

        Raises NotFound, VerificationFailed, Malformed, TooLarge, and Unsupported for schema 1 and unknown kinds of
        images.
        """
        if image.digest in self._walked:
            return
        self._walked.add(image.digest)
        document = parse_document(blobs.document(image, MANIFEST_SIZE_MAX), image.media_type)
        self._reach(image)
        if isinstance(document, Manifest):
            self.manifests[image.digest] = document
            for child in document.children:
                self._reach_blob(child, blobs)
        elif depth:
            self._add_children(image, document, blobs, depth)
        else:
            raise TooLarge(f"image index {image.digest}: nested deeper than {INDEX_NESTING_MAX}")

    def _add_children(self, image: Descriptor, index: ImageIndex, blobs: ArchiveBlobs, depth: int) -> None:
        missing: list[Descriptor] = []
        for child in index.manifests:
            try:
                self._reach_blob(child, blobs)
            except NotFound:
                missing.append(child)
                continue
            if child.media_type in _IMAGES:
                self.add(child, blobs, depth - 1)
        if missing and len(missing) == len(index.manifests):
            raise NotFound(f"image index {image.digest}: none of its {len(missing)} images is in the archive")
        self.missing += missing

    def _reach_blob(self, child: Descriptor, blobs: ArchiveBlobs) -> None:
        known = self.blobs.get(child.digest)
        if known is None or known.size != child.size:
            blobs.ensure(child)
            self._reach(child)

    def _reach(self, descriptor: Descriptor) -> None:
        self.blobs[descriptor.digest] = descriptor
        if len(self.blobs) > BLOBS_MAX:
            raise TooLarge(f"image {descriptor.digest}: refers to more than {BLOBS_MAX} blobs")
