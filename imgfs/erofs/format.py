"""The on-disk structures of EROFS that a metadata image uses. writer.py assembles them.

Source: Linux, fs/erofs/erofs_fs.h. All numbers are little-endian. Blocks have 512 bytes (Linux 6.4 and later), so that
every payload of a tar begins on a block.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS
HOLE: Final = 0xFFFFFFFF
"""The block address of a hole. No block has this address."""

SUPERBLOCK_AT: Final = 1024
MAGIC: Final = 0xE0F5E1E2
COMPAT_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED_FILE: Final = 0x4
INCOMPAT_DEVICE_TABLE: Final = 0x8

SUPERBLOCK: Final = Struct("<III B B H QQI III 16s 16s I H H H 38x")
"""Fields: magic, checksum, compatible features, block bits, extra slots, root nid, inodes, build time (seconds,
nanoseconds), blocks, first metadata block, first block of shared xattrs, UUID, volume name, incompatible features,
compression, devices, slot of the device table."""
CHECKSUM_AT: Final = 4
UUID_AT: Final = 48
UUID_SIZE: Final = 16

DEVICE: Final = Struct("<64s II 56x")
"""Fields: tag, blocks, first block in the common address space (0: none)."""
IMAGE_BLOCKS_MAX: Final = 1 << 26
"""Blocks of the common address space that belong to the image. Its devices follow one after the other."""

SLOT_BITS: Final = 5
SLOT: Final = 1 << SLOT_BITS
"""Alignment of inodes. The nid of an inode is its slot, counted from the first metadata block."""

FLAT_PLAIN: Final = 0 << 1 | 1
FLAT_INLINE: Final = 2 << 1 | 1
CHUNK_BASED: Final = 4 << 1 | 1
"""Data layouts, with the bit of an extended inode. Only extended inodes have their own times."""

INODE: Final = Struct("<HHHH QI III qII 16x")
"""Fields: layout, xattr words, mode, 0, size, union (first block, device number or chunk format), number, uid, gid,
mtime (seconds, nanoseconds), links.
"""

CHUNK_INDEXES: Final = 0x20
CHUNK_BITS_MAX: Final = BLOCK_BITS + 31
INDEX: Final = Struct("<HHI")
"""Fields: high bits of the block (0), device from 1, block."""

DIRENT: Final = Struct("<QHBB")
"""Fields: nid, offset of the name in the block, type, 0."""

TYPES: Final = (0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7, 0, 6, 0, 0, 0)
"""The type of a directory entry, indexed by the type bits of the mode, shifted right by 12."""

XATTR_BODY: Final = Struct("<IB7x")
"""Fields: name filter (unused), number of shared xattrs. Their positions follow, 4 bytes each."""
XATTR_PLACE: Final = 4
"""Alignment of shared xattrs, and the unit of their positions."""
XATTR: Final = Struct("<BBH")
"""Fields: length of the name, namespace, length of the value. Name and value follow."""


def blocks(size: int) -> int:
    """Return the number of blocks that hold `size` bytes."""
    return -(-size >> BLOCK_BITS)
