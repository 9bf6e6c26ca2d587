"""The C library, for system calls that Python does not offer."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def last_error(subject: str | None = None) -> OSError:
    """What went wrong in the call on LIBC that failed just now in this thread; `subject` is the path it was about."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), subject) if subject is not None else OSError(code, os.strerror(code))
