"""The first blocks of an image (superblock and device table), and the checksums that detect a torn image.

The kernel checks only the superblock. So imgfs uses a digest of all bytes as the UUID of an image. An image that a
crash tore, or that an older imgfs wrote in another layout, has another digest than its UUID.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from imgfs.erofs.format import (
    BLOCK,
    BLOCK_BITS,
    CHECKSUM_AT,
    COMPAT_CHECKSUM,
    COMPAT_MTIME,
    DEVICE,
    HOLE,
    IMAGE_BLOCKS_MAX,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    MAGIC,
    SUPERBLOCK,
    SUPERBLOCK_AT,
    UUID_AT,
    UUID_SIZE,
    blocks,
)
from imgfs.erofs.inode import DataDevice
from imgfs.errors import Invalid, TooLarge

DEVICES_MAX = 65535
TAG_MAX = 64

_EDITION: Final = b"imgfs erofs 2"
"""Part of the digest. It must be raised with every change of the layout of images."""
_EARLIER: Final = (b"imgfs erofs 1",)
_TABLE_AT: Final = SUPERBLOCK_AT + SUPERBLOCK.size
_CHECKSUM: Final = slice(SUPERBLOCK_AT + CHECKSUM_AT, SUPERBLOCK_AT + CHECKSUM_AT + 4)
_UUID: Final = slice(SUPERBLOCK_AT + UUID_AT, SUPERBLOCK_AT + UUID_AT + UUID_SIZE)
_CASTAGNOLI: Final = 0x82F63B78

Image = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Layout:
    """What the superblock records about the other parts: addresses and sizes in blocks, and the number of inodes."""

    blocks: int
    metadata: int
    xattrs: int
    root: int
    inodes: int


def first_blocks(devices: Sequence[DataDevice]) -> int:
    """Return the number of blocks of superblock and device table."""
    return blocks(_TABLE_AT + DEVICE.size * len(devices))


def places(devices: Sequence[DataDevice]) -> list[int]:
    """Return the first block of each device in the common address space; 0 for a device that does not fit in it.

    An address in that space identifies device and block, so the inode of a file that is not sparse needs only this
    address. A device that does not fit is addressed by chunks, which hold device and block.
    """
    found: list[int] = []
    end = IMAGE_BLOCKS_MAX
    for device in devices:
        size = blocks(device.size)
        fits = end + size < HOLE
        found.append(end if fits else 0)
        end += size if fits else 0
    return found


def head(layout: Layout, devices: Sequence[DataDevice]) -> bytes:
    """Return the first blocks, before `seal`. Raises TooLarge or Invalid for values that EROFS cannot hold."""
    if layout.blocks > IMAGE_BLOCKS_MAX:
        raise TooLarge(f"image of {layout.blocks} blocks, the limit is {IMAGE_BLOCKS_MAX}; use the FUSE view")
    if len(devices) > DEVICES_MAX:
        raise TooLarge(f"image of {len(devices)} layers, EROFS holds {DEVICES_MAX}")
    packed = bytes(SUPERBLOCK_AT) + _superblock(layout, len(devices)) + b"".join(map(_device, devices, places(devices)))
    return packed.ljust(first_blocks(devices) * BLOCK, b"\0")


def seal(image: bytearray) -> None:
    """Write the UUID and the checksum of the superblock into a finished image."""
    image[_UUID] = _digest(image)
    end = SUPERBLOCK_AT + BLOCK - SUPERBLOCK_AT % BLOCK  # the end of its block
    image[_CHECKSUM] = _crc32c(image[SUPERBLOCK_AT:end]).to_bytes(4, "little")


def is_whole(image: Image) -> bool:
    """Return whether `image` is complete and was written by this edition of the writer.

    Hashes all bytes with blake2b, about 700 MB/s, without the GIL. A file can be passed as an mmap.
    """
    return _is_of(image, _EDITION)


def is_outdated(image: Image) -> bool:
    """Return whether `image` is complete and was written by an earlier edition. The caller then builds it again."""
    return any(_is_of(image, edition) for edition in _EARLIER)


def _is_of(image: Image, edition: bytes) -> bool:
    with memoryview(image) as view:
        if len(view) <= _TABLE_AT or len(view) % BLOCK:
            return False
        return bytes(view[_UUID]) == _digest(view, edition)


def _superblock(layout: Layout, devices: int) -> bytes:
    table = INCOMPAT_DEVICE_TABLE if devices else 0
    return SUPERBLOCK.pack(
        MAGIC,
        0,
        COMPAT_CHECKSUM | COMPAT_MTIME,
        BLOCK_BITS,
        0,
        layout.root,
        layout.inodes,
        0,
        0,
        layout.blocks,
        layout.metadata,
        layout.xattrs,
        b"",
        b"",
        INCOMPAT_CHUNKED_FILE | table,
        0,
        devices,
        _TABLE_AT // DEVICE.size,
    )


def _device(device: DataDevice, place: int) -> bytes:
    if len(device.tag) > TAG_MAX:
        raise Invalid(f"device {device.tag!r}: a tag of {len(device.tag)} bytes, expected at most {TAG_MAX}")
    if blocks(device.size) >= HOLE:
        raise TooLarge(f"layer {device.tag!r} of {device.size} bytes, EROFS holds less than {HOLE * BLOCK}")
    return DEVICE.pack(device.tag, blocks(device.size), place)


def _digest(image: bytearray | memoryview, edition: bytes = _EDITION) -> bytes:
    """Return the digest of all bytes except those that `seal` sets."""
    with memoryview(image) as view:
        running = blake2b(view[: _CHECKSUM.start], digest_size=UUID_SIZE, person=edition)
        running.update(view[_CHECKSUM.stop : _UUID.start])
        running.update(view[_UUID.stop :])
    return running.digest()


def _crc32c(data: bytes | bytearray) -> int:
    """Return the kernel's crc32c(~0, data), which has no final inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc
