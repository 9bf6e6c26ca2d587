"""Reading stored documents for the mark, many in one thread: only what they refer to comes back.

Not transfer/'s Documents: a walk over everything must neither fetch nor push out what readers have in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from imgfs.errors import Malformed, TooLarge, Unsupported, from_os
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, Manifest, parse_config, parse_document

_log = logging.getLogger("imgfs.gc")

Wanted = tuple[Digest, Path]


def read_documents(wanted: Sequence[Wanted]) -> list[Manifest | ImageIndex | str]:
    """What each is: a document, `plain` for anything else (a damaged one too), `missing`. Raises StorageFailed.

    A disk that cannot be read ends the mark: what a document refers to must be known before anything is taken away.
    """
    return [_document(digest, path) for digest, path in wanted]


def read_diff_ids(wanted: Sequence[Wanted]) -> list[tuple[Digest, ...] | None]:
    """The diff IDs of each config; None for one that is missing or is none. Raises StorageFailed."""
    return [_diff_ids(digest, path) for digest, path in wanted]


def _document(digest: Digest, path: Path) -> Manifest | ImageIndex | str:
    data = _read(digest, path)
    if data is None:
        return "missing"
    try:
        return parse_document(data) if data.lstrip()[:1] == b"{" and _is_whole(digest, data) else "plain"
    except (Malformed, Unsupported, TooLarge):
        return "plain"


def _diff_ids(digest: Digest, path: Path) -> tuple[Digest, ...] | None:
    data = _read(digest, path)
    try:
        return parse_config(data).diff_ids if data is not None and _is_whole(digest, data) else None
    except (Malformed, Unsupported, TooLarge):
        return None


def _is_whole(digest: Digest, data: bytes) -> bool:
    if Digest.of(data, digest.algorithm) == digest:
        return True
    _log.warning("damaged document; what it refers to is not known", extra={"digest": digest})
    return False


def _read(digest: Digest, path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os(error, f"content {digest}") from None
