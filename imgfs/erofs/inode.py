"""What the writer asks of the tree it is given, and of the devices that hold its file data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Extent(Protocol):
    """`length` bytes of a sparse file at `position`, found at `offset` of the device."""

    @property
    def position(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Inode(Protocol):
    """One inode of a tree; imgfs.layers.tree.Node is one.

    Units: bytes, and for `mtime` nanoseconds since the epoch. `mode` has the type bits. `layer` says on which device,
    counted from 0, `offset` and `extents` are. A file with several names is one object that stays the same, and its
    `nlink` is not 1. `children` is None unless it is a directory; extents are in order and apart.
    """

    @property
    def number(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def rdev(self) -> tuple[int, int]: ...
    @property
    def link(self) -> bytes: ...
    @property
    def xattrs(self) -> Sequence[tuple[bytes, bytes]]: ...
    @property
    def extents(self) -> Sequence[Extent] | None: ...
    @property
    def children(self) -> Mapping[bytes, Inode] | None: ...


@dataclass(frozen=True, slots=True)
class Device:
    """A file of `size` bytes that holds file data; `tag` (64 bytes at most) names it for a person who debugs.

    The kernel reads blocks of 512 bytes only, and answers EIO for one that the file's end cuts.
    """

    size: int
    tag: bytes = b""
