"""Decodes one 512-byte tar header block: its checksum, its fields and its numbers.

The block may be a v7, ustar, star or GNU one. pax.py decodes extended headers; tar.py interprets the entry. Where tar
readers differ, this module does the same as Go's archive/tar, because container runtimes unpack with it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from zlib import adler32

import msgspec

from imgfs.errors import Malformed

BLOCK = 512
ZEROS = bytes(BLOCK)
SIZE_LIMIT = 1 << 63
NANOSECONDS = 1_000_000_000
_TIME_LIMIT = 1 << 63

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s64x16s155s8x4s")
_GNU = b"ustar  \0"
_STAR_TRAILER = b"tar\0"
_STAR_PREFIX = 131


class Header(msgspec.Struct, gc=False):
    """The fields of one block, which extended headers may override. `mtime` is in nanoseconds, `device` is unparsed."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    device: bytes
    gnu: bool
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def read_header(block: bytes) -> Header:
    """Decode one block that is not all zeros. Raises Malformed if the checksum or a number is wrong."""
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, device, prefix, trailer = _FIELDS.unpack(block)
    _check_sum(block, checksum)
    name = name.partition(b"\0")[0]
    if prefix[0] and magic[:5] == b"ustar":
        name = _with_prefix(name, prefix, magic, trailer)
    return Header(
        name,
        kind,
        numeric(mode) & 0o7777,
        numeric(uid),
        numeric(gid),
        numeric(size),
        _time(mtime),
        link.partition(b"\0")[0],
        device,
        magic == _GNU,
    )


def device_numbers(header: Header) -> tuple[int, int]:
    """Return the major and minor number of a device node. Raises Malformed beyond Linux's 12 and 20 bits."""
    major, minor = numeric(header.device[:8]), numeric(header.device[8:])
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise Malformed(f"device {major}:{minor}, expected a major number below 4096 and a minor one below 1048576")
    return major, minor


def clamped(nanoseconds: int) -> int:
    """Return `nanoseconds`, limited to the range of a signed 64-bit number."""
    return max(-_TIME_LIMIT, min(nanoseconds, _TIME_LIMIT - 1))


@lru_cache(maxsize=8192)
def numeric(field: bytes) -> int:
    """Parse the number in a header field: octal digits, or base-256 of GNU tar if the top bit is set. Empty is 0."""
    if field[0] & 0x80:
        return _base256(field)
    digits = field.lstrip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if digits.translate(None, b"01234567"):
        raise Malformed(f"number {digits!r}, expected octal digits")
    return int(digits, 8) if digits else 0


def _base256(field: bytes) -> int:
    """Parse two's complement of all bits but the first."""
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


@lru_cache(maxsize=8192)
def _time(field: bytes) -> int:
    return clamped(numeric(field) * NANOSECONDS)


def _check_sum(block: bytes, field: bytes) -> None:
    """Compare the field with the sum of all bytes, in which the checksum field counts as spaces.

    The low half of an Adler-32 that starts at 0 is the plain sum if that is below 65521, as it is for 256 bytes.
    """
    total = (adler32(block[:256], 0) & 0xFFFF) + (adler32(block[256:], 0) & 0xFFFF) - sum(field) + 256
    expected = numeric(field)
    if total != expected and _signed_sum(block) != expected:
        raise Malformed(f"header checksum {expected}, expected {total}: this is no tar header")


def _signed_sum(block: bytes) -> int:
    """Return the checksum of historic tar programs on machines with signed characters."""
    rest = block[:148] + block[156:]
    return sum(rest) - 256 * sum(byte >> 7 for byte in rest) + 256


def _with_prefix(name: bytes, prefix: bytes, magic: bytes, trailer: bytes) -> bytes:
    if magic[:6] == b"ustar\0":
        if trailer == _STAR_TRAILER:
            prefix = prefix[:_STAR_PREFIX]
    elif magic != _GNU or _is_gnu_times(prefix):
        return name
    prefix = prefix.partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _is_gnu_times(prefix: bytes) -> bool:
    """Return whether a GNU block has its two times in the prefix.

    Go before 1.8 wrote a ustar prefix there, which old images still have.
    """
    try:
        numeric(prefix[:12])
        numeric(prefix[12:24])
    except Malformed:
        return not prefix.partition(b"\0")[0].isascii()
    return True
