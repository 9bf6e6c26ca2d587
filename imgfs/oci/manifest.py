"""Parse manifests, indexes and image configs into checked values.

Digests are always computed over the raw bytes, so this module never writes JSON. Sources: image-spec manifest.md,
image-index.md, config.md; Docker image manifest V2, schema 2. SEMANTICS.md lists the limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from imgfs.errors import Invalid, Malformed, TooLarge, Unsupported
from imgfs.oci.descriptor import (
    DOCKER_SCHEMA1,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    SIZE_MAX,
    Descriptor,
)
from imgfs.oci.digest import Digest, is_digest
from imgfs.oci.platform import Platform, checked_platform

T = TypeVar("T")

MANIFEST_SIZE_MAX = 4 << 20
CONFIG_SIZE_MAX = 16 << 20
LAYERS_MAX = 512
JSON_DEPTH_MAX = 64
INDEX_NESTING_MAX = 4

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""Strings and brackets.

An unterminated string takes the rest of the input; otherwise each of its quotes would be tried as the start of a
string, in quadratic time.
"""


class _Platform(msgspec.Struct, rename={"os_version": "os.version", "os_features": "os.features"}):
    os: str = ""
    architecture: str = ""
    variant: str | None = None
    os_version: str | None = None
    os_features: list[str] | None = None


class _Descriptor(msgspec.Struct, rename={"media_type": "mediaType", "artifact_type": "artifactType"}):
    digest: str
    size: int
    media_type: str = ""
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None


class _Subject(msgspec.Struct):
    digest: str = ""


class _Document(
    msgspec.Struct,
    rename={"media_type": "mediaType", "schema_version": "schemaVersion", "artifact_type": "artifactType"},
):
    schema_version: int = 0
    media_type: str = ""
    artifact_type: object = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Subject | None = None
    annotations: dict[str, str] | None = None
    fsLayers: msgspec.Raw = msgspec.Raw()


