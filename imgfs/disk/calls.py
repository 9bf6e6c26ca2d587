"""The system calls that change the state directory, so that a test can record, replay and fail them.

Owns the list of calls and the host's disk. The order of the calls is left to durable.py and to the callers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """The calls that change files and names. Every call blocks and raises OSError. A file is an open descriptor."""

    def create(self, path: Path) -> int:
        """Open a new, empty file for reading and writing; FileExistsError if the name is taken."""
        ...

    def open(self, path: Path) -> int:
        """Open an existing file for reading and writing, also one that was sealed."""
        ...

    def open_to_sync(self, path: Path) -> int:
        """Open an existing file, which stays sealed if it was, for `fsync` alone."""
        ...

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at `offset`; returns how many bytes were taken, which may be fewer."""
        ...

    def truncate(self, file: int, size: int) -> None:
        """Cut or extend a file to `size` bytes."""
        ...

    def seal(self, file: int) -> None:
        """Make a file read-only for all users."""
        ...

    def begin_to_write(self, file: int) -> None:
        """Start to write a file's bytes to disk without waiting, so that a later `fsync` has less to do.

        The kernel may drop written bytes from its page cache.
        """
        ...

    def fsync(self, file: int) -> None:
        """Force a file's bytes to disk; a failure is final."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or directory another name, replacing a file (or an empty directory) that has it."""
        ...

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name; FileExistsError if it is taken."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        ...

    def mkdir(self, path: Path) -> None:
        """Make a directory for this user alone; FileExistsError if the name is taken."""
        ...

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def fsync_directory(self, path: Path) -> None:
        """Force the names in a directory to disk; a failure is final."""
        ...


class HostDisk:
    """The disk of this host."""

    def create(self, path: Path) -> int:
        """See Disk."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """See Disk."""
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            os.chmod(path, 0o600)
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open_to_sync(self, path: Path) -> int:
        """See Disk."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """See Disk."""
        return os.pwrite(file, data, offset)

    def truncate(self, file: int, size: int) -> None:
        """See Disk."""
        os.ftruncate(file, size)

    def seal(self, file: int) -> None:
        """See Disk."""
        os.fchmod(file, 0o400)

    def begin_to_write(self, file: int) -> None:
        """See Disk. The kernel writes dirty pages before it drops them (mm/fadvise.c)."""
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def fsync(self, file: int) -> None:
        """See Disk."""
        os.fsync(file)

    def rename(self, old: Path, new: Path) -> None:
        """See Disk."""
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        """See Disk."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        """See Disk."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """See Disk."""
        os.mkdir(path, 0o700)

    def rmdir(self, path: Path) -> None:
        """See Disk."""
        os.rmdir(path)

    def fsync_directory(self, path: Path) -> None:
        """See Disk."""
        directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


HOST = HostDisk()


def write_all(disk: Disk, file: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError; then a part of the data may be written."""
    view = memoryview(data)
    while view:
        taken = disk.write(file, view, offset)
        view, offset = view[taken:], offset + taken
