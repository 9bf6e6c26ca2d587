"""Descriptors and media types (image-spec, descriptor.md and media-types.md; Docker image manifest V2, schema 2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgfs.errors import Unsupported
from imgfs.oci.digest import Digest
from imgfs.oci.platform import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})

SIZE_MAX = 2**53

_LAYER_TYPES = ((OCI_LAYER, "+"), ("application/vnd.docker.image.rootfs.diff.tar", "."))
"""Media types of uncompressed layers, and the separator before the word for a compression."""
_FOREIGN_TYPES = (
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", "+"),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", "."),
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob in a manifest or index: its digest, exact size in bytes, and media type."""

    digest: Digest
    size: int
    media_type: str
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    platform: Platform | None = None
    artifact_type: str = ""
    """For a referrer: the media type of its content (an SBOM, a signature)."""

    @property
    def is_foreign(self) -> bool:
        """Whether this is a foreign layer, which registries do not distribute."""
        return _word(self.media_type, _FOREIGN_TYPES) is not None

    def __str__(self) -> str:
        return f"{self.digest} ({self.size} bytes, {self.media_type})"


def layer_compression(media_type: str) -> str:
    """Return the word for a tar layer's compression: `none`, `gzip`, `zstd`, or a word that imgfs may not know.

    layers/compression.py decides whether imgfs can decompress it. Raises Unsupported if the type is not that of a tar
    layer.
    """
    word = _word(media_type, _LAYER_TYPES) or _word(media_type, _FOREIGN_TYPES)
    if word is None:
        raise Unsupported(f"layer of media type {media_type[:120]!r}: imgfs reads tars, plain or compressed")
    return word


def _word(media_type: str, types: tuple[tuple[str, str], ...]) -> str | None:
    for base, joint in types:
        if media_type == base:
            return "none"
        word = media_type.removeprefix(f"{base}{joint}")
        if word != media_type and word.isalnum() and word != "none":
            return word
    return None


def refuse_foreign(descriptor: Descriptor) -> None:
    """Raise Unsupported for a foreign layer: imgfs asks no registry for it and never follows its `urls`."""
    if descriptor.is_foreign:
        raise Unsupported(
            f"layer {descriptor.digest}: is foreign ({descriptor.media_type}): registries do not distribute it, and "
            "imgfs follows no urls; get it elsewhere, `cp` it to content/ingest/x, "
            f"`mv` that to content/{descriptor.digest}"
        )
