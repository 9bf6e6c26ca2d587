"""Everything an image refers to, found by reading its documents: indexes within indexes, manifests, configs, layers."""

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
    """What was reached: every blob once, the manifests among them, and which children of indexes are not there.

    A child that is missing beside others costs only itself: `docker save` and `ctr export` leave out other platforms.
    """

    blobs: dict[Digest, Descriptor] = field(default_factory=dict[Digest, Descriptor])
    manifests: dict[Digest, Manifest] = field(default_factory=dict[Digest, Manifest])
    missing: list[Descriptor] = field(default_factory=list[Descriptor])
    _walked: set[Digest] = field(default_factory=set[Digest])
    """Documents that were read. Not what is in `blobs`: a liar may call a manifest a layer elsewhere."""

    def add(self, image: Descriptor, blobs: ArchiveBlobs, depth: int = INDEX_NESTING_MAX) -> None:
        """Reach `image` and all that it refers to. Raises NotFound, VerificationFailed, Malformed, TooLarge.

        Unsupported for schema 1 and unknown kinds of images.
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
            raise NotFound(f"image index {image.digest}: none of its {len(missing)} images is there")
        self.missing += missing

    def _reach_blob(self, child: Descriptor, blobs: ArchiveBlobs) -> None:
        known = self.blobs.get(child.digest)
        if known is None or known.size != child.size:
            blobs.ensure(child)
            self._reach(child)

    def _reach(self, descriptor: Descriptor) -> None:
        self.blobs[descriptor.digest] = descriptor
        if len(self.blobs) > BLOBS_MAX:
            raise TooLarge(f"image {descriptor.digest}: leads to more than {BLOBS_MAX} blobs")
