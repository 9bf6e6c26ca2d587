"""Read an archive: store every image it lists, and verify all of it down to the diff IDs of its layers."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.archives import docker, layout
from imgfs.archives.closure import Closure
from imgfs.archives.contents import BytesPayload, Contents
from imgfs.archives.contract import ArchiveStore
from imgfs.archives.layout import Listed
from imgfs.archives.stream import PIECE
from imgfs.errors import Malformed, NotFound, TooLarge, Unsupported, VerificationFailed
from imgfs.layers.compression import Compression, Compressions
from imgfs.layers.unpack import INFLATED_MAX
from imgfs.oci.descriptor import OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import CONFIG_SIZE_MAX, Manifest, parse_config


@dataclass(frozen=True, slots=True)
class Imported:
    """The images of an archive, and every blob that they need."""

    images: list[Listed]
    closure: Closure


def list_images(contents: Contents, store: ArchiveStore, compressions: Compressions) -> list[Listed]:
    """Return the images that an archive lists. Configs and layers of a docker-archive are stored first.

    If the archive has both forms, as docker writes them since version 25, the OCI layout counts.
    """
    index = contents.named(layout.INDEX_FILE)
    if index is not None:
        return layout.read_layout(contents.named(layout.LAYOUT_FILE), index)
    manifest = contents.named(docker.MANIFEST_FILE)
    if manifest is None:
        raise NotFound(
            f"archive: has neither {layout.INDEX_FILE} nor {docker.MANIFEST_FILE}; expected an OCI layout or what "
            "`docker save` writes"
        )
    return [_docker_image(one, contents, store, compressions) for one in docker.read_manifest(manifest)]


def import_images(
    images: list[Listed], contents: Contents, store: ArchiveStore, compressions: Compressions
) -> Imported:
    """Make sure that `images` are stored completely and correctly. Layers in an unknown compression are not inflated.

    Raises NotFound for missing parts, VerificationFailed, Malformed, TooLarge, Unsupported.
    """
    closure, prover = Closure(), Prover(store, compressions)
    for image in images:
        closure.add(image.descriptor, contents)
    for manifest in closure.manifests.values():
        prover.check(manifest)
    return Imported(images, closure)


def _docker_image(
    image: docker.DockerImage, contents: Contents, store: ArchiveStore, compressions: Compressions
) -> Listed:
    config = contents.file(image.Config)
    layers = [_layer(contents.file(name), store, compressions) for name in image.Layers or ()]
    data = docker.image_manifest(config, _size(config, store), layers)
    digest = Digest.of(data)
    store.put(digest, BytesPayload(data))
    return Listed(Descriptor(digest, len(data), OCI_MANIFEST), tuple(image.RepoTags or ()))


def _layer(digest: Digest, store: ArchiveStore, compressions: Compressions) -> Descriptor:
    """Describe a stored layer. Docker writes uncompressed layers; other programs may compress them."""
    compression = compressions.detect(store.read(digest, 0, compressions.magic_size))
    return Descriptor(digest, _size(digest, store), compression.layer_type)


def _size(digest: Digest, store: ArchiveStore) -> int:
    size = store.size_of(digest)
    if size is None:
        raise NotFound(f"blob {digest}: was removed while it was imported; import again")
    return size


class Prover:
    """Verifies layers against the diff IDs of the config: inflates, hashes and compares. Reads a shared layer once."""

    def __init__(self, store: ArchiveStore, compressions: Compressions) -> None:
        self._store = store
        self._compressions = compressions
        self._known: dict[tuple[Digest, str, str], Digest] = {}

    def check(self, manifest: Manifest) -> None:
        """Raise VerificationFailed, Malformed or TooLarge unless every layer's tar has the digest in the config.

        A manifest with layers that are not tars (an attestation, an artifact) is not checked.
        """
        compressions = [one for layer in manifest.layers if (one := self._compression(layer))]
        if len(compressions) < len(manifest.layers):
            return
        diff_ids = self._diff_ids(manifest.config)
        if len(diff_ids) != len(manifest.layers):
            raise Malformed(
                f"image config {manifest.config.digest}: has {len(diff_ids)} diff IDs for {len(manifest.layers)} layers"
            )
        for layer, compression, diff_id in zip(manifest.layers, compressions, diff_ids, strict=True):
            found = self._diff_id(layer, compression, diff_id)
            if found != diff_id:
                raise VerificationFailed(
                    f"layer {layer.digest}: its tar has digest {found}, the image config says {diff_id}"
                )

    def _compression(self, layer: Descriptor) -> Compression | None:
        """Return the compression of a layer's tar; None if it is not a tar, or if no plugin reads the compression."""
        try:
            return self._compressions.of(layer.media_type)
        except Unsupported:
            return None

    def _diff_ids(self, config: Descriptor) -> tuple[Digest, ...]:
        if config.size > CONFIG_SIZE_MAX:
            raise TooLarge(f"image config {config.digest}: has {config.size} bytes, the limit is {CONFIG_SIZE_MAX}")
        return parse_config(self._store.read(config.digest, 0, config.size)).diff_ids

    def _diff_id(self, layer: Descriptor, compression: Compression, said: Digest) -> Digest:
        if compression.word == "none" and layer.digest.algorithm == said.algorithm:
            return layer.digest
        key = layer.digest, compression.word, said.algorithm
        if key not in self._known:
            try:
                self._known[key] = self._inflate(layer, compression, said)
            except Malformed as error:
                raise Malformed(f"layer {layer.digest}: {error.message}") from None
        return self._known[key]

    def _inflate(self, layer: Descriptor, compression: Compression, said: Digest) -> Digest:
        decompressor, running = compression.open(), said.new_hash()
        offset, inflated = 0, 0
        while piece := self._store.read(layer.digest, offset, PIECE):
            offset += len(piece)
            for out in decompressor.feed(piece):
                running.update(out)
                inflated += len(out)
            if inflated > INFLATED_MAX:
                raise TooLarge(f"layer {layer.digest}: inflates to more than {INFLATED_MAX} bytes")
        decompressor.close()
        return Digest.from_hash(running)
