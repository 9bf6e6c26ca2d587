"""PAX extended headers: the records, and what they change in the header that follows (POSIX pax, "Extended Header").

Also the words that GNU tar and star add: SCHILY.xattr.*, and the records of sparse files, whose meaning is sparse.py's.
"""

from __future__ import annotations

import re

from imgfs.errors import Malformed
from imgfs.layers.header import NANOSECONDS, Header, clamped
from imgfs.layers.xattrs import kept

Records = dict[bytes, bytes]

SPARSE_MAP = b"GNU.sparse.map"
_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_XATTR = b"SCHILY.xattr."
_STRINGS = (b"path", b"linkpath", b"GNU.sparse.name")
_LENGTH_DIGITS = 8
_DIGITS = 20
_TIME = re.compile(rb"(-?)([0-9]{1,40})(?:\.([0-9]*))?")


def read_records(payload: bytes) -> Records:
    """The records of an extended header by key, the last of each key; raises Malformed.

    Repeated sparse offsets and lengths (GNU's version 0.0) come out joined as one map, as version 0.1 has it.
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
    """Override the fields of `header`. An empty value deletes a record, so the header's own field counts.

    Not so of an extended attribute, which may be empty: containerd sets it then.
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


def decimal(records: Records, key: bytes, default: int) -> int:
    """The number under `key`, or `default` if there is none; raises Malformed."""
    value = records.get(key)
    return number(value, key) if value else default


def number(digits: bytes, what: bytes) -> int:
    """An unsigned decimal number of at most 20 digits; raises Malformed naming `what`."""
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise Malformed(f"{what.decode()} {digits[:40]!r}, expected decimal digits")
    return int(digits)


def _record(payload: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Key and value of the record `<length> <key>=<value>\\n` at `at`, and where the next one starts."""
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
    """Seconds with a fraction; the sign holds for both, digits beyond nanoseconds are cut off."""
    match = _TIME.fullmatch(time)
    if not match:
        raise Malformed(f"PAX mtime {time[:40]!r}, expected seconds with an optional fraction")
    sign, seconds, fraction = match.groups(b"")
    value = int(seconds) * NANOSECONDS + int(fraction[:9].ljust(9, b"0"))
    return clamped(-value if sign else value)
