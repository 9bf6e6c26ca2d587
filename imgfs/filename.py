"""Names that people choose for what is shown as a directory of its own."""

from __future__ import annotations

import os
import unicodedata

from imgfs.errors import Invalid

BYTES_MAX = 255
"""Of a name on Linux's filesystems (NAME_MAX)."""


def check_file_name(name: str, what: str) -> None:
    """Raise Invalid, about a `what`, unless a directory can be called so: 1 to 255 bytes, no control characters."""
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise Invalid(f"{what} {name[:80]!r}: is no text that a file name can hold") from None
    if not 0 < size <= BYTES_MAX:
        raise Invalid(f"{what} {name[:80]!r}: has {size} bytes, expected 1 to {BYTES_MAX}")
    if "/" in name or name in (".", "..") or any(unicodedata.category(one) == "Cc" for one in name):
        raise Invalid(f"{what} {name!r}: expected one file name without control characters")
