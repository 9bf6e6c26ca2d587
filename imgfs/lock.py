"""One process a state directory: a flock that goes with the process, however it ends, and tells who holds it."""

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
    """Who holds a state directory: the sentence that it left, and the mountpoint if that names one."""

    told: str

    @property
    def mountpoint(self) -> str | None:
        """Where a daemon shows it; None where something else holds it."""
        return self.told.partition(" at ")[2] or None


def holder(state: Path) -> Holder | None:
    """Who holds `state` now, without getting in the way of whoever wants it: the kernel's table of locks tells."""
    path = state / "lock"
    try:
        status, locks = path.stat(), Path("/proc/locks").read_text()
        told = path.read_text(errors="replace").strip()
    except OSError:
        return None
    is_held = any(_is_ours(line.split(), status, told) for line in locks.splitlines())
    return Holder(told) if is_held else None


def _is_ours(words: list[str], status: os.stat_result, told: str) -> bool:
    """Whether a line of /proc/locks (proc(5)) is the lock on that file.

    By inode, and device or process: some filesystems show files another device than they have.
    """
    if len(words) < 6 or words[1] != "FLOCK":
        return False
    pid, (device, _, inode) = words[4], words[5].rpartition(":")
    is_device = device == f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return inode == str(status.st_ino) and (is_device or told.split()[1:2] == [pid])


@contextmanager
def locked(state: Path, purpose: str) -> Generator[None]:
    """Hold `state` while the block runs; whoever comes meanwhile is told `purpose`. Raises Busy, naming the holder.

    On a read-only filesystem it is held too, but nobody is told by whom; where no lock file is, nothing is to be held.
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
            os.ftruncate(file, 0)  # not through Disk: after a crash nobody holds the lock
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
