"""The first blocks of an image: superblock and device table; and the checksums that tell a whole image from a torn one.

The kernel checks its superblock only. So the UUID of an image is a digest of all its bytes: what a crash tore, or
an older imgfs wrote in another way, does not have the UUID that it states.
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
from imgfs.erofs.inode import Device
from imgfs.errors import Invalid, TooLarge

DEVICES_MAX = 65535
TAG_MAX = 64

_EDITION: Final = b"imgfs erofs 2"
"""Goes into the digest; to be raised when the writer lays images out in another way."""
_EARLIER: Final = (b"imgfs erofs 1",)
_TABLE_AT: Final = SUPERBLOCK_AT + SUPERBLOCK.size
_CHECKSUM: Final = slice(SUPERBLOCK_AT + CHECKSUM_AT, SUPERBLOCK_AT + CHECKSUM_AT + 4)
_UUID: Final = slice(SUPERBLOCK_AT + UUID_AT, SUPERBLOCK_AT + UUID_AT + UUID_SIZE)
_CASTAGNOLI: Final = 0x82F63B78

Image = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Layout:
    """What the superblock says about the rest: addresses and sizes in blocks, and the number of inodes."""

    blocks: int
    metadata: int
    xattrs: int
    root: int
    inodes: int


def first_blocks(devices: Sequence[Device]) -> int:
    """How many blocks superblock and device table take."""
    return blocks(_TABLE_AT + DEVICE.size * len(devices))


def places(devices: Sequence[Device]) -> list[int]:
    """Where each device begins in the common address space; 0 for one that finds no room in it.

    A block there is told by its address alone, so the inode of a file that is not sparse has all that is to be known of
    it. Elsewhere a chunk tells device and block.
    """
    found: list[int] = []
    end = IMAGE_BLOCKS_MAX
    for device in devices:
        size = blocks(device.size)
        fits = end + size < HOLE
        found.append(end if fits else 0)
        end += size if fits else 0
    return found


def head(layout: Layout, devices: Sequence[Device]) -> bytes:
    """The first blocks, not sealed yet; raises TooLarge or Invalid for what EROFS cannot hold."""
    if layout.blocks > IMAGE_BLOCKS_MAX:
        raise TooLarge(f"image of {layout.blocks} blocks, the limit is {IMAGE_BLOCKS_MAX}; use the FUSE view")
    if len(devices) > DEVICES_MAX:
        raise TooLarge(f"image of {len(devices)} layers, EROFS holds {DEVICES_MAX}")
    packed = bytes(SUPERBLOCK_AT) + _superblock(layout, len(devices)) + b"".join(map(_device, devices, places(devices)))
    return packed.ljust(first_blocks(devices) * BLOCK, b"\0")


def seal(image: bytearray) -> None:
    """Put the UUID and the checksum of the superblock into a finished image."""
    image[_UUID] = _digest(image)
    end = SUPERBLOCK_AT + BLOCK - SUPERBLOCK_AT % BLOCK  # of the block that it lies in
    image[_CHECKSUM] = _crc32c(image[SUPERBLOCK_AT:end]).to_bytes(4, "little")


def is_whole(image: Image) -> bool:
    """Tell whether these are all the bytes of an image that this edition of the writer made.

    Speed is that of blake2b, some 700 MB/s, without the GIL. A file may be given as a map of it.
    """
    return _is_of(image, _EDITION)


def is_outdated(image: Image) -> bool:
    """Tell the same of an earlier edition of the writer. Such an image is sound and not used: it is built anew."""
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


def _device(device: Device, place: int) -> bytes:
    if len(device.tag) > TAG_MAX:
        raise Invalid(f"device {device.tag!r}: a tag of {len(device.tag)} bytes, expected at most {TAG_MAX}")
    if blocks(device.size) >= HOLE:
        raise TooLarge(f"layer {device.tag!r} of {device.size} bytes, EROFS holds less than {HOLE * BLOCK}")
    return DEVICE.pack(device.tag, blocks(device.size), place)


def _digest(image: bytearray | memoryview, edition: bytes = _EDITION) -> bytes:
    """Of all bytes but those that `seal` sets."""
    with memoryview(image) as view:
        running = blake2b(view[: _CHECKSUM.start], digest_size=UUID_SIZE, person=edition)
        running.update(view[_CHECKSUM.stop : _UUID.start])
        running.update(view[_UUID.stop :])
    return running.digest()


def _crc32c(data: bytes | bytearray) -> int:
    """As the kernel's crc32c(~0, data): without the inversion at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc
