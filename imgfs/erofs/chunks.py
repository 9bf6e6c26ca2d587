"""Computes where the data of a file is: one block address, or a chunk format and the index of each chunk.

Source: Linux, fs/erofs/data.c. A file needs no chunks if it is not sparse and its device is in the common address
space. Otherwise the file consists of chunks. A chunk is a power of two of blocks and is either a hole or contiguous on
one device, from any block on. The last chunk ends with the file. A file that is not sparse is one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from imgfs.erofs.format import BLOCK, BLOCK_BITS, CHUNK_BITS_MAX, CHUNK_INDEXES, HOLE, INDEX, blocks
from imgfs.erofs.inode import Extent, Inode
from imgfs.errors import Malformed, TooLarge, Unsupported

INDEXES_MAX = 1 << 21
"""Limit of the chunks of one file. Without it a small map of distant regions makes a large image."""

Region = tuple[int, int, int]
"""Position in the file, offset on the device, length."""

Read = Callable[[int, int, int], bytes]
"""Reads a layer (counted from 0) at an offset. Returns exactly the requested number of bytes, or raises ImgfsError."""

_NOTHING = INDEX.pack(0xFFFF, 0, HOLE)


def regions(inode: Inode) -> list[Region]:
    """Return the data regions of a file, in order. Adjacent regions are joined."""
    return [(0, inode.offset, inode.size)] if inode.extents is None else _join(inode.extents)


def check(found: Sequence[Region], layer: int, device_size: int) -> None:
    """Raise Malformed for a region beyond its device, TooLarge for one that EROFS cannot address."""
    for _, offset, length in found:
        if offset < 0 or offset + length > device_size:
            raise Malformed(f"data up to byte {offset + length} of layer {layer}, which has {device_size}")
        if blocks(offset + length) >= HOLE:
            raise TooLarge(f"data up to byte {offset + length} of layer {layer}, EROFS reaches {HOLE * BLOCK}")


def misfit(found: Sequence[Region], size: int, device_size: int) -> str | None:
    """Return why the kernel cannot read these regions from their device as whole blocks; None if it can."""
    for position, offset, length in found:
        end = position + length
        if offset % BLOCK:
            return f"data at byte {offset} of its layer, not on a block of {BLOCK} bytes"
        if position % BLOCK or (end % BLOCK and end != size):
            return f"sparse with a hole off the blocks of {BLOCK} bytes"
        if blocks(offset + length) * BLOCK > device_size:
            return "data in the last block of its layer, which is cut"
    return None


def address(found: Sequence[Region], size: int, place: int) -> int | None:
    """Return the first block of a file in the common address space; None if the file needs chunks.

    `size` is the size of the file in bytes, `place` the first block of its device, or 0 if the device has none.
    """
    if place and len(found) == 1 and found[0][0] == 0 and found[0][2] == size:
        return place + (found[0][1] >> BLOCK_BITS)
    return None


def plan(found: Sequence[Region], size: int, device: int) -> tuple[int, bytes]:
    """Return the chunk format and the chunk indexes of a file of `size` bytes. Raises Unsupported for too many chunks.

    `device` counts from 1; 0 is the image itself.
    """
    bits = _bits(found, size)
    count = -(-size >> bits)
    if count > INDEXES_MAX:
        raise Unsupported(f"sparse in {count} chunks, the limit is {INDEXES_MAX}; use the FUSE view")
    format_ = CHUNK_INDEXES | bits - BLOCK_BITS
    if count == 1 and found:
        return format_, INDEX.pack(0, device, found[0][1] >> BLOCK_BITS)
    return format_, b"".join(_indexes(found, bits, count, device))


def assemble(found: Sequence[Region], layer: int, read: Read) -> list[tuple[int, bytearray]]:
    """Copy file data that the kernel cannot read in place. Returns runs of whole blocks with their positions in the
    file.

    The usual case is a sparse file whose regions have odd lengths. The tar packs the regions, so a region can begin
    inside a block, and the bytes after it are the next region and not the zeros of the hole. The runs have zeros around
    the data. Raises what `read` raises.
    """
    runs: list[tuple[int, bytearray]] = []
    for position, offset, length in found:
        start = position - position % BLOCK
        if not runs or start > runs[-1][0] + _whole(len(runs[-1][1])):
            runs.append((start, bytearray()))
        begin, run = runs[-1]
        run += bytes(position - begin - len(run))
        run += read(layer, offset, length)
    for _, run in runs:
        run += bytes(_whole(len(run)) - len(run))
    return runs


def _join(extents: Sequence[Extent]) -> list[Region]:
    joined: list[Region] = []
    for extent in extents:
        position, offset, length = extent.position, extent.offset, extent.length
        if joined:
            before = joined[-1]
            if before[0] + before[2] == position and before[1] + before[2] == offset:
                joined[-1] = (before[0], before[1], before[2] + length)
                continue
        if length:
            joined.append((position, offset, length))
    return joined


def _bits(found: Sequence[Region], size: int) -> int:
    """Return log2 of the largest chunk size to which all regions are aligned. The end of the file may be unaligned."""
    borders = 0
    for position, _, length in found:
        end = position + length
        borders |= position | (end if end != size else 0)
    covering = min(max((size - 1).bit_length(), BLOCK_BITS), CHUNK_BITS_MAX)
    return min(covering, (borders & -borders).bit_length() - 1) if borders else covering


def _indexes(found: Sequence[Region], bits: int, count: int, device: int) -> Iterator[bytes]:
    step = 1 << bits - BLOCK_BITS
    done = 0
    for position, offset, length in found:
        first, chunks = position >> bits, -(-length >> bits)
        block = offset >> BLOCK_BITS
        yield _NOTHING * (first - done)
        yield b"".join([INDEX.pack(0, device, block + step * chunk) for chunk in range(chunks)])
        done = first + chunks
    yield _NOTHING * (count - done)


def _whole(size: int) -> int:
    return blocks(size) * BLOCK
