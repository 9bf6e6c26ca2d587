"""What Python does not offer of processes: becoming the parent of orphans (prctl(2))."""

from __future__ import annotations

from imgfs.kernel.libc import LIBC, last_error

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends. Raises OSError."""
    if LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise last_error()
