"""A process that frees a FUSE mount when its daemon is killed with a thread of its own waiting in it.

A daemon that mounts below its own tree walks the tree in a thread. If the daemon is killed meanwhile, that thread may
wait forever: for an answer that the other threads can no longer give, or for a directory that a waiting process holds.
While it waits, the connection stays open, the lock is held, and every process that waits for the daemon stays in D
state. So another process aborts the connection. Then every waiting call returns ENOTCONN, and the thread ends.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.kernel.libc import LIBC
from imgfs.kernel.mountapi import FilesystemContext
from imgfs.kernel.mounts import mount_at

_PR_SET_PDEATHSIG = 1
_GRACE = 0.1
"""Seconds in which a killed daemon ends, unless it waits for itself."""
_CONNECTIONS = Path("/sys/fs/fuse/connections")


@contextmanager
def guarded(mountpoint: str) -> Generator[None]:
    """Have the FUSE connection at `mountpoint` aborted if this process is killed inside and does not die of it.

    Call it in the main thread, before other threads exist: prctl(2) PR_SET_PDEATHSIG reports the death of the thread
    that forked. The guard process keeps no descriptor of the caller, takes no other signal, and ends with the block.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            _watch(parent, mountpoint, writing)
        finally:
            os._exit(0)
    os.close(writing)
    os.read(reading, 1)  # the guard watches from now on; before, nothing is mounted
    os.close(reading)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _watch(parent: int, mountpoint: str, ready: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.setsid()
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    os.write(ready, b"1")
    _close_all()
    watched = os.pidfd_open(parent)
    if os.getppid() == parent:
        signal.sigwait([signal.SIGUSR1])
    if not select.select([watched], [], [], _GRACE)[0]:
        abort(mountpoint)


def _close_all() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")


def abort(mountpoint: str) -> None:
    """Abort the FUSE connection that is mounted at `mountpoint`, if there is one; its mount stays, dead.

    It uses the control filesystem of FUSE. If that is not mounted, only root can abort.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.filesystem.startswith("fuse"):
        return
    control = Path(str(mount.device[1])) / "abort"
    try:
        (_CONNECTIONS / control).write_text("1")
    except OSError:
        _abort_through_own_mount(control)


def _abort_through_own_mount(control: Path) -> None:
    try:
        with (
            FilesystemContext("fusectl", "the control filesystem of FUSE") as context,
            context.create(0) as connections,
        ):
            Path(f"/proc/self/fd/{connections.fileno()}", control).write_text("1")
    except (ImgfsError, OSError):
        return  # there is no caller to report to; the next start reports which process holds the lock
