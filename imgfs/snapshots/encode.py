"""Encode layer entries as tar headers: ustar blocks, and PAX records for values that do not fit (POSIX pax, "ustar").

The encoding is reproducible: no owner names, no times except mtime, records sorted by key. It keeps to the limits of
Go's archive/tar, with which container runtimes read layers.
"""

from __future__ import annotations

from imgfs.errors import Unsupported
from imgfs.layers.entry import Entry, EntryKind
from imgfs.layers.header import BLOCK, NANOSECONDS

_TYPES = {
    EntryKind.REGULAR: b"0",
    EntryKind.HARDLINK: b"1",
    EntryKind.SYMLINK: b"2",
    EntryKind.CHARACTER: b"3",
    EntryKind.BLOCK: b"4",
    EntryKind.DIRECTORY: b"5",
    EntryKind.FIFO: b"6",
    EntryKind.WHITEOUT: b"0",
    EntryKind.OPAQUE: b"0",
}
_TEXT = 100
_ID_LIMIT = 1 << 21
_LONG_LIMIT = 1 << 33
_EXTENDED_NAME = b"././@PaxHeader"


def encode_entry(entry: Entry) -> bytes:
    """Return the header blocks of an entry. The payload of `size` bytes and its padding follow them.

    Raises Unsupported.
    """
    name = _name(entry)
    records = _records(entry, name)
    extended = b""
    if records:
        payload = b"".join(_record(key, records[key]) for key in sorted(records))
        extended = _block(_EXTENDED_NAME, b"x", 0o644, size=len(payload)) + padded(payload)
    seconds = entry.mtime // NANOSECONDS
    return extended + _block(
        name[:_TEXT],
        _TYPES[entry.kind],
        entry.mode,
        _fitting(entry.uid, _ID_LIMIT),
        _fitting(entry.gid, _ID_LIMIT),
        _fitting(entry.size, _LONG_LIMIT),
        _fitting(seconds, _LONG_LIMIT),
        entry.link[:_TEXT],
        (entry.major, entry.minor),
    )


def padded(data: bytes) -> bytes:
    """Return `data` padded with zeros to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def _name(entry: Entry) -> bytes:
    if entry.kind is EntryKind.DIRECTORY:
        return entry.path + b"/" if entry.path else b"./"
    parent, slash, base = entry.path.rpartition(b"/")
    if entry.kind is EntryKind.WHITEOUT:
        return parent + slash + b".wh." + base
    if entry.kind is EntryKind.OPAQUE:
        return (entry.path + b"/" if entry.path else b"") + b".wh..wh..opq"
    return entry.path


def _records(entry: Entry, name: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    if len(name) > _TEXT:
        records[b"path"] = name
    if len(entry.link) > _TEXT:
        records[b"linkpath"] = entry.link
    for key, number, limit in (
        (b"uid", entry.uid, _ID_LIMIT),
        (b"gid", entry.gid, _ID_LIMIT),
        (b"size", entry.size, _LONG_LIMIT),
    ):
        if number >= limit:
            records[key] = b"%d" % number
    if entry.mtime % NANOSECONDS or not 0 <= entry.mtime // NANOSECONDS < _LONG_LIMIT:
        records[b"mtime"] = _time(entry.mtime)
    for key, value in entry.xattrs:
        if b"=" in key:
            raise Unsupported(f"{entry.path[-200:]!r}: extended attribute {key!r}: a layer cannot hold a name with =")
        records[b"SCHILY.xattr." + key] = value
    return records


def _time(nanoseconds: int) -> bytes:
    """Return decimal seconds without trailing zeros. The sign applies to seconds and fraction."""
    seconds, fraction = divmod(abs(nanoseconds), NANOSECONDS)
    digits = (b".%09d" % fraction).rstrip(b"0").rstrip(b".")
    return (b"-" if nanoseconds < 0 else b"") + b"%d" % seconds + digits


def _record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """Return one ustar block. Every number must fit its field."""
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(_TEXT, b"\0"), mode, uid, gid, size, mtime)
    tail = b"%s%sustar\00000%s%07o\0%07o\0" % (kind, link.ljust(_TEXT, b"\0"), bytes(64), *device)
    checksum = sum(head) + sum(tail) + 8 * 0x20
    return padded(head + b"%06o\0 " % checksum + tail)


def _fitting(number: int, limit: int) -> int:
    """Return the number, or 0 if a PAX record holds it."""
    return number if 0 <= number < limit else 0
