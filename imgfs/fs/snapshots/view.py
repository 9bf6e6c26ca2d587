"""A rootfs in FUSE: nodes of the merged tree as inodes, bytes from the uncompressed tars.

Each snapshot owns a range of inode numbers for good. Therefore the kernel may cache everything without a timeout, and
no table of inodes is needed: each number leads back to its node (snapshots/graph.py).
"""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.errors import ReadOnly
from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING
from imgfs.fs.node import ENDLESS, Handle, Listing, Node, missing
from imgfs.layers.tree import MergedNode
from imgfs.snapshots.views import Data, View


class ViewHandle:
    """An open regular file of a view. It keeps its data while the merged tree may be dropped from memory."""

    __slots__ = ("_data", "_node")

    def __init__(self, data: Data, node: MergedNode) -> None:
        self._data = data
        self._node = node

    async def read(self, offset: int, size: int) -> bytes | bytearray:
        return await self._data.read_at(self._node, offset, size)

    async def close(self) -> None:
        pass


class ViewNode(Node):
    """One inode of a view. Every change is EROFS."""

    __slots__ = ("_node", "_owner", "_view")

    def __init__(self, view: View, node: MergedNode, owner: tuple[int, int] | None) -> None:
        self.number = view.first + node.number - 1
        self._view = view
        self._node = node
        self._owner = owner

    async def attributes(self) -> pyfuse3.EntryAttributes:
        node = self._node
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self.number  # pyright: ignore[reportAttributeAccessIssue] - a NewType of int, 100,000 times a second
        entry.st_mode = node.mode  # pyright: ignore[reportAttributeAccessIssue]
        entry.st_nlink = node.nlink
        entry.st_uid, entry.st_gid = self._owner or (node.uid, node.gid)
        entry.st_size = node.size
        entry.st_blksize = 4096
        entry.st_blocks = self._blocks()
        if node.rdev != (0, 0):
            entry.st_rdev = os.makedev(*node.rdev)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.mtime
        entry.entry_timeout = entry.attr_timeout = ENDLESS
        return entry

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        child = (self._node.children or {}).get(name)
        if child is None:
            raise missing(name)
        return ViewNode(self._view, child, self._owner)

    async def entries(self, caller: Caller) -> Listing:
        view, owner = self._view, self._owner
        return [(name, ViewNode(view, child, owner)) for name, child in (self._node.children or {}).items()]

    async def readlink(self, caller: Caller) -> bytes:
        return self._node.link

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING or flags & os.O_TRUNC:
            raise self.refusal()
        return ViewHandle(self._view.data, self._node)

    async def xattrs(self) -> dict[bytes, bytes]:
        return dict(self._node.xattrs)

    def refusal(self) -> ReadOnly:
        return ReadOnly("a committed snapshot cannot be changed; prepare an active one on top of it")

    def _blocks(self) -> int:
        """Return the blocks that an unpacked file would have. Holes, links and device nodes have none."""
        node = self._node
        if not stat.S_ISREG(node.mode):
            return 0
        if node.extents is None:
            return (node.size + 511) // 512
        return sum((extent.length + 511) // 512 for extent in node.extents)
