"""Builds images and indexes from layers, as values: all blobs are in memory, and all digests are correct.

Owns config, manifest and index JSON, and the OCI layout on disk (image-spec, image-layout.md). `write_layout` writes an
image for other tools. `add_to` adds it to a registry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imgfs.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from imgfs.oci.digest import Digest
from imgfs.oci.platform import Platform
from imgfs.testing.entries import Entry
from imgfs.testing.layertar import Compression, Format, compress, layer_tar

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64", "v8")
UNKNOWN = Platform("unknown", "unknown")
"""The platform of attestation manifests that build tools list in an index."""

OCI_EMPTY = "application/vnd.oci.empty.v1+json"
CREATED = "2023-11-14T22:13:20Z"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


class RegistryTarget(Protocol):
    """Where an image can be added: a fake registry, or a real one.

    A manifest without a tag can be read by its digest only.
    """

    def add_blob(self, data: bytes, /) -> Digest: ...
    def add_manifest(self, repository: str, tag: str | None, data: bytes, media_type: str, /) -> Digest: ...


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """A layer's tar and its blob."""

    tar: bytes
    compression: str
    blob: bytes
    annotations: Mapping[str, str]

    @property
    def diff_id(self) -> Digest:
        """The digest of the uncompressed tar."""
        return Digest.of(self.tar)

    @property
    def digest(self) -> Digest:
        """The digest of the blob."""
        return Digest.of(self.blob)

    def media_type(self, *, docker: bool) -> str:
        """Return the media type of this layer in a manifest."""
        base, joint = (_DOCKER_LAYER, ".") if docker else (OCI_LAYER, "+")
        return base if self.compression == "none" else f"{base}{joint}{self.compression}"


def layer(
    content: bytes | Iterable[Entry],
    compression: Compression = "gzip",
    *,
    format: Format = "pax",
    annotations: Mapping[str, str] | None = None,
) -> BuiltLayer:
    """Build a layer from entries or from a tar."""
    tar = content if isinstance(content, bytes) else layer_tar(content, format)
    return BuiltLayer(tar, compression, compress(tar, compression), annotations or {})


@dataclass(frozen=True, slots=True)
class BuiltDocument:
    """A manifest or an index: its exact bytes and media type."""

    media_type: str
    document: bytes
    platform: Platform | None

    @property
    def digest(self) -> Digest:
        """The digest of the bytes."""
        return Digest.of(self.document)

    @property
    def descriptor(self) -> dict[str, Any]:
        """The descriptor of this document in an index."""
        return _descriptor(self.media_type, self.document) | (
            {"platform": _platform(self.platform)} if self.platform else {}
        )


@dataclass(frozen=True, slots=True)
class Image(BuiltDocument):
    """The image of one platform. Build it with `image`."""

    config: bytes
    layers: tuple[BuiltLayer, ...]

    @property
    def diff_ids(self) -> list[Digest]:
        """The diff ID of each layer, base first."""
        return [one.diff_id for one in self.layers]

    @property
    def blobs(self) -> dict[Digest, bytes]:
        """Config and layers, without the manifest."""
        return {Digest.of(data): data for data in (self.config, *(one.blob for one in self.layers))}

    def write_layout(self, directory: Path, tag: str) -> Digest:
        """Add this image to the OCI layout at `directory` under the name `tag`. Return its digest."""
        write_layout(directory, {**self.blobs, self.digest: self.document}, self.descriptor, tag)
        return self.digest

    def add_to(self, registry: RegistryTarget, repository: str, tag: str | None = None) -> Digest:
        """Add the blobs, then the manifest (without a tag if `tag` is None). Return the digest."""
        for data in self.blobs.values():
            registry.add_blob(data)
        return registry.add_manifest(repository, tag, self.document, self.media_type)


