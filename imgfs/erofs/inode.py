"""The input of the writer: the inodes of a tree, as Protocols, and the devices that hold the file data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Extent(Protocol):
    """A data region of a sparse file: `length` bytes at `position` of the file and at `offset` of the device."""

    @property
    def position(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Inode(Protocol):
    """One inode of a tree; imgfs.layers.tree.MergedNode is one.

    Units: bytes, and nanoseconds since the epoch for `mtime`. `mode` includes the type bits. `layer` is the device of
    `offset` and `extents`, counted from 0. A file with several names is one object, and its `nlink` is not 1.
    `children` is None unless the inode is a directory. Extents are in order and do not touch.
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
class DataDevice:
    """A file of `size` bytes that holds file data. `tag` (64 bytes at most) identifies it in debugging tools.

    The kernel reads whole blocks of 512 bytes, and returns EIO for a block that the end of the file cuts.
    """

    size: int
    tag: bytes = b""
