"""Making files and names survive a power cut: the one order in which everything below the state directory is written.

bytes, fsync(file), rename, fsync(directory). Temporary names carry one prefix, so what a crash left is swept by name.
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
"""How names end of what was set aside: it may be somebody's last copy, so it is never served and never removed."""


def temporary_name() -> str:
    """A fresh name that `sweep` recognises."""
    return f"{TEMPORARY}{os.urandom(16).hex()}"


def is_temporary_name(name: str) -> bool:
    """Whether `temporary_name` may have made it; where others have files too, the prefix alone does not tell."""
    return _NAME.fullmatch(name) is not None


def aside_name(path: Path) -> Path:
    """Where a damaged thing can be set aside: a name beside it that no earlier one has."""
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
    """Create `path` if it is missing and sweep it: for the start. False where its filesystem is read-only.

    Then what a crash left stays, and the directory may not be there. Raises OSError for anything else.
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
    """Rename what is already synced to its final name, durably. An existing file is replaced."""
    disk.rename(temporary, final)
    disk.fsync_directory(final.parent)


def write_file(path: Path, data: bytes | bytearray, disk: Disk = HOST) -> None:
    """Put `data` at `path` so that after any crash it is wholly there or as before."""
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
