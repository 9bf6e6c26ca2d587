"""Writes the metadata image of a tree: superblock and device table, data blocks, shared xattrs, inodes.

Data blocks hold full blocks of directories, long symbolic links and copied data. They precede the inodes, so every
address is known when an inode is written. A nid counts from the first metadata block, so it needs no second pass. The
children of one directory are adjacent. The same tree results in the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence

from imgfs.erofs import chunks, directory
from imgfs.erofs.format import (
    BLOCK,
    BLOCK_BITS,
    CHUNK_BASED,
    FLAT_INLINE,
    FLAT_PLAIN,
    INODE,
    SLOT,
    SLOT_BITS,
    TYPES,
    blocks,
)
from imgfs.erofs.inode import DataDevice, Inode
from imgfs.erofs.shared_xattrs import SharedXattrs, words
from imgfs.erofs.superblock import Layout, first_blocks, head, places, seal
from imgfs.errors import Malformed, TooLarge, Unsupported

INDEXES_MAX = 1 << 22
"""Limit of the chunks of all sparse files: 32 MiB of image."""
COPIED_MAX = 16 << 20
"""Limit of the file data that is copied into the image, in bytes."""
LINK_MAX = 4095

_SECOND = 1_000_000_000
_MTIME_MAX = (1 << 63) * _SECOND - 1
_TAIL_MAX = BLOCK - SLOT
"""The longest tail that fits into a block after an inode, which begins on a slot."""
_MAJOR_BITS, _MINOR_BITS = 12, 20
_INDEX_ALIGN = 8
_INDEX_BITS = 3
_IMAGE = 0
"""The device number of the image itself."""


def build(root: Inode, devices: Sequence[DataDevice], read: chunks.Read | None = None) -> bytearray:
    """Return the sealed image of the tree at `root`, whose data of layer n is on `devices[n]`; a multiple of 512 bytes.

    The image must be mounted with these devices in this order. `read` returns the data of files that the kernel cannot
    read in place (sparse files with unaligned regions, the end of a cut layer), at most COPIED_MAX bytes in total.
    mtimes are limited to 64 bits of seconds. Takes some microseconds and 90 bytes for each inode, and holds the GIL.

    Raises Unsupported for a tree that only the FUSE view can show (such files without `read`, xattrs of other
    namespaces, device numbers of more than 32 bits), TooLarge and Malformed. The message names the path. Errors of
    `read` are passed on.
    """
    return _Writer(devices, read).write(root)


class _Directory:
    """A directory whose inode is placed and whose entries are not written yet."""

    __slots__ = ("children", "counts", "name", "names", "nid", "parent", "start", "tail", "tail_at")

    def __init__(self, name: bytes, parent: _Directory | None, children: Mapping[bytes, Inode]) -> None:
        self.name = name
        self.parent = parent
        self.children = children
        directory.check(children)
        self.names = sorted([*children, b".", b".."])
        self.counts, self.tail = directory.split(self.names)
        self.nid = 0
        self.start = 0
        """The offset of its full blocks in the data."""
        self.tail_at = 0
        """The offset of the last block in the metadata; 0 if that is a data block too."""


class _Writer:
    def __init__(self, devices: Sequence[DataDevice], read: chunks.Read | None) -> None:
        self._devices = devices
        self._places = places(devices)
        self._read = read
        self._data_block = first_blocks(devices)
        self._data = bytearray()
        self._meta = bytearray(SLOT)
        """The first slot stays empty.

        A root with nid 0 would be inode 0, which readdir(3) may take for a deleted entry.
        """
        self._xattrs = SharedXattrs()
        self._nids: dict[int, int] = {}
        """The nids of files with several names, by id()."""
        self._pending: list[_Directory] = []
        self._inodes = 0
        self._indexes = 0
        self._copied = 0

    def write(self, root: Inode) -> bytearray:
        nid = self._place_named(root, b"", None)
        while self._pending:
            self._fill(self._pending.pop())
        return self._assemble(nid)

    def _fill(self, here: _Directory) -> None:
        """Place the children of `here`, then write its entries. Its first subdirectory is filled next."""
        nids: list[int] = []
        types: list[int] = []
        waiting = len(self._pending)
        for name in here.names:
            node = here.children.get(name)
            if node is None:
                nids.append(here.nid if name == b"." or here.parent is None else here.parent.nid)
                types.append(TYPES[stat.S_IFDIR >> 12])
            else:
                nids.append(self._nids.get(id(node)) or self._place_named(node, name, here))
                types.append(TYPES[node.mode >> 12])
        self._pending[waiting:] = reversed(self._pending[waiting:])
        self._write_entries(here, directory.pack(here.names, here.counts, nids, types))

    def _write_entries(self, here: _Directory, content: bytes) -> None:
        full = len(content) - here.tail if here.tail_at else len(content)
        self._data[here.start : here.start + full] = content[:full]
        if here.tail_at:
            self._meta[here.tail_at : here.tail_at + here.tail] = content[full:]

    def _place_named(self, node: Inode, name: bytes, parent: _Directory | None) -> int:
        try:
            nid = self._place(node, name, parent)
        except (Unsupported, TooLarge, Malformed) as error:
            raise type(error)(f"{_path(name, parent)!r}: {error.message}") from error
        if node.nlink != 1 and node.children is None:
            self._nids[id(node)] = nid
        self._inodes += 1
        return nid

    def _place(self, node: Inode, name: bytes, parent: _Directory | None) -> int:
        """Write the inode of `node` and return its nid."""
        kind = stat.S_IFMT(node.mode)
        if kind == stat.S_IFREG:
            return self._file(node)
        if node.children is not None and kind == stat.S_IFDIR:
            return self._directory(node, _Directory(name, parent, node.children))
        if kind == stat.S_IFLNK:
            return self._symlink(node)
        if TYPES[kind >> 12] and kind != stat.S_IFDIR:
            return self._append(self._inode(node, FLAT_PLAIN, 0, _device_number(*node.rdev)))
        raise Malformed(f"mode {node.mode:o} is of no type that it could have")

    def _file(self, node: Inode) -> int:
        if not node.size:
            return self._append(self._inode(node, FLAT_PLAIN, 0, 0))
        found, device = self._located(node)
        place = self._places[device - 1] if device else 0
        if (first := chunks.address(found, node.size, place)) is not None:
            return self._append(self._inode(node, FLAT_PLAIN, node.size, first))
        format_, indexes = chunks.plan(found, node.size, device)
        if node.extents is not None:
            self._count_indexes(len(indexes) >> _INDEX_BITS)
        inode = self._inode(node, CHUNK_BASED, node.size, format_)
        return self._append(inode + bytes(-len(inode) % _INDEX_ALIGN) + indexes)

    def _located(self, node: Inode) -> tuple[Sequence[chunks.Region], int]:
        """Return the data regions of a file and their device."""
        if not 0 <= node.layer < len(self._devices):
            raise Malformed(f"data in layer {node.layer}, the image has {len(self._devices)}")
        device_size = self._devices[node.layer].size
        found = chunks.regions(node)
        chunks.check(found, node.layer, device_size)
        why = chunks.misfit(found, node.size, device_size)
        return (found, node.layer + 1) if why is None else (self._copy(found, node, why), _IMAGE)

    def _copy(self, found: Sequence[chunks.Region], node: Inode, why: str) -> list[chunks.Region]:
        """Copy the data into the image and return its regions there."""
        if self._read is None:
            raise Unsupported(f"{why}; use the FUSE view")
        self._copied += sum(length for _, _, length in found)
        if self._copied > COPIED_MAX:
            raise Unsupported(f"{why}, and with it over {COPIED_MAX} bytes to copy; use the FUSE view")
        copied: list[chunks.Region] = []
        for position, run in chunks.assemble(found, node.layer, self._read):
            start = self._reserve(blocks(len(run)))
            self._data[start : start + len(run)] = run
            copied.append((position, self._address(start) << BLOCK_BITS, min(len(run), node.size - position)))
        return copied

    def _count_indexes(self, count: int) -> None:
        self._indexes += count
        if self._indexes > INDEXES_MAX:
            raise Unsupported(f"sparse files up to here in over {INDEXES_MAX} chunks; use the FUSE view")

    def _symlink(self, node: Inode) -> int:
        """Write a symbolic link. Inode and target share a block, because older kernels call other links corrupt."""
        link = node.link
        if len(link) > LINK_MAX:
            raise TooLarge(f"a target of {len(link)} bytes, the limit is {LINK_MAX}")
        if b"\0" in link:
            raise Malformed("a zero byte in its target")
        whole = self._inode(node, FLAT_INLINE, len(link), 0) + link
        if len(whole) <= BLOCK:
            if len(self._meta) % BLOCK + len(whole) > BLOCK:
                self._meta += bytes(-len(self._meta) % BLOCK)
            return self._append(whole)
        start = self._reserve(blocks(len(link)))
        self._data[start : start + len(link)] = link
        return self._append(self._inode(node, FLAT_PLAIN, len(link), self._address(start)))

    def _directory(self, node: Inode, here: _Directory) -> int:
        """Write a directory's inode and reserve its entries: full blocks in the data, the last block after the inode if
        it fits.
        """
        inline = here.tail <= _TAIL_MAX
        full = len(here.counts) - inline
        here.start = self._reserve(full)
        size = (len(here.counts) - 1) * BLOCK + here.tail
        layout = FLAT_INLINE if inline else FLAT_PLAIN
        inode = self._inode(node, layout, size, self._address(here.start) if full else 0)
        if inline:
            self._make_room(len(inode), here.tail)
            here.tail_at = len(self._meta) + len(inode)
            inode += bytes(here.tail)
        here.nid = self._append(inode)
        self._pending.append(here)
        return here.nid

    def _make_room(self, inode: int, tail: int) -> None:
        """Pad the metadata so that the tail after the next inode does not cross a block."""
        tail_at = len(self._meta) + inode
        if tail_at % BLOCK + tail > BLOCK:
            gap = -tail_at % BLOCK
            self._meta += bytes(gap + -gap % SLOT)

    def _inode(self, node: Inode, layout: int, size: int, union: int) -> bytes:
        body = self._xattrs.body(node.xattrs) if node.xattrs else b""
        seconds, nanoseconds = divmod(max(-_MTIME_MAX, min(node.mtime, _MTIME_MAX)), _SECOND)
        return (
            INODE.pack(
                layout,
                words(body),
                node.mode,
                0,
                size,
                union,
                node.number & 0xFFFFFFFF,
                node.uid,
                node.gid,
                seconds,
                nanoseconds,
                node.nlink,
            )
            + body
        )

    def _append(self, inode: bytes) -> int:
        nid = len(self._meta) >> SLOT_BITS
        self._meta += inode
        self._meta += bytes(-len(inode) % SLOT)
        return nid

    def _reserve(self, count: int) -> int:
        """Append `count` data blocks and return their offset in the data."""
        start = len(self._data)
        self._data += bytes(count << BLOCK_BITS)
        return start

    def _address(self, start: int) -> int:
        return self._data_block + (start >> BLOCK_BITS)

    def _assemble(self, root: int) -> bytearray:
        xattrs = self._data_block + blocks(len(self._data))
        metadata = xattrs + blocks(len(self._xattrs.area))
        layout = Layout(
            blocks=metadata + blocks(len(self._meta)),
            metadata=metadata,
            xattrs=xattrs if self._xattrs.area else 0,
            root=root,
            inodes=self._inodes,
        )
        image = bytearray(head(layout, self._devices))
        for part in (self._data, self._xattrs.area, self._meta):
            image += part
            image += bytes(-len(image) % BLOCK)
        seal(image)
        return image


def _device_number(major: int, minor: int) -> int:
    """Encode a device number as new_encode_dev of linux/kdev_t.h does. Raises Unsupported for larger numbers."""
    if major >> _MAJOR_BITS or minor >> _MINOR_BITS:
        raise Unsupported(f"device number {major}:{minor}, Linux holds {_MAJOR_BITS} and {_MINOR_BITS} bits")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _path(name: bytes, parent: _Directory | None) -> bytes:
    parts = [name]
    while parent is not None:
        parts.append(parent.name)
        parent = parent.parent
    return b"/".join(reversed(parts)) or b"/"
