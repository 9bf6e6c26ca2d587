"""The directories of unfinished writes: made, moved and removed; a crash in between leaves a whole one or none."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from imgfs.content.ingests.meta import Meta, write_first
from imgfs.disk.calls import Disk
from imgfs.disk.durable import temporary_name


def make(disk: Disk, path: Path, meta: Meta) -> None:
    """Make an empty ingest; a power cut may lose it as a whole. Raises OSError, and leaves nothing.

    A directory of that name is what a failed removal left: its ref is gone.
    """
    try:
        disk.mkdir(path)
    except FileExistsError:
        shutil.rmtree(path)
        disk.mkdir(path)
    try:
        os.close(disk.create(path / "data"))
        write_first(disk, path / "meta", meta)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise


def remove(disk: Disk, path: Path) -> None:
    """Take an ingest away at once and for good; raises OSError. What a crash leaves under a temporary name is swept."""
    temporary = path.with_name(temporary_name())
    disk.rename(path, temporary)
    disk.fsync_directory(path.parent)
    _empty(disk, temporary)


def drop(disk: Disk, path: Path) -> None:
    """Take an ingest away whose coming back after a power cut harms nobody. Raises OSError."""
    temporary = path.with_name(temporary_name())
    disk.rename(path, temporary)
    _empty(disk, temporary)


def remove_committed(disk: Disk, path: Path) -> None:
    """Remove what is left of an ingest whose data is a blob now. What stays is removed at the next start."""
    _empty(disk, path, ("meta",))


def move(disk: Disk, old: Path, new: Path) -> None:
    """Give an ingest's directory another name, not durably; what lies there is nobody's any more. Raises OSError."""
    if new.exists():
        remove(disk, new)
    disk.rename(old, new)


def _empty(disk: Disk, path: Path, names: tuple[str, ...] = ("data", "meta")) -> None:
    for name in names:
        with suppress(OSError):
            disk.unlink(path / name)
    with suppress(OSError):
        disk.rmdir(path)
