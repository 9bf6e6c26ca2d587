"""Filters the extended attributes of a layer: which of them a view shows, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterable

from imgfs.errors import Malformed, TooLarge

NAME_LIMIT = 255
VALUE_LIMIT = 64 << 10
TOTAL_LIMIT = 1 << 20

_OBEYED = (b"trusted.", b"user.overlay.")
"""overlayfs obeys these attributes (redirect, metacopy, opaque).

A layer must not control overlayfs, so they are dropped.
"""

_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
"""The namespaces that Linux filesystems can store. Other systems write more of them; unpacking loses those as well."""

_CAPABILITY = b"security.capability"
_CAPABILITY_SIZES = {0x01000000: 12, 0x02000000: 20, 0x03000000: 24}
_EFFECTIVE = 1
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_ACL_VERSION = (2).to_bytes(4, "little")
_ACL_ENTRY = 8


def kept(found: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the attributes of `found` that a view may show, in order.

    Raises Malformed for a name, TooLarge for a size.
    """
    attributes = tuple(item for item in found if _is_kept(*item))
    total = sum(len(name) + len(value) for name, value in attributes)
    if total > TOTAL_LIMIT:
        raise TooLarge(f"extended attributes of {total} bytes, the limit is {TOTAL_LIMIT}")
    return attributes


def _is_kept(name: bytes, value: bytes) -> bool:
    if not 0 < len(name) <= NAME_LIMIT or b"\0" in name:
        raise Malformed(f"extended attribute {name[:NAME_LIMIT]!r}, expected a name of 1 to {NAME_LIMIT} bytes")
    if len(value) > VALUE_LIMIT:
        raise TooLarge(f"extended attribute {name!r} of {len(value)} bytes, the limit is {VALUE_LIMIT}")
    if name.startswith(_OBEYED) or not name.startswith(_NAMESPACES):
        return False
    if name == _CAPABILITY:
        return _is_capability(value)
    return name not in _ACLS or _is_acl(value)


def _is_capability(value: bytes) -> bool:
    """Apply the kernel's test (security/commoncap.c): revision and size agree, no flag but the effective bit is set."""
    magic = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
    return _CAPABILITY_SIZES.get(magic) == len(value)


def _is_acl(value: bytes) -> bool:
    """Return whether `value` is a version and whole entries, as in linux/posix_acl_xattr.h."""
    return value[:4] == _ACL_VERSION and len(value) % _ACL_ENTRY == len(_ACL_VERSION)
