"""Sparse files in tars: the old GNU format (type S) and the PAX versions 0.0, 0.1 and 1.0 (GNU tar manual, "Sparse
Formats").

The regions follow each other in the payload without gaps, as in Go's archive/tar. Each generator yields the number of
bytes that it needs next, and receives exactly those. It keeps only received bytes; a size in a header allocates
nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from imgfs.errors import Malformed, TooLarge, Unsupported
from imgfs.layers.entry import Extent
from imgfs.layers.header import BLOCK, Header, numeric
from imgfs.layers.pax import SPARSE_MAP, Records, decimal, number

MAP_LIMIT = 1 << 20
"""Limit of the bytes of one file's map, in every format."""

Map = list[int]
"""Positions and lengths, alternating."""

_OLD = struct.Struct("386x96sc12s17x")
_CONTINUED = struct.Struct("504sc7x")
_PAIR = 24
_MAJOR, _MINOR, _COUNT = b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.numblocks"
_IMPLIED = {b"0.0", b"0.1", b"."}


def version(records: Records) -> bytes:
    """Return `0` if the map is in `records`, `1` if it precedes the payload, and empty if the file is not sparse.

    Raises Unsupported for other versions, because the content would be wrong without the map.
    """
    stated = records.get(_MAJOR, b"") + b"." + records.get(_MINOR, b"")
    if stated == b"1.0":
        return b"1"
    if stated not in _IMPLIED:
        raise Unsupported(f"GNU sparse format {stated!r}, expected 0.0, 0.1 or 1.0")
    return b"0" if stated != b"." or records.get(SPARSE_MAP) or records.get(_COUNT) else b""


def pax_map(header: Header, records: Records) -> Generator[int, bytes, tuple[int, Map]]:
    """Return the bytes taken from the payload, and the map. Sets the real name and size of `header`."""
    payload = header.size
    header.name = records.get(b"GNU.sparse.name") or header.name
    header.size = decimal(records, b"GNU.sparse.size", decimal(records, b"GNU.sparse.realsize", payload))
    if version(records) == b"1":
        return (yield from _leading_map(payload))
    return 0, _map_of_records(records)


def old_map(header: Header, block: bytes) -> Generator[int, bytes, tuple[int, Map]]:
    """Return the real size and the map of a type S header from its `block` and the extension blocks after it."""
    if not header.gnu:
        raise Malformed("type S without GNU's magic, so without a sparse map")
    pairs, continued, size = _OLD.unpack(block)
    found = _old_pairs(pairs)
    taken = 0
    while continued != b"\0":
        taken += BLOCK
        if taken > MAP_LIMIT:
            raise TooLarge(f"sparse map beyond the limit of {MAP_LIMIT} bytes")
        pairs, continued = _CONTINUED.unpack((yield BLOCK))
        found += _old_pairs(pairs)
    return numeric(size), found


def _leading_map(payload: int) -> Generator[int, bytes, tuple[int, Map]]:
    """Read the map of version 1.0 at the start of the payload: a count, then two numbers for each region.

    Returns the bytes taken from the payload, and the map.
    """
    text = bytearray()
    lines = 0
    while not lines or lines <= 2 * _count(text):
        if len(text) + BLOCK > min(payload, MAP_LIMIT):
            _refuse_map(payload)
        block = yield BLOCK
        text += block
        lines += block.count(b"\n")
        if not lines:
            raise Malformed("sparse map without a count of regions in its first block")
    numbers = text.split(b"\n", 2 * _count(text) + 1)
    return len(text), [number(bytes(digits), b"sparse map") for digits in numbers[1:-1]]


def extents(found: Map, size: int, offset: int, payload: int) -> tuple[Extent, ...]:
    """Return the extents of the map `found` in a payload of `payload` bytes at `offset`.

    Raises Malformed unless the regions are in order, do not overlap, are inside `size` and use the whole payload.
    """
    regions: list[Extent] = []
    end, start = 0, offset
    for position, length in zip(found[::2], found[1::2], strict=True):
        if position < end or length < 0 or position + length > size:
            raise Malformed(f"sparse region {position}+{length}, expected one between {end} and the size {size}")
        if length:
            regions.append(Extent(position, offset, length))
        end, offset = position + length, offset + length
    if offset - start != payload:
        raise Malformed(f"sparse regions of {offset - start} bytes, expected the {payload} of the payload")
    return tuple(regions)


def _map_of_records(records: Records) -> Map:
    text = records.get(SPARSE_MAP, b"")
    found = [number(digits, SPARSE_MAP) for digits in text.split(b",")] if text else []
    count = decimal(records, _COUNT, 0)
    if len(found) != 2 * count:
        raise Malformed(f"sparse map of {len(found)} numbers, expected two for each of {count} regions")
    return found


def _old_pairs(area: bytes) -> Map:
    """Return the numbers of one block up to the first unused pair."""
    found: Map = []
    for at in range(0, len(area), _PAIR):
        if not area[at]:
            break
        found += numeric(area[at : at + 12]), numeric(area[at + 12 : at + _PAIR])
    return found


def _count(text: bytearray) -> int:
    return number(bytes(text[: text.index(b"\n")]), b"sparse map")


def _refuse_map(payload: int) -> None:
    if payload < MAP_LIMIT:
        raise Malformed(f"sparse map runs beyond its payload of {payload} bytes")
    raise TooLarge(f"sparse map beyond the limit of {MAP_LIMIT} bytes")
