"""Extended headers before an entry: GNU tar's long names and PAX records (POSIX pax, "pax Extended Header").

The records include those that star and GNU tar add: SCHILY.xattr.*, and the records of sparse files, which sparse.py
interprets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from imgfs.errors import Malformed
from imgfs.layers.header import NANOSECONDS, Header, clamped
from imgfs.layers.xattr_filter import kept

Records = dict[bytes, bytes]

SPARSE_MAP = b"GNU.sparse.map"
_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_XATTR = b"SCHILY.xattr."
_STRINGS = (b"path", b"linkpath", b"GNU.sparse.name")
_LENGTH_DIGITS = 8
_DIGITS = 20
_TIME = re.compile(rb"(-?)([0-9]{1,40})(?:\.([0-9]*))?")

EXTENDED_TYPES = frozenset((b"x", b"X", b"g", b"L", b"K"))
"""The types of extended headers. A global header (`g`) is read and ignored."""


def read_records(payload: bytes) -> Records:
    """Return the records of an extended header by key. The last record of a key counts. Raises Malformed.

    The repeated sparse offsets and lengths of GNU's version 0.0 are joined into one map, the form of version 0.1.
    """
    records: Records = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(payload):
        key, value, at = _record(payload, at)
        if key in _SPARSE_PAIR:
            _check_pair(key, value, len(pairs))
            pairs.append(value)
        else:
            records[key] = value
    if pairs:
        records[SPARSE_MAP] = b",".join(pairs)
    return records


def apply_records(records: Records, header: Header) -> None:
    """Override the fields of `header` with the records. Raises Malformed and TooLarge.

    An empty value deletes the record, so the header's own field counts. An extended attribute is the exception: it may
    be empty, as in containerd and GNU tar.
    """
    header.name = records.get(b"path") or header.name
    header.link = records.get(b"linkpath") or header.link
    header.size = decimal(records, b"size", header.size)
    header.uid = decimal(records, b"uid", header.uid)
    header.gid = decimal(records, b"gid", header.gid)
    if time := records.get(b"mtime"):
        header.mtime = _nanoseconds(time)
    if found := [(key[len(_XATTR) :], value) for key, value in records.items() if key.startswith(_XATTR)]:
        header.xattrs = kept(found)


@dataclass(slots=True)
class ExtendedHeaders:
    """The extended headers before one entry. `size` is their total size, which the caller limits."""

    size: int = 0
    name: bytes = b""
    link: bytes = b""
    records: Records = field(default_factory=dict[bytes, bytes])

    def take(self, kind: bytes, payload: bytes) -> None:
        """Add one extended header of type `kind`. Raises Malformed."""
        if kind == b"L":
            self.name = payload.partition(b"\0")[0]
        elif kind == b"K":
            self.link = payload.partition(b"\0")[0]
        else:
            self.records = read_records(payload)

    def apply(self, header: Header) -> None:
        """Override the fields of the entry's own header. GNU long names take precedence over PAX records."""
        apply_records(self.records, header)
        header.name = self.name or header.name
        header.link = self.link or header.link


def decimal(records: Records, key: bytes, default: int) -> int:
    """Return the number in the record `key`; `default` if there is no such record or it is empty. Raises Malformed."""
    value = records.get(key)
    return number(value, key) if value else default


def number(digits: bytes, what: bytes) -> int:
    """Parse an unsigned decimal number of at most 20 digits. Raises Malformed, which names `what`."""
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise Malformed(f"{what.decode()} {digits[:40]!r}, expected decimal digits")
    return int(digits)


def _record(payload: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Return the key and value of the record `<length> <key>=<value>\\n` at `at`, and the start of the next record."""
    space = payload.find(b" ", at, at + _LENGTH_DIGITS)
    length = payload[at:space] if space >= 0 else b""
    end = at + int(length) if length.isdigit() else 0
    if not space < end - 1 < len(payload) or payload[end - 1] != 0x0A:
        raise Malformed(f"PAX record {payload[at : at + 40]!r}, expected its length, a key, = and a value")
    key, equals, value = payload[space + 1 : end - 1].partition(b"=")
    if not key or not equals:
        raise Malformed(f"PAX record {payload[at : at + 40]!r}, expected a key, = and a value")
    if b"\0" in (value if key in _STRINGS else key):
        raise Malformed(f"PAX record {key[:40]!r} has a NUL byte in it")
    return key, value, end


def _check_pair(key: bytes, value: bytes, seen: int) -> None:
    if key != _SPARSE_PAIR[seen % 2] or b"," in value:
        raise Malformed(f"PAX record {key!r}, expected sparse offsets and lengths in turn")


def _nanoseconds(time: bytes) -> int:
    """Convert seconds with a fraction. The sign applies to both. Digits after the nanoseconds are dropped."""
    match = _TIME.fullmatch(time)
    if not match:
        raise Malformed(f"PAX mtime {time[:40]!r}, expected seconds with an optional fraction")
    sign, seconds, fraction = match.groups(b"")
    value = int(seconds) * NANOSECONDS + int(fraction[:9].ljust(9, b"0"))
    return clamped(-value if sign else value)
