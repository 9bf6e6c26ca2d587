"""The blocks of a directory, read back as the kernel reads them."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from imgfs.erofs.directory import pack, split

NAMES = st.sets(
    st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name), min_size=1
)


def read(content: bytes) -> list[tuple[bytes, int, int]]:
    """Names, nids and types of all blocks."""
    found: list[tuple[bytes, int, int]] = []
    for start in range(0, len(content), 512):
        found += _read_block(content[start : start + 512])
    return found


def _read_block(block: bytes) -> list[tuple[bytes, int, int]]:
    count = struct.unpack_from("<H", block, 8)[0] // 12
    entries = list(struct.iter_unpack("<QHBB", block[: count * 12]))
    ends = [entry[1] for entry in entries[1:]] + [len(block.rstrip(b"\0"))]
    return [(block[place:end], nid, kind) for (nid, place, kind, _), end in zip(entries, ends, strict=True)]


@given(NAMES)
def test_every_entry_comes_back_in_order(names: set[bytes]) -> None:
    ordered = sorted(names)
    nids, types = [1 << 40 | one for one in range(len(names))], [one % 8 for one in range(len(names))]
    counts, tail = split(ordered)
    content = pack(ordered, counts, nids, types)
    assert len(content) == (len(counts) - 1) * 512 + tail
    assert read(content) == list(zip(ordered, nids, types, strict=True))


def test_a_block_is_filled_to_the_last_byte() -> None:
    names = [b"a" * 244, b"b" * 244]
    assert split(names) == ([2], 512)
    assert split([*names, b"c"]) == ([2, 1], 13)
