"""Data that the kernel cannot read in place, put together as blocks of the image itself.

That is mostly a sparse file whose regions have odd lengths: they lie packed in the tar, so the next one begins in the
middle of a block, and the bytes behind a region are not the zeros of the hole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imgfs.erofs.chunks import Region
from imgfs.erofs.format import BLOCK, blocks

Read = Callable[[int, int, int], bytes]
"""The bytes of a layer (counted from 0) at an offset: exactly as many as asked for, or an error of imgfs."""


def assemble(found: Sequence[Region], layer: int, read: Read) -> list[tuple[int, bytearray]]:
    """Runs of whole blocks, each with its position in the file, that hold the data and nothing but zeros around it."""
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
