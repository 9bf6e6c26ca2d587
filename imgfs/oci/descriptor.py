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
"""The types of plain tars, and what stands between them and the word for a compression."""
_FOREIGN_TYPES = (
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", "+"),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", "."),
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest or an index promises about a blob: its digest, exact size in bytes and media type."""

    digest: Digest
    size: int
    media_type: str
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    platform: Platform | None = None
    artifact_type: str = ""
    """Of a referrer: what it is (an SBOM, a signature); a media type."""

    @property
    def is_foreign(self) -> bool:
        """Whether it is a layer that registries are not meant to have."""
        return _word(self.media_type, _FOREIGN_TYPES) is not None

    def __str__(self) -> str:
        return f"{self.digest} ({self.size} bytes, {self.media_type})"


def layer_compression(media_type: str) -> str:
    """The word for a tar layer's compression: `none`, `gzip`, `zstd`, or one that imgfs may not know.

    Whether it can be undone is for layers/compression.py to say. Raises Unsupported for what is no tar layer.
    """
    word = _word(media_type, _LAYER_TYPES) or _word(media_type, _FOREIGN_TYPES)
    if word is None:
        raise Unsupported(f"layer of media type {media_type[:120]!r}: imgfs reads tars, compressed or not")
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
    """Raise Unsupported for a foreign layer, whose bytes no registry is asked for; its `urls` are never followed."""
    if descriptor.is_foreign:
        raise Unsupported(
            f"layer {descriptor.digest}: is foreign ({descriptor.media_type}): registries do not distribute it and "
            "imgfs follows no urls; get it elsewhere, `cp` it to content/ingest/x, "
            f"`mv` that to content/{descriptor.digest}"
        )
