"""xattrs `user.imgfs.*`: how facts that imgfs tells of a file are written."""

from __future__ import annotations

import time

_ERROR = b"user.imgfs.error"


def as_error(message: str | None) -> dict[bytes, bytes]:
    """`user.imgfs.error`, which is there only where something failed; what is no text is written as escapes."""
    return {_ERROR: message.encode(errors="backslashreplace")} if message else {}


def as_moment(nanoseconds: int) -> bytes:
    """A time (ns since the epoch) as xattrs tell it: RFC 3339, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9)).encode()
