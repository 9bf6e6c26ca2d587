"""Names of files in an archive: a path below its root, or an error. No name is ever used as a path of the host."""

from __future__ import annotations

from imgfs.errors import Malformed
from imgfs.oci.digest import Digest, is_digest

LINKS_MAX = 16
"""The longest chain of links."""


def clean(name: str) -> str:
    """Return the name without `.` and empty components; "" is the root.

    Raises Malformed for `..` and absolute names.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Malformed(f"archive member {name[:200]!r}: leads out of the archive; expected a path below its root")
    return "/".join(parts)


def link_target(name: str, target: str) -> str:
    """Return the name that the symbolic link `name` points to. Raises Malformed if it is outside the archive."""
    if target.startswith("/"):
        raise Malformed(f"archive link {name[:200]!r}: leads to {target[:200]!r}, out of the archive")
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == ".." and not parts:
            raise Malformed(f"archive link {name[:200]!r}: leads to {target[:200]!r}, out of the archive")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def promised_digest(name: str) -> Digest | None:
    """Return the digest in a name of the form `blobs/<algorithm>/<hex>`; None for other names."""
    parts = name.split("/")
    text = ":".join(parts[1:])
    return Digest(text) if len(parts) == 3 and parts[0] == "blobs" and is_digest(text) else None


def blob_name(digest: Digest) -> str:
    """Return the name of a blob in an OCI layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"
