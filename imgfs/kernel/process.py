"""Calls on processes that Python lacks: adopt orphans, die with another process, set the I/O priority."""

from __future__ import annotations

import fcntl
import os
import select
import signal

from imgfs.kernel.libc import LIBC, last_error

_PR_SET_CHILD_SUBREAPER = 36
_IOPRIO = {"x86_64": (251, 252), "aarch64": (30, 31), "ppc64le": (273, 274), "s390x": (282, 283)}
"""The numbers of ioprio_set(2) and ioprio_get(2), for which no libc has functions."""
_IOPRIO_WHO_PROCESS = 1


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends. Raises OSError."""
    if LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise last_error()


def die_with(life: int) -> None:
    """Have the kernel kill this process (SIGKILL) when the last writer of the pipe `life` has closed it.

    No byte may ever be written to the pipe: the kernel signals bytes in the same way as the end, possibly after they
    were read. So a socket that carries requests cannot serve. Raises OSError, and ConnectionError if there is no writer
    now.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    waiting = select.poll()
    waiting.register(life, select.POLLIN)
    if waiting.poll(0):
        raise ConnectionError("the other process has already exited")


def io_priority(pid: int = 0) -> int:
    """Return the I/O priority of a process (default: this one), as set_io_priority takes it. Raises OSError.

    Returns 0, the default, on an architecture whose system call number is not known.
    """
    calls = _IOPRIO.get(os.uname().machine)
    found = LIBC.syscall(calls[1], _IOPRIO_WHO_PROCESS, pid) if calls else 0
    if found < 0:
        raise last_error()
    return found


def set_io_priority(value: int) -> None:
    """Set the I/O priority of this process. Raises OSError."""
    calls = _IOPRIO.get(os.uname().machine)
    if calls and LIBC.syscall(calls[0], _IOPRIO_WHO_PROCESS, 0, value):
        raise last_error()
