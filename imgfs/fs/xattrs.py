"""The format of facts in xattrs `user.imgfs.*`."""

from __future__ import annotations

import time

_ERROR = b"user.imgfs.error"


def as_error(message: str | None) -> dict[bytes, bytes]:
    """Return `user.imgfs.error` if there is an error, else nothing. Bytes that are not text become escapes."""
    return {_ERROR: message.encode(errors="backslashreplace")} if message else {}


def as_moment(nanoseconds: int) -> bytes:
    """Return a time (ns since the epoch) as RFC 3339 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9)).encode()
