"""The index that stands in for the referrers API (distribution-spec, "Referrers Tag Schema"): pure."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from imgfs.errors import Malformed
from imgfs.oci.descriptor import OCI_INDEX, Descriptor
from imgfs.oci.manifest import decode_json


def entry_of(descriptor: Descriptor, data: bytes) -> dict[str, Any]:
    """What the index says of a manifest that refers to something; `data` are its bytes."""
    document = cast("dict[str, Any]", decode_json(data, f"manifest {descriptor.digest}"))
    config, annotations = document.get("config"), document.get("annotations")
    of_config = cast("dict[str, Any]", config).get("mediaType") if isinstance(config, dict) else None
    entry: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if artifact_type := document.get("artifactType") or of_config:
        entry["artifactType"] = artifact_type
    return entry | ({"annotations": annotations} if annotations else {})


def with_entry(index: bytes | None, entry: dict[str, Any], what: str) -> bytes | None:
    """The `index` (None: there is none yet) with `entry` as its last; None if it lists that digest already.

    Whatever else is in it stays. Raises Malformed, beginning with `what`, where it is no index.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if index is not None:
        document = _object(decode_json(index, what), what)
    listed = document.get("manifests")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in cast("list[object]", listed)):
        raise Malformed(f"{what}: is no index, but stands where one of referrers belongs; remove that tag")
    entries = cast("list[dict[str, Any]]", listed)
    if any(one.get("digest") == entry["digest"] for one in entries):
        return None
    return msgspec.json.encode(document | {"manifests": [*entries, entry]})


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what}: is no index, but stands where one of referrers belongs; remove that tag")
    return cast("dict[str, Any]", value)
