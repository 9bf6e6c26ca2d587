"""A store in memory, and helpers to create archives and to import them without a mount."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from imgfs.archives.closure import Closure
from imgfs.archives.contents import Contents, DirectoryContents, TarContents
from imgfs.archives.contract import Payload
from imgfs.archives.exporting import DockerExport, docker_tar, layout_tar
from imgfs.archives.importing import Imported, import_images, list_images
from imgfs.archives.layout import LAYOUT, Listed, write_index
from imgfs.archives.stream import PieceStream
from imgfs.errors import NotFound, TooLarge, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.testing.build import BuiltIndex, Image
from tests.support.compressions import COMPRESSIONS

Members = Sequence[tuple[str, bytes]]


class MemoryStore:
    """An ArchiveStore and ArchiveBlobs in memory."""

    def __init__(self, blobs: Mapping[Digest, bytes] | None = None) -> None:
        self.blobs = dict(blobs or {})
        self.most = 0
        """The longest piece that was requested."""

    def size_of(self, digest: Digest) -> int | None:
        return len(self.blobs[digest]) if digest in self.blobs else None

    def put(self, digest: Digest, data: Payload) -> None:
        if digest not in self.blobs:
            found = self._all(data)
            if Digest.of(found, digest.algorithm) != digest:
                raise VerificationFailed(f"blob {digest}: other bytes")
            self.blobs[digest] = found

    def take(self, name: str, data: Payload) -> Digest:
        found = self._all(data)
        digest = Digest.of(found)
        self.blobs[digest] = found
        return digest

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        return self.blobs[digest][offset : offset + size]

    def ensure(self, descriptor: Descriptor) -> None:
        if descriptor.digest not in self.blobs:
            raise NotFound(f"blob {descriptor.digest}: is not here")

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        if descriptor.size > limit:
            raise TooLarge(f"blob {descriptor.digest}: too large")
        self.ensure(descriptor)
        return self.blobs[descriptor.digest]

    def pieces(self, digest: Digest) -> Iterator[bytes]:
        yield self.blobs[digest]

    def _all(self, data: Payload) -> bytes:
        parts: list[bytes] = []
        while piece := data.read(1 << 16):
            self.most = max(self.most, len(piece))
            parts.append(piece)
        return b"".join(parts)


def blobs_of(made: Image | BuiltIndex) -> dict[Digest, bytes]:
    """Return every blob of an image, including its documents."""
    images = made.images if isinstance(made, BuiltIndex) else (made,)
    found = {made.digest: made.document}
    for one in images:
        found |= one.blobs | {one.digest: one.document}
    return found


def listed(made: Image | BuiltIndex, *names: str) -> Listed:
    """Return the image as an archive lists it."""
    return Listed(Descriptor(made.digest, len(made.document), made.media_type, platform=made.platform), names)


def oci_tar(images: Iterable[Listed], store: MemoryStore) -> bytes:
    """Return the tar of an OCI layout with these images and all their blobs."""
    found, closure = list(images), Closure()
    for one in found:
        closure.add(one.descriptor, store)
    sizes = {digest: descriptor.size for digest, descriptor in closure.blobs.items()}
    return b"".join(layout_tar(write_index(found), sizes, store.pieces))


def docker_archive(images: Iterable[tuple[Image, Sequence[str]]]) -> bytes:
    """Return the docker-archive of these images with these tags."""
    found = list(images)
    tars = {layer.diff_id: layer.tar for image, _ in found for layer in image.layers}
    exports = [DockerExport(image.config, tuple(image.diff_ids), tuple(tags)) for image, tags in found]
    return b"".join(
        docker_tar(exports, {diff_id: len(tar) for diff_id, tar in tars.items()}, lambda one: iter([tars[one]]))
    )


def stream(data: bytes, piece: int = 1000) -> PieceStream:
    """Return a stream that can be read once, like a pipe."""
    return PieceStream(data[at : at + piece] for at in range(0, len(data), piece))


def imported(data: bytes, store: MemoryStore, piece: int = 1000) -> Imported:
    """Import a tar from a stream that can be read once."""
    return _import(TarContents(stream(data, piece), store), store)


def imported_directory(path: Path, store: MemoryStore) -> Imported:
    """Import a directory."""
    return _import(DirectoryContents(path, store), store)


def tar(members: Iterable[tuple[str, bytes] | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of files and of other members, which are given as TarInfo."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
                continue
            info = tarfile.TarInfo(one[0])
            info.size = len(one[1])
            archive.addfile(info, io.BytesIO(one[1]))
    return data.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """Return a link member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def members_of(data: bytes) -> dict[str, bytes]:
    """Return the files of a tar by name, as Python's tarfile reads them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: _content(archive, one) for one in archive if one.isfile()}


def layout_members(made: Image | BuiltIndex, *names: str) -> dict[str, bytes]:
    """Return the files of an OCI layout that holds one image."""
    files = {f"blobs/{digest.algorithm}/{digest.hex}": data for digest, data in blobs_of(made).items()}
    return files | {"index.json": write_index([listed(made, *names)]), "oci-layout": LAYOUT}


def saved(made: Image, *tags: str) -> dict[str, bytes]:
    """Return the files that docker before version 25 saves: one directory for each layer, manifest.json last."""
    config = f"{Digest.of(made.config).hex}.json"
    files: dict[str, bytes] = {}
    layers: list[str] = []
    for number, layer in enumerate(made.layers):
        directory = hashlib.sha256(f"{number} {layer.diff_id}".encode()).hexdigest()
        files |= {f"{directory}/VERSION": b"1.0", f"{directory}/json": b"{}", f"{directory}/layer.tar": layer.tar}
        layers.append(f"{directory}/layer.tar")
    files[config] = made.config
    files["repositories"] = b"{}"
    files["manifest.json"] = json.dumps([{"Config": config, "RepoTags": list(tags), "Layers": layers}]).encode()
    return files


def _import(contents: Contents, store: MemoryStore) -> Imported:
    return import_images(list_images(contents, store, COMPRESSIONS), contents, store, COMPRESSIONS)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file
    return file.read()
