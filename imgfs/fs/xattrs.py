"""xattrs: labels as `user.label.<key>`, and the format of facts in `user.imgfs.*`. Labels follow containerd's rules.

The kernel refuses `user.*` xattrs to an ordinary user on files that the user may not write, such as blobs and committed
snapshots. A caller that may write to content/ or snapshots/ can label their entries by an xattr of the directory
(LABEL).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from imgfs.errors import Invalid, NotPermitted
from imgfs.fs.caller import Caller
from imgfs.fs.node import NoAttribute, Node
from imgfs.snapshots.store import SnapshotStore

_PREFIX = "user.label."
_ERROR = b"user.imgfs.error"
LABEL = b"user.imgfs.label"
"""Set on a directory. Value: `ID KEY=VALUE`, or `ID KEY` to remove; space, `=` and `%` in ID and KEY are %-encoded."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """A change of one label of the entry `id` of a directory. Without a value the label is removed."""

    id: str
    key: str
    value: bytes | None

    async def apply(self, node: Node, caller: Caller) -> None:
        """Apply the change to `node`. Raises as setxattr and removexattr of `node` do."""
        name = os.fsencode(f"{_PREFIX}{self.key}")
        if self.value is None:
            await node.remove_xattr(name, caller)
        else:
            await node.set_xattr(name, self.value, caller)


def parse_labelling(text: bytes) -> Labelling:
    """Parse the value of LABEL. Raises Invalid."""
    id, space, rest = text.partition(b" ")
    key, equals, value = rest.partition(b"=")
    if not id or not space or not key or b" " in key:
        raise Invalid(f"label {os.fsdecode(text[:200])!r}: expected `ID KEY=VALUE`, or `ID KEY` to remove it")
    return Labelling(_unquoted(id), _unquoted(key), value if equals else None)


def _unquoted(part: bytes) -> str:
    return os.fsdecode(unquote_to_bytes(part))


def label_key(name: bytes) -> str:
    """Return the label key of the xattr `name`. Raises NotPermitted for any other xattr, because imgfs owns those."""
    text = os.fsdecode(name)
    if not text.startswith(_PREFIX):
        raise NotPermitted(f"xattr {text}: belongs to imgfs; labels are {_PREFIX}<key>")
    return text.removeprefix(_PREFIX)


async def set_label(store: SnapshotStore, id: str, name: bytes, value: bytes) -> None:
    """Set the label of a snapshot by its xattr `name`. Raises NotPermitted, Invalid, NotFound."""
    await store.set_label(id, label_key(name), value)


async def remove_label(store: SnapshotStore, id: str, name: bytes) -> None:
    """Remove the label of a snapshot. Raises NotPermitted, and NoAttribute as removexattr(2) does."""
    key = label_key(name)
    if key not in store.labels(id):
        raise NoAttribute(f"{name!r}: no such attribute")
    await store.remove_label(id, key)


def as_xattrs(labels: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """Return labels by the names of their xattrs."""
    return {f"{_PREFIX}{key}".encode(errors="surrogateescape"): value for key, value in labels.items()}


def as_error(message: str | None) -> dict[bytes, bytes]:
    """Return `user.imgfs.error` if there is an error, else nothing. Bytes that are not text become escapes."""
    return {_ERROR: message.encode(errors="backslashreplace")} if message else {}


def as_moment(nanoseconds: int) -> bytes:
    """Return a time (ns since the epoch) as RFC 3339 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9)).encode()
