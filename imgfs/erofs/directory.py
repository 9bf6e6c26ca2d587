"""Packs directory blocks: entries sorted by name, and in each block the names after the entries.

Source: Linux, fs/erofs/dir.c and namei.c. The kernel searches the blocks by their first name, then within one block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from struct import Struct

from imgfs.erofs.format import BLOCK, DIRENT
from imgfs.errors import Malformed, TooLarge

NAME_MAX = 255

_NO_NAMES = {b"", b".", b".."}
_ENTRY = DIRENT.size
_TYPE_SHIFT = 16
"""Type and name offset are adjacent fields. Packing them as one number is faster."""
_ENTRIES = tuple(Struct("<" + "QI" * count) for count in range(BLOCK // (_ENTRY + 1) + 1))


def check(names: Collection[bytes]) -> None:
    """Raise TooLarge or Malformed if one of `names` cannot be the name of an entry."""
    longest = max(map(len, names), default=0)
    if longest > NAME_MAX:
        raise TooLarge(f"a name of {longest} bytes in it, the limit is {NAME_MAX}")
    joined = b"".join(names)
    if b"/" in joined or b"\0" in joined or not _NO_NAMES.isdisjoint(names):
        raise Malformed("a name in it is empty, `.` or `..`, or has a slash or a zero byte")


def split(names: Sequence[bytes]) -> tuple[list[int], int]:
    """Return how many of the sorted `names` each block holds, and the used bytes of the last block."""
    used = _ENTRY * len(names) + sum(map(len, names))
    return ([len(names)], used) if used <= BLOCK else _split(names)


def _split(names: Sequence[bytes]) -> tuple[list[int], int]:
    counts: list[int] = []
    used = count = 0
    for name in names:
        needed = _ENTRY + len(name)
        if used + needed > BLOCK:
            counts.append(count)
            used = count = 0
        used += needed
        count += 1
    counts.append(count)
    return counts, used


def pack(names: Sequence[bytes], counts: Sequence[int], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """Return the content of the directory. All blocks but the last are padded with zeros."""
    packed: list[bytes] = []
    start = 0
    for count in counts:
        end = start + count
        packed.append(_pack_block(names[start:end], nids[start:end], types[start:end]))
        start = end
    packed[:-1] = [block.ljust(BLOCK, b"\0") for block in packed[:-1]]
    return b"".join(packed)


def _pack_block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    place = _ENTRY * len(names)
    fields: list[int] = []
    for name, nid, type_ in zip(names, nids, types, strict=True):
        fields += nid, type_ << _TYPE_SHIFT | place
        place += len(name)
    return _ENTRIES[len(names)].pack(*fields) + b"".join(names)
