"""Builds tars byte by byte, including ones that no tar program writes."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable

from imgfs.layers.entry import Entry
from imgfs.layers.tar import TarWalk

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """GNU's binary numbers: two's complement with the top bit set."""
    return bytes([0x80 if value >= 0 else 0xFF]) + (value % (1 << 8 * (width - 1))).to_bytes(width - 1, "big")


def header(name: bytes = b"f", kind: bytes = b"0", **fields: bytes | int) -> bytes:
    """One block; numbers become octal, bytes are taken as they are. `at` patches are applied before the checksum."""
    widths = {"mode": 8, "uid": 8, "gid": 8, "size": 12, "mtime": 12, "major": 8, "minor": 8}
    numbers = {"mode": 0o644, "uid": 0, "gid": 0, "size": 0, "mtime": 0, "major": 0, "minor": 0} | fields
    field = {
        key: (octal(value, width) if isinstance(value := numbers[key], int) else value).ljust(width, b"\0")
        for key, width in widths.items()
    }
    texts = {"link": b"", "magic": USTAR, "prefix": b""} | fields
    block = b"".join((name.ljust(100, b"\0"), field["mode"], field["uid"], field["gid"], field["size"], field["mtime"]))
    block += b" " * 8 + kind + bytes(texts["link"]).ljust(100, b"\0") + bytes(texts["magic"]).ljust(8, b"\0")
    block += bytes(64) + field["major"] + field["minor"] + bytes(texts["prefix"]).ljust(155, b"\0")
    return checked(block.ljust(BLOCK, b"\0"))


def checked(block: bytes) -> bytes:
    """`block` with the right checksum."""
    total = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    return block[:148] + b"%06o\0 " % total + block[156:]


def member(name: bytes = b"f", kind: bytes = b"0", data: bytes = b"", **fields: bytes | int) -> bytes:
    """A header and its payload."""
    return header(name, kind, **({"size": len(data)} | fields)) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(*pairs: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header."""
    return member(b"PaxHeaders/f", kind, b"".join(record(*pair) for pair in pairs))


def gnu_long(kind: bytes, text: bytes) -> bytes:
    """A GNU long name (L) or link (K)."""
    return member(b"././@LongLink", kind, text + b"\0", magic=GNU)


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def walk(data: bytes, *, cuts: Iterable[int] = (), **limits: int) -> list[Entry]:
    parser = TarWalk(**limits)
    for piece in pieces(data, cuts):
        parser.feed(piece)
    return parser.close()


def only(data: bytes) -> Entry:
    """The one entry of a tar."""
    (entry,) = walk(data + END)
    return entry


def content(data: bytes, entry: Entry) -> bytes:
    """The bytes of a regular file, sparse or not."""
    if entry.extents is None:
        return data[entry.offset : entry.offset + entry.size]
    file = bytearray(entry.size)
    for extent in entry.extents:
        file[extent.position : extent.position + extent.length] = data[extent.offset : extent.offset + extent.length]
    return bytes(file)


def written(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    """A tar as Python's tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
