"""Copies file data that the kernel cannot read in place into whole blocks of the image.

The usual case is a sparse file whose regions have odd lengths. The tar packs the regions, so a region can begin inside
a block, and the bytes after it are the next region and not the zeros of the hole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imgfs.erofs.chunks import Region
from imgfs.erofs.format import BLOCK, blocks

Read = Callable[[int, int, int], bytes]
"""Reads a layer (counted from 0) at an offset. Returns exactly the requested number of bytes, or raises ImgfsError."""


def assemble(found: Sequence[Region], layer: int, read: Read) -> list[tuple[int, bytearray]]:
    """Return runs of whole blocks, each with its position in the file. They hold the data, and zeros around it."""
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


def _whole(size: int) -> int:
    return blocks(size) * BLOCK
