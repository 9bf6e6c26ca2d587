"""What labels of `containerd.io/gc.*` say about reachability (containerd, docs/garbage-collection.md).

`gc.root` keeps a thing, `gc.ref.content`, `gc.ref.image`, `gc.ref.snapshot.<snapshotter>` and each with a suffix (`.0`,
`/x`) keep what they name, `gc.bref.*` keep the labelled thing for as long as what they name is kept. An image is the
name of one. What makes no sense is passed over: labels are a client's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imgfs.leases.resource import Kind, Resource
from imgfs.oci.digest import is_digest

_PREFIX = "containerd.io/gc."
_ROOT = f"{_PREFIX}root"


@dataclass(frozen=True, slots=True)
class References:
    """What one thing's labels say."""

    is_root: bool
    forward: tuple[Resource, ...]
    back: tuple[Resource, ...]


NONE = References(is_root=False, forward=(), back=())


def references(labels: Mapping[str, str | bytes]) -> References:
    """Read the labels of one thing."""
    if not any(key.startswith(_PREFIX) for key in labels):
        return NONE
    forward = _named(labels, f"{_PREFIX}ref.")
    return References(_ROOT in labels, forward, _named(labels, f"{_PREFIX}bref."))


def _named(labels: Mapping[str, str | bytes], prefix: str) -> tuple[Resource, ...]:
    found = (_resource(key[len(prefix) :], value) for key, value in labels.items() if key.startswith(prefix))
    return tuple(resource for resource in found if resource is not None)


def _resource(what: str, value: str | bytes) -> Resource | None:
    id = value if isinstance(value, str) else value.decode(errors="surrogateescape")
    kind = what.replace("/", ".").partition(".")[0]
    if kind == "content" and is_digest(id):
        return Resource(Kind.CONTENT, id)
    if kind == "image" and id:
        return Resource(Kind.IMAGE, id)
    return Resource(Kind.SNAPSHOT, id) if kind == "snapshot" and what != kind and id else None
