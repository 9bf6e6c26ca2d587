"""Write an archive as a stream: the tar of an OCI layout, or a docker-archive. The same images give the same bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from imgfs.archives import docker, layout
from imgfs.archives.names import blob_name
from imgfs.errors import VerificationFailed
from imgfs.layers.header import BLOCK
from imgfs.oci.digest import Digest

Open = Callable[[Digest], Iterator[bytes]]
"""Opens the bytes of a blob, or of a layer's tar by its diff ID."""


@dataclass(frozen=True, slots=True)
class DockerExport:
    """An image for a docker-archive: the config's bytes, the diff IDs of its layers, base first, and its tags."""

    config: bytes
    diff_ids: tuple[Digest, ...]
    tags: tuple[str, ...]


def verified(digest: Digest, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield `pieces`. Raises VerificationFailed at the end unless their digest is `digest`."""
    running = digest.new_hash()
    for piece in pieces:
        running.update(piece)
        yield piece
    if running.hexdigest() != digest.hex:
        raise VerificationFailed(f"content {digest}: the stored bytes are damaged; `imgfs check --deep` says more")


def layout_tar(index: bytes, blobs: Mapping[Digest, int], open_blob: Open) -> Iterator[bytes]:
    """Yield the tar of an OCI layout. `blobs` maps digests to sizes. Raises VerificationFailed."""
    tar = TarWriter()
    yield from tar.directory("blobs")
    for algorithm in sorted({digest.algorithm for digest in blobs}):
        yield from tar.directory(f"blobs/{algorithm}")
    for digest in sorted(blobs):
        yield from tar.file(blob_name(digest), blobs[digest], verified(digest, open_blob(digest)))
    yield from tar.file(layout.INDEX_FILE, len(index), [index])
    yield from tar.file(layout.LAYOUT_FILE, len(layout.LAYOUT), [layout.LAYOUT])
    yield from tar.end()


def docker_tar(images: Iterable[DockerExport], layers: Mapping[Digest, int], open_layer: Open) -> Iterator[bytes]:
    """Yield a docker-archive. `layers` maps diff IDs to the size of each tar. Raises VerificationFailed.

    Images with the same config become one image, even if their layers were compressed differently.
    """
    merged: dict[Digest, DockerExport] = {}
    for one in images:
        digest = Digest.of(one.config)
        tags = (*merged[digest].tags, *one.tags) if digest in merged else one.tags
        merged[digest] = DockerExport(one.config, one.diff_ids, tags)
    manifest = docker.write_manifest([_entry(digest, one) for digest, one in merged.items()])
    tar = TarWriter()
    for digest in sorted(merged):
        config = merged[digest].config
        yield from tar.file(f"{digest.hex}.json", len(config), [config])
    for diff_id in sorted(layers):
        yield from tar.file(f"{diff_id.hex}.tar", layers[diff_id], verified(diff_id, open_layer(diff_id)))
    yield from tar.file(docker.MANIFEST_FILE, len(manifest), [manifest])
    yield from tar.end()


def _entry(config: Digest, image: DockerExport) -> docker.DockerImage:
    layers = [f"{diff_id.hex}.tar" for diff_id in image.diff_ids]
    return docker.DockerImage(f"{config.hex}.json", list(dict.fromkeys(image.tags)), layers)


_RECORD = tarfile.RECORDSIZE


class TarWriter:
    """Writes a tar piece by piece, in constant memory.

    The same content gives the same bytes: time 0, owner 0, fixed modes, members in the given order.
    """

    def __init__(self) -> None:
        self._size = 0

    def directory(self, name: str) -> Iterator[bytes]:
        """Yield a directory."""
        info = tarfile.TarInfo(f"{name}/")
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        yield self._counted(_header(info))

    def file(self, name: str, size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a file of `size` bytes. Raises VerificationFailed if `pieces` are more or fewer."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        yield self._counted(_header(info))
        left = size
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            yield self._counted(piece)
        if left:
            raise VerificationFailed(f"archive member {name}: {size - left} bytes came, expected {size}; export again")
        yield self._counted(bytes(-size % BLOCK))

    def end(self) -> Iterator[bytes]:
        """Yield the end of the archive, padded to a whole record."""
        yield self._counted(bytes(2 * BLOCK))
        yield self._counted(bytes(-self._size % _RECORD))

    def _counted(self, piece: bytes) -> bytes:
        self._size += len(piece)
        return piece


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
