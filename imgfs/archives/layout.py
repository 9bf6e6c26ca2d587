"""The index of an OCI image layout, and the names of its images (image-spec, image-layout.md, annotations.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from imgfs.errors import Malformed, NotFound, Unsupported
from imgfs.oci.descriptor import OCI_INDEX, Descriptor
from imgfs.oci.manifest import ImageIndex, decode_json, parse_document

LAYOUT_FILE, INDEX_FILE = "oci-layout", "index.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
"""The full name. containerd and docker write it beside a ref.name that is only the tag."""


class _Layout(msgspec.Struct):
    imageLayoutVersion: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that an archive lists, with its names as they are written there."""

    descriptor: Descriptor
    names: tuple[str, ...]


def read_layout(layout: bytes | None, index: bytes) -> list[Listed]:
    """Return the images of a layout, in its order.

    Raises Malformed, Unsupported, TooLarge, and NotFound if it lists none.
    """
    _check_layout(layout)
    try:
        document = parse_document(index, OCI_INDEX)
    except Malformed as error:
        raise Malformed(f"{INDEX_FILE}: is not an image index: {error.message}") from None
    raw: Any = decode_json(index, INDEX_FILE)
    if not isinstance(document, ImageIndex) or len(raw.get("manifests") or ()) != len(document.manifests):
        raise Malformed(f"{INDEX_FILE}: lists something that is not a descriptor of an image")
    if not document.manifests:
        raise NotFound(f"{INDEX_FILE}: lists no image")
    return [Listed(one, _names(one)) for one in document.manifests]


def write_index(images: Iterable[Listed], others: Iterable[Any] = ()) -> bytes:
    """Return index.json: a descriptor for each name of each image, after the raw descriptors `others`."""
    found = [_described(one.descriptor, name) for one in images for name in one.names or (None,)]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*others, *found]}
    return json.dumps(document, separators=(",", ":")).encode()


def ref_name(raw: Any) -> object:
    """Return the ref.name of a raw descriptor."""
    return raw["annotations"].get(REF_NAME) if isinstance(raw.get("annotations"), dict) else None


def _check_layout(layout: bytes | None) -> None:
    if layout is None:
        raise Malformed(f"archive: has {INDEX_FILE} but no {LAYOUT_FILE}, so it is not an OCI layout")
    try:
        version = msgspec.json.decode(layout, type=_Layout).imageLayoutVersion
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"{LAYOUT_FILE}: {error}") from None
    if not version.startswith("1."):
        raise Unsupported(f"{LAYOUT_FILE}: imageLayoutVersion is {version[:40]!r}, expected 1.0.0")


def _names(descriptor: Descriptor) -> tuple[str, ...]:
    """Return the full name if there is one. In that case ref.name is its tag, or the same name."""
    name = descriptor.annotations.get(IMAGE_NAME) or descriptor.annotations.get(REF_NAME)
    return (name,) if name else ()


def _described(descriptor: Descriptor, name: str | None) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if name is not None:
        raw["annotations"] = {IMAGE_NAME: name, REF_NAME: name} if "/" in name else {REF_NAME: name}
    if platform := descriptor.platform:
        parts = {"architecture": platform.architecture, "os": platform.os, "variant": platform.variant}
        raw["platform"] = {key: value for key, value in parts.items() if value}
    return raw
