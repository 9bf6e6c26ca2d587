"""File names: which names a user may choose, and the colon-free spelling of names that have a colon.

A colon separates paths in PATH, LD_LIBRARY_PATH, `mount -o lowerdir=` and `-v SRC:DST`. Every object whose name has a
colon can therefore also be looked up by a name without colons: `sha256-<hex>` for a digest, `%3A` for any other colon.
"""

from __future__ import annotations

import os
import re
import unicodedata

from imgfs.errors import Invalid

BYTES_MAX = 255
"""Longest file name on Linux filesystems, in bytes (NAME_MAX)."""

_HEX = r"(?:(?<=256.)[0-9a-f]{64}|(?<=512.)[0-9a-f]{128})(?![0-9a-f])"
_DIGEST = re.compile(rf"(?<![^/@])(sha256|sha512):({_HEX})")
_DASHED_DIGEST = re.compile(rf"(?<![^/@])(sha256|sha512)-({_HEX})")


def without_colons(path: str) -> str:
    """Return the colon-free spelling of a name or of a path of names: `sha256-<hex>` for digests, else `%3A`."""
    return _DIGEST.sub(r"\1-\2", path).replace(":", "%3A")


def with_colons(path: str) -> str:
    """Return the name or path that a colon-free spelling stands for. Other names are returned unchanged."""
    return _DASHED_DIGEST.sub(r"\1:\2", path.replace("%3A", ":").replace("%3a", ":"))


def is_dashed_digest(name: str) -> bool:
    """Return whether `name` is exactly the colon-free spelling of a digest."""
    return _DASHED_DIGEST.fullmatch(name) is not None


def check_file_name(name: str, what: str) -> None:
    """Check that `name` is a valid file name: 1 to 255 bytes, no slash, no control characters.

    Raises Invalid if it is not; the message calls the name a `what`.
    """
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise Invalid(f"{what} {name[:80]!r}: is no text that a file name can hold") from None
    if not 0 < size <= BYTES_MAX:
        raise Invalid(f"{what} {name[:80]!r}: has {size} bytes, expected 1 to {BYTES_MAX}")
    if "/" in name or name in (".", "..") or any(unicodedata.category(one) == "Cc" for one in name):
        raise Invalid(f"{what} {name!r}: expected one file name without control characters")
