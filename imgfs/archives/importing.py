"""Reading an archive: every image it lists, verified down to the diff IDs of its layers, in the store."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.archives import docker, layout
from imgfs.archives.closure import Closure
from imgfs.archives.contents import BytesPayload, Contents
from imgfs.archives.contract import Store
from imgfs.archives.diff_ids import Prover
from imgfs.archives.layout import Listed
from imgfs.errors import NotFound
from imgfs.layers.compression import Compressions
from imgfs.oci.descriptor import OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Imported:
    """The images of an archive, and every blob that they need."""

    images: list[Listed]
    closure: Closure


def list_images(contents: Contents, store: Store, compressions: Compressions) -> list[Listed]:
    """The images that an archive lists; of a docker-archive configs and layers are stored for it.

    Where there is both, as docker writes it since version 25, the OCI layout counts.
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


def import_images(images: list[Listed], contents: Contents, store: Store, compressions: Compressions) -> Imported:
    """See to it that all of `images` is stored and right; layers of other compressions are not looked into.

    Raises NotFound for what the archive lacks, VerificationFailed, Malformed, TooLarge, Unsupported.
    """
    closure, prover = Closure(), Prover(store, compressions)
    for image in images:
        closure.add(image.descriptor, contents)
    for manifest in closure.manifests.values():
        prover.check(manifest)
    return Imported(images, closure)


def _docker_image(image: docker.DockerImage, contents: Contents, store: Store, compressions: Compressions) -> Listed:
    config = contents.file(image.Config)
    layers = [_layer(contents.file(name), store, compressions) for name in image.Layers or ()]
    data = docker.image_manifest(config, _size(config, store), layers)
    digest = Digest.of(data)
    store.put(digest, BytesPayload(data))
    return Listed(Descriptor(digest, len(data), OCI_MANIFEST), tuple(image.RepoTags or ()))


def _layer(digest: Digest, store: Store, compressions: Compressions) -> Descriptor:
    """Describe a stored layer. Docker writes uncompressed layers; other programs may compress them."""
    compression = compressions.detect(store.read(digest, 0, compressions.magic_size))
    return Descriptor(digest, _size(digest, store), compression.layer_type)


def _size(digest: Digest, store: Store) -> int:
    size = store.size_of(digest)
    if size is None:
        raise NotFound(f"blob {digest}: was removed while it was imported; import again")
    return size
