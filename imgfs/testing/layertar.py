"""Writes entries as a layer's tar in each tar format and compresses it. The same input gives the same bytes.

tarfile writes the headers, so that they do not depend on imgfs's own reader. tarfile cannot write sparse files; they
follow the GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import gzip
import sys
import tarfile
from collections.abc import Iterable
from functools import singledispatch
from typing import Final, Literal

from imgfs.testing.entries import (
    DeviceFile,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Name,
    Opaque,
    SparseFile,
    Symlink,
    TarNode,
    Whiteout,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Format = Literal["pax", "gnu", "ustar"]
Compression = Literal["gzip", "zstd", "none"]

BLOCK = 512
SECOND = 1_000_000_000
_GZIP_LEVEL = 1
_FORMATS: Final[dict[Format, Literal[0, 1, 2]]] = {"ustar": 0, "gnu": 1, "pax": 2}
"""The values of tarfile.USTAR_FORMAT, GNU_FORMAT and PAX_FORMAT."""
_TYPE = 156
_CHECKSUM = slice(148, 156)
_GNU_SPARSE_MAP = 386
_GNU_SPARSE_SLOTS = 4
_GNU_EXTENDED = 482
_GNU_REALSIZE = 483
_EXTENSION_SLOTS = 21


def layer_tar(entries: Iterable[Entry], format: Format = "pax") -> bytes:
    """Return the uncompressed layer with two zero blocks at its end.

    Only `pax` stores nanoseconds and extended attributes; the other formats drop them. Raises ValueError for values
    that `format` cannot store, such as a path that is too long for ustar.
    """
    return b"".join(_member(entry, format) for entry in entries) + bytes(2 * BLOCK)


def compress(data: bytes, compression: Compression) -> bytes:
    """Compress `data`. The gzip header has no name and no time."""
    if compression == "gzip":
        return gzip.compress(data, compresslevel=_GZIP_LEVEL, mtime=0)
    return zstd.compress(data) if compression == "zstd" else data


def _member(entry: Entry, format: Format) -> bytes:
    if isinstance(entry, SparseFile):
        return _gnu_sparse(entry, format) if entry.style == "gnu" else _pax_sparse(entry, format)
    content = entry.content if isinstance(entry, File) else b""
    return _write(_header(entry, format), format) + _padded(content)


def _header(entry: TarNode, format: Format) -> tarfile.TarInfo:
    info = tarfile.TarInfo(_text(entry.path) or ".")
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.mtime = entry.mtime_ns // SECOND
    if format == "pax":
        info.pax_headers = _pax_records(entry)
    _fill(entry, info)
    return info


def _pax_records(entry: TarNode) -> dict[str, str]:
    records = {f"SCHILY.xattr.{name}": _text(value) for name, value in entry.xattrs.items()}
    seconds, nanoseconds = divmod(entry.mtime_ns, SECOND)
    if nanoseconds:
        records["mtime"] = f"{seconds}.{nanoseconds:09d}"
    return records


@singledispatch
def _fill(entry: TarNode, info: tarfile.TarInfo) -> None:
    raise TypeError(f"entry {entry!r}: is no kind of tar member")


@_fill.register
def _(entry: File, info: tarfile.TarInfo) -> None:
    info.size = len(entry.content)


@_fill.register
def _(entry: SparseFile, info: tarfile.TarInfo) -> None:
    info.size = len(_payload(entry))


@_fill.register
def _(entry: Dir, info: tarfile.TarInfo) -> None:
    info.type = tarfile.DIRTYPE


@_fill.register
def _(entry: Symlink, info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.SYMTYPE, _text(entry.target)


@_fill.register
def _(entry: Hardlink, info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.LNKTYPE, _text(entry.target)


@_fill.register
def _(entry: Fifo, info: tarfile.TarInfo) -> None:
    info.type = tarfile.FIFOTYPE


@_fill.register
def _(entry: DeviceFile, info: tarfile.TarInfo) -> None:
    info.type = tarfile.CHRTYPE if entry.kind == "character" else tarfile.BLKTYPE
    info.devmajor, info.devminor = entry.major, entry.minor


@_fill.register
def _(entry: Whiteout, info: tarfile.TarInfo) -> None:
    parent, slash, name = info.name.rpartition("/")
    info.name = f"{parent}{slash}.wh.{name}"


@_fill.register
def _(entry: Opaque, info: tarfile.TarInfo) -> None:
    info.name = f"{info.name}/.wh..wh..opq"


def _pax_sparse(entry: SparseFile, format: Format) -> bytes:
    if format != "pax":
        raise ValueError(f"sparse file {entry.path!r}: style {entry.style} needs the pax format, got {format}")
    info = _header(entry, format)
    extents = _map_blocks(entry) if entry.style == "pax-1.0" else b""
    info.pax_headers = {**info.pax_headers, **_sparse_records(entry, info.name)}
    parent, slash, last = info.name.rpartition("/")
    info.name = f"{parent}{slash}GNUSparseFile.0/{last}"
    info.size += len(extents)
    return _write(info, format) + extents + _padded(_payload(entry))


def _sparse_records(entry: SparseFile, name: str) -> dict[str, str]:
    records = {"GNU.sparse.name": name}
    if entry.style == "pax-1.0":
        return records | {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(entry.size)}
    extents = ",".join(f"{position},{length}" for position, length in _map(entry))
    count = str(len(_map(entry)))
    return records | {"GNU.sparse.size": str(entry.size), "GNU.sparse.numblocks": count, "GNU.sparse.map": extents}


def _map(entry: SparseFile) -> list[tuple[int, int]]:
    """Return position and length of each extent. Like GNU tar, it ends a hole at the end with an extent of length 0."""
    extents = [(position, len(data)) for position, data in entry.extents]
    return extents if extents and sum(extents[-1]) == entry.size else [*extents, (entry.size, 0)]


def _map_blocks(entry: SparseFile) -> bytes:
    numbers = [len(_map(entry)), *(number for extent in _map(entry) for number in extent)]
    return _padded(b"".join(b"%d\n" % number for number in numbers))


def _gnu_sparse(entry: SparseFile, format: Format) -> bytes:
    """Write the header of type S: four extents in the header, the others in extension blocks of 21."""
    info = _header(entry, format)
    written = bytearray(_write(info, "gnu"))
    header = written[-BLOCK:]
    slots = [b"%011o\0%011o\0" % extent for extent in _map(entry)]
    first, rest = slots[:_GNU_SPARSE_SLOTS], slots[_GNU_SPARSE_SLOTS:]
    _patch(header, _TYPE, b"S")
    _patch(header, _GNU_SPARSE_MAP, b"".join(first))
    _patch(header, _GNU_EXTENDED, bytes([bool(rest)]))
    _patch(header, _GNU_REALSIZE, b"%011o\0" % entry.size)
    _sign(header)
    return bytes(written[:-BLOCK]) + bytes(header) + _extensions(rest) + _padded(_payload(entry))


def _extensions(slots: list[bytes]) -> bytes:
    blocks: list[bytes] = []
    for start in range(0, len(slots), _EXTENSION_SLOTS):
        more = bytes([start + _EXTENSION_SLOTS < len(slots)])
        body = b"".join(slots[start : start + _EXTENSION_SLOTS]).ljust(_EXTENSION_SLOTS * 24, b"\0")
        blocks.append((body + more).ljust(BLOCK, b"\0"))
    return b"".join(blocks)


def _patch(header: bytearray, offset: int, value: bytes) -> None:
    header[offset : offset + len(value)] = value


def _sign(header: bytearray) -> None:
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)


def _payload(entry: SparseFile) -> bytes:
    return b"".join(data for _, data in entry.extents)


def _write(info: tarfile.TarInfo, format: Format) -> bytes:
    return info.tobuf(_FORMATS[format], "utf-8", "surrogateescape")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _text(name: Name) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
