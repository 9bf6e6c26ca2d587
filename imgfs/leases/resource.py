"""Resources: the things that a lease can pin, written as paths below the mount.

A resource is only a name. It need not exist, because a client pins a thing before it stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from imgfs.errors import Invalid
from imgfs.oci.digest import Digest, is_digest

_BYTES_MAX = 4096


class ResourceKind(Enum):
    """The directory of the mount that holds the resource; LAYER is an uncompressed tar, named by its diff ID."""

    CONTENT = "content"
    INGEST = "content/ingest"
    IMAGE = "images"
    SNAPSHOT = "snapshots"
    LAYER = ".imgfs/layers"


_BY_LENGTH = sorted(ResourceKind, key=lambda kind: -len(kind.value))
"""`content/ingest` before `content`, which is its beginning."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A blob or image (CONTENT, by digest), a name (IMAGE), a chain or a user's snapshot (SNAPSHOT), a ref (INGEST)."""

    kind: ResourceKind
    id: str

    def __str__(self) -> str:
        return f"{self.kind.value}/{self.id}"


def content(digest: Digest) -> Resource:
    """A blob, or the image behind the digest with everything it refers to."""
    return Resource(ResourceKind.CONTENT, digest)


def layer(diff_id: Digest) -> Resource:
    """An uncompressed tar."""
    return Resource(ResourceKind.LAYER, diff_id)


def snapshot(id: str) -> Resource:
    """A chain by its ID, or a user's snapshot."""
    return Resource(ResourceKind.SNAPSHOT, id)


def parse_resource(target: str) -> Resource:
    """The resource that a symbolic link's target names, with or without leading `../`. Raises Invalid."""
    path = target
    while path.startswith(("../", "./", "/")):
        path = path.partition("/")[2]
    for kind in _BY_LENGTH:
        id = path.removeprefix(f"{kind.value}/")
        if id != path and id and (is_digest(id) or kind not in (ResourceKind.CONTENT, ResourceKind.LAYER)):
            return _checked(Resource(kind, id))
    raise Invalid(
        f"lease resource {target[:140]!r}: expected content/<digest>, content/ingest/<ref>, images/<name> or "
        "snapshots/<id>"
    )


def _checked(resource: Resource) -> Resource:
    if len(str(resource).encode(errors="surrogateescape")) > _BYTES_MAX or "\0" in resource.id:
        raise Invalid(f"lease resource {str(resource)[:140]!r}: expected a path of at most {_BYTES_MAX} bytes")
    return resource
