"""The docker-archive: its `manifest.json`, and the OCI image manifest that imgfs creates, because the archive has none.

Such an archive holds a config and uncompressed layer tars for each image. The OCI manifest contains the config's exact
bytes and the layers as they are, and nothing else, so the same archive always gives the same digest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from imgfs.errors import Malformed, NotFound, TooLarge
from imgfs.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import LAYERS_MAX, check_depth

MANIFEST_FILE = "manifest.json"
IMAGES_MAX = 10_000


class DockerImage(msgspec.Struct, frozen=True):
    """One entry of manifest.json. `Config` and `Layers` are names of members; layers are listed base first."""

    Config: str
    RepoTags: list[str] | None = None
    Layers: list[str] | None = None


def read_manifest(data: bytes) -> list[DockerImage]:
    """Return the images of a docker-archive. Raises Malformed, TooLarge, and NotFound if it lists none."""
    check_depth(data, MANIFEST_FILE)
    try:
        images = msgspec.json.decode(data, type=list[DockerImage])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{MANIFEST_FILE}: {error}") from None
    if not images:
        raise NotFound(f"{MANIFEST_FILE}: lists no image")
    if len(images) > IMAGES_MAX or any(len(one.Layers or ()) > LAYERS_MAX for one in images):
        raise TooLarge(f"{MANIFEST_FILE}: the limits are {IMAGES_MAX} images of {LAYERS_MAX} layers")
    return images


def image_manifest(config: Digest, config_size: int, layers: Sequence[Descriptor]) -> bytes:
    """Return the OCI manifest of an image of a docker-archive."""
    described = [_raw(one) for one in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _raw(Descriptor(config, config_size, OCI_CONFIG)),
        "layers": described,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def write_manifest(images: Sequence[DockerImage]) -> bytes:
    """Return the bytes of manifest.json."""
    return msgspec.json.encode(images)


def _raw(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
