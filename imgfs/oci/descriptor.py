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
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})

SIZE_MAX = 2**53

_LAYER_COMPRESSION = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    DOCKER_LAYER: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_FOREIGN_COMPRESSION = {
    _NONDISTRIBUTABLE: "none",
    f"{_NONDISTRIBUTABLE}+gzip": "gzip",
    f"{_NONDISTRIBUTABLE}+zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "none",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd": "zstd",
}


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
        return self.media_type in _FOREIGN_COMPRESSION

    def __str__(self) -> str:
        return f"{self.digest} ({self.size} bytes, {self.media_type})"


def layer_compression(media_type: str) -> str:
    """`none`, `gzip` or `zstd`; raises Unsupported for anything that is not a tar layer imgfs can read."""
    try:
        return _LAYER_COMPRESSION.get(media_type) or _FOREIGN_COMPRESSION[media_type]
    except KeyError:
        raise Unsupported(f"layer of media type {media_type[:120]!r}: imgfs reads tar, tar+gzip and tar+zstd") from None


def refuse_foreign(descriptor: Descriptor) -> None:
    """Raise Unsupported for a foreign layer, whose bytes no registry is asked for; its `urls` are never followed."""
    if descriptor.is_foreign:
        raise Unsupported(
            f"layer {descriptor.digest}: is foreign ({descriptor.media_type}): registries do not distribute it and "
            "imgfs follows no urls; get it elsewhere, `cp` it to content/ingest/x, "
            f"`mv` that to content/{descriptor.digest}"
        )
