"""The files of a stored layer: `tar` and `index` in a directory of their own, what they tell, and how they go."""

from __future__ import annotations

import errno
from pathlib import Path

from imgfs.content.durable import aside_name, fsync_path
from imgfs.layers.index import MAGIC

TAR, INDEX = "tar", "index"
_SIZE_BYTES = 8
"""Before the index in its file: the size of the tar, so that a start sees a cut one at once."""


def pack(size: int, index: bytes) -> bytes:
    """The content of the index file, for a tar of `size` bytes."""
    return size.to_bytes(_SIZE_BYTES) + index


def unpack(content: bytes) -> tuple[int, bytes]:
    """The size of the tar and the index, of which nothing is proved yet."""
    return int.from_bytes(content[:_SIZE_BYTES]), content[_SIZE_BYTES:]


def keep_index(directory: Path, size: int, index: bytes) -> None:
    """Write the index of a tar of `size` bytes, durably, its name too. Raises OSError."""
    kept = directory / INDEX
    kept.write_bytes(pack(size, index))
    fsync_path(kept)
    fsync_path(directory)


def recorded_size(directory: Path) -> int | None:
    """The size that the tar had when it was stored; None where the index is not whole either (it is rebuilt)."""
    if not (directory / INDEX).is_file():  # nor a pipe, which would never be read
        return None
    try:
        with (directory / INDEX).open("rb") as file:
            size, magic = unpack(file.read(_SIZE_BYTES + len(MAGIC)))
    except OSError:
        return None
    return size if magic == MAGIC else None


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
