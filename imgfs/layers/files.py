"""The directory of a stored layer with its files `tar` and `index`: sync, read the head, set aside, remove."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from imgfs.disk.calls import HOST
from imgfs.disk.durable import aside_name, fsync_path
from imgfs.layers.index import MAGIC, SIZE_BYTES, is_outdated, stated_size

TAR, INDEX = "tar", "index"


def sync_index(directory: Path) -> None:
    """Make the index and the names of both files durable. Raises OSError."""
    fsync_path(directory / INDEX)
    fsync_path(directory)


def recorded_size(directory: Path) -> int | None:
    """Return the size of the tar when it was stored. None if the index is damaged too; the index is then rebuilt."""
    return stated_size(_index_head(directory))


def has_outdated_index(directory: Path) -> bool:
    """Return whether another version of imgfs wrote the index."""
    return is_outdated(_index_head(directory))


def _index_head(directory: Path) -> bytes:
    """Return the first bytes of the index; fewer if the file is shorter."""
    if not (directory / INDEX).is_file():  # opening a FIFO would block for ever
        return b""
    try:
        with (directory / INDEX).open("rb") as file:
            return file.read(SIZE_BYTES + len(MAGIC))
    except OSError:
        return b""


def set_aside(directory: Path) -> None:
    """Rename a damaged layer, so that it is kept but not served. Does nothing on a read-only disk. Raises OSError."""
    try:
        HOST.rename(directory, aside_name(directory))
    except OSError as error:
        if error.errno != errno.EROFS:  # the caller does not serve the layer in either case
            raise


def remove(directory: Path) -> None:
    """Remove both files and the directory; missing ones are no error. Raises OSError."""
    for name in (TAR, INDEX):
        with suppress(FileNotFoundError):
            HOST.unlink(directory / name)
    if directory.exists():
        HOST.rmdir(directory)
