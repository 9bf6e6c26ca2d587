"""Making files and names survive a power cut: the one order in which everything below the state directory is written.

bytes, fsync(file), rename, fsync(directory). Temporary names carry one prefix, so what a crash left is swept by name.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

TEMPORARY = ".tmp-"


def temporary_name() -> str:
    """A fresh name that `sweep` recognises."""
    return f"{TEMPORARY}{uuid.uuid4().hex}"


def fsync_path(path: Path) -> None:
    """Force a file's bytes or a directory's names to disk; a failure is final (OSError)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create `path` and its parents, each name durable in its parent; an existing directory is left alone."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        fsync_path(directory.parent)


def publish(temporary: Path, final: Path) -> None:
    """Rename what is already synced to its final name, durably. An existing file is replaced."""
    os.rename(temporary, final)
    fsync_path(final.parent)


def write_file(path: Path, data: bytes | bytearray) -> None:
    """Put `data` at `path` so that after any crash it is wholly there or as before."""
    temporary = path.parent / temporary_name()
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(directory: Path) -> None:
    """Remove what a killed process left in `directory` under temporary names."""
    for entry in os.scandir(directory):
        if entry.name.startswith(TEMPORARY):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
