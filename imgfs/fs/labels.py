"""Labels as xattrs `user.label.<key>`: containerd's labels, for people and programs that read files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from imgfs.errors import NotPermitted
from imgfs.fs.node import NoAttribute
from imgfs.snapshots.store import SnapshotStore

_PREFIX = "user.label."


def label_key(name: bytes) -> str:
    """The key of the label that the xattr `name` is. Raises NotPermitted for any other xattr: those are imgfs's."""
    text = os.fsdecode(name)
    if not text.startswith(_PREFIX):
        raise NotPermitted(f"xattr {text}: imgfs keeps it; labels are {_PREFIX}<key>")
    return text.removeprefix(_PREFIX)


async def set_label(store: SnapshotStore, id: str, name: bytes, value: bytes) -> None:
    """Set the label of a snapshot that the xattr `name` is. Raises NotPermitted, Invalid, NotFound."""
    await store.set_label(id, label_key(name), value)


async def remove_label(store: SnapshotStore, id: str, name: bytes) -> None:
    """Remove it. Raises NoAttribute, as removexattr(2) says, and NotPermitted."""
    key = label_key(name)
    if key not in store.labels(id):
        raise NoAttribute(f"{name!r}: no such attribute")
    await store.remove_label(id, key)


def as_xattrs(labels: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """Labels by the names of their xattrs."""
    return {f"{_PREFIX}{key}".encode(errors="surrogateescape"): value for key, value in labels.items()}


def as_moment(nanoseconds: int) -> bytes:
    """A time as xattrs tell it: RFC 3339, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9)).encode()
