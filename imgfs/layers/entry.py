"""One entry of a layer's tar, as the walk leaves it and the index keeps it.

Paths are bytes, cleaned as in a chroot: no leading slash, no `.`, `..` or empty component; the root is `b""`.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class Kind(IntEnum):
    """What an entry is; the first seven values are the directory-entry types that EROFS and ext4 use on disk."""

    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SYMLINK = 7
    HARDLINK = 8
    WHITEOUT = 9
    """Hides `path` of lower layers."""
    OPAQUE = 10
    """Hides what lower layers have below the directory `path`."""


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`length` bytes of a sparse file at `position`, found at `offset` of the tar. Gaps between extents are zeros."""

    position: int
    offset: int
    length: int


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=True):
    """One file, directory, link, node or whiteout of a layer.

    Units: `mtime` nanoseconds since the epoch, `size` and `offset` bytes. `offset` is where the payload starts in the
    uncompressed tar. `mode` holds permission, setuid, setgid and sticky bits only. `link` is a symbolic link's target
    (stored, not judged) or a hard link's cleaned path. `extents` is None unless the file is sparse.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    offset: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    extents: tuple[Extent, ...] | None = None
