"""A finder for rebuild.py: the catalogue of a lost database, from the names and from stored documents.

The catalogue learns a digest that no name leads to when a caller asks for it again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.images import catalog, names
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX, MANIFEST_SIZE_MAX, ImageIndex, Manifest, parse_document
from imgfs.oci.reference import Source


def relearn(db: sqlite3.Connection, state: Path) -> int:
    """Record what the names in `db` lead to, as resolving them did; returns the number of documents read."""
    documents = 0
    for name in names.select(db):
        reference = name.reference
        if reference is None:
            continue
        source = Source(reference.host, reference.repository)
        catalog.insert_source(db, name.digest, source)
        for own, document in _read(state, name.digest, INDEX_NESTING_MAX):
            catalog.insert(db, document.children, [source], own)
            documents += 1
    return documents


def _read(state: Path, digest: Digest, depth: int) -> Iterator[tuple[Descriptor, Manifest | ImageIndex]]:
    """The document, and the stored manifests of an index. A damaged document is skipped."""
    path = state / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_SIZE_MAX + 1)
        if Digest.of(data, digest.algorithm) != digest:
            return
        document = parse_document(data, "")
    except (OSError, ImgfsError):
        return
    yield Descriptor(digest, len(data), document.media_type), document
    if isinstance(document, ImageIndex) and depth:
        for child in document.manifests:
            yield from _read(state, child.digest, depth - 1)
