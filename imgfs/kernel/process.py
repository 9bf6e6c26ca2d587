"""What Python does not offer of processes: adopting orphans (prctl(2)), and urgency on disks (ioprio_get(2))."""

from __future__ import annotations

import os

from imgfs.kernel.libc import LIBC, last_error

_PR_SET_CHILD_SUBREAPER = 36
_IOPRIO = {"x86_64": (251, 252), "aarch64": (30, 31), "ppc64le": (273, 274), "s390x": (282, 283)}
"""The numbers of ioprio_set(2) and ioprio_get(2), for which no libc has functions."""
_IOPRIO_WHO_PROCESS = 1


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends. Raises OSError."""
    if LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise last_error()


def io_priority(pid: int = 0) -> int:
    """Class and urgency of a process on disks, as set_io_priority takes it; of this one by default. Raises OSError.

    0, as of everybody, on a machine of which it is not known how to ask.
    """
    calls = _IOPRIO.get(os.uname().machine)
    found = LIBC.syscall(calls[1], _IOPRIO_WHO_PROCESS, pid) if calls else 0
    if found < 0:
        raise last_error()
    return found


def set_io_priority(value: int) -> None:
    """Set that of this process. Raises OSError."""
    calls = _IOPRIO.get(os.uname().machine)
    if calls and LIBC.syscall(calls[0], _IOPRIO_WHO_PROCESS, 0, value):
        raise last_error()
