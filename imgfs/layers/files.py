"""The files of a stored layer: `tar` and `index` in a directory of their own, what they tell, and how they go."""

from __future__ import annotations

import errno
from pathlib import Path

from imgfs.disk.durable import aside_name, fsync_path
from imgfs.layers.index import MAGIC, SIZE_BYTES, is_outdated, stated_size

TAR, INDEX = "tar", "index"


def sync_index(directory: Path) -> None:
    """Make the index, and the names of all files, survive a power cut. Raises OSError."""
    fsync_path(directory / INDEX)
    fsync_path(directory)


def recorded_size(directory: Path) -> int | None:
    """The size that the tar had when it was stored; None where the index is not whole either (it is rebuilt)."""
    return stated_size(_index_head(directory))


def has_outdated_index(directory: Path) -> bool:
    """Whether the index is one that another version of imgfs made."""
    return is_outdated(_index_head(directory))


def _index_head(directory: Path) -> bytes:
    """The first bytes of the index, as far as it has any."""
    if not (directory / INDEX).is_file():  # nor a pipe, which would never be read
        return b""
    try:
        with (directory / INDEX).open("rb") as file:
            return file.read(SIZE_BYTES + len(MAGIC))
    except OSError:
        return b""


def set_aside(directory: Path) -> None:
    """Keep what is damaged under another name, where the disk takes a change. Raises OSError."""
    try:
        directory.rename(aside_name(directory))
    except OSError as error:
        if error.errno != errno.EROFS:  # then it is left where it is, and not served either
            raise


def remove(directory: Path) -> None:
    """Remove the files and the directory, or what there is of them. Raises OSError."""
    for name in (TAR, INDEX):
        (directory / name).unlink(missing_ok=True)
    if directory.exists():
        directory.rmdir()
