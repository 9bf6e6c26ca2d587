"""The C library, for system calls that Python does not wrap."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def last_error(subject: str | None = None) -> OSError:
    """Return the error of this thread's last failed call on LIBC. `subject` is the path of the call."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), subject) if subject is not None else OSError(code, os.strerror(code))
