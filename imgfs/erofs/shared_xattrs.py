"""Shared extended attributes: each pair of name and value is in the image once, and inodes refer to its position.

EROFS can also store attributes with their inode. imgfs does not use that: the attributes of images are either the same
on many files (labels) or few (capabilities), and a value of up to 65,535 bytes does not fit next to every inode. ACLs
are stored in the kernel's xattr format, version 2 (fs/erofs/xattr.c, erofs_get_acl).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

from imgfs.erofs.format import XATTR, XATTR_BODY, XATTR_PLACE
from imgfs.errors import Unsupported

COUNT_MAX = 255
VALUE_MAX = 65535

_NAMESPACES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}


class SharedXattrs:
    """The area of shared attributes. It grows with each inode that has new ones."""

    def __init__(self) -> None:
        self.area = bytearray()
        self._places: dict[tuple[bytes, bytes], int] = {}
        self._bodies: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}

    def body(self, xattrs: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the bytes that follow an inode with these attributes (at least one). Raises Unsupported."""
        key = tuple(xattrs)
        body = self._bodies.get(key)
        if body is None:
            if len(key) > COUNT_MAX:
                raise Unsupported(f"{len(key)} extended attributes, EROFS holds {COUNT_MAX}; use the FUSE view")
            places = [self._place(name, value) for name, value in key]
            body = self._bodies[key] = XATTR_BODY.pack(0, len(places)) + pack(f"<{len(places)}I", *places)
        return body

    def _place(self, name: bytes, value: bytes) -> int:
        place = self._places.get((name, value))
        if place is None:
            entry = _entry(name, value)
            place = self._places[name, value] = len(self.area) // XATTR_PLACE
            self.area += entry
            self.area += bytes(-len(entry) % XATTR_PLACE)
        return place


def words(body: bytes) -> int:
    """Return the length of `body` as an inode states it: 0 if empty, else words, of which the header counts as one."""
    return (len(body) - XATTR_BODY.size) // XATTR_PLACE + 1 if body else 0


def _entry(name: bytes, value: bytes) -> bytes:
    if len(value) > VALUE_MAX:
        size = f"{len(value)} bytes, EROFS holds {VALUE_MAX}"
        raise Unsupported(f"extended attribute {name!r} of {size}; use the FUSE view")
    namespace, rest = _split(name)
    return XATTR.pack(len(rest), namespace, len(value)) + rest + value


def _split(name: bytes) -> tuple[int, bytes]:
    if name in _WHOLE:
        return _WHOLE[name], b""
    for prefix, namespace in _NAMESPACES:
        if name.startswith(prefix) and prefix != name:
            return namespace, name[len(prefix) :]
    raise Unsupported(f"extended attribute {name!r} is in no namespace that EROFS knows; use the FUSE view")
