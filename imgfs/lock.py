"""The lock of a state directory: at most one process uses it at a time.

The kernel releases the flock however the holder ends. The lock file names the holder.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import Busy, from_os


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a state directory. `told` is the description that it wrote into the lock file."""

    told: str

    @property
    def mountpoint(self) -> str | None:
        """The mountpoint if the holder is a daemon; None for any other holder."""
        return self.told.partition(" at ")[2] or None


def holder(state: Path) -> Holder | None:
    """Return the current holder of `state`, or None.

    Reads /proc/locks instead of trying the lock, so that it never makes another process fail to get the lock.
    """
    path = state / "lock"
    try:
        status, locks = path.stat(), Path("/proc/locks").read_text()
        told = path.read_text(errors="replace").strip()
    except OSError:
        return None
    is_held = any(_is_ours(line.split(), status, told) for line in locks.splitlines())
    return Holder(told) if is_held else None


def _is_ours(words: list[str], status: os.stat_result, told: str) -> bool:
    """Return whether a line of /proc/locks (proc(5)) describes the lock on the file with `status`.

    The inode must match, and the device or the process ID. The device alone is not reliable: stat() on some filesystems
    returns another device number than /proc/locks shows.
    """
    if len(words) < 6 or words[1] != "FLOCK":
        return False
    pid, (device, _, inode) = words[4], words[5].rpartition(":")
    is_device = device == f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return inode == str(status.st_ino) and (is_device or told.split()[1:2] == [pid])


@contextmanager
def locked(state: Path, purpose: str) -> Generator[None]:
    """Hold the lock of `state` while the block runs. Other processes see `purpose` in their error message.

    On a read-only filesystem the lock is taken but the holder is not written into it; if there is no lock file, no lock
    is taken. Raises Busy, which names the holder, if another process holds the lock.
    """
    path, is_told = state / "lock", True
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise from_os(error, str(path)) from None
        file, is_told = _open_read_only(path), False
    if file is None:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 4096, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise Busy(f"{state}: is in use by {holder}; name another state directory with --state") from None
    try:
        if is_told:
            os.ftruncate(file, 0)  # not through Disk: a crash releases the lock, so the text need not be durable
            os.pwrite(file, f"pid {os.getpid()} {purpose}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _open_read_only(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os(error, str(path)) from None
