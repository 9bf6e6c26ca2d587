"""Resources: what a lease can pin, written as its path below the mount.

Says what a resource is called, not whether it exists: a client pins what it is about to bring.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from imgfs.errors import Invalid
from imgfs.oci.digest import Digest, is_digest

_BYTES_MAX = 4096


class Kind(Enum):
    """Which directory of the mount a resource lies in; LAYER is an uncompressed tar by its diff ID."""

    CONTENT = "content"
    INGEST = "content/ingest"
    IMAGE = "images"
    SNAPSHOT = "snapshots"
    LAYER = ".imgfs/layers"


@dataclass(frozen=True, slots=True)
class Resource:
    """A blob or image (CONTENT, by digest), a name (IMAGE), a chain or a user's snapshot (SNAPSHOT), a ref (INGEST)."""

    kind: Kind
    id: str

    def __str__(self) -> str:
        return f"{self.kind.value}/{self.id}"


def content(digest: Digest) -> Resource:
    """A blob, or the image behind the digest with everything it refers to."""
    return Resource(Kind.CONTENT, digest)


def layer(diff_id: Digest) -> Resource:
    """An uncompressed tar."""
    return Resource(Kind.LAYER, diff_id)


def snapshot(id: str) -> Resource:
    """A chain by its ID, or a user's snapshot."""
    return Resource(Kind.SNAPSHOT, id)


def parse_resource(target: str) -> Resource:
    """The resource that the target of a symbolic link means, `../` before it or not. Raises Invalid."""
    path = target
    while path.startswith(("../", "./", "/")):
        path = path.partition("/")[2]
    for kind in (Kind.INGEST, Kind.CONTENT, Kind.IMAGE, Kind.SNAPSHOT, Kind.LAYER):
        id = path.removeprefix(f"{kind.value}/")
        if id != path and id and (is_digest(id) or kind not in (Kind.CONTENT, Kind.LAYER)):
            return _checked(Resource(kind, id))
    raise Invalid(
        f"lease resource {target[:140]!r}: expected content/<digest>, content/ingest/<ref>, images/<name> or "
        "snapshots/<id>"
    )


def _checked(resource: Resource) -> Resource:
    if len(str(resource).encode(errors="surrogateescape")) > _BYTES_MAX or "\0" in resource.id:
        raise Invalid(f"lease resource {str(resource)[:140]!r}: expected a path of at most {_BYTES_MAX} bytes")
    return resource
