"""The chunks of a file."""

from __future__ import annotations

import struct

import pytest

from imgfs.erofs.chunks import Region, address, misfit, plan, regions
from imgfs.layers.entry import Extent
from tests.erofs.scene import node

KIB, GIB = 1 << 10, 1 << 30
HOLE = None


def chunks_of(found: list[Region], size: int, device: int = 1) -> tuple[int, list[int | None]]:
    """The size of a chunk and the first block of each, HOLE for none."""
    format_, indexes = plan(found, size, device)
    blocks: list[int | None] = []
    for _, on, block in struct.iter_unpack("<HHI", indexes):
        assert on == (0 if block == 0xFFFFFFFF else device)
        blocks.append(HOLE if block == 0xFFFFFFFF else block)
    assert format_ & ~0x1F == 0x20
    return 512 << (format_ & 0x1F), blocks


@pytest.mark.parametrize(
    ("found", "size", "expected"),
    [
        ([(0, 512, 1)], 1, (512, [1])),
        ([(0, 512, 513)], 513, (KIB, [1])),
        ([(0, 1536, 5 * GIB)], 5 * GIB, (8 * GIB, [3])),
        ([(0, 0, (1 << 40) + 1)], (1 << 40) + 1, (1 << 40, [0, 1 << 31])),
        ([], 5 * GIB, (8 * GIB, [HOLE])),
        ([(0, 512, 4 * KIB)], 8 * KIB, (4 * KIB, [1, HOLE])),
        ([(4 * KIB, 512, 4 * KIB)], 8 * KIB, (4 * KIB, [HOLE, 1])),
        ([(4 * KIB, 512, 100)], 4 * KIB + 100, (4 * KIB, [HOLE, 1])),
        ([(4 * KIB, 512, 512)], 8 * KIB, (512, [*[HOLE] * 8, 1, *[HOLE] * 7])),
        ([(0, 512, 8 * KIB), (12 * KIB, 8704, 4 * KIB)], 16 * KIB, (4 * KIB, [1, 9, HOLE, 17])),
        ([(0, 8704, 4 * KIB), (4 * KIB, 512, 4 * KIB)], 8 * KIB, (4 * KIB, [17, 1])),
    ],
)
def test_chunks_are_as_large_as_the_holes_allow(
    found: list[Region], size: int, expected: tuple[int, list[int | None]]
) -> None:
    assert chunks_of(found, size) == expected


@pytest.mark.parametrize(
    ("found", "size", "place", "expected"),
    [
        ([(0, 1536, 5 * GIB)], 5 * GIB, 1000, 1003),
        ([(0, 1536, 5)], 5, 0, None),
        ([(0, 1536, 4 * KIB)], 8 * KIB, 1000, None),
        ([(4 * KIB, 1536, 4 * KIB)], 8 * KIB, 1000, None),
        ([], 8 * KIB, 1000, None),
    ],
    ids=["whole", "device without a place", "hole behind", "hole before", "all a hole"],
)
def test_one_address_is_enough_for_a_file_without_holes(
    found: list[Region], size: int, place: int, expected: int | None
) -> None:
    assert address(found, size, place) == expected


def test_the_device_is_in_every_index() -> None:
    assert chunks_of([(0, 512, 4 * KIB)], 8 * KIB, 77) == (4 * KIB, [1, HOLE])


def test_extents_that_go_on_are_one_region() -> None:
    extents = (Extent(0, 512, 100), Extent(100, 612, 412), Extent(512, 2048, 512), Extent(4096, 2560, 512))
    assert regions(node(0, extents=extents)) == [(0, 512, 512), (512, 2048, 512), (4096, 2560, 512)]


def test_an_empty_extent_is_no_region() -> None:
    assert regions(node(0, size=4096, extents=(Extent(0, 512, 0), Extent(4096, 512, 0)))) == []


def test_a_file_that_is_not_sparse_is_one_region() -> None:
    assert regions(node(0, size=7, offset=1024)) == [(0, 1024, 7)]


@pytest.mark.parametrize(
    ("region", "fits"),
    [
        ((0, 512, 512), True),
        ((512, 512, 488), True),
        ((0, 513, 512), False),
        ((1, 512, 511), False),
        ((0, 512, 511), False),
        ((0, 1536, 600), False),
    ],
)
def test_regions_fit_if_blocks_of_the_device_hold_them(region: Region, fits: bool) -> None:
    assert (misfit([region], 1000, 2136) is None) is fits
