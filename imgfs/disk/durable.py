"""Durable files and names: the one order of calls for everything that is written below the state directory.

The order is: bytes, fsync(file), rename, fsync(directory). All temporary names have one prefix, so the next start finds
and sweeps what a crash left.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from imgfs.disk.calls import HOST, Disk, write_all

TEMPORARY = ".tmp-"
_NAME = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{32}")
DAMAGED = ".damaged"
"""The suffix of names that were set aside. Such a file may be the last copy, so imgfs never serves or removes it."""


def temporary_name() -> str:
    """A fresh name that `sweep` recognises."""
    return f"{TEMPORARY}{os.urandom(16).hex()}"


def is_temporary_name(name: str) -> bool:
    """Whether `temporary_name` may have made the name. In a directory with foreign files the prefix is no proof."""
    return _NAME.fullmatch(name) is not None


def aside_name(path: Path) -> Path:
    """A free name beside `path`, to set a damaged file or directory aside."""
    number, name = 1, path.with_name(f"{path.name}{DAMAGED}")
    while os.path.lexists(name):
        number += 1
        name = path.with_name(f"{path.name}.{number}{DAMAGED}")
    return name


def fsync_path(path: Path) -> None:
    """Force a file's bytes or a directory's names to disk; a failure is final (OSError)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, disk: Disk = HOST) -> None:
    """Create `path` and its parents, each name durable in its parent; an existing directory is left alone."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):
            disk.mkdir(directory)
        disk.fsync_directory(directory.parent)


def open_directory(path: Path, disk: Disk = HOST) -> bool:
    """Create `path` if it is missing, and sweep it: for the start. Returns False if its filesystem is read-only.

    Then the leftovers of a crash stay, and the directory may be missing. Raises OSError for any other failure.
    """
    try:
        make_directory(path, disk)
        sweep(path)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return False
    return True


def publish(temporary: Path, final: Path, disk: Disk = HOST) -> None:
    """Durably rename a synced file to its final name. An existing file is replaced."""
    disk.rename(temporary, final)
    disk.fsync_directory(final.parent)


def write_file(path: Path, data: bytes | bytearray, disk: Disk = HOST) -> None:
    """Write `data` to `path`, durably and atomically: after a crash the file has the new or the old content."""
    temporary = path.parent / temporary_name()
    try:
        file = disk.create(temporary)
        try:
            write_all(disk, file, data, 0)
            disk.fsync(file)
        finally:
            os.close(file)
        publish(temporary, path, disk)
    except BaseException:
        with suppress(OSError):
            disk.unlink(temporary)
        raise


def sweep(directory: Path) -> None:
    """Remove what a killed process left in `directory` under temporary names."""
    for entry in os.scandir(directory):
        if entry.name.startswith(TEMPORARY):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
