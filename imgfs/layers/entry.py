"""The entry of a layer's tar: what the header walk (tar.py) produces and the layer index (index.py) stores.

Paths are bytes, cleaned as in a chroot: no leading slash, no `.`, `..` or empty component. The root is `b""`.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class EntryKind(IntEnum):
    """The kind of an entry. The values up to 7 are the directory-entry types that EROFS and ext4 use on disk."""

    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SYMLINK = 7
    HARDLINK = 8
    WHITEOUT = 9
    """Hides the path in lower layers."""
    OPAQUE = 10
    """Hides everything that lower layers have below the directory."""


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A data region of a sparse file: `length` bytes at `position` of the file and at `offset` of the tar.

    Gaps between extents are zeros.
    """

    position: int
    offset: int
    length: int


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=True):
    """One file, directory, link, node or whiteout of a layer.

    Units: `mtime` in nanoseconds since the epoch, `size` and `offset` in bytes. `offset` is the start of the payload in
    the uncompressed tar. `mode` holds permission, setuid, setgid and sticky bits only. `link` is the unchecked target
    of a symbolic link, or the cleaned path of a hard link. `extents` is None unless the file is sparse.
    """

    path: bytes
    kind: EntryKind
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
