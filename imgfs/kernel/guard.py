"""A process that frees a FUSE mount when its daemon is killed with a thread of its own waiting in it.

A daemon that mounts below its own tree walks it. Killed meanwhile, that thread waits for ever for an answer of the
others, uninterruptibly, if somebody's call that nobody answers any more holds a directory on its way. As long as it waits
the daemon is no more than half dead: its connection stays open, and everybody who waits for it is in D state for good.
So somebody outside aborts the connection; then all are told ENOTCONN, and the thread ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from imgfs.kernel.mounts import mount_at

_PR_SET_PDEATHSIG = 1
_MNT_FORCE = 1
_UMOUNT_NOFOLLOW = 8
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def guarded(mountpoint: str) -> Generator[None]:
    """Have the FUSE connection at `mountpoint` aborted if the calling thread is killed inside. An orderly end is no kill.

    Call it in the main thread, before there are others: prctl(2) PR_SET_PDEATHSIG tells of the thread that forked. The
    process holds nothing of the caller's open and takes no other signal.
    """
    parent = os.getpid()
    child = os.fork()
    if not child:
        try:
            _wait_for_the_end_of(parent)
            abort(mountpoint)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _wait_for_the_end_of(parent: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() == parent:
        signal.sigwait([signal.SIGUSR1])


def abort(mountpoint: str) -> None:
    """Abort the FUSE connection that is mounted at `mountpoint`, if there is one; its mount stays, dead.

    By the control filesystem of FUSE; where that is not mounted, by umount2(2) with MNT_FORCE, which root may.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.filesystem.startswith("fuse"):
        return
    try:
        (_CONNECTIONS / str(mount.device[1]) / "abort").write_text("1")
    except OSError:
        _libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _UMOUNT_NOFOLLOW)