@dataclass(frozen=True, slots=True)
class BuiltIndex(BuiltDocument):
    """Images under one name. Build it with `index`."""

    images: tuple[Image, ...]

    def write_layout(self, directory: Path, tag: str) -> Digest:
        """Add the index and its images to the OCI layout at `directory` as `tag`. Return its digest."""
        blobs = {self.digest: self.document}
        for one in self.images:
            blobs |= one.blobs | {one.digest: one.document}
        write_layout(directory, blobs, self.descriptor, tag)
        return self.digest

    def add_to(self, registry: RegistryTarget, repository: str, tag: str | None = None) -> Digest:
        """Add every image by digest, then the index. Return its digest."""
        for one in self.images:
            one.add_to(registry, repository)
        return registry.add_manifest(repository, tag, self.document, self.media_type)


def image(
    layers: Sequence[BuiltLayer],
    *,
    platform: Platform = AMD64,
    docker: bool = False,
    config: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Build an image of `layers`, base first.

    `config` overrides keys of the image config ({"config": {"Cmd": [...]}}). `docker` selects Docker's media types,
    which have no annotations.
    """
    config_bytes = _json(_config(layers, platform) | dict(config or {}))
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, config_bytes),
        "layers": [_descriptor(one.media_type(docker=docker), one.blob, one.annotations) for one in layers],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return Image(media_type, _json(document), platform, config_bytes, tuple(layers))


def index(images: Sequence[Image], *, docker: bool = False, annotations: Mapping[str, str] | None = None) -> BuiltIndex:
    """Build an index over `images`, in their order."""
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [one.descriptor for one in images],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return BuiltIndex(media_type, _json(document), None, tuple(images))


def attestation(subject: Image) -> Image:
    """Build an attestation, as build tools do: platform unknown/unknown, and a layer that is not a tar."""
    statement = _json(
        {"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": {"sha256": subject.digest.hex}}]}
    )
    config = _json(_config([], UNKNOWN))
    layers = [_descriptor("application/vnd.in-toto+json", statement)]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(OCI_CONFIG, config),
        "layers": layers,
    }
    return Image(OCI_MANIFEST, _json(document), UNKNOWN, config, (BuiltLayer(statement, "none", statement, {}),))


def referrer(
    subject: BuiltDocument, artifact_type: str, content: bytes, *, annotations: Mapping[str, str] | None = None
) -> Image:
    """Build an artifact for `subject`, such as an SBOM. Its only blob is `content`, of type `artifact_type`."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": _descriptor(OCI_EMPTY, b"{}"),
        "layers": [_descriptor(artifact_type, content)],
        "subject": _descriptor(subject.media_type, subject.document),
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return Image(OCI_MANIFEST, _json(document), None, b"{}", (BuiltLayer(content, "none", content, {}),))


def referrers_index(referrers: Sequence[tuple[str, Image]]) -> bytes:
    """Return the index that replaces the referrers API: each referrer with its artifact type."""
    entries = [one.descriptor | {"artifactType": artifact_type} for artifact_type, one in referrers]
    return _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _config(layers: Sequence[BuiltLayer], platform: Platform) -> dict[str, Any]:
    return _platform(platform) | {
        "created": CREATED,
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(layers))],
    }


def _platform(platform: Platform) -> dict[str, Any]:
    plain = {"os": platform.os, "architecture": platform.architecture}
    return plain | ({"variant": platform.variant} if platform.variant else {})


def _descriptor(media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    plain = {"mediaType": media_type, "digest": Digest.of(data), "size": len(data)}
    return plain | ({"annotations": dict(annotations)} if annotations else {})


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


REF_NAME = "org.opencontainers.image.ref.name"


def write_layout(directory: Path, blobs: Mapping[Digest, bytes], descriptor: Mapping[str, Any], tag: str) -> None:
    """Add `blobs` to the OCI layout at `directory`, which is created if missing, and name `descriptor` `tag`.

    Other tags stay. An existing tag is moved.
    """
    _start(directory)
    for digest, data in blobs.items():
        path = directory / "blobs" / digest.algorithm / digest.hex
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    path = directory / "index.json"
    index = json.loads(path.read_bytes())
    named = {**descriptor, "annotations": {**descriptor.get("annotations", {}), REF_NAME: tag}}
    others = [one for one in index["manifests"] if one["annotations"][REF_NAME] != tag]
    path.write_text(json.dumps(index | {"manifests": [*others, named]}))


def _start(directory: Path) -> None:
    if (directory / "oci-layout").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}))
