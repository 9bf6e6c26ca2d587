"""The entries of a test layer: one frozen value per tar entry, in the words of the image specification.

layertar.py writes them. Paths are bytes or str (encoded as UTF-8, with lone surrogates for other bytes). Times are
nanoseconds since the epoch. Nothing is checked, because a test may want an invalid entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Name = str | bytes

SparseStyle = Literal["gnu", "pax-0.1", "pax-1.0"]

MTIME_NS = 1_700_000_000_000_000_000
"""The default mtime of entries, so that layers are the same bytes in every run."""


@dataclass(frozen=True, slots=True)
class TarNode:
    """The fields of all entries. `mode` has permission, setuid, setgid and sticky bits."""

    path: Name
    mode: int = field(default=0o644, kw_only=True)
    uid: int = field(default=0, kw_only=True)
    gid: int = field(default=0, kw_only=True)
    mtime_ns: int = field(default=MTIME_NS, kw_only=True)
    xattrs: Mapping[str, bytes] = field(default_factory=dict[str, bytes], kw_only=True)


@dataclass(frozen=True, slots=True)
class File(TarNode):
    """A regular file."""

    content: bytes = b""


@dataclass(frozen=True, slots=True)
class SparseFile(TarNode):
    """A file of `size` bytes: zeros, except for `extents` of (position, data) in ascending order.

    Only the last extent may have a length that is no multiple of 512: GNU tar pads each extent to a block, and other
    readers pad only the last one.
    """

    size: int
    extents: tuple[tuple[int, bytes], ...] = ()
    style: SparseStyle = "pax-1.0"

    @property
    def content(self) -> bytes:
        """The content of the unpacked file."""
        whole = bytearray(self.size)
        for position, data in self.extents:
            whole[position : position + len(data)] = data
        return bytes(whole)


@dataclass(frozen=True, slots=True)
class Dir(TarNode):
    """A directory; the path "" is the root."""

    mode: int = field(default=0o755, kw_only=True)


@dataclass(frozen=True, slots=True)
class Symlink(TarNode):
    """A symbolic link; `target` is stored as it is."""

    target: Name
    mode: int = field(default=0o777, kw_only=True)


@dataclass(frozen=True, slots=True)
class Hardlink(TarNode):
    """Another name of `target`, which is a path in the tar."""

    target: Name


@dataclass(frozen=True, slots=True)
class Fifo(TarNode):
    """A named pipe."""


@dataclass(frozen=True, slots=True)
class DeviceFile(TarNode):
    """A character or block device node."""

    kind: Literal["character", "block"]
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class Whiteout(TarNode):
    """Hides `path` in lower layers (image-spec, layer.md, "Whiteouts")."""


@dataclass(frozen=True, slots=True)
class Opaque(TarNode):
    """Hides the content of directory `path` in lower layers (image-spec, layer.md, "Opaque Whiteout")."""


Entry = File | SparseFile | Dir | Symlink | Hardlink | Fifo | DeviceFile | Whiteout | Opaque
