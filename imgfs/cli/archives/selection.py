"""Choose the image of an index to export, and read the blobs that it refers to from the mount."""

from __future__ import annotations

import os
from collections.abc import Iterator

from imgfs.archives.layout import Listed
from imgfs.cli.images.lookup import ChosenImage
from imgfs.cli.output import PIECE
from imgfs.cli.tree import Tree
from imgfs.errors import NotFound, TooLarge, VerificationFailed
from imgfs.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX, MANIFEST_SIZE_MAX, ImageIndex, parse_config, parse_document
from imgfs.oci.platform import Platform, choose, parse_platform

_IMAGES = INDEX_TYPES | MANIFEST_TYPES
_STORED, _SOURCE = "user.imgfs.verified", "user.imgfs.source"


class MountBlobs:
    """The Blobs contract (archives/contract.py) on content/ of the mount. Opening a missing blob fetches it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def ensure(self, descriptor: Descriptor) -> None:
        """See Blobs."""
        try:
            facts = os.listxattr(self._tree.blob(descriptor.digest))
        except FileNotFoundError:
            facts = []
        if not {_STORED, _SOURCE} & set(facts):
            raise NotFound(f"blob {descriptor.digest}: is not local, and no registry is known to have it")

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """Read a manifest or index. See Blobs."""
        if descriptor.size > limit:
            raise TooLarge(f"blob {descriptor.digest}: has {descriptor.size} bytes; the limit is {limit}")
        return self.checked(descriptor, read_document(self._tree, ChosenImage(descriptor.digest)))

    def whole(self, descriptor: Descriptor) -> bytes:
        """Read a whole blob into memory."""
        return self.checked(descriptor, b"".join(self.pieces(descriptor.digest)))

    def checked(self, descriptor: Descriptor, data: bytes) -> bytes:
        """Return `data`. Raises VerificationFailed if it differs from the descriptor in size or digest."""
        if len(data) != descriptor.size or Digest.of(data, descriptor.digest.algorithm) != descriptor.digest:
            raise VerificationFailed(f"blob {descriptor.digest}: got {len(data)} bytes, expected {descriptor.size}")
        return data

    def pieces(self, digest: Digest) -> Iterator[bytes]:
        """Yield the bytes of a blob."""
        return self._pieces(self._tree.blob(digest), f"blob {digest}")

    def layer_pieces(self, diff_id: Digest) -> Iterator[bytes]:
        """Yield the bytes of a layer's tar."""
        return self._pieces(self._tree.layer(diff_id), f"layer {diff_id}")

    def _pieces(self, path: str, subject: str) -> Iterator[bytes]:
        """Yield the bytes of a file. Only read errors become a Failure with the daemon's reason, not the consumer's."""
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._tree.blob_failure(error, path, subject) from None
        with file:
            while True:
                try:
                    piece = file.read(PIECE)
                except OSError as error:
                    raise self._tree.blob_failure(error, path, subject) from None
                if not piece:
                    return
                yield piece


def choose_image(tree: Tree, found: ChosenImage, wanted: Platform | None, *, all_platforms: bool) -> Listed:
    """Return the image to export: a whole index, or its image for `wanted` (None: the mount's platform).

    Fetches the documents. Raises NotFound, with the list of platforms, if no image matches.
    """
    data = read_document(tree, found)
    document = parse_document(data)
    names = (found.name,) if found.name else ()
    root = Descriptor(Digest(found.digest), len(data), document.media_type)
    if all_platforms:
        return Listed(root, names)
    blobs = MountBlobs(tree)
    if isinstance(document, ImageIndex):
        suited = wanted or parse_platform(tree.status(found.digest)["platform"])
        return Listed(_descend(found.subject, document, suited, blobs), names)
    if wanted is not None:
        offered = parse_config(blobs.whole(document.config)).platform
        if choose(wanted, [offered]) is None:
            raise NotFound(f"{found.subject}: has nothing for {wanted}; it has {offered}")
    return Listed(root, names)


def read_document(tree: Tree, found: ChosenImage) -> bytes:
    """Read an index or manifest through the image's directory, so that the daemon records its blobs."""
    image = tree.image(found.digest)
    try:
        try:
            return _read(f"{image}/index.json")
        except FileNotFoundError:
            return _read(f"{image}/manifest.json")
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MANIFEST_SIZE_MAX + 1)


def _descend(subject: str, index: ImageIndex, wanted: Platform, blobs: MountBlobs, depth: int = 0) -> Descriptor:
    images = [one for one in index.manifests if one.media_type in _IMAGES]
    chosen = choose(wanted, [one.platform for one in images])
    if chosen is None:
        offered = ", ".join(sorted({str(one.platform) for one in images})) or "nothing"
        raise NotFound(f"{subject}: has nothing for {wanted}; it has {offered}")
    child = images[chosen]
    document = parse_document(blobs.document(child, MANIFEST_SIZE_MAX), child.media_type)
    if not isinstance(document, ImageIndex):
        return Descriptor(child.digest, child.size, child.media_type, platform=child.platform)
    if depth == INDEX_NESTING_MAX:
        raise TooLarge(f"{subject}: indexes are nested deeper than {INDEX_NESTING_MAX}")
    return _descend(subject, document, wanted, blobs, depth + 1)