class _RootFS(msgspec.Struct):
    type: str = ""
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    rootfs: _RootFS | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The image of one platform: a config and its layers, base first; or an artifact that refers to the image
    `subject`.
    """

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    subject: Digest | None = None
    artifact_type: str = ""
    """`artifactType`; if absent, the config's media type (distribution-spec, "Listing Referrers")."""

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """Every blob that this manifest mentions."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """A list of manifests, usually one for each platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    subject: Digest | None = None
    artifact_type: str = ""

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """Every manifest that this index mentions."""
        return self.manifests


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image config that imgfs needs: the platform and the diff ID of each layer, base first."""

    platform: Platform
    diff_ids: tuple[Digest, ...]


def parse_document(data: bytes, media_type: str = "") -> Manifest | ImageIndex:
    """Parse a manifest or an index.

    `media_type` is the type that the registry or the descriptor stated; the document's own mediaType must not
    contradict it. Raises Malformed, TooLarge, or Unsupported for schema 1 and unknown types.
    """
    if len(data) > MANIFEST_SIZE_MAX:
        raise TooLarge(f"manifest of {len(data)} bytes: the limit is {MANIFEST_SIZE_MAX}")
    document = _decode(data, _Document, "manifest")
    kind = _document_type(document, media_type.partition(";")[0].strip())
    if kind in INDEX_TYPES:
        manifests = tuple(_readable(document.manifests or []))
        return ImageIndex(kind, manifests, document.annotations or {}, _subject(document), _artifact_type(document))
    layers = _descriptors(document.layers or [], "manifest")
    if len(layers) > LAYERS_MAX:
        raise TooLarge(f"manifest with {len(layers)} layers: the limit is {LAYERS_MAX}")
    if document.config is None:
        raise Malformed("manifest: has no config")
    config = _descriptor(document.config, "config")
    artifact_type = _artifact_type(document) or config.media_type
    return Manifest(kind, config, layers, document.annotations or {}, _subject(document), artifact_type)


def parse_config(data: bytes) -> ImageConfig:
    """Parse an image config. Raises Malformed or TooLarge."""
    if len(data) > CONFIG_SIZE_MAX:
        raise TooLarge(f"image config of {len(data)} bytes: the limit is {CONFIG_SIZE_MAX}")
    config = _decode(data, _Config, "image config")
    diff_ids = (config.rootfs.diff_ids or []) if config.rootfs else []
    if len(diff_ids) > LAYERS_MAX:
        raise TooLarge(f"image config with {len(diff_ids)} diff IDs: the limit is {LAYERS_MAX}")
    platform = checked_platform(config.os or "linux", config.architecture or "unknown", config.variant)
    return ImageConfig(platform, tuple(_digest(text, "diff ID") for text in diff_ids))


def _document_type(document: _Document, said: str) -> str:
    own = document.media_type
    if said in DOCKER_SCHEMA1 or own in DOCKER_SCHEMA1 or document.schema_version == 1 or bytes(document.fsLayers):
        raise Unsupported(
            "manifest of schema 1: imgfs reads schema 2 and OCI manifests; push the image with a current tool"
        )
    known = INDEX_TYPES | MANIFEST_TYPES
    if own and said in known and own != said:
        raise Malformed(f"manifest: its mediaType is {own[:120]!r} but it was sent as {said!r}")
    kind = own or (said if said in known else _guess(document))
    if kind not in known:
        raise Unsupported(f"manifest of media type {kind[:120]!r}: expected an OCI or Docker manifest or index")
    if (kind in INDEX_TYPES and document.layers) or (kind in MANIFEST_TYPES and document.manifests):
        raise Malformed("manifest: has both manifests and layers, so it is ambiguous")
    return kind


def _guess(document: _Document) -> str:
    if document.manifests is not None and document.layers is None and document.config is None:
        return OCI_INDEX
    return OCI_MANIFEST if document.config is not None and document.layers is not None else "unknown"


def _subject(document: _Document) -> Digest | None:
    """Return the subject. A malformed one is ignored: the document can be read without it."""
    text = document.subject.digest if document.subject is not None else ""
    return Digest(text) if is_digest(text) else None


def _artifact_type(document: _Document) -> str:
    """Return `artifactType`. A value that is not a string is ignored: the document can be read without it."""
    return document.artifact_type if isinstance(document.artifact_type, str) else ""


def _readable(found: list[_Descriptor]) -> Iterator[Descriptor]:
    """Yield the entries of an index that imgfs can read.

    An entry with, for example, an unknown digest algorithm is skipped.
    """
    for one in found:
        with suppress(Malformed):
            yield _descriptor(one, "index")


def _descriptors(found: list[_Descriptor], where: str) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(one, where) for one in found)


def _descriptor(raw: _Descriptor, where: str) -> Descriptor:
    if not 0 <= raw.size <= SIZE_MAX:
        raise Malformed(f"{where}: descriptor size {raw.size} is out of range")
    platform = None
    if raw.platform is not None and raw.platform.os and raw.platform.architecture:
        said = raw.platform
        platform = checked_platform(
            said.os, said.architecture, said.variant or "", said.os_version or "", said.os_features or ()
        )
    return Descriptor(
        _digest(raw.digest, where), raw.size, raw.media_type, raw.annotations or {}, platform, raw.artifact_type or ""
    )


def _digest(text: str, where: str) -> Digest:
    try:
        return Digest.parse(text)
    except Invalid as error:
        raise Malformed(f"{where}: {error.message}") from None


def _decode(data: bytes, shape: type[T], what: str) -> T:
    check_depth(data, what)
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{what}: {error}") from None


def check_depth(data: bytes, what: str) -> None:
    """Raise Malformed if JSON is nested deeper than JSON_DEPTH_MAX. Takes linear time."""
    if data.count(b"[") + data.count(b"{") <= JSON_DEPTH_MAX:
        return
    depth = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > JSON_DEPTH_MAX:
                raise Malformed(f"{what}: JSON nested deeper than {JSON_DEPTH_MAX}")
        elif first in b"]}":
            depth -= 1


def decode_json(data: bytes, what: str) -> Any:
    """Decode foreign JSON of limited size and depth without a schema. Raises Malformed."""
    return _decode(data, object, what)
