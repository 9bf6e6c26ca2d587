"""An OCI image layout on disk (image-spec, image-layout.md): written by tests, read by other people's tools.

Owns oci-layout, index.json and blobs/; knows nothing of how an image is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.digest import Digest

REF_NAME = "org.opencontainers.image.ref.name"


def write_layout(directory: Path, blobs: Mapping[Digest, bytes], descriptor: Mapping[str, Any], tag: str) -> None:
    """Add `blobs` to the layout at `directory`, making it if need be, and let `tag` name `descriptor`.

    Other tags stay; a tag that exists moves.
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
